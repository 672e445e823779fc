"""Texts that look different and mean the same: the questions that a semantic cache is for.

They stand in for repeated traffic where none was recorded. Recorded traffic is better.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from types import MappingProxyType

from companion.deployment.caching.turning import Rewritten

__all__ = ["VARIANT_KINDS", "variants"]

VARIANT_KINDS = ("case", "punctuation", "filler", "contraction", "typo", "space")
"""What `variants` can do to a text."""

_FILLERS = ("well", "honestly", "so", "okay", "in short", "to be fair")
_LONG = re.compile(r"\b[a-z]{6,}\b")
_FULL = MappingProxyType(
    {
        "is not": "isn't",
        "are not": "aren't",
        "was not": "wasn't",
        "were not": "weren't",
        "do not": "don't",
        "does not": "doesn't",
        "did not": "didn't",
        "cannot": "can't",
        "could not": "couldn't",
        "will not": "won't",
        "would not": "wouldn't",
        "it is": "it's",
        "that is": "that's",
        "I am": "I'm",
        "I have": "I've",
        "I would": "I'd",
    }
)
_SHORT = MappingProxyType({short: full for full, short in _FULL.items()})
_EITHER = re.compile(rf"\b({'|'.join([*_FULL, *_SHORT])})\b")


def variants(text: str, *, seed: int = 0, kinds: Sequence[str] = VARIANT_KINDS) -> list[Rewritten]:
    """Write an English text in ways that keep its meaning.

    Parameters
    ----------
    text : str
    seed : int
        Chooses the words and places; equal arguments give equal results.
    kinds : sequence of str
        Of `VARIANT_KINDS`.

    Returns
    -------
    list of Rewritten
        At most one of each kind, in the order of `kinds`.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in _EDITS]:
        raise ValueError(f"unknown kind {unknown[0]!r}, expected some of {', '.join(VARIANT_KINDS)}")
    found = []
    for kind in kinds:
        changed = _EDITS[kind](text, random.Random(f"{seed}/{kind}/{text}".encode("utf-8", "surrogatepass")))
        if changed != text:
            found.append(Rewritten(changed, kind, kind))
    return found


def _case(text: str, rng: random.Random) -> str:
    return text.lower() if text != text.lower() else text[:1].upper() + text[1:]


def _punctuation(text: str, rng: random.Random) -> str:
    bare = text.rstrip(" .!")
    return bare if bare != text and bare else text + rng.choice(("!", "..."))


def _filler(text: str, rng: random.Random) -> str:
    word = rng.choice(_FILLERS)
    first = text.split(maxsplit=1)[:1]
    keeps = not first or first[0] in ("I", "I'm", "I've", "I'd") or first[0][1:] != first[0][1:].lower()
    rest = text if keeps else text[:1].lower() + text[1:]
    return f"{word[0].upper()}{word[1:]}, {rest}"


def _contraction(text: str, rng: random.Random) -> str:
    """Write one contraction out, or contract one pair of words."""
    places = list(_EITHER.finditer(text))
    if not places:
        return text
    place = rng.choice(places)
    other = _FULL.get(place[1]) or _SHORT[place[1]]
    return text[: place.start()] + other + text[place.end() :]


def _typo(text: str, rng: random.Random) -> str:
    """Let two letters inside a long word change places."""
    places = list(_LONG.finditer(text))
    if not places:
        return text
    at = (place := rng.choice(places)).start() + rng.randrange(1, len(place[0]) - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _space(text: str, rng: random.Random) -> str:
    return re.sub(r" ", "  ", text, count=1) if " " in text else text + " "


_EDITS: MappingProxyType[str, Callable[[str, random.Random], str]] = MappingProxyType(
    {
        "case": _case,
        "punctuation": _punctuation,
        "filler": _filler,
        "contraction": _contraction,
        "typo": _typo,
        "space": _space,
    }
)
