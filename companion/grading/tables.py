"""Writes tables of marks that a spreadsheet opens, and does not run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from companion.artifacts import staged_file

__all__ = ["cell", "write_rows"]


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a csv file: all of it, or nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with staged_file(Path(path)) as staging:
        staging.write_text(text.getvalue(), encoding="utf-8", newline="")


def cell(text: str) -> str:
    """Return a text on one line that a spreadsheet does not run as a formula."""
    line = " ".join(text.split())
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line
