"""Texts as they come to a server: of very different lengths."""

from __future__ import annotations

import math
import random
from itertools import cycle, islice

from companion.data.sentiment import generate

__all__ = ["mixed_texts"]

_REVIEWS = 200  # whose words are used, again and again


def mixed_texts(
    count: int,
    *,
    median: float = 24,
    spread: float = 0.62,
    shortest: int = 4,
    longest: int = 120,
    seed: int = 0,
) -> list[str]:
    """Write texts of real words whose lengths are log-normal, as those of reviews and questions are.

    Parameters
    ----------
    count : int
    median : float
        Words.
    spread : float
        Standard deviation of the logarithm of the length; that of the generated reviews.
    shortest, longest : int
        Words; lengths beyond are moved there.
    seed : int
        The same seed gives the same texts.

    Returns
    -------
    list of str
    """
    rng = random.Random(f"companion/mixed_texts/{seed}")
    drawn = (round(math.exp(rng.gauss(math.log(median), spread))) for _ in range(count))
    reviews = generate(train_size=0, dev_size=_REVIEWS, test_size=0).dev
    words = cycle([word for example in reviews for word in example.text.split()])
    return [" ".join(islice(words, min(max(length, shortest), longest))) for length in drawn]
