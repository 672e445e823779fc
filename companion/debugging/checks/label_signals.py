"""Do texts and labels belong together: swapped, leaked, or in an order that should not be?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.data import Example
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import class_labels, joined, sampled
from companion.debugging.finding import Finding
from companion.debugging.label_errors import linear_classifier, out_of_fold, word_features
from companion.debugging.near_duplicates import normalised
from companion.debugging.subject import Subject

__all__ = ["batch_labels", "label_in_the_text", "label_order", "swapped_labels"]

ROWS = 4_000
_SIGMAS = 4.0
_CALLS = "?!\uff1f\uff01"
_ENDS = _CALLS + ".\u2026\u3002"
"""Signs that end a sentence, also those of Chinese and Japanese."""
Table = NDArray[Any]


@check(family="data", component="labels", needs=("splits",), slow=True, likelihood=0.9)
def swapped_labels(subject: Subject) -> Finding:
    """Do the numbers of the classes mean the same in every split?"""
    train = _rows(subject, "train")
    others = {name: _rows(subject, name) for name in subject.splits if name != "train"}
    others = {name: rows for name, rows in others.items() if len(rows) >= 20}
    classes = sorted({label for _, label in train})
    if len(classes) < 2 or not others or min(Counter(label for _, label in train).values()) < 5:
        raise NotApplicable("it needs two classes with 5 examples each in train, and 20 rows elsewhere")
    texts, labels = [text for text, _ in train], [classes.index(label) for _, label in train]
    at_home = _table(labels, out_of_fold(texts, labels).argmax(axis=1), len(classes))
    if _exchange(at_home)[1] > -_SIGMAS:
        raise NotApplicable(
            f"a linear model of words learns too little from {len(train)} texts to tell the classes apart"
        )
    evidence, worst = {"examples": float(len(train))}, ("", -np.inf)
    for name, rows in others.items():
        rows = [row for row in rows if row[1] in classes]
        features, of_rows = word_features(texts, [text for text, _ in rows])
        guesses = linear_classifier(len(classes)).fit(features, labels).predict(of_rows)
        table = _table([classes.index(label) for _, label in rows], guesses, len(classes))
        order, sigmas = _exchange(table)
        # It must add half of what it takes away in train: new words alone can push below chance.
        sigmas = sigmas if _added(table, order) >= -_added(at_home, order) / 2 else min(sigmas, 0.0)
        evidence |= {f"accuracy on {name}": float(np.trace(table) / table.sum())}
        evidence |= {f"sigmas for an exchange in {name}": sigmas}
        worst = max(worst, (name, sigmas), key=lambda pair: pair[1])
    name, sigmas = worst
    if sigmas >= _SIGMAS:
        return swapped_labels.problem(
            f"a linear model trained on train is right about {evidence[f'accuracy on {name}']:.0%} of "
            f"{name}, and about more ({sigmas:.0f} sigma) once classes are exchanged",
            evidence,
            where=f"labels of {name}",
            why="A good model then scores below chance, and the score gets worse the better it learns.",
            fix="Let one table map names to numbers for all splits, and for the checkpoint's id2label.",
        )
    return swapped_labels.ok("the classes mean the same in all splits", evidence)


def _rows(subject: Subject, split: str) -> list[tuple[str, int]]:
    rows, labels = class_labels(subject, split) if subject.splits.get(split) else ([], [])
    return sampled([(joined(row), label) for row, label in zip(rows, labels, strict=True)], ROWS)


def _table(given: Sequence[int], guessed: Sequence[int], classes: int) -> Table:
    """Return (classes, classes): how often each guess was made for each label."""
    table = np.zeros((classes, classes))
    np.add.at(table, (np.asarray(guessed), np.asarray(given)), 1)
    return table


def _added(table: Table, order: Table) -> float:
    """Return what an exchange of classes adds to the accuracy."""
    return float((table[np.arange(len(table)), order].sum() - np.trace(table)) / table.sum())


def _exchange(table: Table) -> tuple[Table, float]:
    """Return the best exchange of classes, and by how many sigma it beats leaving them as they are.

    McNemar's test: what only the exchange gets right against what only the given order gets right.
    """
    from scipy.optimize import linear_sum_assignment

    best: tuple[Table, float] = (np.arange(len(table)), -np.inf)
    for fixed in range(len(table)):
        blocked = table.copy()
        blocked[fixed, fixed] = -1e9  # this class has to move: the given order is what it is compared with
        rows, order = linear_sum_assignment(-blocked)
        gained, lost = table[rows, order][rows != order].sum(), np.diag(table)[rows != order].sum()
        sigmas = float((gained - lost) / np.sqrt(max(gained + lost, 1.0)))
        best = max(best, (order, sigmas), key=lambda found: found[1])
    return best


@check(family="data", component="labels", needs=("splits",), likelihood=0.6)
def label_in_the_text(subject: Subject) -> Finding:
    """Does a single mark in the text give the label away?"""
    rows, labels = class_labels(subject)
    pairs = sampled(list(zip(rows, labels, strict=True)), ROWS)
    sizes = Counter(label for _, label in pairs)
    if len(sizes) < 2 or min(sizes.values()) < 20:
        raise NotApplicable("it needs two classes with 20 examples each in train")
    present: dict[str, Counter[int]] = {}
    for row, label in pairs:
        for mark in _marks(row):
            present.setdefault(mark, Counter())[label] += 1
    found = [_Sign.of(mark, label, counts, sizes) for mark, counts in present.items() for label in counts]
    best = max(found)
    leak = max((sign for sign in found if not _is_said(sign, present, sizes)), default=best)
    evidence = {
        "present in its class": best.inside,
        "present elsewhere": best.outside,
        "examples": float(len(pairs)),
    }
    if leak.tells and not _is_said(leak, present, sizes):
        return label_in_the_text.problem(
            str(leak),
            {**evidence, "present in its class": leak.inside, "present elsewhere": leak.outside},
            where=f"train, {leak.mark}",
            why="The model learns the mark and nothing else; without it, in production, it guesses.",
            fix="Cut it out of the text before training, if it comes from how the file was made.",
        )
    if best.tells:
        return label_in_the_text.ok(f"{best}: so people end sentences, and a rule would find them", evidence)
    return label_in_the_text.ok(f"no mark gives a class away; at best, {best}", evidence)


@dataclass(frozen=True, order=True)
class _Sign:
    """A mark of texts, and a class that it may give away.

    `inside` and `outside` are the shares of the class and of all other texts that have it; `foreign` is the
    share of other classes among the texts with the mark.
    """

    informedness: float
    mark: str
    label: int
    inside: float
    outside: float
    foreign: float

    @classmethod
    def of(cls, mark: str, label: int, counts: Counter[int], sizes: Counter[int]) -> _Sign:
        others, hits = sum(counts.values()) - counts[label], counts[label]
        inside, outside = hits / sizes[label], others / (sum(sizes.values()) - sizes[label])
        return cls(inside - outside, mark, label, inside, outside, others / (hits + others))

    @property
    def tells(self) -> bool:
        return self.informedness >= 0.6 and self.foreign <= 0.02

    def __str__(self) -> str:
        return (
            f"{self.mark} is in {self.inside:.0%} of the texts of class {self.label} and in "
            f"{self.outside:.1%} of the others"
        )


def _is_said(sign: _Sign, present: Mapping[str, Counter[int]], sizes: Counter[int]) -> bool:
    """Whether a mark is how a sentence ends, which belongs to what it says.

    A question or a call is one by its mark. A full stop says something where the other texts end otherwise;
    where they have no end at all, it tells how the file was made.
    """
    if sign.mark not in {f"the {where} {end!r}" for where in ("piece", "last sign") for end in _ENDS}:
        return False
    if any(f"{end!r}" in sign.mark for end in _CALLS):
        return True
    ended = sum(
        sum(counts.values()) - counts[sign.label]
        for end in _ENDS
        if (counts := present.get(f"the last sign {end!r}"))
    )
    return ended >= 0.9 * (sum(sizes.values()) - sizes[sign.label])


def _marks(row: Example) -> set[str]:
    """Return what one text shows: words, raw pieces, and how it looks from outside."""
    text = joined(row)
    marks = {f"the word {word!r}" for word in normalised(text).split()}
    marks |= {f"the piece {piece!r}" for piece in text.split() if not piece.isalnum()}
    marks |= {"space at the start"} if text[:1].isspace() else set()
    marks |= {"space at the end"} if text[-1:].isspace() else set()
    marks |= {"nothing but capitals"} if text.isupper() else {"no capital"} if text.islower() else set()
    return marks | ({f"the last sign {text.strip()[-1]!r}"} if text.strip() else {"no text"})


@check(family="data", component="batching", needs=("splits",), likelihood=0.7)
def label_order(subject: Subject) -> Finding:
    """Do the batches follow the order of the labels in the file?"""
    _, labels = class_labels(subject)
    if len(labels) < 20 or len(set(labels)) < 2:
        raise NotApplicable("it needs 20 labels of two classes in train")
    in_file = _mixing(labels)
    evidence = {"changes against chance, in the file": in_file}
    batched = [label for label in _batch_labels(subject) if len(label)]
    if sum(map(len, batched)) < 20:
        if in_file > 0.5:
            return label_order.ok("the file's labels are mixed", evidence)
        raise NotApplicable(
            "the file is sorted by label, and whether the loop shuffles it cannot be seen: give batches"
        )
    seen = [int(label) for label in chain.from_iterable(batched)]
    if len(set(seen)) == 1:
        share = labels.count(seen[0]) / len(labels)
        chance, mixed = share ** len(seen), 0.0
    else:
        mixed = _mixing(seen)
        chance = 0.0 if mixed < 0.5 else 1.0
    evidence |= {"changes against chance, in the batches": mixed, "examples": float(len(seen))}
    if mixed <= 0.3 and chance < 1e-6:
        return label_order.problem(
            f"in {len(seen)} rows of the batches the label changes {mixed:.0%} as often as in a random order",
            evidence,
            where="batches",
            why="Each step teaches one class and unteaches the other; the last class of the epoch wins.",
            fix="Shuffle the rows in every epoch: `DataLoader(..., shuffle=True)`.",
        )
    return label_order.ok("the labels in the batches are mixed", evidence)


def _mixing(labels: Sequence[int]) -> float:
    """Return how often neighbours differ against how often they would in a random order [1]_.

    References
    ----------
    .. [1] Wald and Wolfowitz, "On a test whether two samples are from the same population", 1940.
    """
    counts = Counter(labels)
    n = len(labels)
    expected = (n - 1) * (1 - sum(c * (c - 1) for c in counts.values()) / (n * (n - 1)))
    changes = sum(a != b for a, b in pairwise(labels))
    return changes / expected if expected else 1.0


def _batch_labels(subject: Subject) -> list[list[int]]:
    found = []
    for batch in islice(iter(subject.batches), 64):
        labels = batch.get("labels")
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            found.append([int(label) for label in labels])
    return found


@check(family="data", component="labels", needs=("splits", "batches", "encode"), likelihood=0.9)
def batch_labels(subject: Subject) -> Finding:
    """Does every row of a batch carry the label of its own text?"""
    if subject.encode is None or subject.kind not in ("classification", "regression"):
        raise NotApplicable(f"a {subject.kind} reads no labels")
    by_ids: dict[tuple[int, ...], set[float]] = {}
    for row in islice(chain.from_iterable(subject.splits.values()), 20_000):
        if row.pair is None and isinstance(row.label, int | float):
            by_ids.setdefault(tuple(subject.encode(row.text)), set()).add(float(row.label))
    traced = wrong = 0
    first = ""
    for number, batch in enumerate(islice(iter(subject.batches), 64)):
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if labels is None or mask is None or labels.dim() != 1:
            continue
        for place, (ids, real, label) in enumerate(zip(batch["input_ids"], mask, labels, strict=True)):
            expected = by_ids.get(tuple(ids[real.bool()].tolist()))
            if expected is not None and len(expected) == 1:
                traced += 1
                if abs(float(label) - next(iter(expected))) > 1e-4:
                    wrong, first = wrong + 1, first or f"batch {number}, row {place}"
    if traced < 8:
        raise NotApplicable(f"{traced} rows of the batches could be traced to a text of the splits")
    evidence = {"rows traced": float(traced), "with another label": float(wrong)}
    if wrong > 0.02 * traced:
        return batch_labels.problem(
            f"{wrong} of {traced} rows of the batches carry another label than their text has in the splits",
            evidence,
            where=first,
            why="The model is trained on labels that nobody gave.",
            fix="Sort, shuffle and filter texts and labels together, and map label names in one place.",
        )
    return batch_labels.ok(f"{traced} rows traced, each with its text's label", evidence)
