"""A file cut into windows: rows enough for sorting by length to pay, few enough to fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from companion.data import BadRow, Example, stream_texts
from companion.inference.offline.job import OfflineJob

__all__ = ["WINDOW_BATCHES", "Item", "Window", "count_rows", "cut"]

WINDOW_BATCHES = 32
"""Batches in a window: its texts are sorted by length before they are cut into batches."""
_CHARACTERS = 4_000_000
"""Of texts, after which a window ends early: rows of a book each must not fill the memory."""

Item = tuple[int, Example] | BadRow
"""A row's number and its text, or what is wrong with it."""


@dataclass(frozen=True)
class Window:
    """Rows that are answered together.

    Attributes
    ----------
    items : tuple of Item
        In the order of the file.
    paired : bool
        Whether each has two texts.
    source : str
        The file, for who has to name it.
    """

    items: tuple[Item, ...]
    paired: bool
    source: str


def count_rows(job: OfflineJob) -> int:
    """Read the whole file once, before anything is computed.

    A bad row at its end is told now, and not after hours; and whoever waits knows how much there is.

    Parameters
    ----------
    job : OfflineJob

    Returns
    -------
    int

    Raises
    ------
    FileNotFoundError, ValueError
        When the file cannot be read; for a bad row unless it is to be recorded.
    """
    rows = 0
    for item in _items(job):
        if isinstance(item, BadRow) and job.on_error == "stop":
            raise ValueError(f"{job.file}, row {item.row}: {item.problem}")
        rows += 1
    return rows


def cut(job: OfflineJob, *, skip: int = 0) -> Iterator[Window]:
    """Cut a file into windows.

    Where a window ends depends only on the rows from its beginning on: whoever skips whole windows gets the
    others as they were.

    Parameters
    ----------
    job : OfflineJob
    skip : int
        Rows that are done: whole windows.

    Yields
    ------
    Window
    """
    rows = WINDOW_BATCHES * job.batch_size
    for items in _pieces(islice(_items(job), skip, None), rows):
        yield Window(tuple(items), job.pair_column is not None, str(job.file))


def _items(job: OfflineJob) -> Iterator[Item]:
    return stream_texts(job.file, text_column=job.text_column, pair_column=job.pair_column)


def _pieces(items: Iterable[Item], rows: int) -> Iterator[list[Item]]:
    piece, characters = list[Item](), 0
    for item in items:
        piece.append(item)
        if not isinstance(item, BadRow):
            characters += len(item[1].text) + len(item[1].pair or "")
        if len(piece) >= rows or characters >= _CHARACTERS:
            yield piece
            piece, characters = [], 0
    if piece:
        yield piece
