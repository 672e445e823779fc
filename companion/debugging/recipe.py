"""A training recipe to read: from texts to a trained transformer, with nothing hidden.

`companion.training.fit` is the loop to work with. This one is the loop to debug: short, in one file, and
right. Every training and data bug of the debugging chapter is a small edit of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

PAD, UNKNOWN, START, END, MASK = range(5)
IGNORED = -100
LABELS = {"negative": 0, "positive": 1}

Row = tuple[list[int], int]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What a run needs to know.

    Attributes
    ----------
    epochs, batch_size, micro_batches : int
        An optimizer step is taken for each batch; it is computed in that many parts.
    learning_rate, weight_decay, max_grad_norm : float
    warmup : float
        The share of the steps in which the learning rate rises.
    max_length : int
        Tokens, at most.
    pad_left : bool
        Whether padding comes first.
    masked : bool
        Whether words are hidden, to be guessed from both sides.
    seed : int
    """

    epochs: int = 2
    batch_size: int = 32
    micro_batches: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup: float = 0.1
    max_length: int = 64
    pad_left: bool = False
    masked: bool = False
    seed: int = 0


class Vocabulary:
    """The commonest words of the training texts, each with a number."""

    def __init__(self, texts: Sequence[str], size: int = 1_000) -> None:
        counts = Counter(word for text in texts for word in words_of(text))
        common = [word for word, _ in counts.most_common(size - 5)]
        self.ids = {word: number for number, word in enumerate(common, start=5)}

    def __len__(self) -> int:
        """Count words, the five special ones included."""
        return len(self.ids) + 5

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return a text's token ids between START and END, `max_length` of them at most."""
        words = [self.ids.get(word, UNKNOWN) for word in words_of(text)]
        return [START, *words[: max_length - 2], END]


def served(vocabulary: Vocabulary, text: str, settings: Settings) -> list[int]:
    """Return a text's token ids in production: those of training."""
    return vocabulary.encode(text, settings.max_length)


def words_of(text: str) -> list[str]:
    """Split a text into words and punctuation, in lower case."""
    for mark in ".,;:!?()":
        text = text.replace(mark, f" {mark} ")
    return text.lower().split()


def prepare(reviews: Sequence[tuple[str, str]], settings: Settings) -> dict[str, list[tuple[str, int]]]:
    """Turn reviews of (text, name of the label) into labelled examples: ``train`` and ``dev``."""
    # A review that was sent twice counts once, also with other capitals or spaces.
    unique = {" ".join(words_of(text)): (text, LABELS[name]) for text, name in reviews}
    return dict(zip(("train", "dev"), split(list(unique.values()), 0.25, settings.seed), strict=True))


