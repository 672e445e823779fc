"""Models that take not just any text, or give one number for each; and the same models with a fault."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from companion.debugging import diagnose, subject_from

WORDS, END = 97, 3


def found(subject, *checks):
    """Return the statuses and problems of some checks by their names."""
    diagnosis = diagnose(subject, slow=False, only=checks)
    return {item.check: item.status for item in diagnosis.findings}, {
        it.check: it for it in diagnosis.problems
    }


def batches(words=60, shift=0):
    """Return padded texts that begin with 2 and end with 3, with labels."""
    made = []
    for seed in range(2):
        ids = torch.randint(5, words, (6, 12), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        ids[:, 0], ids[:, -1] = 2, END
        ids[0, 8], mask[0, 9:] = END, 0
        ids = ids.masked_fill(mask == 0, 1) + shift
        made.append({"input_ids": ids, "attention_mask": mask, "labels": torch.arange(6) % 2})
    return made


def bart():
    return transformers.BartForSequenceClassification(
        transformers.BartConfig(
            vocab_size=WORDS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            pad_token_id=1, bos_token_id=0, eos_token_id=END, decoder_start_token_id=END, num_labels=2,
        )
    )  # fmt: skip


NEEDS_AN_END = (
    "shapes",
    "batch independence",
    "padding content",
    "padding amount",
    "modes agree without dropout",
    "a row of padding is harmless",
    "residual path",
    "position information",
    "places are unlike",
    "initial loss",
)


@pytest.mark.parametrize("given", [{}, {"batches": batches()}], ids=["alone", "with a loader"])
def test_a_model_that_looks_for_the_end_of_a_text(given):
    subject = subject_from(bart, task="classification", **given)
    assert subject.texts
    assert (subject.ids(5, 9)[:, -1] == END).all() and (subject.ids(5, 9) == END).sum() == 5
    assert subject.ids(2, 1).shape == (2, 1) and subject.ids(1, 40).shape == (1, 40)
    if given:
        assert (subject.ids(5, 9)[:, 0] == 2).all()
    statuses, problems = found(subject, *NEEDS_AN_END)
    assert not problems and list(statuses.values()).count("ok") >= 9


class Bag(nn.Module):
    """Reads texts word by word; may have fewer words than it says, and may lose its batch of one."""

    def __init__(self, words: int = WORDS, outputs: int = 3, how: str = "") -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(vocab_size=WORDS, num_labels=outputs)
        self.words, self.places = nn.Embedding(words, 16), nn.Embedding(64, 16)
        self.mix, self.head, self.how = nn.Linear(16, 16), nn.Linear(16, outputs), how

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = (self.words(input_ids) + self.places(torch.arange(input_ids.size(1)))).tanh()
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        scores = self.head(self.mix((x * real[..., None]).sum(1) / real.sum(1, keepdim=True)).tanh())
        return (
            scores.squeeze(-1) if self.how == "flat" else scores.squeeze() if self.how == "lost" else scores
        )


def test_words_that_a_table_lacks_are_not_hidden_by_the_loader():
    subject = subject_from(partial(Bag, 70), task="classification", batches=batches())
    assert not subject.texts
    assert found(subject, "shapes")[1]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_one_number_for_each_text(task):
    subject = subject_from(partial(Bag, outputs=1, how="flat"), task=task, batches=batches())
    assert subject.scores(subject.model(), subject.ids(3), None).shape == (3, 1)
    checks = ("shapes", "batch independence", "padding amount", "order matters", "both sides are seen")
    assert found(subject, *checks)[0] == dict.fromkeys(checks, "ok")
    # A batch of one text must be one too.
    _, problems = found(subject_from(partial(Bag, outputs=1, how="lost"), task=task), "shapes")
    assert "the model returned ()" in problems["shapes"].summary


@pytest.mark.parametrize("how", ["flat", ""])
def test_a_loss_is_given_the_scores_as_the_model_returns_them(how):
    shapes = []

    def loss(scores, labels):
        shapes.append(tuple(scores.shape))
        return functional.mse_loss(scores.squeeze(-1), labels.float())

    batch = batches()[0]
    for criterion in (loss, nn.MSELoss(), None):
        subject = subject_from(
            partial(Bag, outputs=1, how=how), task="regression", batches=[batch], loss=criterion
        )
        scores = subject.scores(subject.model(), batch["input_ids"], batch["attention_mask"])
        expected = functional.mse_loss(scores.squeeze(-1), batch["labels"].float())
        assert torch.allclose(subject.loss(subject.model(), batch), expected)
    assert shapes == [(6,) if how else (6, 1)]


def test_one_score_stands_for_two_classes():
    subject = subject_from(partial(Bag, outputs=1), task="classification", batches=batches())
    scores = subject.scores(subject.model(), *list(batches()[0].values())[:2])
    expected = functional.binary_cross_entropy_with_logits(scores[:, 0], batches()[0]["labels"].float())
    assert torch.allclose(subject.loss(subject.model(), batches()[0]), expected)


class FirstRow(nn.Module):
    """Reads a text from a learned row in front of it."""

    def __init__(self, places: float = 1.0) -> None:
        super().__init__()
        self.first, self.words = nn.Parameter(torch.randn(1, 1, 32)), nn.Embedding(WORDS, 32)
        self.places, self.share, self.head = nn.Embedding(65, 32), places, nn.Linear(32, 3)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(input_ids), -1, -1), self.words(input_ids)], 1)
        x = x + self.share * self.places(torch.arange(x.size(1)))
        return self.head(self.layer(x)[:, 0])


def test_the_order_of_words_beside_a_learned_row():
    assert found(subject_from(FirstRow, task="classification", max_length=64), "order matters")[0] == {
        "order matters": "ok"
    }
    lost = subject_from(partial(FirstRow, 0.0), task="classification", max_length=64)
    assert found(lost, "order matters")[1]["order matters"].where == "the scores"


def xlnet():
    return transformers.XLNetForSequenceClassification(
        transformers.XLNetConfig(
            vocab_size=WORDS, d_model=32, n_layer=2, n_head=4, d_inner=64, pad_token_id=1, num_labels=2
        )
    )


def test_a_model_for_padding_on_the_left():
    checks = ("padding content", "padding amount")
    alone = found(subject_from(xlnet, task="classification"), *checks, "dropout acts in training")
    assert alone[0] == {**dict.fromkeys(checks, "not applicable"), "dropout acts in training": "ok"}
    # Where batches have their padding on the right, it reads that.
    assert found(subject_from(xlnet, task="classification", batches=batches()), *checks)[1].keys() == {
        *checks
    }


def test_texts_too_short_for_a_model_are_not_its_fault_unless_there_are_such():
    make = partial(
        transformers.FunnelForSequenceClassification,
        transformers.FunnelConfig(
            vocab_size=WORDS, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=64, num_labels=2
        ),
    )
    finding = diagnose(subject_from(make, task="classification"), only=["shapes"]).findings[0]
    assert finding.status == "ok" and "fewer than 3" in finding.summary
    short = [{name: value[:, :2] for name, value in batches()[0].items() if value.dim() > 1}]
    short[0] |= {"labels": batches()[0]["labels"], "attention_mask": torch.ones(6, 2).long()}
    assert found(subject_from(make, task="classification", batches=short), "shapes")[1]
