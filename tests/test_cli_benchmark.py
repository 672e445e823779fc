"""The commands `companion benchmark` and `companion export --check-on`: reports, codes, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from companion.inference import read_manifest

SMALL = ("--runs", 6, "--rounds", 3, "--batch-sizes", "1,4", "--threads", 1)
COLUMNS = ("--text-column", "text", "--label-column", "label")


@pytest.fixture
def reviews(toy, tmp_path) -> Path:
    names = ("negative", "positive")
    rows = [f'"{example.text}",{names[example.label]}\n' for example in toy[:60]]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows))
    return tmp_path / "reviews.csv"


def test_benchmark(run, onnx_folder, fp32_folder, reviews):
    texts = ("--texts", reviews, "--text-column", "text")
    code, out, err = run("benchmark", fp32_folder, onnx_folder, *texts, *SMALL, "--rate", 400, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    report = json.loads(out)
    assert (report["threads"], report["texts"]) == (1, 60)
    first, second = report["candidates"]
    assert (first["name"], second["name"]) == (str(fp32_folder), str(onnx_folder))
    assert [row["batch_size"] for row in second["throughput"]] == [1, 4]
    assert second["latency"][0]["percentiles"][2] == {
        "percent": 99,
        "reason": "p99 needs at least 368 runs for a 95% interval, there are 6",
    }
    assert second["arrivals"]["rate"] == 400
    code, out, err = run("benchmark", onnx_folder, *SMALL)
    assert (code, err) == (0, "")
    assert "Latency of one text, milliseconds" in out
    assert "Not given (-): p99 needs at least 368 runs" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "FOLDER"),
        (("nowhere",), "nowhere does not exist, expected a model folder or an ONNX folder"),
        (("ONNX", "nowhere"), "nowhere does not exist"),
        (("ONNX", "ONNX"), "is given twice"),
        (("ONNX", "--runs", 5), "runs is 5, expected at least 6"),
        (("ONNX", "--runs", "many"), "--runs"),
        (("ONNX", "--rate", 0), "rate is 0.0, expected requests per second above 0"),
        (("ONNX", "--rate", -1), "rate is -1.0"),
        (("ONNX", "--rounds", 1), "rounds is 1, expected at least 3"),
        (("ONNX", "--batch-sizes", "1;8"), "--batch-sizes is '1;8', expected whole numbers such as 1,8,32"),
        (("ONNX", "--batch-sizes", "0"), "batch_sizes are [0]"),
        (("ONNX", "--threads", 0), "--threads"),
        (("ONNX", "--texts", "CSV"), "--texts FILE needs --text-column"),
        (("ONNX", "--texts", "CSV", "--text-column", "nothing"), "no column 'nothing'"),
        (("ONNX", "--texts", "nowhere.csv", "--text-column", "text"), "nowhere.csv: no such file"),
        (("ONNX", "--texts", "CSV", "--task", "sentiment"), "give one of them"),
        (("ONNX", "--text-column", "text"), "give --texts FILE"),
        (("ONNX", "--data", "somewhere"), "give --task NAME"),
        (("ONNX", "--task", "sst3"), "unknown task 'sst3'"),
    ],
)
def test_mistakes_are_told_in_one_line(run, onnx_folder, reviews, arguments, words):
    places = {"ONNX": onnx_folder, "CSV": reviews}
    code, out, err = run("benchmark", *(places.get(item, item) for item in arguments))
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert words in err


def test_a_pair_task_benchmarks_pairs(run, onnx_folder, tmp_path, monkeypatch):
    (tmp_path / "RTE").mkdir()
    rows = "".join(f"{i}\tone {i}\ttwo words {i}\t{'not_' * (i % 2)}entailment\n" for i in range(8))
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + rows)
    seen = []
    monkeypatch.setattr(
        "companion.inference.benchmark",
        lambda folders, texts, pairs, **rest: seen.append((texts, pairs)) or Nothing(),
        raising=False,
    )
    code, _, err = run("benchmark", onnx_folder, "--task", "rte", "--data", tmp_path)
    assert code == 0, err
    [(texts, pairs)] = seen
    assert (texts[3], pairs[3]) == ("one 3", "two words 3")


class Nothing:
    def text(self) -> str:
        return "nothing"


def test_export_with_a_gate(run, model_folder, reviews, tmp_path):
    out_folder = tmp_path / "out"
    check = ("--check-on", reviews, *COLUMNS)
    code, out, err = run("export", model_folder, out_folder, *check, "--max-drop", 50, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["gate"]["outcome"] == "passes"
    assert (report["quality"]["examples"], report["quality"]["metric"]) == (60, "accuracy")
    assert [item["label"] for item in report["quality"]["classes"]] == ["negative", "positive"]
    manifest = read_manifest(out_folder)
    assert json.loads(json.dumps(manifest.quality.to_dict())) == report["quality"]
    # Sixty examples cannot tell a drop of half a point: it does not pass, and the folder says what was found.
    code, out, err = run("export", model_folder, out_folder, *check, "--precision", "fp32")
    assert code == 1, err
    assert "not enough data to tell: accuracy drops by 0.00 points" in out
    assert "examples like these would let it pass, there are 60" in out
    assert read_manifest(out_folder).quality.flips.value == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--check-on", "sst3"), "--check-on is 'sst3': no such file, and no task; known: sentiment, sst2"),
        (("--check-on", "CSV"), "--check-on FILE needs --text-column and --label-column"),
        (("--check-on", "CSV", "--data", "glue", *COLUMNS), "--data belongs to a task"),
        (("--check-on", "CSV", "--text-column", "text", "--label-column", "nothing"), "no column 'nothing'"),
        (("--check-on", "sentiment", *COLUMNS), "brings its own columns"),
        (COLUMNS, "belong to --check-on"),
        (("--check-on", "CSV", *COLUMNS, "--max-drop", -1), "--max-drop"),
        (("--check-on", "BAD", *COLUMNS), "unknown label 'neutral'"),
    ],
)
def test_mistakes_of_the_gate_leave_nothing(run, model_folder, reviews, tmp_path, arguments, words):
    (tmp_path / "bad.csv").write_text("text,label\nfine,neutral\n")
    places = {"CSV": reviews, "BAD": tmp_path / "bad.csv"}
    before = {path.name for path in tmp_path.iterdir()}
    arguments = [places.get(item, item) for item in arguments]
    code, out, err = run("export", model_folder, tmp_path / "out", *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert words in err
    assert {path.name for path in tmp_path.iterdir()} == before
