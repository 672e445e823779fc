"""Trials for a certificate: questions put to a cache whose right answers are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from companion.deployment.answering import Answer
from companion.deployment.caching.agreement import Same, same_answer
from companion.deployment.caching.certificate import TRAFFIC, Trial
from companion.deployment.caching.neighbours import Embed, NeighbourIndex, unit

__all__ = ["Answered", "pair_trials", "replay"]

Answered = tuple[str, Answer]
"""A text, and what the model says to it."""


def replay(
    stored: Sequence[Answered],
    asked: Iterable[Answered],
    embed: Embed,
    *,
    same: Same | None = None,
    kind: str = TRAFFIC,
) -> list[Trial]:
    """Put questions to a cache that holds some texts, and see whether the nearest one's answer is right.

    The nearest of many is nearer than one of a pair: store as many texts as the cache will hold. Questions
    whose very text is stored are left out: an exact cache answers those, and they would flatter this one. So
    are texts without a direction, which the cache passes on.

    Parameters
    ----------
    stored : sequence of (str, Answer)
        What the cache holds. None of it should be among the texts that the model was trained on: there its
        answers agree more often.
    asked : iterable of (str, Answer)
        Each with the model's own answer.
    embed : callable
    same : callable, optional
        Whether a stored answer will do. Default: `same_answer`.
    kind : str
        Of the trials: `TRAFFIC`, or the kind of opposites that these are.

    Returns
    -------
    list of Trial
        In the order of the questions.

    Raises
    ------
    ValueError
        When no stored text has a vector.
    """
    same = same or same_answer()
    index = NeighbourIndex(max(1, len(stored)), ttl_s=float("inf"))
    for text, answer in stored:
        if (vector := unit(embed(text))) is not None:
            index.add(vector, answer)
    if not len(index):
        raise ValueError(f"none of {len(stored)} stored texts has a vector, expected at least one")
    known = {text for text, _ in stored}
    trials = []
    for text, answer in asked:
        vector = None if text in known else unit(embed(text))
        if vector is None:
            continue
        nearest = index.nearest(vector)
        assert nearest is not None
        trials.append(Trial(nearest.similarity, same(nearest.answer, answer), kind))
    return trials


def pair_trials(pairs: Iterable[tuple[str, str, bool]], embed: Embed, *, kind: str = TRAFFIC) -> list[Trial]:
    """Make trials of pairs that people have labelled: the first text is stored, the second one asked.

    Parameters
    ----------
    pairs : iterable of (str, str, bool)
        The bool says whether the two mean the same.
    embed : callable
    kind : str
        As for `replay`.

    Returns
    -------
    list of Trial
        Without pairs of equal texts, and of texts without a direction.
    """
    trials = []
    for text, other, right in pairs:
        first, second = unit(embed(text)), unit(embed(other))
        if text != other and first is not None and second is not None:
            trials.append(Trial(min(1.0, float(first @ second)), right, kind))
    return trials
