"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = ["ratio_with_spread", "table"]


def table(title: str, rows: Sequence[Mapping[str, str]], *, left: Collection[str] = ()) -> str:
    """Align columns: words to the left, numbers to the right.

    Parameters
    ----------
    title : str
        A line above; empty for none.
    rows : sequence of mapping of str to str
        At least one; all have the columns of the first.
    left : collection of str
        The columns that hold words.

    Returns
    -------
    str
    """
    head = {name: name for name in rows[0]}
    widths = {name: max(len(row[name]) for row in (head, *rows)) for name in head}
    lines = [
        "  ".join(f"{row[name]:{'<' if name in left else '>'}{widths[name]}}" for name in head).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([title, *lines] if title else lines)


def ratio_with_spread(value: float, spread: tuple[float, float]) -> str:
    """Write a ratio with the lowest and the highest of its rounds."""
    return f"{value:.2f} ({spread[0]:.2f} to {spread[1]:.2f})"