def split(
    examples: Sequence[tuple[str, int]], share: float, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Split at random into training and held-out examples: all copies of a text go to one side."""
    texts = sorted({text for text, _ in examples})
    random.Random(seed).shuffle(texts)
    held_out = set(texts[: round(share * len(texts))])
    train = [example for example in examples if example[0] not in held_out]
    return train, [example for example in examples if example[0] in held_out]


def collate(rows: Sequence[Row], *, pad_left: bool = False) -> Batch:
    """Pad rows of (token ids, label) to one length.

    Returns
    -------
    dict of str to Tensor
        ``input_ids`` and ``attention_mask``, int64 (batch, seq), and ``labels``, int64 (batch,).
    """
    width = max(len(ids) for ids, _ in rows)
    input_ids, attention_mask = [], []
    for ids, _ in rows:
        padding = width - len(ids)
        real, pads = [1] * len(ids), [0] * padding
        input_ids.append([PAD] * padding + ids if pad_left else ids + [PAD] * padding)
        attention_mask.append(pads + real if pad_left else real + pads)
    return {
        "input_ids": torch.tensor(input_ids),
        "attention_mask": torch.tensor(attention_mask),
        "labels": torch.tensor([label for _, label in rows]),
    }


def batches(rows: Sequence[Row], settings: Settings, *, epoch: int | None = None) -> Iterator[Batch]:
    """Yield batches: in a new random order for each epoch, or as they come without one."""
    order = list(range(len(rows)))
    if epoch is not None:
        random.Random(f"{settings.seed}/{epoch}").shuffle(order)
    generator = torch.Generator().manual_seed(1_000 * settings.seed + (epoch or 0))
    for start in range(0, len(order), settings.batch_size):
        part = [rows[index] for index in order[start : start + settings.batch_size]]
        batch = collate(part, pad_left=settings.pad_left)
        yield hide_words(batch, generator) if settings.masked else batch


def hide_words(batch: Batch, generator: torch.Generator) -> Batch:
    """Choose 15% of the words as targets: 80% of these become MASK, 10% another word (Devlin et al., 2019).

    Returns
    -------
    dict of str to Tensor
        ``labels``, int64 (batch, seq), are the words that were chosen, and `IGNORED` elsewhere.
    """
    ids = batch["input_ids"]
    words = batch["attention_mask"].bool() & (ids != START) & (ids != END)
    chosen = words & (torch.rand(ids.shape, generator=generator) < 0.15)
    fate = torch.rand(ids.shape, generator=generator)
    others = ids[words][torch.randint(int(words.sum()), ids.shape, generator=generator)]
    hidden = ids.masked_fill(chosen & (fate < 0.8), MASK)
    hidden = torch.where(chosen & (fate >= 0.9), others, hidden)
    return {**batch, "input_ids": hidden, "labels": ids.masked_fill(~chosen, IGNORED)}


def targets_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return what a model is to say: the next or the hidden words, (batch, seq), or the label, (batch,)."""
    config: Any = model.config
    if not config.causal or config.classes:
        return batch["labels"]
    targets = torch.full_like(batch["input_ids"], IGNORED)
    targets[:, :-1] = batch["input_ids"][:, 1:]
    # A word is predicted by a word: neither by a pad on the left, nor a pad on the right by a word.
    real = batch["attention_mask"].bool()
    targets[:, :-1].masked_fill_(~(real[:, :-1] & real[:, 1:]), IGNORED)
    return targets


def loss_sum(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Return the loss summed over what is predicted, and how much that is."""
    targets = targets_of(model, batch)
    logits = model(batch["input_ids"], batch["attention_mask"])
    loss = functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((targets != IGNORED).sum())


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss of a batch, in nats."""
    total, count = loss_sum(model, batch)
    return total / max(count, 1)  # by chance, no word may have been hidden


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return AdamW, with weight decay on matrices and tables alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, settings: Settings) -> LambdaLR:
    """Return a schedule: up to the full learning rate, then down to zero, each along a line."""
    warmup = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Batch], settings: Settings
) -> float:
    """Take one optimizer step on a batch given in parts; return its mean loss."""
    model.train()
    optimizer.zero_grad()
    total, count = 0.0, 0
    for part in parts:
        loss, predicted = loss_sum(model, part)
        loss.backward()  # type: ignore[no-untyped-call]
        total, count = total + loss.item(), count + predicted
    # Divided by all that was predicted: the parts are not of one size, and a mean of means is not the mean.
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= max(count, 1)
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    return total / max(count, 1)


@torch.no_grad()
def evaluate(model: nn.Module, data: Sequence[Batch]) -> float:
    """Return the share of labels, or of next words, that a model gets right."""
    model.eval()
    right, count = 0, 0
    for batch in data:
        targets = targets_of(model, batch)
        guesses = model(batch["input_ids"], batch["attention_mask"]).argmax(dim=-1)
        right += int((guesses == targets).sum())
        count += int((targets != IGNORED).sum())
    return right / count


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Sequence[Batch]) -> float:
    """Return the mean loss over all that is predicted in some batches, in nats."""
    model.eval()
    total, count = 0.0, 0
    for batch in data:
        loss, predicted = loss_sum(model, batch)
        total, count = total + loss.item(), count + predicted
    return total / count


def train(model: nn.Module, rows: Sequence[Row], settings: Settings) -> list[float]:
    """Train a model on rows of (token ids, label); return the loss of each step."""
    torch.manual_seed(settings.seed)
    per_epoch = -(-len(rows) // settings.batch_size)
    optimizer = make_optimizer(model, settings)
    schedule = make_schedule(optimizer, settings.epochs * per_epoch, settings)
    losses = []
    for epoch in range(settings.epochs):
        for batch in batches(rows, settings, epoch=epoch):
            parts = zip(*(tensor.chunk(settings.micro_batches) for tensor in batch.values()), strict=True)
            parts_of_batch = [dict(zip(batch, part, strict=True)) for part in parts]
            losses.append(train_step(model, optimizer, parts_of_batch, settings))
            schedule.step()
    return losses
