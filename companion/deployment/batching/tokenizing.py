"""What turning texts into tokens costs: so much for each call, and so much for each character."""

from __future__ import annotations

__all__ = ["EncodingCost"]

_KEEP = 0.99  # of the weight of what is known, with each new call
_ANCHORS = (100, 20_000)
"""Characters at which the cost stays tied to its start: nothing else would hold the cost of long texts while
only short ones come."""
_TRUST = 0.01  # of each, in calls: squared, a start that was too fast weighs much more


class EncodingCost:
    """Least squares of the relative errors, which forgets, and in which no part is below 0.

    Seconds divided by characters would not do. What a call costs whatever its text would then be multiplied
    for a long one: the time of a text of two letters, times 50,000, is more than any request waits, and a
    server that had seen short texts refused each long one. The errors are relative ones so that a call which
    the machine interrupted, and which took a hundred times as long, hardly counts.

    Parameters
    ----------
    per_call, per_character : float
        Seconds, to begin with; above 0.
    """

    def __init__(self, per_call: float = 3e-5, per_character: float = 3e-7) -> None:
        self.per_call = per_call
        self.per_character = per_character
        start = [_moments(length, per_call + length * per_character) for length in _ANCHORS]
        self._start = tuple(_TRUST * sum(parts) for parts in zip(*start, strict=True))
        self._seen = (0.0,) * len(self._start)

    def seconds(self, characters: int) -> float:
        """Return how long a call takes."""
        return self.per_call + characters * self.per_character

    def update(self, characters: int, seconds: float) -> None:
        """Learn from one call; a time that is not above 0 says that the clock is too coarse."""
        if not seconds > 0:
            return
        new = _moments(characters, seconds)
        self._seen = tuple(_KEEP * old + more for old, more in zip(self._seen, new, strict=True))
        ones, lengths, squares, inverse, lengths_inverse = (
            start + seen for start, seen in zip(self._start, self._seen, strict=True)
        )
        determinant = ones * squares - lengths * lengths  # above 0: the anchors differ
        call = (squares * inverse - lengths * lengths_inverse) / determinant
        character = (ones * lengths_inverse - lengths * inverse) / determinant
        if call < 0:
            call, character = 0.0, lengths_inverse / squares
        elif character < 0:
            call, character = inverse / ones, 0.0
        self.per_call, self.per_character = call, character


def _moments(characters: int, seconds: float) -> tuple[float, float, float, float, float]:
    """Return what one call adds to the sums: of 1, c and c squared over s squared, of 1 and c over s."""
    one = 1 / seconds
    length = characters * one
    return one * one, one * length, length * length, one, length
