"""What a right ``train.py`` does, on the model and the rows of `stub`."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from companion.exercises.broken_transformer.behaviour import WORDS, behaviour
from companion.exercises.broken_transformer.stub import Stub, batch, rows

__all__: list[str] = []


def _contents(made: dict[str, Tensor]) -> list[Any]:
    """Return what the mask calls real, where it begins, and the labels."""
    ids, mask = made["input_ids"], made["attention_mask"]
    real = [
        [int(token) for token, one in zip(*row, strict=True) if one] for row in zip(ids, mask, strict=True)
    ]
    begins = [int(row.argmax()) - int(mask.argmax(1).min()) for row in mask]
    return [real, begins, made["labels"].tolist()]


@behaviour("batches of rows", "train.py", "a batch does not hold the rows that were given", 0.0)
def collated(module: Any, seed: int) -> Any:
    """Pad on both sides."""
    made = rows(seed)
    return [_contents(module.collate(made)), _contents(module.collate(made, pad_left=True))]


@behaviour(
    "batches of an epoch", "train.py", "an epoch does not give each row once, or not in a new order", 0.0
)
def epoch(module: Any, seed: int) -> Any:
    """Go through the rows twice, and once in order."""
    made = [([3 + number % 20, 3 + number // 20], number % 2) for number in range(50)]
    setup = module.Settings(batch_size=8, seed=seed % 1000)

    def read(number: int | None) -> list[Any]:
        parts = [_contents(part) for part in module.batches(made, setup, epoch=number)]
        return [(ids, label) for real, _, labels in parts for ids, label in zip(real, labels, strict=True)]

    first, second, again, plain = read(0), read(1), read(0), read(None)
    sizes = [len(part["labels"]) for part in module.batches(made, setup, epoch=0)]
    in_order = [[ids, label] for ids, label in plain]
    told = [first == again, first == second, first == plain]
    return [sorted([ids, label] for ids, label in first), in_order, sizes, list(map(float, told))]


@behaviour("token ids", "train.py", "texts do not become the token ids that they should", 0.0)
def token_ids(module: Any, seed: int) -> Any:
    """Read texts whose words are all differently frequent."""
    draw = random.Random(seed)
    words = ["Fine", "dull", "not", "film,", "very", "never", "plot."]
    draw.shuffle(words)
    corpus = [word for number, word in enumerate(words) for _ in range(3 * number + 2)]
    draw.shuffle(corpus)
    vocabulary = module.Vocabulary(
        [" ".join(corpus[start : start + 6]) for start in range(0, len(corpus), 6)], 8
    )
    read = ["fine film", "A dull plot, not very FINE.", "never(never) seen: " + "film " * 12]
    return [[vocabulary.encode(text, 12) for text in read], len(vocabulary)]


@behaviour("splits", "train.py", "the held-out texts are not apart from the others", 0.0)
def splits(module: Any, seed: int) -> Any:
    """Split texts of which some occur twice."""
    made = [(f"text {number % 60}", number % 2) for number in range(100)]
    train, held_out = module.split(made, 0.25, seed % 1000)
    again, _ = module.split(made, 0.25, seed % 1000)
    other, _ = module.split(made, 0.25, seed % 1000 + 1)
    apart = {text for text, _ in train} & {text for text, _ in held_out}
    count = len({text for text, _ in held_out})
    whole = sorted(train + held_out) == sorted(made)
    return [len(apart), count, float(whole), float(sorted(train) == sorted(again)), float(train == other)]


@behaviour("loss of labels", "train.py", "the loss of a classifier is not the mean over its texts")
def loss_of_labels(module: Any, seed: int) -> Any:
    """Take the loss of a batch."""
    return [module.mean_loss(Stub(2), batch(seed + step)).item() for step in range(3)]


@behaviour(
    "loss of next words",
    "train.py",
    "the loss of a language model is not the mean over the words it predicts",
)
def loss_of_words(module: Any, seed: int) -> Any:
    """Take the loss of batches padded on either side."""
    return [module.mean_loss(Stub(0), batch(seed, left=left)).item() for left in (False, True)]


@behaviour(
    "parameters that are trained",
    "train.py",
    "the optimizer leaves parameters out, or decays the wrong ones",
    0.0,
)
def covered(module: Any, seed: int) -> Any:
    """Ask the optimizer for each parameter."""
    model = Stub(2)
    optimizer = module.make_optimizer(model, module.Settings(learning_rate=0.01, weight_decay=0.125))
    told = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = [told.get(id(parameter)) for _, parameter in sorted(model.named_parameters())]
    return [[group["weight_decay"], group["lr"]] if group else [-1, -1] for group in groups]


@behaviour("a step", "train.py", "after a step the weights are not where the gradient of the mean loss leads")
def step(module: Any, seed: int) -> Any:
    """Take two steps in unequal parts, with clipping and without, by plain gradient descent."""
    found = []
    for most, classes in ((0.05, 2), (1e6, 2), (1e6, 0)):
        model = Stub(classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        setup = module.Settings(max_grad_norm=most)
        losses = []
        for number in range(2):
            whole = batch(seed + number, count=5)
            parts = [{name: tensor[:2] for name, tensor in whole.items()}]
            parts += [{name: tensor[2:] for name, tensor in whole.items()}]
            losses.append(float(module.train_step(model, optimizer, parts, setup)))
        found.append(
            [losses, [parameter.flatten().tolist() for _, parameter in sorted(model.named_parameters())]]
        )
    return found


@behaviour("the share of right answers", "train.py", "the evaluation does not count right answers")
def evaluated(module: Any, seed: int) -> Any:
    """Evaluate on batches of different sizes, a model that was in training mode."""
    found = []
    for classes in (2, 0):
        model = Stub(classes).train()
        parts = [batch(seed + number, count=count) for number, count in enumerate((9, 2, 5, 1))]
        found += [float(module.evaluate(model, parts)), float(model.trained)]
    return found


@behaviour("a run", "train.py", "a run does not see each row once in each epoch", 0.0)
def run(module: Any, seed: int) -> Any:
    """Train on a few rows, in parts, and count."""
    model = Stub(2)
    losses = module.train(model, rows(seed, 22), module.Settings(epochs=3, batch_size=8, micro_batches=2))
    return [len(losses), sum(size for size, _ in model.seen), float(model.drift.item() != 0)]


# First, half of the way up, half-way through, last: shares of the highest. Then the highest, and where it is.
_RATES = ((0.0, 0.6), (0.1, 1.01), (0.0, 0.4), (1e-4, 3e-3), (0.02, 0.4))


@behaviour(
    "learning rates of a run",
    "train.py",
    "with the settings as they are, the steps of a run are too large, too small, or change in an unusual way",
    within=_RATES,
)
def rates(module: Any, seed: int) -> Any:
    """Train a number whose gradient hardly changes: Adam moves it by the learning rate."""
    model = Stub(2)
    draw = random.Random(seed)
    made = [([draw.randrange(3, WORDS) for _ in range(4)], 1) for _ in range(32 * 30)]
    with torch.no_grad():
        for parameter in (model.head.weight, model.head.bias):
            parameter.zero_()
    for parameter in (model.head.weight, model.head.bias, model.tokens.weight):
        parameter.requires_grad_(False)
    setup = module.Settings()
    module.train(model, made, setup)
    places = [place for _, place in model.seen] + [model.drift.item()]
    moved = [abs(after - before) for before, after in pairwise(places)]
    highest = max(moved)
    where = moved.index(highest) / len(moved)
    return [moved[0] / highest, moved[len(moved) // 2] / highest, moved[-1] / highest, highest, where]
