"""A request that waits, and what a worker can do for some of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from companion.deployment.answering import Question

if TYPE_CHECKING:
    from companion.inference.predictor import TokenizedText

__all__ = ["Waiter", "Work"]


@dataclass(eq=False, slots=True)
class Waiter:
    """A request in the line.

    Attributes
    ----------
    question : Question
    deadline : float
        When nobody waits any more, by the line's clock.
    future : object
        Where the answer goes; the line does not touch it.
    arrived : float
    alone_s : float
        What it would cost to run alone.
    tokens : int
        Guessed until it is encoded.
    encoding : TokenizedText or None
    claimed : bool
        Whether a worker is turning it into tokens.
    abandoned : bool
        Whether nobody waits for it any more: what has not run then never does.
    """

    question: Question
    deadline: float
    future: Any = None
    arrived: float = 0.0
    alone_s: float = 0.0
    tokens: int = 0
    encoding: TokenizedText | None = None
    claimed: bool = False
    abandoned: bool = False
    characters: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the characters once."""
        self.characters = len(self.question.text) + len(self.question.pair or "")


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does next.

    Attributes
    ----------
    kind : {"expire", "encode", "run"}
        Tell them that their time is over, turn them into tokens, or run them as one batch.
    waiters : list of Waiter
    """

    kind: Literal["expire", "encode", "run"]
    waiters: list[Waiter]
