"""Texts that are almost the same: found by hashing, confirmed by counting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

__all__ = ["NearDuplicate", "near_duplicates", "normalised", "shingles", "similarity"]

_WORD = re.compile(r"\w+(?:'\w+)*")
_SHINGLE_WORDS = 3
_SLACK = 0.2
"""Hashing proposes pairs from this far below the threshold on: what it misses, nothing finds again."""


@dataclass(frozen=True, order=True)
class NearDuplicate:
    """Two texts that share most of their shingles.

    Attributes
    ----------
    first, second : int
        Positions in the two lists.
    similarity : float
        Jaccard similarity of the sets of shingles, from 0 to 1.
    """

    first: int
    second: int
    similarity: float


def normalised(text: str) -> str:
    """Return a text's words in lower case with single spaces: case, punctuation and white space do not count.

    A text without a word, such as ":)", keeps its signs.
    """
    return " ".join(_WORD.findall(text.lower())) or " ".join(text.split())


def shingles(text: str, words: int = _SHINGLE_WORDS) -> frozenset[str]:
    """Return all runs of this many words of the normalised text; of a shorter text the whole."""
    parts = normalised(text).split()
    return frozenset(" ".join(parts[i : i + words]) for i in range(max(1, len(parts) - words + 1)))


def similarity(first: str, second: str, words: int = _SHINGLE_WORDS) -> float:
    """Return the Jaccard similarity of two texts' shingles: shared ones over all, from 0 to 1."""
    return _jaccard(shingles(first, words), shingles(second, words))


def near_duplicates(
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    threshold: float = 0.7,
    words: int = _SHINGLE_WORDS,
    least_words: int = 10,
    permutations: int = 64,
    seed: int = 1,
) -> list[NearDuplicate]:
    """Find the pairs of texts, one of each list, that are almost the same [1]_.

    A word changed in the middle of a text of n words takes three of its n - 2 shingles: at 20 words the
    similarity is 0.71, at 10 words 0.45.

    Parameters
    ----------
    first, second : sequence of str
        Without the second, pairs within the first, each once.
    threshold : float
        Similarity from which on a pair counts, above 0.2 and up to 1.
    words : int
        Length of a shingle.
    least_words : int
        Shorter texts count only when they are equal: in a few words, a template looks like a copy.
    permutations : int
        Numbers in a MinHash sketch.
    seed : int
        Of the sketches. The pairs that come back are confirmed exactly; a pair at the threshold is missed
        with a probability of a few per cent, a closer one with less.

    Returns
    -------
    list of NearDuplicate
        Most alike first.

    Raises
    ------
    ValueError
        If a number is out of range.

    References
    ----------
    .. [1] Broder, "On the resemblance and containment of documents", 1997; sketches and the index are
       datasketch's.
    """
    if not _SLACK < threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected above {_SLACK} and at most 1")
    if words < 1 or least_words < 1:
        raise ValueError(f"words is {words} and least_words {least_words}, expected at least 1")
    least = max(1, least_words - words + 1)
    left = [shingles(text, words) for text in first]
    right = left if second is None else [shingles(text, words) for text in second]
    found = {(i, j): 1.0 for i, j in _equal(left, right) if second is not None or i < j}
    kept_left, kept_right = _worth_hashing(left, right, threshold, least, within=second is None)
    index = MinHashLSH(threshold - _SLACK, permutations, weights=(0.2, 0.8))
    for j, sketch in zip(kept_right, _sketches(right, kept_right, permutations, seed), strict=True):
        index.insert(j, sketch, check_duplication=False)
    for i, sketch in zip(kept_left, _sketches(left, kept_left, permutations, seed), strict=True):
        for j in index.query(sketch):
            if (second is None and i >= j) or (i, j) in found:
                continue
            if (alike := _jaccard(left[i], right[j])) >= threshold:
                found[i, j] = alike
    pairs = [NearDuplicate(i, j, alike) for (i, j), alike in found.items()]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def _equal(left: Sequence[frozenset[str]], right: Sequence[frozenset[str]]) -> Iterable[tuple[int, int]]:
    """Yield the pairs with the same set of shingles."""
    places: dict[frozenset[str], list[int]] = {}
    for j, shingled in enumerate(right):
        if shingled != {""}:
            places.setdefault(shingled, []).append(j)
    return ((i, j) for i, shingled in enumerate(left) for j in places.get(shingled, ()))


def _worth_hashing(
    left: Sequence[frozenset[str]],
    right: Sequence[frozenset[str]],
    threshold: float,
    least: int,
    *,
    within: bool,
) -> tuple[list[int], list[int]]:
    """Leave out the texts that cannot have a near duplicate on the other side; that loses none.

    If A and B have Jaccard similarity t, at least t of A's shingles are in B, so in the union of all B.
    """
    everything = range(len(left))
    if within:
        seen: set[str] = set()
        twice: set[str] = set()
        for shingled in left:
            twice |= shingled & seen
            seen |= shingled
        kept = [i for i in everything if _covered(left[i], twice, threshold, least)]
        return kept, kept
    of_right: set[str] = set().union(*right)
    kept_left = [i for i in everything if _covered(left[i], of_right, threshold, least)]
    of_left: set[str] = set().union(*(left[i] for i in kept_left))
    kept_right = [j for j in range(len(right)) if _covered(right[j], of_left, threshold, least)]
    return kept_left, kept_right


def _covered(shingled: frozenset[str], union: set[str], threshold: float, least: int) -> bool:
    return len(shingled) >= least and len(shingled & union) >= threshold * len(shingled)


def _sketches(
    shingled: Sequence[frozenset[str]], chosen: Sequence[int], permutations: int, seed: int
) -> list[MinHash]:
    texts = [[part.encode() for part in shingled[i]] for i in chosen]
    sketches: list[MinHash] = MinHash.bulk(texts, num_perm=permutations, seed=seed)
    return sketches
