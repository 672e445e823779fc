"""GLUE and IMDB: both folder layouts, the hub, and the real data where it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from companion.data import TASKS, Example, load

TSV = {
    "sst2": ("SST-2", "sentence\tlabel\nquite 'good' \t1\n\"bad\t0\n"),
    "cola": ("CoLA", "gj04\t1\t\tThe cat sat.\nbc01\t0\t*\tCat the sat.\n"),
    "mrpc": (
        "MRPC",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t"A.\tB.\n0\t9\t6\tC.\tD.\n',
    ),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n1\tC.\tD.\tnot_entailment\n"),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n1\tC.\tD.\t0\n"),
    "stsb": (
        "STS-B",
        "\t".join(["i", "g", "f", "y", "o", "a", "b", "sentence1", "sentence2", "score"])
        + "\n0\tg\tf\ty\t0\tn\tn\tA.\tB.\t2.5\n",
    ),
}
EXPECTED = {
    "sst2": (Example("quite 'good'", 1), Example('"bad', 0)),
    "cola": (Example("The cat sat.", 1), Example("Cat the sat.", 0)),
    "mrpc": (Example('"A.', 1, "B."), Example("C.", 0, "D.")),
    "rte": (Example("A.", 0, "B."), Example("C.", 1, "D.")),
    "wnli": (Example("A.", 1, "B."), Example("C.", 0, "D.")),
    "stsb": (Example("A.", 2.5, "B."),),
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The developer's own settings do not count here."""
    if "glue" not in request.keywords:
        for name in ("PROFILE", "DATA_DIR"):
            monkeypatch.delenv(f"COMPANION_{name}", raising=False)


def tsv_folder(root: Path, name: str, train: str | None = None) -> Path:
    folder, content = TSV[name]
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "train.tsv").write_text(train or content, encoding="utf-8")
    (root / folder / "dev.tsv").write_text(content, encoding="utf-8")
    return root


def hub_rows(name: str) -> list[dict[str, Any]]:
    """The expected examples with the hub's column names."""
    keys = ("sentence1", "label", "sentence2") if TASKS[name].paired else ("sentence", "label")
    return [dict(zip(keys, example, strict=False)) for example in EXPECTED[name]]


@pytest.mark.parametrize("name", TSV)
def test_glue_layout(tmp_path: Path, name: str) -> None:
    data = load(name, data_dir=tsv_folder(tmp_path, name))
    assert (data.task, data.train, data.dev, data.test) == (TASKS[name], EXPECTED[name], EXPECTED[name], ())


