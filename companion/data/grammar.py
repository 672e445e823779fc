"""The compositional grammar behind the generated `sentiment` task.

A review is one deciding sentence, and around it plain facts, opinions about other things, supporting
sentences, or opinions that the deciding sentence overrules. Templates hold slots, and slots hold words or
whole clauses, which are templates again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from companion.data.lexicon import Lexicon
from companion.data.scenes import ASIDES, FILLERS, GENERAL_FACTS, PEOPLE, SCENES
from companion.data.templates import (
    ASPECT_SENTENCES,
    COMPARED,
    CONTRASTED,
    DEGREES,
    DIMINISHERS,
    NEGATED,
    OPENINGS,
    PLAIN,
    PROMISED,
    REPORTED,
    SHORT,
    STATED,
    SUMMARIES,
    VERDICTS,
)

__all__ = ["Review", "word_count"]

_SLOT = re.compile(r"\{([A-Za-z][a-z]*(?: [a-z]+)?)([-+?%PN]?)(2?)\}")
_ARTICLE = re.compile(r"\b([Aa])n? (?=(\w+))")
_SENTENCE_START = re.compile(r"(^|[.!?:] )([a-z])(?=[\w' -])")


def word_count(text: str) -> int:
    """Count the words of `text`, split at white space."""
    return len(text.split())


class Review:
    """One review in the making: its scene, tense and label are drawn, then sentences are expanded.

    Parameters
    ----------
    rng : random.Random
        The only source of chance.
    lexicon : Lexicon
        Opinion words to use.
    unseen_nouns : bool
        Whether nouns reserved for the test split may be used.
    label : int
        0 negative, 1 positive.
    """

    def __init__(self, rng: random.Random, lexicon: Lexicon, *, unseen_nouns: bool, label: int) -> None:
        self._rng, self._lexicon, self.label = rng, lexicon, label
        self._scene = rng.choice(SCENES)
        scene = self._scene
        self._thing = rng.choice(scene.things + (scene.things_unseen if unseen_nouns else ()))
        aspects = list(scene.aspects + (scene.aspects_unseen if unseen_nouns else ()))
        rng.shuffle(aspects)
        self._aspects = aspects
        self._used_aspects = 0
        self._used_templates: set[str] = set()
        self._past = rng.random() < 0.7 or scene.got not in {"bought", "saw", "read"}

    def write(self, words: int) -> str:
        """Write the whole review, of about `words` words."""
        if words < 9:
            return self._finish(self._expand(self._rng.choice(SHORT), self.label))
        if words > 32 and self._rng.random() < 0.5:
            return self._overruled(words)
        return self._supported(words)

    def _supported(self, words: int) -> str:
        """Write a deciding sentence; around it only facts, asides and sentences of the same polarity."""
        sentences = [self._core()]
        while (room := words - sum(map(word_count, sentences))) > 5:
            draw = self._rng.random()
            if draw < 0.6 or (room < 9 and draw < 0.9):
                sentence = self._fact()
            elif draw < 0.75:
                sentence = self._expand(self._pick(ASIDES), self.label)
            else:
                sentence = self._core()
            if word_count(sentence) > room + 6:
                break
            sentences.insert(self._rng.randrange(len(sentences) + 1), sentence)
        return self._finish(" ".join(sentences))

    def _overruled(self, words: int) -> str:
        """Write opinions of both polarities about details, and a summary of the whole that decides."""
        first = self._rng.random() < 0.35
        verdict = self._expand(self._pick(OPENINGS if first else SUMMARIES), self.label)
        body: list[str] = []
        polarity = 1 - self.label
        while words - word_count(verdict) - sum(map(word_count, body)) > 6 and len(body) < 14:
            draw = self._rng.random()
            if draw < 0.45:
                body.append(self._fact())
            elif draw < 0.6 or self._used_aspects + 2 > len(self._aspects):
                body.append(self._expand(self._pick(ASIDES), self.label))
            else:
                body.append(self._expand(self._pick(ASPECT_SENTENCES), polarity))
                polarity = int(self._rng.random() < 0.5)
        return self._finish(" ".join([verdict, *body] if first else [*body, verdict]))

    def _core(self) -> str:
        """Write a sentence that decides, from one of the families by weight."""
        draw = self._rng.random()
        if draw < 0.18:
            text = self._pick(PLAIN) + "."
        elif draw < 0.38:
            text = self._pick(NEGATED) + "."
        elif draw < 0.52:
            text = self._pick(COMPARED)
        elif draw < 0.68:
            text = self._pick(REPORTED)
        elif draw < 0.76:
            text = self._pick(PROMISED[self.label])
        elif draw < 0.81:
            text = self._pick(VERDICTS[self.label])
        else:
            text = self._pick(CONTRASTED)
        return self._expand(text, self.label)

    def _fact(self) -> str:
        facts = self._scene.facts if self._rng.random() < 0.7 else GENERAL_FACTS
        return self._expand(self._pick(facts), self.label)

    def _pick(self, templates: Sequence[str]) -> str:
        """Choose a template that this review has not used, while there is one."""
        fresh = [template for template in templates if template not in self._used_templates]
        template = self._rng.choice(fresh or templates)
        self._used_templates.add(template)
        return template

    def _next_aspect(self) -> str:
        aspect = self._aspects[self._used_aspects % len(self._aspects)]
        self._used_aspects += 1
        return aspect

    def _expand(self, template: str, polarity: int, subject: str | None = None) -> str:
        """Fill the slots of `template`; {S} is `subject`, or the whole, or an aspect of it."""
        if subject is None and re.search(r"\{S\}", template):
            subject = self._next_aspect() if self._rng.random() < 0.5 else self._thing
        plural = (subject or "").endswith("+")
        chosen: dict[str, str] = {}

        def fill(match: re.Match[str]) -> str:
            name, sign, second = match.groups()
            capital = name[0].isupper() and name not in {"S", "T"}
            value = self._slot(name.lower() if capital else name, sign, polarity, subject, plural)
            while second and value == chosen.get(name):
                value = self._slot(name.lower(), sign, polarity, subject, plural)
            chosen[name] = value
            return value[0].upper() + value[1:] if capital else value

        return _SLOT.sub(fill, template)

    def _slot(self, name: str, sign: str, polarity: int, subject: str | None, plural: bool) -> str:
        """Choose the words for one slot."""
        choose = self._rng.choice
        fixed = {"+": polarity, "-": 1 - polarity, "%": polarity, "P": 1, "N": 0}
        side = fixed[sign] if sign in fixed else self._rng.randrange(2)
        if name.startswith("a "):
            return "a " + self._slot(name[2:], sign, polarity, subject, plural)
        if name in FILLERS:
            return choose(FILLERS[name])
        if name in {"plain", "aspect", "topic", "clause"}:
            return self._clause(name, side)
        words = self._lexicon[side]
        simple: dict[str, Callable[[], str]] = {
            "S": lambda: self._phrase(subject or self._thing),
            "T": lambda: self._phrase(self._thing),
            "is": lambda: self._be(plural),
            "was": lambda: "were" if plural else "was",
            "deg": lambda: choose(DEGREES),
            "little": lambda: choose(DIMINISHERS),
            "adj": lambda: choose(words.adjectives),
            "mild": lambda: choose(words.mild),
            "noun": lambda: choose(words.nouns),
            "verb": lambda: choose(words.verbs)[0],
            "verbed": lambda: choose(words.verbs)[1],
            "love": lambda: choose(words.attitudes)[0],
            "loved": lambda: choose(words.attitudes)[1],
            "better": lambda: "better" if side else "worse",
            "seems": lambda: choose(("seems", "looks", "feels")),
            "other": lambda: choose(PEOPLE),
            "thing": lambda: self._thing,
            "bare": lambda: self._next_aspect().rstrip("+"),
            "before": lambda: self._scene.before,
            "again": lambda: self._scene.again,
            "got": lambda: self._scene.got,
        }
        return simple[name]()

    def _clause(self, kind: str, polarity: int) -> str:
        """Write a clause inside a sentence: about the whole ("topic") or one aspect; plain or negated."""
        subject = self._thing if kind == "topic" else self._next_aspect()
        negated = self._rng.random() < 0.5
        templates = STATED if kind == "plain" else NEGATED if negated else PLAIN
        return self._expand(self._pick(templates), polarity, subject)

    def _phrase(self, noun: str) -> str:
        return "the " + noun.rstrip("+")

    def _be(self, plural: bool) -> str:
        if self._past:
            return "were" if plural else "was"
        return "are" if plural else "is"

    def _finish(self, text: str) -> str:
        """Put articles and capitals right."""
        text = _ARTICLE.sub(lambda m: m[1] + ("n " if _takes_an(m[2]) else " "), text)
        return _SENTENCE_START.sub(lambda m: m[1] + (m[2] if m[1] == ": " else m[2].upper()), text)


def _takes_an(word: str) -> bool:
    return word[0].lower() in "aeiou" and not word.lower().startswith(("uni", "use", "one", "once", "euro"))
