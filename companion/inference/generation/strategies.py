"""How the next word is chosen: the likeliest, a draw, or the best of several texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Beam", "Greedy", "Sampling", "Strategy"]


@dataclass(frozen=True)
class Greedy:
    """The likeliest word, each time."""


@dataclass(frozen=True)
class Sampling:
    """A draw from the likely words.

    The filters come in the order of `transformers`: temperature, then `top_k`, then `top_p` [1]_.

    Attributes
    ----------
    temperature : float
        The scores are divided by it: below 1 the likely words become likelier.
    top_k : int, optional
        Only so many words can be drawn; more, where several have the score of the last.
    top_p : float
        Only the fewest words that together are at least this likely can be drawn.
    seed : int
        Row `i` of a batch draws with ``seed + i``, so that its text does not depend on its neighbours: alone,
        with the seed ``seed + i``, it draws the same.

    References
    ----------
    .. [1] Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse filters that leave nothing, or mean nothing."""
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature}, expected more than 0: "
                "for the likeliest word use Greedy()"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected at least 1, or None for all words")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, expected more than 0 and at most 1, which is all words")

    def probabilities(self, scores: Tensor) -> Tensor:
        """Turn scores (rows, words) into the probabilities of being drawn, of the same shape."""
        scores = scores.float() / self.temperature
        nothing = float("-inf")
        if self.top_k is not None:
            worst = scores.topk(min(self.top_k, scores.size(-1))).values[:, -1:]
            scores = scores.masked_fill(scores < worst, nothing)
        if self.top_p < 1:
            # From the unlikeliest up: what comes before the last `top_p` of probability goes, the likeliest
            # word never.
            ordered, places = scores.sort()
            unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            unlikely[:, -1] = False
            scores = scores.masked_fill(unlikely.scatter(1, places, unlikely), nothing)
        return scores.softmax(dim=-1)

    def generators(self, rows: int) -> list[torch.Generator]:
        """Return the source of chance of each row."""
        return [torch.Generator().manual_seed(self.seed + row) for row in range(rows)]

    def draw(self, scores: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw one word for each row of scores (rows, words), with the row's own generator: int64 (rows,)."""
        total = self.probabilities(scores).double().cumsum(dim=-1)
        at = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in generators])
        # The first word at which the sum passes a point between 0 and 1. Divided by its own end, so that
        # rounding leaves no gap below 1; `right`, so that a word of probability 0 is passed by.
        return torch.searchsorted(total / total[:, -1:], at.to(total.device), right=True).squeeze(1)


@dataclass(frozen=True)
class Beam:
    """The best of several texts that are continued side by side.

    The conventions are those of `transformers`. A text's score is the sum of its words' log-probabilities,
    divided by its length to the power `length_penalty`; the length counts the generated words, the end of the
    text included. Only a text among the `width` best continuations can end. The `width` best ended texts of a
    row are kept; the best one is returned.

    Attributes
    ----------
    width : int
    length_penalty : float
        0 prefers short texts, as a sum does; 1 compares means; above, long texts are preferred.
    early_stopping : bool
        True ends a row as soon as `width` texts have ended. False goes on until the best open text, were it
        to end here, would not be among them.
    """

    width: int = 4
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        """Refuse to search with nothing."""
        if self.width < 1:
            raise ValueError(f"width is {self.width}, expected at least 1")


Strategy = Greedy | Sampling | Beam
