"""Near duplicates and label candidates, as functions for a notebook."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from companion.data import Example
from companion.data.sentiment import generate
from companion.debugging.label_errors import label_errors, noise_rate, out_of_fold
from companion.debugging.near_duplicates import near_duplicates, normalised, shingles, similarity

TEXTS = [row.text for row in generate(5, train_size=300, dev_size=2, test_size=2).train]


def by_hand(first: list[str], second: list[str], threshold: float) -> set[tuple[int, int]]:
    found = set()
    left, right = map(shingles, first), map(shingles, second)
    for (i, a), (j, b) in itertools.product(enumerate(left), enumerate(right)):
        long_enough = min(len(a), len(b)) >= 8
        if a == b or (long_enough and len(a & b) / len(a | b) >= threshold):
            found.add((i, j))
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_the_same_pairs_as_by_comparing_all(threshold: float) -> None:
    rng = random.Random(0)
    edited = []
    for text in TEXTS:
        words = text.split()
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            words[rng.randrange(len(words))] = "other"
        edited.append(" ".join(words))
    found = near_duplicates(TEXTS, edited, threshold=threshold)
    expected = by_hand(TEXTS, edited, threshold)
    pairs = {(pair.first, pair.second) for pair in found}
    assert pairs <= expected
    assert len(pairs) >= 0.97 * len(expected) > 50
    assert [pair.similarity for pair in found] == sorted((p.similarity for p in found), reverse=True)
    assert all(similarity(TEXTS[p.first], edited[p.second]) == pytest.approx(p.similarity) for p in found)


def test_within_one_list_each_pair_comes_once() -> None:
    found = near_duplicates([*TEXTS, *(f"Well, {text}" for text in TEXTS[:50])])
    pairs = {(pair.first, pair.second) for pair in found}
    assert len(pairs) == len(found) and all(first < second for first, second in pairs)
    long = [i for i in range(50) if len(normalised(TEXTS[i]).split()) >= 12]
    assert {(i, 300 + i) for i in long} <= pairs


def test_case_and_signs_do_not_count_and_short_texts_only_when_equal() -> None:
    assert normalised("  It's GREAT,\nreally!") == "it's great really"
    assert normalised(":-)") == ":-)"
    assert [
        (p.first, p.second) for p in near_duplicates(["Very good film!", ""], ["very good film", ""])
    ] == [(0, 0)]
    assert near_duplicates(["the very very good film"], ["the very very good book"], threshold=0.3) == []
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == []
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        near_duplicates(TEXTS, TEXTS, threshold=1.5)
    with pytest.raises(ValueError, match="words is 0"):
        near_duplicates(TEXTS, TEXTS, words=0)


def made(rows: int, noise: float, seed: int = 0) -> tuple[list[str], list[int], set[int]]:
    rng = random.Random(seed)
    texts, labels = [], []
    for i in range(rows):
        words = [
            f"{'good' if (rng.random() < 0.85) == bool(i % 2) else 'bad'}{rng.randrange(10)}"
            for _ in range(3)
        ]
        texts.append(" ".join(rng.sample(words + [f"w{rng.randrange(100)}" for _ in range(6)], 9)))
        labels.append(i % 2)
    wrong = set(rng.sample(range(rows), round(noise * rows)))
    return texts, [1 - label if i in wrong else label for i, label in enumerate(labels)], wrong


def test_candidates_hold_most_of_the_wrong_labels() -> None:
    texts, labels, wrong = made(1_000, 0.1)
    found = label_errors([Example(text, label) for text, label in zip(texts, labels, strict=True)])
    flagged = {candidate.index for candidate in found}
    assert len(flagged & wrong) / len(wrong) > 0.7
    assert len(flagged & wrong) / len(flagged) > 0.4
    assert all(candidate.given == labels[candidate.index] != candidate.suggested for candidate in found)
    chances = [candidate.given_probability for candidate in found]
    assert chances == sorted(chances)


def test_own_probabilities_are_used() -> None:
    probabilities = np.full((40, 2), 0.02)
    probabilities[np.arange(40), np.arange(40) % 2] = 0.98
    labels = [i % 2 for i in range(40)]
    labels[7] = 0
    found = label_errors(["same"] * 40, labels, probabilities=probabilities)
    assert [(c.index, c.given, c.suggested) for c in found] == [(7, 0, 1)]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_the_share_of_wrong_labels(noise: float) -> None:
    texts, labels, _ = made(2_000, noise)
    rate = noise_rate(labels, out_of_fold(texts, labels))
    assert rate.low <= noise <= rate.high
    assert abs(rate.rate - noise) < 0.05


def test_no_signal_means_no_bound() -> None:
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(50)}" for _ in range(9)) for _ in range(500)]
    labels = [i % 2 for i in range(500)]
    rate = noise_rate(labels, out_of_fold(texts, labels))
    assert rate.low == 0 and rate.high > 0.2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="numbered from 0 without a gap"):
        out_of_fold(["a", "b"] * 10, [0, 2] * 10)
    with pytest.raises(ValueError, match="19 labels for 20 examples"):
        label_errors(["a", "b"] * 10, [0] * 19)
    with pytest.raises(ValueError, match="example 1 has no label"):
        label_errors([Example("a", 0), Example("b")])
    with pytest.raises(ValueError, match="3 rows of probabilities for 4 examples"):
        label_errors(["a"] * 4, [0, 1, 0, 1], probabilities=np.full((3, 2), 0.5))
