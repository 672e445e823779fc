"""Texts that look the same and mean something else: the hard questions for a semantic cache.

One small edit turns the meaning: a negation comes or goes, a word becomes its antonym, a number or two names
change. The vectors of most encoders hardly move. Whether the *answer* changes is for the model to say: not
every negation in a review turns the review round.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["OPPOSITE_KINDS", "Rewritten", "opposites"]

OPPOSITE_KINDS = ("negation", "antonym", "number", "names")
"""What `opposites` can do to a text."""


@dataclass(frozen=True)
class Rewritten:
    """A text after one edit.

    Attributes
    ----------
    text : str
        Never the original.
    kind : str
        What was done.
    edit : str
        The words before and after, such as ``"is -> is not"``.
    """

    text: str
    kind: str
    edit: str


def opposites(text: str, *, seed: int = 0, kinds: Sequence[str] = OPPOSITE_KINDS) -> list[Rewritten]:
    """Turn the meaning of an English text.

    Parameters
    ----------
    text : str
    seed : int
        Chooses among the places where an edit is possible; equal arguments give equal results.
    kinds : sequence of str
        Of `OPPOSITE_KINDS`.

    Returns
    -------
    list of Rewritten
        At most one of each kind, in the order of `kinds`; empty where the text offers no place.

    Raises
    ------
    ValueError
        For an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in _EDITS]:
        raise ValueError(f"unknown kind {unknown[0]!r}, expected some of {', '.join(OPPOSITE_KINDS)}")
    found = []
    for kind in kinds:
        rng = random.Random(f"{seed}/{kind}/{text}".encode("utf-8", "surrogatepass"))
        places = [place for place in _EDITS[kind](text, rng) if place.apply(text) != text]
        if places:
            place = rng.choice(places)
            found.append(Rewritten(place.apply(text), kind, place.edit(text)))
    return found


@dataclass(frozen=True)
class _Place:
    """A stretch of the text and what to put there."""

    start: int
    end: int
    after: str
    told: str = ""

    def edit(self, text: str) -> str:
        return self.told or f"{text[self.start : self.end]} -> {self.after}"

    def apply(self, text: str) -> str:
        return text[: self.start] + self.after + text[self.end :]


def _words(text: str) -> dict[str, str]:
    """Read ``"good/bad early/late"`` in both directions; the first partner of a word counts."""
    found: dict[str, str] = {}
    for entry in text.split():
        one, other = entry.split("/")
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


_AUXILIARIES = (
    "is|are|was|were|am|be|been|has|have|had|do|does|did|can|could|will|would|shall|should|may|might|must"
)
_AUXILIARY = re.compile(rf"\b({_AUXILIARIES})\b(?!['’]| not\b| never\b)", re.IGNORECASE)
_NEGATION = re.compile(r"\b(not|never) +(?=\w)|\b(can)not\b|\b(\w+?)n['’]t\b", re.IGNORECASE)
_CONTRACTED = MappingProxyType({"ca": "can", "wo": "will", "sha": "shall", "ai": "is"})
_PRONOUN = re.compile(
    rf"\b(I|we|you|he|she|it|they|who) +(?!(?:{_AUXILIARIES}|never|not|cannot)\b|\w+n['’]t\b)(?=[a-z]+\b)",
    re.IGNORECASE,
)

_ANTONYMS = MappingProxyType(
    _words(
        "good/bad great/terrible excellent/awful wonderful/horrible best/worst better/worse love/hate "
        "loved/hated loves/hates like/dislike liked/disliked likes/dislikes enjoy/detest enjoyed/detested "
        "interesting/boring exciting/dull funny/unfunny beautiful/ugly happy/sad strong/weak fast/slow "
        "quick/slow clever/stupid smart/dumb fresh/stale original/derivative moving/cold warm/cold hot/cold "
        "memorable/forgettable brilliant/mediocre superb/dreadful perfect/flawed impressive/disappointing "
        "impressed/disappointed charming/annoying delightful/unpleasant pleasant/unpleasant "
        "satisfying/frustrating pleased/annoyed lovely/nasty success/failure succeed/fail succeeds/fails "
        "succeeded/failed triumph/disaster delight/letdown recommend/avoid recommended/discouraged "
        "high/low higher/lower highest/lowest more/less most/least many/few much/little always/never "
        "all/none everything/nothing everyone/nobody everybody/nobody every/no some/no with/without "
        "before/after early/late earlier/later first/last old/new young/old big/small large/small "
        "larger/smaller long/short longer/shorter rise/fall rises/falls rose/fell risen/fallen "
        "increase/decrease increases/decreases increased/decreased increasing/decreasing gain/loss "
        "gains/losses gained/lost win/lose wins/loses won/lost profit/loss up/down above/below over/under "
        "open/closed opened/closed start/end starts/ends started/ended begin/end began/ended "
        "buy/sell buys/sells bought/sold accept/reject accepts/rejects accepted/rejected "
        "allow/forbid allows/forbids allowed/forbade agree/disagree agrees/disagrees agreed/disagreed "
        "support/oppose supports/opposes supported/opposed approve/disapprove approved/rejected "
        "confirm/deny confirms/denies confirmed/denied true/false right/wrong correct/incorrect "
        "legal/illegal guilty/innocent alive/dead safe/dangerous easy/difficult easily/barely "
        "cheap/expensive rich/poor full/empty possible/impossible likely/unlikely able/unable "
        "important/unimportant positive/negative male/female man/woman men/women mother/father "
        "north/south east/west left/right inside/outside include/exclude includes/excludes "
        "included/excluded arrive/leave arrived/left remember/forget remembered/forgot yes/no"
    )
)
_ANTONYM = re.compile(rf"(?:\b(an?) +)?\b({'|'.join(_ANTONYMS)})\b", re.IGNORECASE)

