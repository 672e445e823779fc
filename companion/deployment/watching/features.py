"""Numbers about a text that help to see drift and from which the text cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from companion.deployment.answering import Question

__all__ = ["CountTokens", "Encodes", "TextFeatures", "TokenCount", "measure_text", "token_counter"]

_INSPECTED = 8192
"""Characters of a text that shares are taken from: a text of a megabyte must not cost milliseconds."""

_UNKNOWN = ("[UNK]", "<unk>")


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What the tokenizer made of a text, as far as the model reads it.

    Attributes
    ----------
    tokens : int
        Special tokens included: what the model computes on.
    unknown : int
        Tokens for which the vocabulary has nothing.
    words : int
        The tokenizer's own words, which it cuts into tokens.
    """

    tokens: int
    unknown: int
    words: int


CountTokens = Callable[[Question], TokenCount]


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """What is kept of a question.

    Attributes
    ----------
    characters : int
        Of the text and its pair, all of them.
    letters_per_word : float
        Mean length of what white space separates.
    non_letters : float
        Share of the characters, white space left out, that are no letters.
    upper_case : float
        Share of the letters that are capital.
    non_ascii : float
        Share of the characters, white space left out, beyond ASCII.
    tokens : int, optional
        What the model read; None where nobody counted.
    tokens_per_word : float, optional
        How finely the tokenizer had to cut: strange words come in many pieces.
    unknown_tokens : float, optional
        Share of the tokens that the vocabulary does not have.
    """

    characters: int
    letters_per_word: float
    non_letters: float
    upper_case: float
    non_ascii: float
    tokens: int | None = None
    tokens_per_word: float | None = None
    unknown_tokens: float | None = None


def measure_text(question: Question, count_tokens: CountTokens | None = None) -> TextFeatures:
    """Measure a question.

    Parameters
    ----------
    question : Question
    count_tokens : callable, optional
        Such as `token_counter` makes. Without it the features about tokens are None.

    Returns
    -------
    TextFeatures
        Shares come from the first 8,192 characters; a share of nothing is 0.
    """
    pair = question.pair or ""
    sample = f"{question.text[:_INSPECTED]} {pair[:_INSPECTED]}"
    words = sample.split()
    solid = "".join(words)
    letters = sum(map(str.isalpha, solid))
    ascii_only = len(solid.encode("ascii", "ignore"))
    count = count_tokens(question) if count_tokens is not None else None
    return TextFeatures(
        characters=len(question.text) + len(pair),
        letters_per_word=_share(len(solid), len(words)),
        non_letters=_share(len(solid) - letters, len(solid)),
        upper_case=_share(sum(map(str.isupper, solid)), letters),
        non_ascii=_share(len(solid) - ascii_only, len(solid)),
        tokens=None if count is None else count.tokens,
        tokens_per_word=None if count is None else _share(count.tokens, count.words),
        unknown_tokens=None if count is None else _share(count.unknown, count.tokens),
    )


class _Encoded(Protocol):
    """What is read of a `tokenizers.Encoding`."""

    @property
    def tokens(self) -> list[str]: ...

    @property
    def word_ids(self) -> list[int | None]: ...

    @property
    def sequence_ids(self) -> list[int | None]: ...


class Encodes(Protocol):
    """A model that shows its tokens; `companion.inference.predictor.OnnxPredictor` does."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Sequence[_Encoded]:
        """Turn texts into tokens."""


def token_counter(model: Encodes, *, unknown: Collection[str] = _UNKNOWN) -> CountTokens:
    """Count with a model's own tokenizer.

    It costs one more tokenization of every logged text, in the log's thread.

    Parameters
    ----------
    model : Encodes
    unknown : collection of str
        How the vocabulary calls what it does not have.

    Returns
    -------
    callable
        From a question to its `TokenCount`.
    """

    def count(question: Question) -> TokenCount:
        [encoded] = model.encode([question.text], None if question.pair is None else [question.pair])
        words = {
            place
            for place in zip(encoded.sequence_ids, encoded.word_ids, strict=True)
            if place[1] is not None
        }
        strange = sum(token in unknown for token in encoded.tokens)
        return TokenCount(len(encoded.tokens), strange, len(words))

    return count


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
