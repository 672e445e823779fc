"""The user's own data: csv, tsv, jsonl and parquet files with column names.

Every error names the file and the row. For text formats the row is the line that an editor shows (a record
of several lines counts from its first); for parquet it is the 1-based row number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from companion.data.rows import FORMATS, BadRow, listed, read_rows, read_rows_or_problems
from companion.data.tasks import Example

__all__ = ["FileData", "load_file", "stream_file", "stream_texts"]


@dataclass(frozen=True)
class FileData:
    """A file read into memory.

    Attributes
    ----------
    examples : tuple of Example
        In file order.
    labels : tuple of str
        Label names in index order; empty when no label column was asked for.
    path : Path
        Where the examples came from.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    path: Path


def load_file(
    path: Path | str,
    *,
    text_column: str,
    label_column: str | None = None,
    pair_column: str | None = None,
    labels: Sequence[str] | None = None,
) -> FileData:
    """Read a whole csv, tsv, jsonl or parquet file.

    Parameters
    ----------
    path : Path or str
        The extension decides the format. Text formats are UTF-8, with or without a byte order mark. A csv
        may quote its fields; a tsv may not (a quotation mark there is a character like any other).
    text_column : str
        Column of the text.
    label_column : str, optional
        Column of the label.
    pair_column : str, optional
        Column of the second text.
    labels : sequence of str, optional
        Label names in index order. A cell may hold the name or, where no name is equal to it, the index.
        Without it the labels are those found, sorted (as numbers if all are whole numbers).

    Returns
    -------
    FileData

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If the file or the request is malformed; the message names file and row.
    """
    path = Path(path)
    wanted = _wanted(path, text_column, label_column, pair_column)
    if label_column is None or labels is not None:
        names = _checked_labels(labels) if label_column is not None else ()
        return FileData(tuple(_examples(path, wanted, names)), names, path)
    rows = [
        (row, _label_text(path, row, label_column, values[1]), values)
        for row, values in read_rows(path, tuple(wanted.values()))
    ]
    names = _sorted_labels({label for _, label, _ in rows})
    index = {name: position for position, name in enumerate(names)}
    examples = tuple(_example(path, wanted, row, values, index[label]) for row, label, values in rows)
    return FileData(_not_empty(path, examples), names, path)


def stream_file(
    path: Path | str,
    *,
    text_column: str,
    label_column: str | None = None,
    pair_column: str | None = None,
    labels: Sequence[str] | None = None,
) -> Iterator[Example]:
    """Yield the examples of a file one by one, in constant memory.

    Parameters are those of `load_file`. With a label column and without `labels` the file is read twice:
    once, before this function returns, to find the labels.

    Yields
    ------
    Example

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If the file or the request is malformed; the message names file and row. Rows are checked as they
        are reached.
    """
    path = Path(path)
    wanted = _wanted(path, text_column, label_column, pair_column)
    if label_column is None:
        return _examples(path, wanted, ())
    if labels is not None:
        return _examples(path, wanted, _checked_labels(labels))
    label_rows = read_rows(path, (label_column,))
    found = {_label_text(path, row, label_column, values[0]) for row, values in label_rows}
    return _examples(path, wanted, _sorted_labels(found))


def stream_texts(
    path: Path | str, *, text_column: str, pair_column: str | None = None
) -> Iterator[tuple[int, Example] | BadRow]:
    """Yield the texts of a file with their rows, and what is wrong with a row in its place.

    Parameters are those of `stream_file`. For work that one bad row among millions must not stop.

    Yields
    ------
    tuple of (int, Example), or BadRow

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If the request is malformed, or the file in a way that no row can be told from the next.
    """
    path = Path(path)
    wanted = _wanted(path, text_column, None, pair_column)
    return _texts(path, wanted)


def _texts(path: Path, wanted: dict[str, str]) -> Iterator[tuple[int, Example] | BadRow]:
    empty = True
    for item in read_rows_or_problems(path, tuple(wanted.values())):
        empty = False
        if isinstance(item, BadRow):
            yield item
            continue
        row, values = item
        problems = [
            problem
            for column, value in zip(wanted.values(), values, strict=True)
            if (problem := _text_problem(column, value))
        ]
        cells = dict(zip(wanted, values, strict=True))
        if problems:
            yield BadRow(row, problems[0])
        else:
            yield row, Example(str(cells["text"]), None, str(cells["pair"]) if "pair" in cells else None)
    if empty:
        raise ValueError(f"{path}: no rows; expected at least one")


