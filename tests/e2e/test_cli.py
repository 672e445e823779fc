"""The whole road as a user walks it: train, evaluate, export, evaluate, predict."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from companion.cli import main
from companion.inference import load_predictor

OFFLINE = Path(__file__).parents[2] / "tools" / "offline"
DATA = ("--text-column", "review", "--label-column", "verdict")


def companion(*arguments: object, monkeypatch: pytest.MonkeyPatch | None = None) -> dict[str, Any]:
    """Run a command with --json; it must print one object on stdout and nothing else.

    In a process of its own, or, where importing torch again would take the most time, in this one.
    """
    command = [*map(str, arguments), "--json"]
    if monkeypatch is None:
        done = subprocess.run(
            [sys.executable, "-c", "from companion.cli import main; main()", *command],
            env={**os.environ, "PYTHONPATH": str(OFFLINE), "OMP_NUM_THREADS": "1", "COMPANION_THREADS": "1"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.setenv("COMPANION_THREADS", "1")
        monkeypatch.setattr(sys, "argv", ["companion", *command])
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            main()
        code, out, err = ended.value.code, stdout.getvalue(), stderr.getvalue()
    assert code == 0, err
    assert "Traceback" not in err
    assert out.count("\n") == 1
    report = json.loads(out)
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def reviews(toy, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "review", "verdict"])
        rows.writerows([i, example.text, ("bad", "good")[example.label]] for i, example in enumerate(toy))
    return path


def test_the_road(encoder_folder, reviews, toy, tmp_path, monkeypatch):
    model, int8, fp32 = tmp_path / "new" / "model", tmp_path / "int8", tmp_path / "fp32"
    options = ("--epochs", 6, "--batch-size", 16, "--learning-rate", 3e-3, "--threads", 1, "--seed", 5)
    trained = companion(
        "train", "--out", model, "--data", reviews, *DATA, "--model", encoder_folder, *options
    )
    assert (trained["folder"], trained["task"], trained["metric"]) == (str(model), "reviews", "accuracy")
    assert (trained["examples"], trained["steps"]) == (288, 6 * 18)
    assert trained["value"] > 0.9
    assert trained["examples_per_second"] > 0

    exported = {}
    for precision, out, where in (("int8", int8, None), ("fp32", fp32, monkeypatch)):
        exported[precision] = companion("export", model, out, "--precision", precision, monkeypatch=where)
        assert exported[precision]["precision"] == precision
        assert exported[precision]["check"]["examples"] == 128
        assert exported[precision]["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert exported["int8"]["check"]["moved_by_batch"] == 0
    assert exported["int8"]["model_version"] != exported["fp32"]["model_version"]

    values = {}
    for folder in (model, fp32, int8):
        where = None if folder == int8 else monkeypatch
        command = ("evaluate", folder, "--data", reviews, *DATA, "--threads", 1, "--batch-size", 7)
        found = companion(*command, monkeypatch=where)
        assert (found["task"], found["split"], found["metric"]) == ("reviews", "all", "accuracy")
        assert found["examples"] == 320
        assert found["examples_per_second"] > 0
        assert found["metrics"]["accuracy"] == found["value"]
        values[folder] = found["value"]
    assert values[model] == values[fp32]
    assert min(values.values()) > 0.9

    out = tmp_path / "answers.jsonl"
    for folder in (int8, model):
        where = None if folder == int8 else monkeypatch
        command = ("predict", folder, reviews, "--text-column", "review", "--out", out, "--batch-size", 9)
        told = companion(*command, monkeypatch=where)
        assert (told["out"], told["rows"]) == (str(out), 320)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        predictor = load_predictor(folder, threads=1)
        expected = predictor.probabilities([example.text for example in toy], batch_size=9)
        got = np.array([[line["probabilities"][label] for label in ("bad", "good")] for line in lines])
        assert got.shape == expected.shape
        if folder == int8:
            assert np.array_equal(got, expected.astype(np.float64)), "every digit, in the order of the rows"
        else:
            np.testing.assert_allclose(got, expected, atol=1e-5)
        assert [line["label"] for line in lines] == [("bad", "good")[i] for i in got.argmax(1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "fp32", "int8", "new"]


def test_both_kinds_of_folder_score_on_a_task_by_name(model_folder, onnx_folder, monkeypatch):
    values = []
    for folder in (model_folder, onnx_folder):
        command = ("evaluate", folder, "--task", "sentiment", "--split", "dev", "--threads", 1)
        report = companion(*command, monkeypatch=monkeypatch)
        assert {"task", "metric", "value", "examples", "examples_per_second"} <= report.keys()
        assert (report["task"], report["split"], report["examples"]) == ("sentiment", "dev", 1000)
        values.append(report["value"])
    assert abs(values[0] - values[1]) < 0.03


def test_pairs_from_a_file(encoder_folder, tmp_path, monkeypatch):
    """A second text goes the whole road; one seed gives one model."""
    table = tmp_path / "pairs.jsonl"
    rows = [
        {
            "one": f"the {noun} was {first}",
            "two": f"it was {second}",
            "same": "yes" if first == second else "no",
        }
        for noun in ("film", "novel", "trip", "play")
        for first in ("awful", "superb", "dull")
        for second in ("awful", "superb", "dull")
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--data", table, "--text-column", "one", "--pair-column", "two", "--label-column", "same")
    options = ("--model", encoder_folder, "--epochs", 1, "--threads", 1)
    for name in ("first", "again"):
        command = ("train", "--out", tmp_path / name, *data, *options, "--max-examples", 20)
        report = companion(*command, monkeypatch=monkeypatch)
        assert report["examples"] == 20
    first, again = (tmp_path / name / "model.safetensors" for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    out = tmp_path / "out.jsonl"
    columns = ("--text-column", "one", "--pair-column", "two")
    command = ("predict", tmp_path / "first", table, *columns, "--out", out)
    assert companion(*command, monkeypatch=monkeypatch)["rows"] == 36
    predictor = load_predictor(tmp_path / "first", threads=1)
    expected = predictor.probabilities([row["one"] for row in rows], [row["two"] for row in rows])
    got = [list(json.loads(line)["probabilities"].values()) for line in out.read_text().splitlines()]
    np.testing.assert_allclose(np.array(got), expected, atol=1e-5)