_DIGITS = re.compile(r"\d+")
_SCALES = tuple(
    tuple(line.split())
    for line in (
        "one two three four five six seven eight nine ten eleven twelve",
        "twenty thirty forty fifty sixty seventy eighty ninety",
        "hundred thousand million billion",
        "first second third fourth fifth",
        "once twice",
        "half twice",
        "monday tuesday wednesday thursday friday saturday sunday",
        "january february march april june july august september october november december",
    )
)
_SCALE_OF = MappingProxyType({word: scale for scale in reversed(_SCALES) for word in scale})
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_SCALE_OF)})\b", re.IGNORECASE)

_NAME = re.compile(r"\b[A-Z][\w’'-]*\w(?: [A-Z][\w’'-]*\w)*\b")
_BEGINS = re.compile(r"(?:^|[.!?:;\"“”(]\s*|\s[-–—]+\s*)$")
"""What stands before a word that is capitalised for its place, not for being a name."""


def _negations(text: str, rng: random.Random) -> list[_Place]:
    """Take a negation away, or put one in after an auxiliary or a pronoun."""
    places = []
    for match in _NEGATION.finditer(text):
        if match[1]:
            places.append(_Place(match.start(), match.end(), ""))
        elif match[2]:
            places.append(_Place(match.start(), match.end(), match[2]))
        else:
            stem = _CONTRACTED.get(match[3].lower(), match[3])
            if re.fullmatch(_AUXILIARIES, stem, re.IGNORECASE):
                places.append(_Place(match.start(), match.end(), _cased(stem, match[3])))
    for match in _AUXILIARY.finditer(text):
        places.append(_Place(match.start(), match.end(), f"{match[1]} not"))
    for match in _PRONOUN.finditer(text):
        places.append(_Place(match.start(), match.end(), f"{match[0].rstrip()} never "))
    return places


def _antonyms(text: str, rng: random.Random) -> list[_Place]:
    places = []
    for match in _ANTONYM.finditer(text):
        article, word = match[1], match[2]
        other = _cased(_ANTONYMS[word.lower()], word)
        if article:
            other = _cased("an" if other[0].lower() in "aeiou" else "a", article) + " " + other
        places.append(_Place(match.start(), match.end(), other))
    return places


def _numbers(text: str, rng: random.Random) -> list[_Place]:
    """Change one digit of a number, or a number word for another of its kind."""
    places = []
    for match in _DIGITS.finditer(text):
        place = rng.randrange(match.start(), match.end())
        floor = 1 if place == match.start() else 0  # no leading zero
        digit = rng.choice([str(value) for value in range(floor, 10) if str(value) != text[place]])
        changed = text[match.start() : place] + digit + text[place + 1 : match.end()]
        places.append(_Place(match.start(), match.end(), changed))
    for match in _NUMBER_WORD.finditer(text):
        word = match[1].lower()
        other = rng.choice([entry for entry in _SCALE_OF[word] if entry != word])
        places.append(_Place(match.start(), match.end(), _cased(other, match[1])))
    return places


def _names(text: str, rng: random.Random) -> list[_Place]:
    """Let two names change places, wherever they stand."""
    found = set()
    for match in _NAME.finditer(text):
        begins = _BEGINS.search(text[: match.start()])
        found.add(match[0].partition(" ")[2] if begins else match[0])
    names, places = sorted(found - {""}), []
    for one in names:
        for other in names:
            if one < other and one not in other and other not in one:
                both = rf"\b({re.escape(one)}|{re.escape(other)})\b"
                parts = re.split(both, text)
                swap = {one: other, other: one}
                parts[1::2] = [swap[part] for part in parts[1::2]]
                places.append(_Place(0, len(text), "".join(parts), f"{one} <-> {other}"))
    return places


def _cased(word: str, like: str) -> str:
    """Write a word as another one is written: CAPITALS, Capital, or small."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


_EDITS: MappingProxyType[str, Callable[[str, random.Random], list[_Place]]] = MappingProxyType(
    {"negation": _negations, "antonym": _antonyms, "number": _numbers, "names": _names}
)
