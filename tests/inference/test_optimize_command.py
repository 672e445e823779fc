"""The command `companion optimize`: models as users bring them, codes, reports, mistakes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from strangers import TOPICS, news, write

from companion.inference import OnnxPredictor, TorchPredictor, read_manifest

COLUMNS = ("--text-column", "headline", "--label-column", "topic")
SMALL = ("--runs", 6, "--batch-size", 8, "--threads", 1)


@pytest.fixture(scope="module")
def headlines(tmp_path_factory) -> Path:
    """Return news of four topics, in quotes where there are commas."""
    file = tmp_path_factory.mktemp("news") / "news.csv"
    with file.open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["id", "headline", "topic"])
        rows.writerows([i, text, topic] for i, (text, topic) in enumerate(news(250)))
    return file


def agrees(source: Path, out: Path, furthest: float) -> bool:
    """Tell whether the written folder answers as its source does."""
    texts = [text for text, _ in news(60, seed=9)]
    expected, found = TorchPredictor(source).logits(texts), OnnxPredictor(out, threads=1).logits(texts)
    return bool(np.abs(found - expected).mean() < furthest * np.ptp(expected))


@pytest.mark.timeout(600)  # a trace, six folders and a benchmark
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_a_model_that_somebody_brings(run, kind, headlines, tmp_path):
    """Random weights: right by chance, but what an export changes shows all the same."""
    source, out = write(tmp_path / "model", kind), tmp_path / "out"
    command = ("optimize", source, out, "--check-on", headlines, *COLUMNS, "--max-accuracy-drop", 10, *SMALL)
    code, told, err = run(*command, "--json")
    assert (code, err) == (0, ""), err
    assert told.count("\n") == 1
    found = json.loads(told)
    names = [one["name"] for one in found["tried"]]
    assert names[:5] == ["fp32", "int8", "int8-weights", "int8-fixed", "int4-weights"]
    assert (found["labelled"], found["metric"], found["examples"]) == (True, "accuracy", 200)
    assert found["folder"] == str(source)
    by_name = {one["name"]: one for one in found["tried"]}
    assert by_name["fp32"]["quality"]["flips"]["value"] == 0
    assert [item["label"] for item in by_name["int8"]["quality"]["classes"]] == list(TOPICS)
    taken = by_name[found["chosen"]]
    assert taken["refused"] is None
    assert found["chosen"] in found["explanation"]
    manifest = read_manifest(out)
    assert manifest.precision == taken["precision"]
    assert manifest.labels == tuple(TOPICS)
    assert json.loads(json.dumps(manifest.quality.to_dict())) == taken["quality"]
    assert {row["batch_size"] for one in found["benchmark"]["candidates"] for row in one["throughput"]} == {8}
    assert agrees(source, out, 0.3)


def test_texts_without_labels_in_words(run, model_folder, toy, fp32_folder, tmp_path, monkeypatch):
    import onnx

    import companion.inference.exporting as exporting

    model = onnx.load(str(fp32_folder / "model.onnx"))
    monkeypatch.setattr(exporting, "trace", lambda classifier: model)
    monkeypatch.setenv("COMPANION_PROGRESS", "1")
    rows = "".join(json.dumps({"text": example.text}) + "\n" for example in toy[:100])
    (tmp_path / "texts.jsonl").write_text(rows)
    texts = ("--check-on", tmp_path / "texts.jsonl", "--text-column", "text")
    code, told, err = run("optimize", model_folder, tmp_path / "out", *texts, *SMALL)
    assert code == 1, "a hundred texts cannot show half a point"
    assert "texts, as the source labels it, 80 examples; objective: latency" in told
    assert "No narrow candidate is shown to stay within 0.5 points" in told
    assert "The held-out texts have no labels" in told
    assert "companion optimize: int8-fixed: made, and judged on 80 examples" in err
    assert read_manifest(tmp_path / "out").precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no held-out data.*give --check-on TASK, or --check-on FILE --text-column C --label-column C"),
        (("--check-on", "news5"), "--check-on is 'news5': no such file, and no task; known: sentiment, sst2"),
        (("--check-on", "CSV"), "--check-on FILE needs --text-column"),
        (("--check-on", "CSV", "--text-column", "nothing"), "no column 'nothing'; columns found: 'text'"),
        (("--check-on", "CSV", "--text-column", "text", "--label-column", "mood"), "no column 'mood'"),
        (("--check-on", "CSV", "--data", "glue", "--text-column", "text"), "--data belongs to a task"),
        (("--check-on", "sentiment", "--text-column", "text"), "brings its own columns"),
        (("--check-on", "CSV", "--text-column", "text", "--calibrate", "no.csv"), "--calibrate is 'no.csv'"),
        (("--check-on", "CSV", "--text-column", "text", "--objective", "speed"), "--objective is 'speed'"),
        (("--check-on", "CSV", "--text-column", "text", "--max-accuracy-drop", -1), "--max-accuracy-drop"),
        (("--check-on", "CSV", "--text-column", "text", "--runs", 2), "runs is 2, expected at least 6"),
        (
            ("--check-on", "BAD", "--text-column", "text", "--label-column", "label"),
            "unknown label 'neutral'",
        ),
        (("--check-on", "BROKEN", "--text-column", "text"), "broken.csv, row 3: not UTF-8"),
        (("--check-on", "EMPTY", "--text-column", "text"), "empty.csv: no rows"),
    ],
)
def test_mistakes_leave_nothing(run, model_folder, tmp_path, arguments, words):
    (tmp_path / "texts.csv").write_text("text\nfine\n")
    (tmp_path / "bad.csv").write_text("text,label\nfine,positive\nso so,neutral\n")
    (tmp_path / "broken.csv").write_bytes(b"text\nfine\n\xff\xfe\n")
    (tmp_path / "empty.csv").write_text("text\n")
    places = {
        name: tmp_path / f"{file}.csv"
        for name, file in {"CSV": "texts", "BAD": "bad", "BROKEN": "broken", "EMPTY": "empty"}.items()
    }
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = run("optimize", model_folder, tmp_path / "out", *(places.get(a, a) for a in arguments))
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert re.search(words, err), err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_cannot_be_optimized(run, encoder_folder, onnx_folder, tmp_path):
    texts = ("--check-on", "sentiment")
    for folder, words in (
        (onnx_folder, "is an ONNX folder already, expected the model folder that it was made of"),
        (encoder_folder, "is not fine-tuned for classification"),
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path, "holds no config.json"),
    ):
        code, out, err = run("optimize", folder, tmp_path / "out", *texts)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1, err
        assert words in err
    assert not list(tmp_path.iterdir())


def test_the_choices_of_the_commands_are_those_of_the_package():
    from companion.cli.exporting import PRECISIONS
    from companion.cli.optimizing import OBJECTIVES
    from companion.inference.exporting import Precision
    from companion.inference.optimizing.choosing import SIMPLEST_FIRST
    from companion.inference.optimizing.record import Aim

    assert get_args(Precision) == PRECISIONS
    assert get_args(Aim) == OBJECTIVES
    # Two bits are for models that were trained with them: nobody wants to wait for them to be refused.
    assert {*SIMPLEST_FIRST, "int2-weights"} == {*PRECISIONS, "int8-mixed"}


@pytest.mark.parametrize("kind", ["onnx_folder", "model_folder"])
def test_predicting_texts_that_are_broken_or_long(run, kind, request, tmp_path):
    folder, out = request.getfixturevalue(kind), tmp_path / "out.jsonl"
    (tmp_path / "broken.csv").write_bytes(b"text\nfine\nna\xefve\n")
    columns = ("--text-column", "text", "--out", out)
    code, told, err = run("predict", folder, tmp_path / "broken.csv", *columns)
    assert (code, told) == (2, "")
    where = "broken.csv, row 3: column 'text' is not UTF-8 (byte 0xef at character 2)"
    assert f"{where}; save the file as UTF-8" in err
    for stdin in ("-", "/dev/stdin"):
        code, told, err = run("predict", folder, stdin, *columns)
        assert (code, told) == (2, "")
        assert "predict reads a file" in err
    (tmp_path / "long.csv").write_text("text\n" + "x" * 100_000 + "\n" + "superb " * 14_285 + "\nfine\n")
    code, told, err = run("predict", folder, tmp_path / "long.csv", *columns)
    assert (code, err) == (0, "")
    assert [json.loads(line)["label"] for line in out.read_text().splitlines()][1] == "positive"
