"""Texts as requests: sent one by one, and sorted into groups by their length."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from companion.inference.predictor import Predictor, check_texts

__all__ = ["Requests", "groups_by_length", "sender"]


@dataclass(frozen=True)
class Requests:
    """Texts of similar length.

    Attributes
    ----------
    words : tuple of int
        The fewest and the most words of a text, with its pair.
    texts : tuple of str
    pairs : tuple of str or None
        The second text of each.
    """

    words: tuple[int, int]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None

    def cycle(self, count: int) -> Requests:
        """Return so many of them, again from the first when they are used up.

        Parameters
        ----------
        count : int

        Returns
        -------
        Requests
        """
        places = [index % len(self.texts) for index in range(count)]
        pairs = None if self.pairs is None else tuple(self.pairs[place] for place in places)
        return Requests(self.words, tuple(self.texts[place] for place in places), pairs)


def sender(
    predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Callable[[int], object]:
    """Make a function that sends one text and returns with its answer.

    Parameters
    ----------
    predictor : Predictor
    texts : sequence of str
    pairs : sequence of str, optional
        The second text of each.

    Returns
    -------
    callable
        Of the request's number, from 0; beyond the last text it begins again with the first.

    Raises
    ------
    ValueError
        When there are no texts, or not as many pairs.
    """
    check_texts(texts, pairs, 1)
    if not len(texts):
        raise ValueError("there are no texts, expected at least one to send")

    def send(index: int) -> object:
        place = index % len(texts)
        return predictor.logits([texts[place]], None if pairs is None else [pairs[place]], batch_size=1)

    return send


def groups_by_length(
    texts: Sequence[str], pairs: Sequence[str] | None = None, *, groups: int = 3, seed: int = 0
) -> tuple[Requests, ...]:
    """Sort texts by their number of words and cut them into groups of equal size.

    Parameters
    ----------
    texts : sequence of str
    pairs : sequence of str, optional
        The second text of each; its words count, too.
    groups : int
        At most. Fewer where there are not as many texts, one where all are equally long.
    seed : int
        Of the order within a group.

    Returns
    -------
    tuple of Requests
        The shortest first.

    Raises
    ------
    ValueError
        When there are no texts, not as many pairs, or less than one group is asked for.
    """
    check_texts(texts, pairs, 1)
    if not len(texts) or groups < 1:
        raise ValueError(f"found {len(texts)} texts for {groups} groups, expected at least one of each")
    words = [len(f"{text} {pairs[i] if pairs else ''}".split()) for i, text in enumerate(texts)]
    order = sorted(range(len(texts)), key=words.__getitem__)
    if words[order[0]] == words[order[-1]]:
        groups = 1
    groups = min(groups, len(texts))
    bounds = [len(order) * group // groups for group in range(groups + 1)]
    found = []
    for start, end in pairwise(bounds):
        places = order[start:end]
        span = words[places[0]], words[places[-1]]
        random.Random(seed).shuffle(places)
        second = None if pairs is None else tuple(pairs[place] for place in places)
        found.append(Requests(span, tuple(texts[place] for place in places), second))
    return tuple(found)
