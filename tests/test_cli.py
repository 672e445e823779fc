"""The command line: what it does with mistakes, one line each, and how fast it is at the door."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CSV = "text,label\n" + "".join(
    f"the {noun} was {word},{label}\n"
    for noun in ("film", "novel", "hotel", "play", "trip", "museum")
    for word, label in (("awful", "bad"), ("dull", "bad"), ("superb", "good"), ("lovely", "good"))
)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "reviews.csv").write_text(CSV)
    return tmp_path / "reviews.csv"


@pytest.fixture
def refused(run, tmp_path) -> Callable[..., str]:
    """Run a command that must fail: code 2, one line, and nothing new in the folder."""

    def call(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1, err
        assert err.startswith("companion: "), err
        assert "Traceback" not in err
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before, "nothing written"
        assert not list(tmp_path.rglob(".*")), "no litter"
        return err

    return call


HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "numpy", "pydantic", "rich", "tqdm", "fastapi"}
COLUMNS = ("--text-column", "text", "--label-column", "label")


def test_mistakes_in_the_arguments(refused, csv, tmp_path):
    out = tmp_path / "out"
    assert "Missing command. Try: companion --help" in refused()
    assert "Try: companion train --help" in refused("train")
    assert "Try: companion artifacts clear --help" in refused("artifacts", "clear", "--nothing")
    assert "Missing command" in refused("artifacts")
    assert "trian" in refused("trian")
    assert "--out" in refused("train")
    assert "--nothing" in refused("info", "--nothing")
    assert "no data: give --task" in refused("train", "--out", out)
    said = refused("train", "--out", out, "--data", csv, "--text-column", "text")
    assert "reviews.csv needs its columns: give --text-column C and --label-column C" in said
    assert "brings its own columns" in refused("train", "--out", out, "--task", "sentiment", *COLUMNS)
    for option, value in (
        ("--epochs", 0),
        ("--epochs", "two"),
        ("--batch-size", 0),
        ("--max-length", 7),
        ("--max-examples", 0),
        ("--seed", -1),
        ("--threads", 0),
        ("--micro-batch-size", 0),
        ("--checkpoint-every", 0),
        ("--evaluate-every", 0),
        ("--patience", 0),
        ("--workers", -1),
    ):
        assert option in refused("train", "--out", out, "--task", "sentiment", option, value)
    for value in ("nan", "inf", "0", "-1"):
        said = refused("train", "--out", out, "--data", csv, *COLUMNS, "--learning-rate", value)
        assert "learning_rate is" in said
    for option, value, words in (
        ("--schedule", "cosin", "schedule is 'cosin', expected one of 'linear', 'cosine', 'constant'"),
        ("--optimizer", "sgd", "optimizer is 'sgd'"),
        ("--precision", "int8", "precision is 'int8'"),
        ("--precision", "fp16", "expected CUDA"),
        ("--warmup", "some", "--warmup is 'some', expected a share"),
        ("--warmup", "1.5", "warmup is 1.5"),
        ("--weight-decay", "-1", "weight_decay is -1"),
    ):
        assert words in refused("train", "--out", out, "--data", csv, *COLUMNS, option, value)
    (tmp_path / "model").mkdir()
    said = refused("share", tmp_path / "model", out, "--license", "apache2")
    assert "the license is 'apache2', expected an identifier of the hub, such as apache-2.0" in said
    assert "the license is 'foo'" in refused("share", tmp_path / "model", out, "--license", "foo")
    assert "give --repo OWNER/NAME" in refused("share", tmp_path, out, "--upload")
    assert "'int4'" in refused("export", tmp_path, out, "--precision", "int4")
    assert "--port" in refused("serve", tmp_path, "--port", 65536)
    assert "no artifact is named 'nothing'" in refused("artifacts", "clear", "nothing")


def test_data_that_is_not_there(refused, csv, model_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("COMPANION_DATA_DIR", raising=False)
    out = tmp_path / "out"
    assert "unknown task 'sst3'; known tasks: sentiment" in refused("train", "--out", out, "--task", "sst3")
    assert "unknown task 'sst3'" in refused("evaluate", model_folder, "--task", "sst3")
    assert "COMPANION_DATA_DIR" in refused("train", "--out", out, "--task", "cola")
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in refused("train", "--out", out, "--task", "sst2", "--data", nowhere)
    assert str(nowhere) in refused("evaluate", model_folder, "--task", "sst2", "--data", nowhere)
    nowhere = tmp_path / "nowhere.csv"
    assert f"{nowhere}: no such file" in refused("train", "--out", out, "--data", nowhere, *COLUMNS)
    said = refused("train", "--out", out, "--data", csv, "--text-column", "review", "--label-column", "label")
    assert "no column 'review'; columns found: 'text', 'label'" in said
    said = refused("evaluate", model_folder, "--data", csv, *COLUMNS)
    assert "reviews.csv, row 2: unknown label 'bad'" in said
    said = refused("evaluate", model_folder, "--task", "sentiment", "--split", "validation")
    assert "--split is 'validation', but sentiment has: train, dev, test" in said


def test_a_model_that_is_not_there(refused, csv, encoder_folder, model_folder, onnx_folder, tmp_path):
    nowhere, out, jsonl = tmp_path / "nowhere", tmp_path / "out", tmp_path / "out.jsonl"
    (tmp_path / "empty").mkdir()
    predict = (csv, "--text-column", "text", "--out", jsonl)
    for command in (("evaluate", nowhere, "--task", "sentiment"), ("predict", nowhere, *predict)):
        assert f"{nowhere} does not exist" in refused(*command)
    assert f"{nowhere} does not exist" in refused("export", nowhere, out)
    assert f"{nowhere} does not exist" in refused("serve", nowhere)
    empty = tmp_path / "empty"
    assert "holds no config.json" in refused("evaluate", empty, "--task", "sentiment")
    assert "holds no config.json" in refused("export", empty, out)
    assert "holds no config.json" in refused("predict", empty, *predict)
    assert "companion export" in refused("serve", empty)
    assert "companion export" in refused("serve", model_folder)
    assert "is a file" in refused("evaluate", csv, "--task", "sentiment")
    assert "not fine-tuned" in refused("evaluate", encoder_folder, "--task", "sentiment")
    assert "not fine-tuned" in refused("export", encoder_folder, out)
    assert "no *.safetensors weights" in refused("export", onnx_folder, out)
    for name in ("bert-base-uncased", nowhere):
        said = refused("train", "--out", out, "--data", csv, *COLUMNS, "--model", name)
        assert str(name) in said
    said = refused("train", "--out", out, "--data", csv, *COLUMNS, "--model", model_folder)
    assert "trained for the labels negative, positive; the task has bad, good" in said


@pytest.mark.parametrize("kind", ["model_folder", "onnx_folder"])
def test_a_model_for_another_task(refused, kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    (tmp_path / "RTE").mkdir()
    rows = "index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\tentailment\n1\tone\ttwo\tnot_entailment\n"
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text(rows)
    said = refused("evaluate", folder, "--task", "rte", "--data", tmp_path)
    assert f"{folder} predicts negative, positive; rte has entailment, not_entailment" in said
    (tmp_path / "STS-B").mkdir()
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    for name in ("train", "dev"):
        (tmp_path / "STS-B" / f"{name}.tsv").write_text(header + "0\ta\ta\ta\t0\ta\ta\tone\ttwo\t2.5\n" * 2)
    assert "stsb has numbers" in refused("evaluate", folder, "--task", "stsb", "--data", tmp_path)


def test_an_output_that_cannot_be_written(refused, csv, model_folder, onnx_folder, tmp_path):
    """Below a file no folder can be made, not even by root; nor in /proc."""
    for folder in (csv / "below", Path("/proc/companion")):
        for command in (
            ("train", "--out", folder, "--data", csv, *COLUMNS),
            ("export", model_folder, folder),
            ("predict", onnx_folder, csv, "--text-column", "text", "--out", folder),
        ):
            said = refused(*command)
            assert str(folder.parent) in said
            assert "cannot be written" in said or folder.parent == Path("/proc")
    assert "is a file" in refused("train", "--out", csv, "--data", csv, *COLUMNS)
    assert "is a file" in refused("export", model_folder, csv)
    assert "is a folder" in refused("predict", onnx_folder, csv, "--text-column", "text", "--out", tmp_path)
    assert "has no config.json" in refused("train", "--out", tmp_path, "--data", csv, *COLUMNS)
    assert "has no manifest.json" in refused("export", model_folder, tmp_path)
    missing = tmp_path / "missing" / "out.jsonl"
    assert str(missing) in refused("predict", onnx_folder, csv, "--text-column", "text", "--out", missing)


def test_an_output_that_is_an_input(refused, csv, model_folder, onnx_folder, tmp_path):
    """By its name, by a link, as a part of the model that is read, or as the folder that it lies in."""
    words = "would take the place of"
    (tmp_path / "link.jsonl").symlink_to(csv)
    (tmp_path / "hard.jsonl").hardlink_to(csv)
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "reviews.csv").write_text(CSV)
    for file in (csv, tmp_path / "link.jsonl", tmp_path / "hard.jsonl", tmp_path / "model" / ".." / csv.name):
        assert words in refused("predict", onnx_folder, csv, "--text-column", "text", "--out", file)
    weights = model / "model.safetensors"
    assert words in refused("predict", model, csv, "--text-column", "text", "--out", weights)
    for data in (("--task", "sst2", "--data", model / "glue"), ("--data", model / "reviews.csv", *COLUMNS)):
        (model / "glue").mkdir(exist_ok=True)
        assert words in refused("train", "--out", model, *data)
    start = ("train", "--data", csv, *COLUMNS)
    assert words in refused(*start, "--out", model, "--model", model)
    for option in ("--checkpoints", "--monitor"):
        assert words in refused(*start, "--out", tmp_path / "new", option, tmp_path / "new" / "inner")
    (model / "manifest.json").write_text("{}")  # so that it could be taken for an earlier result
    assert words in refused("export", model, model)
    (tmp_path / "manifest.json").write_text("{}")
    assert words in refused("export", model, tmp_path)
    check = ("--check-on", model / "reviews.csv", *COLUMNS)
    for command in ("export", "optimize"):
        assert words in refused(command, model_folder, model, *check)
    calibrate = ("--precision", "int8-fixed", "--calibrate", model / "reviews.csv", "--text-column", "text")
    assert words in refused("export", model_folder, model, *calibrate)
    for out in (model, tmp_path, model / "below"):
        assert "lie in each other" in refused("share", model, out)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("text\n" + "fine\n" * 200 + '"  "\n', "row 202: empty text in column 'text'"),
        ("text\n" + "fine\n" * 200 + "a,b\n", "row 202: 2 columns, but the header has 1"),
        ("text\n", "no rows"),
        ("", "the file is empty"),
        ("other\na\n", "no column 'text'"),
    ],
)
def test_bad_rows_stop_a_prediction(refused, onnx_folder, tmp_path, rows, words):
    (tmp_path / "in.csv").write_text(rows)
    (tmp_path / "out.jsonl").write_text("the old answers")
    command = ("predict", onnx_folder, tmp_path / "in.csv", "--text-column", "text", "--batch-size", 1)
    for out in ("out.jsonl", "new.jsonl"):
        said = refused(*command, "--out", tmp_path / out)
        assert "in.csv" in said
        assert words in said
    assert (tmp_path / "out.jsonl").read_text() == "the old answers"


def test_port_in_use(refused, onnx_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in refused("serve", onnx_folder, "--port", port)


def test_wrong_settings(refused, monkeypatch):
    monkeypatch.setenv("COMPANION_PROFILE", "fast")
    assert "COMPANION_PROFILE is 'fast'" in refused("info")


def test_a_training_that_breaks_leaves_nothing(run, csv, encoder_folder, tmp_path, monkeypatch):
    import companion.training.folder as saving

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.PreTrainedModel, "save_pretrained", full)
    command = ("train", "--out", tmp_path / "out", "--data", csv, *COLUMNS, "--model", encoder_folder)
    code, out, err = run(*command, "--epochs", 1)
    assert (code, out) == (2, "")
    assert "free some space" in err
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


def test_a_training_tells_its_classes_and_whether_it_learned_any(run, toy, encoder_folder, tmp_path):
    """A slip of the pen in one label makes a class; a rate of 1 makes a model that knows nothing."""
    rows = [f'"{example.text}",{("bad", "good")[example.label]}\n' for example in toy[:200]]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows) + "what,dunno\n")
    command = ("train", "--out", tmp_path / "out", "--data", tmp_path / "reviews.csv", *COLUMNS)
    command = (*command, "--model", encoder_folder, "--batch-size", 16, "--max-length", 48, "--json")
    code, out, err = run(*command, "--learning-rate", 1, "--epochs", 1)
    assert code == 0, err
    assert out.count("\n") == 1
    first, few, learned = err.splitlines()
    assert first.split() == ["classes", "bad", "100,", "dunno", "1,", "good", "100"]
    assert "warning: classes with fewer than 5 rows: dunno 1. A label that is written wrongly" in few
    assert "is no better than 0." in learned
    assert "Look at --learning-rate" in learned


@pytest.mark.parametrize(
    ("metric", "labels", "value", "warned"),
    [
        ("accuracy", (0, 0, 0, 1), 0.75, "no better than 0.75, which always answering 'no' gives"),
        ("accuracy", (0, 0, 0, 1), 0.76, ""),
        ("accuracy", (0, 0, 0, 0), 1.0, ""),
        ("matthews", (0, 0, 0, 1), 0.0, "no better than 0, "),
        ("f1", (0, 0, 1, 1), 0.6, "always answering 'yes' gives"),
        ("accuracy", (0, 1), float("nan"), "accuracy nan on held-out rows (2) is no better"),
    ],
)
def test_a_model_is_compared_with_a_constant_answer(capsys, metric, labels, value, warned):
    from companion.cli.telling import tell_if_nothing_is_learned
    from companion.data import Example, Task

    task = Task("toy", metric, ("no", "yes"), False, "")
    tell_if_nothing_is_learned(task, [Example("a", label) for label in labels], value)
    out, err = capsys.readouterr()
    assert out == ""
    assert (warned in err) if warned else not err


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    """A fault of the program shows its traceback: one line would hide where it is."""
    import companion.artifacts

    def breaks():
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(companion.artifacts, "machine", breaks)
    monkeypatch.setattr(sys, "argv", ["companion", "info"])
    with pytest.raises(ZeroDivisionError):
        companion.cli.main()


def test_interrupted(monkeypatch, capsys):
    import companion.artifacts

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(companion.artifacts, "machine", interrupt)
    monkeypatch.setattr(sys, "argv", ["companion", "info"])
    with pytest.raises(SystemExit) as ended:
        companion.cli.main()
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_info(run, home):
    code, out, err = run("info", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["profile"] == "quick"
    assert report["home"] == str(home)
    assert report["encoder"] == "embedded"
    assert {"python", "companion", "torch", "transformers", "onnxruntime"} <= report["versions"].keys()
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert str(home) in out


def test_info_says_what_is_wrong_with_the_encoder(run, monkeypatch, encoder_folder):
    monkeypatch.setenv("COMPANION_ENCODER", str(encoder_folder))
    assert json.loads(run("info", "--json")[1])["encoder_from"] == str(encoder_folder)
    monkeypatch.setenv("COMPANION_ENCODER", "bert-base-uncased")
    assert "never asks the hub" in json.loads(run("info", "--json")[1])["encoder_from"]


def test_artifacts_are_listed_and_cleared(run, tmp_path, monkeypatch):
    from companion.artifacts import make

    monkeypatch.setenv("COMPANION_HOME", str(tmp_path))
    for name in ("one", "two"):
        make(name, lambda folder: folder.joinpath("file").write_bytes(bytes(1000)), version=1, inputs={})
    code, out, err = run("artifacts", "list", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert listed["home"] == str(tmp_path)
    assert [item["name"] for item in listed["artifacts"]] == ["one", "two"]
    assert all(item["bytes"] > 1000 for item in listed["artifacts"])
    assert "2 artifacts" in run("artifacts", "list")[1]
    assert json.loads(run("artifacts", "clear", "one", "--json")[1])["bytes_freed"] > 1000
    assert [item["name"] for item in json.loads(run("artifacts", "list", "--json")[1])["artifacts"]] == [
        "two"
    ]
    assert "1 artifact in" in run("artifacts", "list")[1]
    assert run("artifacts", "clear")[0] == 0
    assert json.loads(run("artifacts", "list", "--json")[1])["artifacts"] == []


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], []),
        # Typer itself reads the types of a command's options with pydantic.
        (["train", "--help"], ["pydantic"]),
        (["artifacts", "--help"], ["pydantic"]),
        (["predict"], ["pydantic"]),
    ],
)
def test_the_door_is_light(arguments, loaded):
    """Neither help nor a mistake in the arguments waits for a heavy library."""
    code = (
        "import sys; from companion.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(*({HEAVY!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert set(done.stdout.splitlines()[-1].split()) <= set(loaded)
    assert ("Usage:" in done.stdout) == ("--help" in arguments)
