"""Exercise 1, reproduce DistilBERT: the triple loss, dynamic masking, a student made of its teacher's layers.

The right answer to each step is what `companion.training.distillation` does; no check has a second one.
"""

from __future__ import annotations

from companion.exercises.distilbert.cosine import COSINE
from companion.exercises.distilbert.divergence import KL
from companion.exercises.distilbert.masking import MASKING
from companion.exercises.distilbert.student import STUDENT
from companion.exercises.distilbert.triple import TRIPLE
from companion.exercises.exercise import Exercise

__all__ = ["exercise"]


def exercise() -> Exercise:
    """Return the exercise, with nothing done.

    Returns
    -------
    Exercise
        Steps: ``kl``, ``cosine``, ``masking``, ``student``, ``triple``.
    """
    return Exercise("distilbert", "Reproduce DistilBERT", (KL, COSINE, MASKING, STUDENT, TRIPLE))
