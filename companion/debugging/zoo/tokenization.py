"""Bugs between a text and its numbers."""

from __future__ import annotations

from companion.debugging.zoo.bug import Bug, Edit

__all__ = ["BUGS"]

BUGS = (
    Bug(
        name="word-numbers-collide",
        title="Words share their numbers with special tokens",
        family="data",
        component="tokenization",
        edits=(Edit("recipe", "enumerate(common, start=5)", "enumerate(common, start=0)"),),
        kind="classification",
        symptom="The curve looks normal, slightly worse.",
        why="The five commonest words have the numbers of padding, unknown, start, end and mask.",
        fix="Begin behind the special tokens.",
        hint="Which words have the numbers 0 to 4?",
    ),
    Bug(
        name="words-not-split",
        title="Texts are split at spaces alone",
        family="data",
        component="tokenization",
        edits=(Edit("recipe", "for word in words_of(text)]", "for word in text.split()]"),),
        kind="classification",
        symptom="The loss falls slower; many words are unknown.",
        why=(
            "The vocabulary was made of lower-case words without punctuation, and texts are looked up"
            " as they are."
        ),
        fix="Split texts in the same way for both.",
        hint="Which share of the words is unknown?",
    ),
    Bug(
        name="texts-cut-short",
        title="Texts are cut at 12 tokens",
        family="data",
        component="tokenization",
        edits=(Edit("recipe", "max_length: int = 64", "max_length: int = 12"),),
        kind="classification",
        symptom="The loss stops early.",
        why="A limit for a first try was left in; most texts lose their end, and with it what they say.",
        fix="Choose the limit from the lengths of the texts.",
        hint="Which share of the texts is cut?",
    ),
    Bug(
        name="served-without-punctuation",
        title="The server removes punctuation",
        family="data",
        component="tokenization",
        edits=(
            Edit(
                "recipe",
                "return vocabulary.encode(text, settings.max_length)",
                ('return vocabulary.encode(text.replace(",", "").replace(".", ""), settings.max_length)'),
            ),
        ),
        kind="classification",
        symptom="All measurements are good; users see worse.",
        why="The server cleans texts in a way that training never did.",
        fix="Use one function for both.",
        hint="Give the same text to both.",
    ),
    Bug(
        name="served-cut-short",
        title="The server cuts texts earlier than training did",
        family="data",
        component="tokenization",
        edits=(
            Edit(
                "recipe",
                "return vocabulary.encode(text, settings.max_length)",
                "return vocabulary.encode(text, settings.max_length // 4)",
            ),
        ),
        kind="classification",
        symptom="All measurements are good; users with long texts see worse.",
        why="The limit was lowered for speed, on one side only.",
        fix="Use one function for both.",
        hint="Give a long text to both.",
    ),
)
