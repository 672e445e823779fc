"""`companion drift`: what it prints, how it ends, and what it says about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUICK = ("--shift", "0.5")


@pytest.fixture
def log(tmp_path: Path, lines) -> Path:
    """Return a log of 300 answers, the last hundred of them about longer texts and never positive."""
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "predictions-1.jsonl").write_bytes(lines(200, 0))
    late = lines(100, 1, positive=0.0, long=3.0, start=1_700_000_000.0 + 60 * 200)
    (folder / "predictions-2.jsonl").write_bytes(late)
    return folder


@pytest.fixture
def quiet(tmp_path: Path, lines) -> Path:
    folder = tmp_path / "quiet"
    folder.mkdir()
    (folder / "predictions-1.jsonl").write_bytes(lines(300, 2))
    return folder


def test_no_drift_ends_with_0(run, quiet):
    code, out, err = run("drift", quiet, *QUICK)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "model version v1"
    assert "reference  200 answers, 2023-11-14 22:13:20 to" in out
    assert out.endswith("verdict: no drift\n")


def test_drift_ends_with_3_and_says_what_moved(run, log):
    code, out, _ = run("drift", log, *QUICK)
    assert code == 3
    assert "verdict: DRIFT in" in out
    assert "label" in out.splitlines()[-1] and "characters" in out.splitlines()[-1]
    code, out, _ = run("drift", log, *QUICK, "--json")
    found = json.loads(out)
    assert (code, found["drift"]) == (3, True)
    [version] = found["versions"]
    assert version["newest"]["window"]["answers"] == 100
    changes = {change["measure"]: change for change in version["newest"]["changes"]}
    assert changes["label"]["alarm"] and changes["characters"]["alarm"]
    assert changes["characters"]["difference"]["low"] > 0
    assert found["skipped_lines"] == [] and found["not_logged"] == 0


def test_a_stretch_of_time_another_log_and_all_windows(run, log, quiet):
    code, out, _ = run(
        "drift", log, *QUICK, "--reference", "..2023-11-15T00:13:20+00:00", "--window", "60", "--history"
    )
    assert code == 3
    assert "reference  120 answers" in out
    assert "of 3 windows are alarms" in out
    code, out, _ = run("drift", log, *QUICK, "--reference", quiet, "--json", "--history", "--window", "100")
    assert code == 3
    [version] = json.loads(out)["versions"]
    assert version["history"]["alarms"][-1] == 2
    assert version["newest"]["reference"]["answers"] == 300


def test_a_cut_line_is_skipped_and_told(run, quiet):
    with (quiet / "predictions-1.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"time":17')
    (quiet / "predictions-2.jsonl").write_bytes(b'{"schema":1,"time":1.0,"not_logged":7}\n')
    code, out, _ = run("drift", quiet, *QUICK)
    assert code == 0
    assert "skipped: 1 cut lines (predictions-1.jsonl:301)" in out
    assert "not logged: 7 answers, as the log notes" in out


def test_several_versions(run, log, quiet, lines):
    (log / "predictions-3.jsonl").write_bytes(lines(300, 3, version="v2"))
    (log / "predictions-4.jsonl").write_bytes(lines(9, 3, version="v3"))
    code, out, _ = run("drift", log, *QUICK)
    assert code == 3
    assert out.count("verdict: ") == 2
    assert "model version v3\nnot judged: the window has 3 answers" in out
    assert "3 model versions are in the log; each is compared with itself alone" in out
    code, out, _ = run("drift", log, *QUICK, "--version", "v2")
    assert code == 0
    (quiet / "predictions-3.jsonl").write_bytes(lines(300, 3, version="v2"))
    code, out, _ = run("drift", quiet, *QUICK, "--version", "v2", "--reference-version", "v1")
    assert code == 0
    assert "compared with version v1: changes can be the model's own" in out


@pytest.fixture
def refused(run):
    def call(*arguments: object) -> str:
        code, out, err = run("drift", *arguments)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1 and err.startswith("companion: ")
        return err

    return call


def test_mistakes(refused, quiet, log, lines, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts.csv").write_text("text\na\n")
    assert "it is empty: expected the folder" in refused(tmp_path / "empty")
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "is no prediction log" in refused(tmp_path / "texts.csv")
    assert "a window needs" in refused(quiet, "--window", "15", *QUICK)
    assert "both need more than" in refused(quiet, "--window", "250", "--shift", "0.2")
    assert "has no answers of model version v9; it has those of v1 (300)" in refused(quiet, "--version", "v9")
    assert "share answers" in refused(quiet, "--reference", quiet)
    assert "share answers" in refused(quiet, "--reference", quiet / "predictions-1.jsonl")
    assert "no such log, and not FROM..TO" in refused(quiet, "--reference", "yesterday")
    assert "no such log" in refused(quiet, "--reference", "../gone")
    assert "has the time 'monday'" in refused(quiet, "--reference", "monday..2026-01-01")
    assert "ends before it begins" in refused(quiet, "--reference", "2026-01-02..2026-01-01")
    assert "no answer of model version v1 lies" in refused(quiet, "--reference", "2020-01-01..2020-01-02")
    assert "false_alarms is 0.0" in refused(quiet, "--false-alarms", "0")
    assert "--step is about --history" in refused(quiet, "--step", "5")
    assert "--window" in refused(quiet, "--window", "0")
    assert "belong to --held-out" in refused(quiet, "--text-column", "text")
    assert "needs --model" in refused(quiet, "--held-out", tmp_path / "texts.csv")
    assert "give one of them" in refused(quiet, "--held-out", tmp_path / "texts.csv", "--reference", log)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "predictions-1.jsonl").write_bytes(lines(300, 0, version="v2"))
    said = refused(quiet, "--reference", tmp_path / "other")
    assert "the reference has no answers of model version v1, only of v2 (300)" in said
    future = (quiet / "predictions-1.jsonl").read_bytes().replace(b'"schema":1', b'"schema":2')
    (quiet / "predictions-1.jsonl").write_bytes(future)
    assert "line 1: it has schema 2, but this version of companion reads up to 1" in refused(quiet)


def test_held_out_texts_as_reference(run, tmp_path, onnx_folder, toy):
    """Texts like the training set's, answered by the model; in the log the same model sees only one kind."""
    import anyio

    from companion.deployment.answering import Answer, Question
    from companion.deployment.watching import PredictionLog, token_counter
    from companion.inference import OnnxPredictor

    predictor = OnnxPredictor(onnx_folder, threads=1)
    log = PredictionLog(tmp_path / "log", count_tokens=token_counter(predictor))
    texts = [example.text for example in toy if len(example.text) > 60]
    for text, row in zip(texts, predictor.probabilities(texts), strict=True):
        values = tuple(float(value) for value in row)
        log.offer(Question(text), Answer(values, predictor.labels, predictor.manifest.model_version))
    anyio.run(log.aclose)
    file = tmp_path / "held-out.jsonl"
    file.write_text("".join(json.dumps({"text": example.text}) + "\n" for example in toy))
    code, out, _ = run(
        *("drift", tmp_path / "log", "--held-out", file, "--model", onnx_folder),
        *("--text-column", "text", *QUICK),
    )
    assert code == 3
    assert "verdict: DRIFT in characters" in out
    assert "tokens_per_word" in out and "not known" not in out
