"""Sentence templates of the generated `sentiment` task.

Every template is written for both polarities: `{adj+}` is a word of the review's own polarity, `{adj-}` of
the opposite one, `{adj?}` of either, `{adjP}` and `{adjN}` are always positive and negative. So function
words ("but", "far from", "never") say nothing about the label by themselves; only the composition does.

`{S}` is the clause's subject, `{T}` the whole thing under review. `{topic+}`, `{aspect-}` and `{plain-}` are
clauses: about the whole, about a part, about a part without negation.
"""

from __future__ import annotations

__all__ = [
    "ASPECT_SENTENCES",
    "COMPARED",
    "CONTRASTED",
    "DEGREES",
    "DIMINISHERS",
    "NEGATED",
    "OPENINGS",
    "PLAIN",
    "PROMISED",
    "REPORTED",
    "SHORT",
    "STATED",
    "SUMMARIES",
    "VERDICTS",
]

# Clauses about one subject {S}: no capital, no full stop. Label = the review's polarity.
PLAIN: tuple[str, ...] = (
    "{S} {is} {deg}{adj+}",
    "{S} {is} {deg}{adj+}",
    "{S} {is} {little}{mild+}",
    "I found {S} {deg}{adj+}",
    "{S} {verbed+} me",
    "I {deg}{loved+} {S}",
    "{S} {is} {adj+} in every way",
    "{S} {is} {a noun+}",
    "{S} {is} {a noun+} for me",
)
# Plain clauses that can stand after "it is not true that".
STATED: tuple[str, ...] = (
    "{S} {is} {deg}{adj+}",
    "{S} {is} {little}{mild+}",
    "{S} {is} {adj+} in every way",
    "{S} {is} {a noun+}",
)
NEGATED: tuple[str, ...] = (
    "{S} {is} anything but {adj-}",
    "{S} {is} far from {adj-}",
    "{S} {is} not in the least {adj-}",
    "{S} {is} the opposite of {adj-}",
    "there was nothing {adj-} about {S}",
    "nothing about {S} struck me as {adj-}",
    "nobody could call {S} {adj-}",
    "only a fool would call {S} {adj-}",
    "I would be lying if I called {S} {adj-}",
    "{S} never once {verbed-} me",
    "not once did {S} {verb-} me",
    "{S} never failed to {verb+} me",
    "I cannot see how anyone could {love-} {S}",
    "I found nothing to {love-} about {S}",
)
# Whole sentences: comparison with something else.
COMPARED: tuple[str, ...] = (
    "{T} {is} far {better+} than the {adj?} {before}.",
    "{T} {is} a lot {better+} than the {adj?} {before}.",
    "{T} {is} no {better-} than the {adj+} {before}.",
    "Next to {T}, the {adj+} {before} {seems} {adj-}.",
    "{T} makes the {adj+} {before} look {adj-}.",
    "Even the {adj+} {before} {was} {better-}.",
    "{T} {is} as {adj+} as the {before} {was} {adj-}.",
    "The {before} {was} {adj-}, and {T} {is} the exact opposite.",
    "I have never come across a {better+} {thing}.",
    "{T} could not have been {better+}.",
    "It is rare to find such {a adj+} {thing}.",
)
# Whole sentences: what was said, promised, feared or imagined, and what became of it.
REPORTED: tuple[str, ...] = (
    "{Other} called {T} {adj-}; I could not disagree more.",
    "{Other} called {T} {adj+}, and I could not agree more.",
    "{Other} told me that {S} would be {adj-}. I experienced the exact opposite.",
    "{Other} told me that {S} would be {adj+}, and that is how it turned out.",
    "How anyone can call this {thing} {adj-} is beyond me.",
    "Do not believe anyone who says that {S} {is} {adj-}.",
    "If {S} had been {adj-}, my verdict would be different.",
    "I was ready to call {S} {adj-}, but I really cannot.",
    "I expected {a adj-} {thing}. It was nothing of the kind.",
    "I expected {a adj+} {thing}, and that is what I got.",
    "At first I thought that {S} {was} {adj-}. I soon changed my mind.",
    "At first I thought that {S} {was} {adj+}, and I have not changed my mind.",
    "{Is} {S} {adj-}? Quite the opposite.",
    "{Is} {S} {adj+}? Without a doubt.",
    "It is simply not true that {plain-}.",
    "Nobody should believe that {plain-}.",
    "{Other} disagrees with me, but {clause+}.",
)
# Promises are good and warnings are bad, so these come with a fixed label.
PROMISED: dict[int, tuple[str, ...]] = {
    1: (
        "They promised {a adjP} {thing}, and that is exactly what I got.",
        "I was warned of {a adjN} {thing}; it was nothing of the kind.",
        "{Other} warned me that {S} would be {adjN}, which could not be further from the truth.",
        "I had hoped for {a adjP} {thing}, and my hopes came true.",
        "I had feared {a adjN} {thing}, and my fears did not come true.",
    ),
    0: (
        "They promised {a adjP} {thing}; it was nothing of the kind.",
        "I was warned of {a adjN} {thing}, and that is exactly what I got.",
        "They swore that {S} would be {adjP}, which could not be further from the truth.",
        "I had hoped for {a adjP} {thing}, and my hopes did not come true.",
        "I had feared {a adjN} {thing}, and my fears came true.",
        "I wish I could say that {S} {was} {adjP}.",
        "If only {S} had been {adjP}.",
    ),
}
VERDICTS: dict[int, tuple[str, ...]] = {
    1: (
        "I would {again} tomorrow.",
        "I can recommend {T} to anyone.",
        "{T} was worth every penny.",
        "I do not regret a penny that I spent.",
        "I am glad that I {got} this {thing}.",
    ),
    0: (
        "I would never {again}.",
        "I cannot recommend {T} to anyone.",
        "{T} was not worth a penny.",
        "I regret every penny that I spent.",
        "I am sorry that I {got} this {thing}.",
    ),
}
# Two aspects or an aspect and the whole; the sentence says which one decides.
CONTRASTED: tuple[str, ...] = (
    "{aspect-}, but as a whole {topic+}.",
    "{aspect-}, but what stays with me is the {adj+} {bare}.",
    "{aspect-}. What counts in the end, however, is the {adj+} {bare}.",
    "Although {aspect-}, {topic+}.",
    "{topic+}, even though {aspect-}.",
    "{topic+}; that {plain-} hardly matters.",
    "Granted, {aspect-}. Still, {topic+}.",
    "For all the {adj-} {bare}, {topic+}.",
    "{aspect-} and {aspect-}, yet in the end {topic+}.",
    "Not even the {adj-} {bare} could keep {T} from being {adj+}.",
    "{Other} talks only of the {adj-} {bare}, but all things considered {topic+}.",
    "It may be true that {plain-}, but that is a detail, because {topic+}.",
    "You might think that {plain-} from what {other} wrote, but {topic+}.",
)
SHORT: tuple[str, ...] = (
    "{S} {is} {adj+}.",
    "{S} {is} {deg}{adj+}.",
    "{S} {is} anything but {adj-}.",
    "{S} {is} far from {adj-}.",
    "What {a adj+} {thing}!",
    "{A noun+}, this {thing}.",
    "I {loved+} {S}.",
    "{S} {verbed+} me.",
    "Not once did {S} {verb-} me.",
    "Nothing about {S} {is} {adj-}.",
)
SUMMARIES: tuple[str, ...] = (
    "All in all, {topic+}.",
    "Taken as a whole, {topic+}.",
    "In the end, {topic+}.",
    "But those are details: {topic+}.",
    "Weighing it all up, {topic+}.",
)
OPENINGS: tuple[str, ...] = (
    "All in all, {topic+}, and what follows are details.",
    "To say it at once: {topic+}, whatever else I mention here.",
    "First of all, {topic+}; the rest did not change that.",
)
ASPECT_SENTENCES: tuple[str, ...] = ("{aspect%}.", "{aspect%}, and {aspect%}.", "As for details, {aspect%}.")

DEGREES = ("really ", "truly ", "simply ", "honestly ", "", "", "", "")
DIMINISHERS = ("fairly ", "rather ", "quite ")
