"""Texts, tokens, batches, serving: planted faults are found, right ways of doing it are left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from companion.data import Example
from companion.debugging import recipe
from companion.debugging.checks import serving, texts  # noqa: F401
from companion.debugging.checks.registry import CHECKS
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

Encode = Callable[[str], list[int]]


@lru_cache
def base() -> Subject:
    return reference_subject()


def said(name: str, subject: Subject) -> Finding:
    finding = CHECKS[name](subject)
    assert "raised" not in finding.summary, finding.summary
    return finding


def encoding(change: Callable[[Encode, str], list[int]], **other) -> Subject:
    """The reference with another `encode`."""
    right = base().encode
    assert right is not None
    return replace(base(), encode=lambda text: change(right, text), **other)


def with_texts(change: Callable[[str], str], every: int = 1) -> Subject:
    rows = [
        row._replace(text=change(row.text)) if i % every == 0 else row
        for i, row in enumerate(base().splits["train"])
    ]
    return replace(base(), splits={**base().splits, "train": rows})


def test_empty_texts() -> None:
    for nothing in ("", "  ", "nan", "None"):
        assert said("empty texts", with_texts(lambda _, nothing=nothing: nothing, every=20)).is_problem
    assert said("empty texts", base()).status == "ok"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda right, text: [token + 300 for token in right(text)], "the model's table has rows 0 to"),
        (lambda right, text: [token - 10 for token in right(text)], "ids from -9 to"),
        (lambda right, text: [], "give no token at all"),
    ],
)
def test_ids_out_of_range(change, message: str) -> None:
    finding = said("token ids", encoding(change))
    assert finding.is_problem and message in finding.summary


def test_encoding_that_changes() -> None:
    calls = iter(range(10**6))
    finding = said("token ids", encoding(lambda right, text: [*right(text), next(calls) % 7]))
    assert finding.is_problem and "differently the second time" in finding.summary


def test_truncation() -> None:
    finding = said("truncation", encoding(lambda right, text: right(text)[:8]))
    assert finding.is_problem and finding.evidence["share of words lost"] > 0.3
    assert said("truncation", base()).status == "ok"
    padded = encoding(lambda right, text: right(text) + [0] * (64 - len(right(text))))
    assert said("truncation", padded).status == "ok"


def test_texts_longer_than_the_model_takes() -> None:
    uncut = encoding(lambda right, text: right(text) * 3)
    finding = said("truncation", uncut)
    assert finding.is_problem and "longer than the 64 tokens" in finding.summary
    # Where batches are cut later, nothing is too long; but much may be lost.
    later = replace(uncut, collate=lambda rows: recipe.collate([(ids[:64], label) for ids, label in rows]))
    assert "longer than" not in said("truncation", later).summary


def test_unknown_tokens() -> None:
    few = recipe.Vocabulary(["the a of and to is was it"], size=20)
    strange = replace(base(), encode=partial(few.encode, max_length=64))
    assert said("unknown tokens", strange).is_problem

    def cased(right: Encode, text: str) -> list[int]:
        return [1 if word != word.lower() else (right(word) * 2)[1] for word in text.split()]

    assert said("unknown tokens", encoding(cased)).status == "ok"
    assert said("unknown tokens", encoding(cased, splits=with_texts(str.title).splits)).is_problem
    foreign = [
        Example(" ".join(f"q{word}" for word in row.text.split()), row.label) for row in base().splits["dev"]
    ]
    other = said("unknown tokens", replace(base(), splits={**base().splits, "dev": foreign}))
    assert other.is_problem and other.evidence["unknown share of train"] < 0.2
    # New words in the test split are what such a split is for.
    assert said("unknown tokens", replace(base(), splits={**base().splits, "test": foreign})).status == "ok"
    letters = encoding(lambda right, text: [2, *(3 + ord(letter) % 300 for letter in text)])
    assert said("unknown tokens", letters).status == "not applicable"


def test_different_texts_that_encode_alike() -> None:
    for change in (lambda right, text: right(text)[:2], lambda right, text: [2, 5, 6]):
        assert said("vocabulary collapse", encoding(change)).is_problem
    assert said("vocabulary collapse", base()).status == "ok"
    brief = {"train": [Example("good", 1), Example("bad", 0)] * 20}
    assert said("vocabulary collapse", replace(base(), splits=brief)).status == "not applicable"


@pytest.mark.parametrize(
    ("served", "likelihood"),
    [
        (lambda right, text: right(text)[1:], 0.8),
        (lambda right, text: right(text)[:10], 0.8),
        (lambda right, text: right(text.replace("é", "e")), 0.6),
        (lambda right, text: right(text.replace("<b>", "").replace("</b>", "")), 0.6),
    ],
)
def test_training_and_serving_differ(served, likelihood: float) -> None:
    right = base().encode
    assert right is not None
    finding = said("train and serve", replace(base(), encode_served=lambda text: served(right, text)))
    assert finding.is_problem and finding.likelihood == likelihood
    assert "token" in finding.where
    assert said("train and serve", replace(base(), encode_served=lambda text: right(text))).status == "ok"
    assert said("train and serve", replace(base(), encode_served=None)).status == "not applicable"


def batches(change) -> Subject:
    return replace(base(), batches=[change(dict(batch)) for batch in base().batches])


@pytest.mark.parametrize(
    "change",
    [
        torch.ones_like,
        lambda mask: 1 - mask,
        lambda mask: mask.flip(1),
        lambda mask: mask.roll(3, dims=0),
        lambda mask: mask * (torch.arange(mask.size(1)) % 5 > 0),
    ],
    ids=["all shown", "inverted", "other side", "of another row", "holes"],
)
def test_masks_that_do_not_fit(change) -> None:
    broken = batches(lambda batch: {**batch, "attention_mask": change(batch["attention_mask"])})
    assert said("padding mask", broken).is_problem


def test_masks_that_fit() -> None:
    left = [recipe.collate([([2, 5, 6], 0), ([2, 5, 6, 7, 8, 9], 1)], pad_left=True)] * 4
    assert said("padding mask", replace(base(), batches=left)).status == "ok"
    other = batches(lambda b: {**b, "input_ids": b["input_ids"].masked_fill(b["attention_mask"] == 0, 9)})
    assert said("padding mask", other).status == "ok"  # another token pads: the mask is right all the same
    without = batches(lambda batch: {"input_ids": batch["input_ids"]})
    assert said("padding mask", without).status == "not applicable"


def test_collation() -> None:
    def by_ids(rows):
        batch = recipe.collate(rows)
        return {**batch, "attention_mask": (batch["input_ids"] != 5).long()}

    def sorted_texts(rows):
        batch = recipe.collate(sorted(rows, key=lambda row: len(row[0])))
        return {**batch, "labels": torch.tensor([label for _, label in rows])}

    def all_shown(rows):
        batch = recipe.collate(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    for broken in (by_ids, all_shown):
        finding = said("collation", replace(base(), collate=broken))
        assert finding.is_problem and finding.component == "batching"
    swapped = said("collation", replace(base(), collate=sorted_texts))
    assert swapped.is_problem and swapped.component == "labels"
    for right in (
        partial(recipe.collate, pad_left=True),
        lambda rows: recipe.collate(sorted(rows, key=lambda row: len(row[0]))),
        lambda rows: {name: tensor for name, tensor in recipe.collate(rows).items() if name != "labels"},
    ):
        assert said("collation", replace(base(), collate=right)).status == "ok"
    maskless = replace(base(), collate=lambda rows: {"input_ids": recipe.collate(rows)["input_ids"]})
    assert said("collation", maskless).status == "not applicable"


def test_a_padding_token_that_is_also_a_word() -> None:
    def by_ids(rows):
        batch = recipe.collate(rows)
        return {**batch, "attention_mask": (batch["input_ids"] != 0).long()}

    subject = encoding(lambda right, text: [0 if token == 5 else token for token in right(text)])
    assert said("collation", subject).status == "ok"  # the mask is made from lengths
    assert said("collation", replace(subject, collate=by_ids)).is_problem


@pytest.mark.weights
def test_a_real_tokenizer() -> None:
    from companion.models import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())

    def encode(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=64)["input_ids"]

    subject = replace(base(), encode=encode, encode_served=encode, vocab_size=len(tokenizer), batches=[])
    assert texts.unknown_id(subject) == tokenizer.unk_token_id
    names = (
        "token ids",
        "truncation",
        "unknown tokens",
        "vocabulary collapse",
        "train and serve",
        "collation",
    )
    assert [said(name, subject).status for name in names] == ["ok"] * len(names)
    cased = replace(subject, encode_served=lambda text: encode(text.replace("a", "A")))
    assert said("train and serve", cased).status == "ok"  # this tokenizer lowers case itself
    assert said("token ids", replace(subject, vocab_size=20_000)).is_problem

    model = torch.nn.Linear(1, 1)
    for room, status in ((tokenizer.model_max_length, "ok"), (tokenizer.model_max_length - 1, "problem")):
        model.config = SimpleNamespace(max_position_embeddings=room)  # type: ignore[assignment]
        asked = replace(subject, encode=tokenizer.encode, make_model=lambda: model)
        assert said("tokenizer limit", asked).status == status
    assert said("tokenizer limit", base()).status == "not applicable"
