"""What the data checks share: which rows they look at, and as what."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from companion.data import Example
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.subject import Subject

__all__ = ["class_count", "class_labels", "joined", "sampled", "train_and_held_out"]

Item = TypeVar("Item")


def sampled(items: Sequence[Item], limit: int, *, seed: int = 0) -> list[Item]:
    """Return at most `limit` items, drawn at random and the same for the same seed, in their order."""
    if len(items) <= limit:
        return list(items)
    chosen = random.Random(f"companion/debugging/samples/{seed}").sample(range(len(items)), limit)
    return [items[position] for position in sorted(chosen)]


def joined(example: Example) -> str:
    """Return an example's text; of a pair both texts."""
    return example.text if example.pair is None else f"{example.text} {example.pair}"


def class_count(subject: Subject) -> int:
    """Return how many classes a classifier tells apart: one score stands for two."""
    return max(subject.classes, 2)


def class_labels(subject: Subject, split: str = "train") -> tuple[list[Example], list[int]]:
    """Return the examples of a split that have a class, with it.

    Raises
    ------
    NotApplicable
        When labels are no classes here, or there is no such split.
    """
    if subject.kind != "classification":
        raise NotApplicable(f"a {subject.kind} has no classes")
    rows = subject.splits.get(split, ())
    if not rows:
        raise NotApplicable(f"there is no {split} split")
    kept = [row for row in rows if is_class(row.label)]
    labels = [int(row.label) for row in kept if row.label is not None]
    return kept, labels


def is_class(label: object) -> bool:
    """Whether a label can be read as the number of a class; a missing one and text cannot."""
    return isinstance(label, int | float) and float(label).is_integer()


def train_and_held_out(subject: Subject) -> tuple[Sequence[Example], list[tuple[str, Sequence[Example]]]]:
    """Return the training rows, and the other splits by name.

    Raises
    ------
    NotApplicable
        When there is nothing to compare.
    """
    train = subject.splits.get("train", ())
    others = [(name, rows) for name, rows in subject.splits.items() if name != "train" and rows]
    if not train or not others:
        raise NotApplicable(f"it compares train with another split, and there is {', '.join(subject.splits)}")
    return train, others
