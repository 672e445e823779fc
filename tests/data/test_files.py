"""The user's own files: every format reads the same, every malformed input names file and row."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.data import Example, load_file, stream_file

COLUMNS = {"text_column": "text", "label_column": "label"}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def save(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write `rows` in the format of the extension."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
            writer = csv.writer(file, **dialect)
            writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return path


FORMATS = ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "A.CSV"]


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_read_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows: list[dict[str, object]] = [
        {"id": 1, "text": "Très bon, 東京", "other": "second", "label": "yes"},
        {"id": 2, "text": "it 's so-so", "other": "third", "label": "no"},
    ]
    save(path.with_suffix(path.suffix.lower()), rows)
    if path.suffix.isupper():
        path.with_suffix(path.suffix.lower()).rename(path)
    data = load_file(path, **COLUMNS, pair_column="other")
    assert data.labels == ("no", "yes")
    assert data.path == path
    assert data.examples == (
        Example("Très bon, 東京", 1, "second"),
        Example("it 's so-so", 0, "third"),
    )
    assert tuple(stream_file(path, **COLUMNS, pair_column="other")) == data.examples
    unlabelled = load_file(path, text_column="text")
    assert unlabelled.labels == ()
    assert [e.label for e in unlabelled.examples] == [None, None]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5
    )
)
def test_any_text_survives(tmp_path: Path, name: str, texts: list[str]) -> None:
    """Quotes, commas, line breaks, control characters: what was written is what is read."""
    path = save(tmp_path / name, [{"label": "x", "text": text} for text in texts])
    assert [e.text for e in load_file(path, text_column="text").examples] == texts


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\nfine day,1\r\n\r\n")
    assert load_file(path, **COLUMNS).examples == (Example("fine day", 0),)


def test_tsv_is_unquoted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"open quote\t1\nsays "hi"\t0\n')
    assert [e.text for e in load_file(path, **COLUMNS).examples] == ['"open quote', 'says "hi"']


def test_fixed_labels_by_name_or_index(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,good\nb,0\nc,1\n")
    assert [e.label for e in load_file(path, **COLUMNS, labels=["bad", "good"]).examples] == [1, 0, 1]
    assert load_file(path, **COLUMNS, labels=["bad", "good"]).labels == ("bad", "good")
    named = load_file(write(path, "text,label\na,0\nb,1\n"), **COLUMNS, labels=["1", "0"])
    assert [e.label for e in named.examples] == [1, 0]  # a name wins over an index


def test_discovered_labels_are_sorted_as_numbers_if_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,10\nb,9\nc,-1\n")
    assert load_file(path, **COLUMNS).labels == ("-1", "9", "10")
    path = save(tmp_path / "a.parquet", [{"text": "a", "label": 1.0}, {"text": "b", "label": 0.0}])
    assert load_file(path, **COLUMNS).labels == ("0", "1")
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert load_file(path, **COLUMNS).labels == ("false", "true")


MALFORMED = {
    "missing column": (
        "a.csv",
        "txt,label,x\na,1,2\n",
        r"no column 'text'; columns found: 'txt', 'label', 'x'",
    ),
    "missing column, jsonl": (
        "a.jsonl",
        '{"text":"a","label":1}\n{"txt":"a"}\n',
        r"row 2: no column 'text'.*'txt'",
    ),
    "column twice": ("a.csv", "text,text,label\na,b,1\n", r"row 1: column 'text' appears more than once"),
    "unknown label": (
        "a.csv",
        "text,label\na,good\nb,goood\n",
        r"row 3: unknown label 'goood'.*'bad', 'good'",
    ),
    "index too large": ("a.csv", "text,label\na,2\n", r"row 2: unknown label '2'"),
    "empty label": ("a.csv", "text,label\na,\n", r"row 2: empty label in column 'label'"),
    "NaN label": ("a.csv", "text,label\na,0\nb,NaN\n", r"row 3: label 'NaN' in column 'label' is a missing"),
    "null label": ("a.jsonl", '{"text":"a","label":null}\n', r"row 1: empty label"),
    "fraction label": ("a.jsonl", '{"text":"a","label":0.5}\n', r"row 1: label 0.5"),
    "empty text": ("a.tsv", "text\tlabel\na\tgood\n \tbad\n", r"row 3: empty text in column 'text'"),
    "null text": ("a.jsonl", '{"text":null,"label":"bad"}\n', r"row 1: empty text"),
    "number for text": (
        "a.jsonl",
        '{"text":5,"label":"bad"}\n',
        r"row 1: column 'text' holds 5; expected text",
    ),
    "surrogate": ("a.jsonl", '{"text":"\\ud800","label":"bad"}\n', r"row 1: .*surrogate"),
    "latin-1": (
        "a.csv",
        b"text,label\nok,bad\ncaf\xe9,bad\n",
        r"row 3: .*0xe9 at offset 21.*save the file as UTF-8",
    ),
    "utf-16": ("a.csv", "text,label\na,bad\n".encode("utf-16"), r"row 1: .*offset 0.*save the file as UTF-8"),
    "latin-1 jsonl": ("a.jsonl", b'{"text":"\xe9","label":"bad"}', r"row 1: .*0xe9 at offset 9.*UTF-8"),
    "too many columns": (
        "a.csv",
        "text,label\na,bad\nb, c,bad\n",
        r"row 3: 3 columns, but the header has 2.*quotes",
    ),
    "too few columns": ("a.tsv", "text\tlabel\na\n", r"row 2: 1 columns, but the header has 2"),
    "carriage return": ("a.tsv", "text\tlabel\na\rb\tbad\n", r"row 2: .*carriage return"),
    "huge number": ("a.jsonl", '{"text":"a","label":' + "1" * 5000 + "}\n", r"row 1: not JSON"),
    "open quote": ("a.csv", 'text,label\na,bad\n"b,bad\nc,bad\n', r"row 3: .*never closed"),
    "row after line break": ("a.csv", 'text,label\n"a\nb",bad\n,bad\n', r"row 4: empty text"),
    "blank line": ("a.csv", "text,label\na,bad\n\nb,bad\n", r"row 3: blank line"),
    "blank line, jsonl": (
        "a.jsonl",
        '{"text":"a","label":"bad"}\n\n{"text":"a","label":"bad"}\n',
        r"row 2: blank line",
    ),
    "bad json": ("a.jsonl", '{"text":"a","label":"bad"}\n{"text":\n', r"row 2: not JSON"),
    "not an object": ("a.jsonl", "[1, 2]\n", r"row 1: expected a JSON object, found list"),
    "header only": ("a.csv", "text,label\n", r"no rows"),
    "only blank lines": ("a.csv", "\n\n", r"the file is empty"),
    "empty file": ("a.parquet", "", r"the file is empty"),
    "no parquet": ("a.parquet", "text,label\n", r"not a parquet file"),
    "extension": ("a.txt", "text,label\n", r"unsupported extension '.txt'; expected one of .csv, .tsv"),
}


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize(
    "read", [load_file, lambda *a, **k: list(stream_file(*a, **k))], ids=["load", "stream"]
)
def test_malformed_input_names_file_and_row(
    tmp_path: Path, read: Callable[..., object], name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, **COLUMNS, labels=["bad", "good"])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_parquet_names_row_and_column(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [{"text": "a", "label": 0}] * 1500 + [{"text": "", "label": 1}])
    with pytest.raises(ValueError, match="row 1501: empty text in column 'text'"):
        load_file(path, **COLUMNS)
    with pytest.raises(ValueError, match="no column 'sentence'; columns found: 'text', 'label'"):
        load_file(path, text_column="sentence")


def test_wrong_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1\n")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_file(tmp_path / "b.csv", text_column="text")
    with pytest.raises(ValueError, match="not a file"):
        load_file(tmp_path, text_column="text")
    with pytest.raises(ValueError, match="must be different columns"):
        load_file(path, text_column="text", pair_column="text")
    for labels in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="labels must be one or more different names"):
            load_file(path, **COLUMNS, labels=labels)


def generated(path: Path, rows: int) -> None:
    """Write a file of `rows` rows without holding it."""
    text = "a sentence of some length that is here to take room " * 4

    def lines() -> Iterator[str]:
        for index in range(rows):
            if path.suffix == ".jsonl":
                yield json.dumps({"text": f"{text}{index}", "label": "ab"[index % 2]}) + "\n"
            else:
                yield ("\t" if path.suffix == ".tsv" else ",").join(
                    (f"{text}{index}", "ab"[index % 2])
                ) + "\n"

    if path.suffix == ".parquet":
        rows_of = [{"text": f"{text}{index}", "label": "ab"[index % 2]} for index in range(rows)]
        table = pa.Table.from_pylist(rows_of)
        # One large row group, plain pages: the hardest kind to read piece by piece.
        pq.write_table(table, path, compression="none", use_dictionary=False, data_page_size=65_536)
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix != ".jsonl":
            file.write("text\tlabel\n" if path.suffix == ".tsv" else "text,label\n")
        file.writelines(lines())


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_streaming_holds_no_set_in_memory(tmp_path: Path, suffix: str) -> None:
    """10,000 rows of 200 characters are over 3 MB as Python objects; the stream stays far below."""
    path = tmp_path / f"large{suffix}"
    generated(path, 10_000)
    list(zip(range(10), stream_file(path, **COLUMNS), strict=False))  # imports count for nothing
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    count, most_arrow = 0, 0
    for count, _ in enumerate(stream_file(path, **COLUMNS), start=1):
        if count % 500 == 0:
            most_arrow = max(most_arrow, pa.total_allocated_bytes() - arrow)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 1_000_000
    assert most_arrow < 1_000_000