@pytest.mark.parametrize("name", TSV)
def test_hub_layout(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for part, split in (("0-of-2", "train"), ("1-of-2", "train"), ("0-of-1", "validation")):
        pq.write_table(pa.Table.from_pylist(hub_rows(name)), tmp_path / name / f"{split}-0000{part}.parquet")
    data = load(name, data_dir=tmp_path)
    assert (data.train, data.dev, data.test) == (EXPECTED[name] * 2, EXPECTED[name], ())


def test_hub_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the full profile without a folder, the hub is asked once for the right name."""
    import datasets

    asked: list[tuple[str, str]] = []

    def fake(repository: str, config: str) -> dict[str, list[dict[str, Any]]]:
        asked.append((repository, config))
        return {"train": hub_rows("rte"), "validation": hub_rows("rte"), "test": []}

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setenv("COMPANION_PROFILE", "full")
    assert load("rte").train == EXPECTED["rte"]
    assert asked == [("nyu-mll/glue", "rte")]


@pytest.mark.parametrize("nested", [False, True])
def test_imdb(tmp_path: Path, nested: bool) -> None:
    folder = tmp_path / "imdb" / "plain_text" if nested else tmp_path / "plain_text"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "label": i % 2} for i in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    data = load("imdb", data_dir=tmp_path)
    assert (len(data.train), len(data.dev), len(data.test)) == (18, 2, 20)
    assert not set(data.train) & set(data.dev)
    assert data == load("imdb", data_dir=tmp_path)


def test_folder_comes_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA_DIR", str(tsv_folder(tmp_path, "sst2")))
    assert load("sst2").train == EXPECTED["sst2"]


def test_quick_profile_says_what_to_set() -> None:
    with pytest.raises(FileNotFoundError, match=r"set COMPANION_DATA_DIR .*COMPANION_PROFILE=full"):
        load("sst2")


@pytest.mark.parametrize(
    ("name", "train", "message"),
    [
        ("sst2", "sentence\tlabel\na\t1\nb\t2\n", r"row 3: unknown label '2'; known labels: 0, 1"),
        ("sst2", "sentence\tlabel\na\tb\t1\n", r"row 2: 3 columns, expected 2"),
        ("sst2", "sentence\tlabel\n \t1\n", r"row 2: empty text"),
        ("sst2", "sentence\tlabel\n", r"no rows"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tmaybe\n", r"row 2: unknown label 'maybe'"),
        (
            "stsb",
            "\t".join("abcdefghij") + "\n" + "\t".join("abcdefghij") + "\n",
            r"row 2: score 'j' is not a number",
        ),
    ],
)
def test_malformed_glue_names_file_and_row(tmp_path: Path, name: str, train: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(name, data_dir=tsv_folder(tmp_path, name, train))
    assert str(tmp_path / TSV[name][0] / "train.tsv") in str(caught.value)


def test_malformed_hub_rows(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    path = tmp_path / "sst2" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([{"sentence": "a", "label": -1}]), path)
    with pytest.raises(FileNotFoundError, match=r"no validation-\*"):
        load("sst2", data_dir=tmp_path)
    path.with_name("validation-00000-of-00001.parquet").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"row 1: label -1, expected 0 to 1"):
        load("sst2", data_dir=tmp_path)
    pq.write_table(pa.Table.from_pylist([{"text": "a", "label": 0}]), path)
    with pytest.raises(ValueError, match="no 'sentence'; columns found: text, label"):
        load("sst2", data_dir=tmp_path)


def test_missing_folder_or_task(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load("sst2", data_dir=tmp_path / "none")
    with pytest.raises(
        FileNotFoundError, match=r"no data of the task 'sst2'; expected SST-2/train.tsv or sst2/"
    ):
        load("sst2", data_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown task 'sst3'; known tasks: sentiment, sst2"):
        load("sst3")


def test_max_examples_is_a_random_nested_subset(tmp_path: Path) -> None:
    train = "sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(500))
    folder = tsv_folder(tmp_path, "sst2", train)
    full = load("sst2", data_dir=folder)
    small, large = (load("sst2", data_dir=folder, max_examples=n, seed=5) for n in (50, 200))
    assert len(small.train) == 50
    assert set(small.train) < set(large.train) < set(full.train)
    assert small.train != full.train[:50]
    assert load("sst2", data_dir=folder, max_examples=50, seed=6).train != small.train
    assert small.dev == full.dev
    assert load("sst2", data_dir=folder, max_examples=10**6) == full
    with pytest.raises(ValueError, match="max_examples is 0"):
        load("sst2", data_dir=folder, max_examples=0)


@pytest.mark.glue
@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("sst2", 67_349, 872),
        ("cola", 8_551, 1_043),
        ("mrpc", 3_668, 408),
        ("rte", 2_490, 277),
        ("wnli", 635, 71),
        ("stsb", 5_749, 1_500),
    ],
)
def test_real_glue_row_counts(glue_dir: Path, name: str, train: int, dev: int) -> None:
    data = load(name, data_dir=glue_dir)
    assert (len(data.train), len(data.dev), data.test) == (train, dev, ())
    if data.task.is_regression:
        assert all(isinstance(e.label, float) and 0.0 <= e.label <= 5.0 for e in data.train + data.dev)
    else:
        assert {e.label for e in data.dev} == set(range(data.task.num_labels))
    assert all((e.pair is not None) == data.task.paired for e in data.train + data.dev)
