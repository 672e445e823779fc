"""Which three bugs a learner gets: one of each family, each with a behaviour that it alone breaks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any, Literal, TypeAlias

from companion.debugging import recipe
from companion.debugging.zoo.bug import Bug, Edit
from companion.debugging.zoo.editing import edited, source_of
from companion.exercises.broken_transformer.behaviours import measure, names_of
from companion.exercises.broken_transformer.comparing import broken
from companion.exercises.broken_transformer.trained import combine, suits
from companion.models import transformer

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "FILES",
    "Planted",
    "Seed",
    "behaviours_of",
    "breaks",
    "candidates",
    "plant",
    "right_behaviours",
    "zoo",
]

Seed: TypeAlias = int | Literal["default"]
"""What a deal is named by: `DEFAULT` has a name of its own, each number draws another three bugs."""

FAMILIES = ("architecture", "training", "data")
FILES = {"transformer": "model.py", "recipe": "train.py"}
_SEED = 20_11
# What shows in the learner's own run, which classifies: the rest of the file is not what they look at.
_ELSEWHERE = ("decoder", "cache", "pairs", "next words")

# The source's rate without warm-up, 1e-3, is twenty times what it trains with afterwards: it fine-tunes a
# large model. For this small one, trained from nothing, 1e-3 is right: the same factor leads to 2e-2.
DEFAULT: tuple[Bug, Bug, Bug] = (
    Bug(
        name="exercise-attention-without-dropout",
        title="The attention weights are not dropped in training",
        family="architecture",
        component="dropout",
        edits=(
            Edit(
                "transformer",
                "weights = self.dropout(self.softmax(scores))",
                "weights = self.softmax(scores)",
            ),
        ),
        kind="classification",
        symptom="the training loss falls a little faster, the held-out accuracy does not follow",
        why="Attention can lean on single tokens: nothing ever takes one away.",
        fix="Apply self.dropout to the attention weights, after the softmax: "
        "weights = self.dropout(self.softmax(scores)).",
        hint="Four places of a transformer are random in training: after the embeddings, on the attention "
        "weights, and at the end of both parts of a block. Make all weights nothing but one, and see "
        "what is random.",
    ),
    Bug(
        name="exercise-rate-too-high",
        title="The learning rate is too high, and nothing warms up",
        family="training",
        component="schedule",
        edits=(
            Edit("recipe", "learning_rate: float = 1e-3", "learning_rate: float = 2e-2"),
            Edit("recipe", "warmup: float = 0.1", "warmup: float = 0.0"),
            Edit(
                "recipe",
                "warmup = max(1, round(settings.warmup * steps))",
                "warmup = round(settings.warmup * steps)",
            ),
        ),
        kind="classification",
        symptom="the loss falls late, and how far depends on the seed",
        why="Adam's first steps are as large as the learning rate, whatever the gradient: the weights are "
        "thrown "
        "far from where they were drawn.",
        fix="A learning rate of about 1e-3 for a model of this size, and a warm-up over the first tenth of "
        "the "
        "steps: learning_rate: float = 1e-3, warmup: float = 0.1, and at least one step of warm-up.",
        hint="Print the learning rate of each step of a run. Where is the highest, how high is it, and what "
        "are "
        "Adam's estimates worth at that moment?",
        silent=False,
    ),
    Bug(
        name="exercise-padding-not-masked",
        title="Padding is marked as real tokens",
        family="data",
        component="batching",
        edits=(
            Edit(
                "recipe",
                "real, pads = [1] * len(ids), [0] * padding",
                "real, pads = [1] * len(ids), [1] * padding",
            ),
        ),
        kind="classification",
        symptom="a text's scores depend on how long the other texts of its batch are",
        why="The model attends to padding as if it were words.",
        fix="The attention mask is 0 at padding: real, pads = [1] * len(ids), [0] * padding.",
        hint="Put one text into two batches, alone and with a long one. Compare its row in every "
        "tensor of both.",
    ),
)
"""Attention without dropout, a learning rate twenty times too high without warm-up, padding not masked."""


@dataclass(frozen=True)
class Planted:
    """Three bugs, and which behaviours each breaks.

    Attributes
    ----------
    bugs : tuple of Bug
        In the order of `FAMILIES`.
    marks : tuple of frozenset of str
        For each bug the behaviours that it alone breaks: when they are right, it is gone.
    model, train : str
        The sources with all three in them.
    seed : int or "default"
        What they were drawn by.
    """

    bugs: tuple[Bug, ...]
    marks: tuple[frozenset[str], ...]
    model: str
    train: str
    seed: Seed

    def of(self, family: str) -> tuple[Bug, frozenset[str]]:
        """Return the bug of a family, and its marks."""
        place = FAMILIES.index(family)
        return self.bugs[place], self.marks[place]


def zoo() -> tuple[Bug, ...]:
    """Return the bugs of the zoo."""
    bugs: tuple[Bug, ...] = getattr(import_module("companion.debugging.zoo"), "BUGS", ())
    return bugs


def plant(seed: Seed = "default", pool: Sequence[Bug] | None = None) -> Planted:
    """Choose three bugs that can be told apart by behaviour; of the zoo, those that `suits` lets through.

    Parameters
    ----------
    seed : int or "default"
        A number draws them from the pool; ``"default"`` names `DEFAULT`.
    pool : sequence of Bug, optional
        Instead of the zoo.

    Raises
    ------
    ValueError
        When the seed is neither, or the pool holds no such three.
    """
    if seed == "default":
        return _planted(DEFAULT, seed)
    if type(seed) is not int:
        raise ValueError(f'the seed is {seed!r}, expected a whole number or "default"')
    families = [[bug for bug in family if pool is not None or suits(bug)] for family in candidates(pool)]
    choices = list(product(*families))
    random.Random(f"broken transformer/{seed}").shuffle(choices)
    for choice in choices:
        if pool is None and not combine(choice):
            continue
        if sum(bug.silent for bug in choice) >= 2 and all(map(_shows, choice)):
            try:
                return _planted(choice, seed)
            except ValueError:  # two edit the same lines, or one hides another
                continue
    raise ValueError(
        f"{sum(map(len, families))} bugs hold no architecture, training and data bug that can be combined: "
        "give a larger pool"
    )


def candidates(pool: Sequence[Bug] | None = None) -> list[list[Bug]]:
    """Return for each of `FAMILIES` the bugs that lie in its file alone: the zoo's, or those of a pool."""
    places = {"architecture": "transformer", "training": "recipe", "data": "recipe"}
    bugs = zoo() if pool is None else tuple(pool)
    return [
        [bug for bug in bugs if bug.family == family and {e.file for e in bug.edits} == {places[family]}]
        for family in FAMILIES
    ]


