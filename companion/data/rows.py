"""Rows of a csv, tsv, jsonl or parquet file, with their numbers, in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FORMATS", "BadRow", "Row", "decoded_lines", "listed", "read_rows", "read_rows_or_problems"]

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
Row = tuple[int, tuple[object, ...]]

_BATCH_ROWS = 1_024
_LONGEST_LIST = 12


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, while those after it can.

    Attributes
    ----------
    row : int
        As in `Row`.
    problem : str
        What is wrong with it, and what to do.
    """

    row: int
    problem: str


def decoded_lines(path: Path, *, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends; a byte order mark is dropped.

    Parameters
    ----------
    path : Path
    errors : str
        What to do about bytes that are not UTF-8, as for `bytes.decode`.

    Raises
    ------
    ValueError
        If a line is not UTF-8 and `errors` is ``strict``; the message names line and byte offset.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8", errors)
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
    for row in _rows(path, columns, errors="strict"):
        if isinstance(row, BadRow):
            raise ValueError(f"{path}, row {row.row}: {row.problem}")
        yield row


def read_rows_or_problems(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield what `read_rows` yields, and go on behind a row that cannot be read.

    Parameters
    ----------
    path, columns
        As for `read_rows`.

    Yields
    ------
    Row or BadRow
        In a csv or tsv file, bytes that are not UTF-8 come as half surrogate pairs (``surrogateescape``).

    Raises
    ------
    ValueError
        If no rows can be told apart any more: the header is wrong, a quotation mark is never closed, it is
        not a parquet file.
    """
    return _rows(path, columns, errors="surrogateescape")


def _rows(path: Path, columns: tuple[str, ...], *, errors: str) -> Iterator[Row | BadRow]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, columns)
    if suffix == ".jsonl":
        return _jsonl_rows(path, columns, errors=errors)
    return _delimited_rows(path, columns, tab=suffix == ".tsv", errors=errors)


def _positions(path: Path, header: Sequence[str], columns: Sequence[str], row: int | None) -> list[int]:
    """Find the wanted columns in the header."""
    place = f"{path}, row {row}" if row else str(path)
    for column in columns:
        if column not in header:
            raise ValueError(f"{place}: no column {column!r}; columns found: {listed(header)}")
        if list(header).count(column) > 1:
            raise ValueError(f"{place}: column {column!r} appears more than once; rename one of them")
    return [list(header).index(column) for column in columns]


def _delimited_rows(
    path: Path, columns: tuple[str, ...], *, tab: bool, errors: str
) -> Iterator[Row | BadRow]:
    lines = decoded_lines(path, errors=errors)
    if tab:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    positions: list[int] = []
    blank: list[int] = []
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, row {start}: {_csv_problem(error)}") from None
        if record is None:
            break
        if not record:
            blank.append(start)  # at the end of the file they are nobody's rows
            continue
        yield from _blank_lines(blank)
        if header is None:
            header = record
            positions = _positions(path, header, columns, start)
            continue
        if len(record) != len(header):
            advice = (
                "remove the extra tab" if tab else "put text with a comma or a line break in double quotes"
            )
            found = f"{len(record)} columns, but the header has {len(header)}"
            yield BadRow(start, f"{found}; {advice}")
            continue
        yield start, tuple(record[position] for position in positions)
    if header is None:
        raise ValueError(f"{path}: the file is empty; expected a header and at least one row")


def _csv_problem(error: csv.Error) -> str:
    """Say what the parser's message means for the file."""
    if "new-line" in str(error):
        return "a carriage return inside the row; save the file with ordinary line ends"
    return f"{error}; is a quotation mark never closed?"


def _blank_lines(rows: list[int]) -> Iterator[BadRow]:
    yield from [BadRow(row, "blank line; remove it") for row in rows]
    rows.clear()


def _jsonl_rows(path: Path, columns: tuple[str, ...], *, errors: str) -> Iterator[Row | BadRow]:
    blank: list[int] = []
    for number, line in enumerate(decoded_lines(path, errors=errors), start=1):
        if not line.strip():
            blank.append(number)
            continue
        yield from _blank_lines(blank)
        yield _json_row(number, line, columns)


def _json_row(number: int, line: str, columns: tuple[str, ...]) -> Row | BadRow:
    """Read one line of a jsonl file."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"not JSON ({error}); expected one object a line")
    if not isinstance(record, dict):
        return BadRow(number, f"expected a JSON object, found {type(record).__name__}")
    for column in columns:
        if column not in record:
            return BadRow(number, f"no column {column!r}; columns found: {listed(record)}")
    return number, tuple(record[column] for column in columns)


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
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
            arrays = [batch.column(batch.schema.get_field_index(column)) for column in columns]
            try:
                cells = [array.to_pylist() for array in arrays]
            except UnicodeDecodeError:
                yield from _one_by_one(arrays, row)
                row += len(batch)
                continue
            for values in zip(*cells, strict=True):
                row += 1
                yield row, values


def _one_by_one(arrays: Sequence[Any], before: int) -> Iterator[Row | BadRow]:
    """Yield the rows of a piece of parquet of which some are not UTF-8."""
    for row, values in enumerate(zip(*arrays, strict=True), start=before + 1):
        try:
            yield row, tuple(value.as_py() for value in values)
        except UnicodeDecodeError:
            yield BadRow(row, "text that is not UTF-8")
