"""Rows of a csv, tsv, jsonl or parquet file, with their numbers, in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FORMATS", "Row", "decoded_lines", "listed", "read_rows"]

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
Row = tuple[int, tuple[object, ...]]

_BATCH_ROWS = 1_024
_LONGEST_LIST = 12


def decoded_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends; a byte order mark is dropped.

    Raises
    ------
    ValueError
        If a line is not UTF-8; the message names line and byte offset.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, row {number}: not UTF-8 (byte 0x{line[error.start]:02x} at offset "
                    f"{offset + error.start}); save the file as UTF-8"
                ) from None
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def listed(names: Iterable[str]) -> str:
    """Return the names in quotes, as many as a message can hold."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:_LONGEST_LIST]) + (", ..." if len(shown) > _LONGEST_LIST else "")


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield row numbers with the cells of the wanted columns.

    Parameters
    ----------
    path : Path
        A file with one of the extensions in `FORMATS`.
    columns : tuple of str
        Names of the columns to read.

    Yields
    ------
    tuple of (int, tuple)
        The row (for text formats the line it starts on, from 1; for parquet its number, from 1) and one cell
        per column.

    Raises
    ------
    ValueError
        If the file is malformed or lacks a column; the message names file and row.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, columns)
    if suffix == ".jsonl":
        return _jsonl_rows(path, columns)
    return _delimited_rows(path, columns, tab=suffix == ".tsv")


def _positions(path: Path, header: Sequence[str], columns: Sequence[str], row: int | None) -> list[int]:
    """Find the wanted columns in the header."""
    place = f"{path}, row {row}" if row else str(path)
    for column in columns:
        if column not in header:
            raise ValueError(f"{place}: no column {column!r}; columns found: {listed(header)}")
        if list(header).count(column) > 1:
            raise ValueError(f"{place}: column {column!r} appears more than once; rename one of them")
    return [list(header).index(column) for column in columns]


def _delimited_rows(path: Path, columns: tuple[str, ...], *, tab: bool) -> Iterator[Row]:
    lines = decoded_lines(path)
    if tab:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    positions: list[int] = []
    blank = 0
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, row {start}: {_csv_problem(error)}") from None
        if record is None:
            break
        if not record:
            blank = blank or start
            continue
        if blank:
            raise ValueError(f"{path}, row {blank}: blank line; remove it")
        if header is None:
            header = record
            positions = _positions(path, header, columns, start)
            continue
        if len(record) != len(header):
            raise ValueError(
                f"{path}, row {start}: {len(record)} columns, but the header has {len(header)}; "
                + (
                    "remove the extra tab"
                    if tab
                    else "put text with a comma or a line break in double quotes"
                )
            )
        yield start, tuple(record[position] for position in positions)
    if header is None:
        raise ValueError(f"{path}: the file is empty; expected a header and at least one row")


def _csv_problem(error: csv.Error) -> str:
    """Say what the parser's message means for the file."""
    if "new-line" in str(error):
        return "a carriage return inside the row; save the file with ordinary line ends"
    return f"{error}; is a quotation mark never closed?"


def _jsonl_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    blank = 0
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise ValueError(f"{path}, row {blank}: blank line; remove it")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, row {number}: not JSON ({error}); expected one object a line"
            ) from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, row {number}: expected a JSON object, found {type(record).__name__}")
        _positions(path, list(record), columns, number)
        yield number, tuple(record[column] for column in columns)


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Mapped, because the reader otherwise takes a row group's whole columns into memory.
        file: Any = pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from None
    with file:
        _positions(path, file.schema_arrow.names, columns, None)
        row = 0
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns), use_threads=False):
            try:
                cells = [batch.column(batch.schema.get_field_index(column)).to_pylist() for column in columns]
            except UnicodeDecodeError:
                place = f"{path}, rows {row + 1} to {row + len(batch)}"
                raise ValueError(f"{place}: text that is not UTF-8") from None
            for values in zip(*cells, strict=True):
                row += 1
                yield row, values