def breaks(bug: Bug) -> frozenset[str]:
    """Return the behaviours that a bug breaks."""
    return _breaks(bug.name, bug.edits)


@lru_cache(maxsize=256)
def _breaks(name: str, edits: tuple[Edit, ...]) -> frozenset[str]:
    bug = Bug(name, name, "data", "batching", edits, "classification", "", "", "", "")
    modules = dict(zip(FILES.values(), edited(bug), strict=True))
    changed: frozenset[str] = frozenset()
    for file in {FILES[edit.file] for edit in edits}:
        changed |= broken(right_behaviours(file, _SEED), behaviours_of(file, modules[file], _SEED))
    return changed


def behaviours_of(file: str, module: ModuleType, seed: int) -> dict[str, Any]:
    """Return all behaviours of ``model.py`` or ``train.py``, run here and now."""
    return {name: measure(name, module, seed) for name in names_of(file)}


@lru_cache(maxsize=16)
def right_behaviours(file: str, seed: int) -> dict[str, Any]:
    """Return what right code does."""
    return behaviours_of(file, transformer if file == "model.py" else recipe, seed)


def _shows(bug: Bug) -> bool:
    return any(not any(word in name for word in _ELSEWHERE) for name in breaks(bug))


def _planted(bugs: Sequence[Bug], seed: Seed) -> Planted:
    sets = [breaks(bug) for bug in bugs]
    marks = tuple(
        own.difference(*(other for other in sets if other is not own)) if own else own for own in sets
    )
    if not all(marks):
        missing = ", ".join(bug.name for bug, own in zip(bugs, marks, strict=True) if not own)
        raise ValueError(f"no behaviour is broken by {missing} alone: choose other bugs to go with it")
    return Planted(tuple(bugs), marks, source_of(bugs, "transformer"), source_of(bugs, "recipe"), seed)
