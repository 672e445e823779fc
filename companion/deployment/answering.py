"""What the parts behind the server's edge hand to one another: a question, its deadline, an answer.

The batcher answers questions with a model; caches, rollouts and logs stand in front of it and are answerers
themselves. So each part can be left out, and each can be tested alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Answer", "Answerer", "Question"]


@dataclass(frozen=True)
class Question:
    """One text, or one pair of texts."""

    text: str
    pair: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes
    ----------
    values : tuple of float
        Probabilities in the order of `labels`; for a regression the score alone.
    labels : tuple of str
        Empty for a regression.
    model_version : str
        Which model answered.
    cached : bool
        Whether it was given before, and comes from a cache now. It does not count when answers are compared:
        an answer is the same wherever it was kept.
    """

    values: tuple[float, ...]
    labels: tuple[str, ...]
    model_version: str
    cached: bool = field(default=False, kw_only=True, compare=False)


class Answerer(Protocol):
    """Answers questions, or raises a `companion.deployment.problems.ProblemError`."""

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question.

        Parameters
        ----------
        question : Question
        deadline : float
            When nobody waits for the answer any more, by `time.monotonic`; infinite without a limit.
            A cancelled call is the same, sooner: what has not run then never does.
        """
