"""GLUE tasks and IMDB, from a folder or from the Hugging Face hub.

A folder may have either layout: GLUE's own (`SST-2/train.tsv`: tab-separated, unquoted) or the hub's
(`sst2/train-00000-of-00001.parquet`). GLUE's test labels are not public, so its test split stays empty.
Sources: Wang et al. 2019, https://gluebenchmark.com; Maas et al. 2011 for IMDB.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.data.rows import decoded_lines
from companion.data.tasks import TASKS, Example, TaskData

__all__ = ["HUB_NAMES", "read_folder", "read_hub"]

HUB_NAMES: dict[str, tuple[str, str]] = {
    **{name: ("nyu-mll/glue", name) for name in ("sst2", "cola", "mrpc", "rte", "wnli", "stsb")},
    "imdb": ("stanfordnlp/imdb", "plain_text"),
}
"""Task name to repository and configuration on the hub."""


@dataclass(frozen=True)
class _Tsv:
    """Where things stand in GLUE's own files; a column of -1 is the last one."""

    folder: str
    columns: int
    text: int
    label: int
    pair: int | None = None
    header: bool = True
    labels: tuple[str, ...] = ("0", "1")


_TSV: dict[str, _Tsv] = {
    "sst2": _Tsv("SST-2", 2, text=0, label=1),
    "cola": _Tsv("CoLA", 4, text=3, label=1, header=False),
    "mrpc": _Tsv("MRPC", 5, text=3, pair=4, label=0),
    "rte": _Tsv("RTE", 4, text=1, pair=2, label=3, labels=("entailment", "not_entailment")),
    "wnli": _Tsv("WNLI", 4, text=1, pair=2, label=3),
    "stsb": _Tsv("STS-B", 10, text=7, pair=8, label=-1, labels=()),
}
_IMDB_DEV_SHARE = 10


def read_folder(name: str, data_dir: Path) -> TaskData:
    """Read a task from a folder in GLUE's layout or in the hub's; the layout is detected.

    Parameters
    ----------
    name : str
        A key of `HUB_NAMES`.
    data_dir : Path
        The folder that holds `SST-2/`, ... or `sst2/`, ... (for IMDB: `plain_text/`).

    Returns
    -------
    TaskData

    Raises
    ------
    FileNotFoundError
        If the folder, or the task in it, is not there.
    ValueError
        If a file is malformed; the message names file and row.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir}: no such folder; expected a folder with GLUE data")
    tsv = _TSV.get(name)
    if tsv is not None and (folder := data_dir / tsv.folder).is_dir():
        train, dev = (_read_tsv(name, tsv, folder / f"{split}.tsv") for split in ("train", "dev"))
        return TaskData(TASKS[name], train, dev)
    config = HUB_NAMES[name][1]
    for folder in (data_dir / config, data_dir / name / config):
        if any(folder.glob("train-*.parquet")):
            splits = {split: _parquet_rows(folder, split) for split in _hub_splits(name)}
            return _from_hub(name, splits, str(folder))
    own = f"{tsv.folder}/train.tsv or " if tsv else ""
    raise FileNotFoundError(
        f"{data_dir}: no data of the task {name!r}; expected {own}{config}/train-00000-of-00001.parquet in it"
    )


def read_hub(name: str) -> TaskData:
    """Read a task from the Hugging Face hub (or from the `datasets` cache).

    Parameters
    ----------
    name : str
        A key of `HUB_NAMES`.

    Returns
    -------
    TaskData
    """
    import datasets

    repository, config = HUB_NAMES[name]
    loaded = datasets.load_dataset(repository, config)
    return _from_hub(name, {split: loaded[split] for split in _hub_splits(name)}, repository)


def _read_tsv(name: str, layout: _Tsv, path: Path) -> tuple[Example, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the {name} data in GLUE's layout")
    examples = tuple(_tsv_examples(layout, path))
    if not examples:
        raise ValueError(f"{path}: no rows; expected at least one")
    return examples


def _tsv_examples(layout: _Tsv, path: Path) -> Iterator[Example]:
    for number, line in enumerate(decoded_lines(path), start=1):
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) != layout.columns:
            raise ValueError(f"{path}, row {number}: {len(cells)} columns, expected {layout.columns}")
        if layout.header and number == 1:
            continue
        text = cells[layout.text].strip()
        pair = cells[layout.pair].strip() if layout.pair is not None else None
        if not text or pair == "":
            raise ValueError(f"{path}, row {number}: empty text")
        yield Example(text, _tsv_label(layout, cells[layout.label], path, number), pair)


def _tsv_label(layout: _Tsv, cell: str, path: Path, number: int) -> int | float:
    if layout.labels:
        if cell not in layout.labels:
            raise ValueError(
                f"{path}, row {number}: unknown label {cell!r}; known labels: {', '.join(layout.labels)}"
            )
        return layout.labels.index(cell)
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{path}, row {number}: score {cell!r} is not a number") from None


def _hub_splits(name: str) -> tuple[str, ...]:
    return ("train", "test") if name == "imdb" else ("train", "validation")


def _parquet_rows(folder: Path, split: str) -> list[dict[str, Any]]:
    """All rows of one split in the hub's layout."""
    import pyarrow.parquet as pq

    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no {split}-*.parquet in it; expected the hub's layout")
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += pq.read_table(path).to_pylist()
    return rows


def _from_hub(name: str, splits: Mapping[str, Iterable[Mapping[str, Any]]], source: str) -> TaskData:
    """Rows as the hub names their columns, to examples."""
    read = {split: tuple(_hub_examples(name, rows, f"{source} ({split})")) for split, rows in splits.items()}
    if name != "imdb":
        return TaskData(TASKS[name], read["train"], read["validation"])
    # IMDB has no dev split: a tenth of train is set aside, always the same one.
    positions = list(range(len(read["train"])))
    random.Random("companion/imdb/dev").shuffle(positions)
    cut = len(positions) // _IMDB_DEV_SHARE
    dev, train = sorted(positions[:cut]), sorted(positions[cut:])
    return TaskData(
        TASKS[name],
        tuple(read["train"][position] for position in train),
        tuple(read["train"][position] for position in dev),
        read["test"],
    )


def _hub_examples(name: str, rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[Example]:
    task = TASKS[name]
    text_column = "text" if name == "imdb" else "sentence1" if task.paired else "sentence"
    needed = [text_column, "label", *(["sentence2"] if task.paired else [])]
    for number, row in enumerate(rows, start=1):
        for column in needed:
            if row.get(column) is None:
                raise ValueError(f"{source}, row {number}: no {column!r}; columns found: {', '.join(row)}")
        label = float(row["label"]) if task.is_regression else int(row["label"])
        if not task.is_regression and not 0 <= label < task.num_labels:
            raise ValueError(f"{source}, row {number}: label {label}, expected 0 to {task.num_labels - 1}")
        yield Example(row[text_column].strip(), label, row["sentence2"].strip() if task.paired else None)