def _wanted(path: Path, text: str, label: str | None, pair: str | None) -> dict[str, str]:
    """Roles and their columns, in the order text, label, pair; checks path and request."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; give the path of a {', '.join(FORMATS)} file")
    if not path.is_file():
        raise ValueError(f"{path}: not a file; give the path of a {', '.join(FORMATS)} file")
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path}: unsupported extension {path.suffix or '(none)'!r}; expected one of {', '.join(FORMATS)}"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; expected a header and at least one row")
    roles = {"text": text, "label": label, "pair": pair}
    wanted = {role: name for role, name in roles.items() if name is not None}
    if len(set(wanted.values())) < len(wanted):
        raise ValueError(
            f"{path}: text, label and pair must be different columns; got {listed(wanted.values())}"
        )
    return wanted


def _checked_labels(labels: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(labels or ())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"labels must be one or more different names, got {list(names)}")
    return names


def _sorted_labels(found: set[str]) -> tuple[str, ...]:
    if all(name.removeprefix("-").isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _examples(path: Path, wanted: dict[str, str], names: tuple[str, ...]) -> Iterator[Example]:
    """Yield checked examples; `names` is empty when there is no label column."""
    index = {str(position): position for position in range(len(names))}
    index |= {name: position for position, name in enumerate(names)}
    empty = True
    for row, values in read_rows(path, tuple(wanted.values())):
        empty = False
        label = None
        if "label" in wanted:
            text = _label_text(path, row, wanted["label"], values[1])
            if text not in index:
                raise ValueError(
                    f"{path}, row {row}: unknown label {text!r} in column {wanted['label']!r}; "
                    f"known labels: {listed(names)} (or their index from 0)"
                )
            label = index[text]
        yield _example(path, wanted, row, values, label)
    if empty:
        raise ValueError(f"{path}: no rows; expected at least one")


def _not_empty(path: Path, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    if not examples:
        raise ValueError(f"{path}: no rows; expected at least one")
    return examples


def _example(
    path: Path, wanted: dict[str, str], row: int, values: tuple[object, ...], label: int | None
) -> Example:
    cells = dict(zip(wanted, values, strict=True))
    text = _text(path, row, wanted["text"], cells["text"])
    pair = _text(path, row, wanted["pair"], cells["pair"]) if "pair" in wanted else None
    return Example(text, label, pair)


def _text(path: Path, row: int, column: str, value: object) -> str:
    """Return the cell as text that is not empty and can be encoded."""
    if problem := _text_problem(column, value):
        raise ValueError(f"{path}, row {row}: {problem}")
    return str(value)


def _text_problem(column: str, value: object) -> str | None:
    """Say why a cell is no text that can be read, or None."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"empty text in column {column!r}; fill it in or remove the row"
    if not isinstance(value, str):
        return f"column {column!r} holds {value!r}; expected text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        place, odd = error.start, value[error.start]
        if "\udc80" <= odd <= "\udcff":  # how bytes come that are none of UTF-8
            byte = ord(odd) - 0xDC00
            return (
                f"column {column!r} is not UTF-8 (byte 0x{byte:02x} at character {place}); "
                "save the file as UTF-8"
            )
        return f"column {column!r} holds half of a surrogate pair; write the character itself"
    return None


def _label_text(path: Path, row: int, column: str, value: object) -> str:
    """Return the label cell as text: `1`, `1.0` and `"1"` are the same label."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int):
        text = str(value).strip()
        if text.lower() == "nan":  # what a missing value becomes on its way through a table of numbers
            raise ValueError(
                f"{path}, row {row}: label {text!r} in column {column!r} is a missing value; fill it in or "
                "remove the row"
            )
        if text:
            return text
    if value is None or value == "" or isinstance(value, str):
        raise ValueError(f"{path}, row {row}: empty label in column {column!r}; fill it in or remove the row")
    raise ValueError(
        f"{path}, row {row}: label {value!r} in column {column!r}; expected a name or a whole number"
    )
