"""An answer that was given to another question."""

from __future__ import annotations

from dataclasses import dataclass

from companion.deployment.answering import Answer

__all__ = ["BorrowedAnswer"]


@dataclass(frozen=True)
class BorrowedAnswer(Answer):
    """The model's answer to a similar text, given by a semantic cache.

    It is a class of its own so that an exact cache does not take it for the model's word on this text, and a
    log can tell the two apart.

    Attributes
    ----------
    similarity : float
        Cosine of the two texts' vectors.
    """

    similarity: float
