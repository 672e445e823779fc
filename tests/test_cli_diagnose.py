"""The command `companion diagnose`: exit codes, reports, and one line for each mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

import companion.cli

CODE = """
import torch
from torch import nn
from torch.nn import functional

from companion.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocab_size=40, width=16, layers=1, heads=2, max_length=24, classes=2)


def make():
    return Transformer(CONFIG)


class Broken(Transformer):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask) / 0.0


def broken():
    return Broken(CONFIG)


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)


def loader():
    ids = torch.randint(3, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 1])}]


def step(model, optimizer, batch):
    model.train()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
    loss.backward()
    optimizer.step()
    return loss.item()


def guess(a, b, c):
    pass


def fails():
    raise RuntimeError("out of\\nluck")


def leaves():
    raise SystemExit(0)


def yields():
    yield loader()[0]
    raise RuntimeError("torn")


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 6)

    def forward(self, input_ids):
        return self.words(input_ids).reshape(len(input_ids), 7, 7)


class Tableless(nn.Module):
    def forward(self, x):
        return x.float()
"""
FAILS = (
    "RuntimeError in fails (users_code.py:"
    + f"{CODE[: CODE.index('raise Run')].count(chr(10)) + 1}): out of luck"
)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command beside a module of the user's; give its exit code, stdout and stderr."""
    (tmp_path / "users_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPANION_THREADS", "1")

    def call(*arguments: object, command: str = "diagnose") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["companion", command, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            companion.cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    yield call
    sys.modules.pop("users_code", None)


RIGHT = ("--model", "users_code:make", "--task", "classification")


def test_nothing_wrong(run):
    around = ("--optimizer", "users_code:optimizer", "--train-step", "users_code:step")
    code, out, _ = run(*RIGHT, *around, "--batches", "users_code:loader", "--fast", "--only", "causality")
    assert code == 0, out
    assert out.startswith("N")
    code, out, _ = run(*RIGHT, *around, "--batches", "users_code:loader", "--fast", "--json")
    report = json.loads(out)
    assert code == 0, report["verdict"]
    assert out.count("\n") == 1
    assert report["ok"]
    assert report["schema"] == 1
    assert len(report["findings"]) >= 30


def test_something_wrong(run):
    code, out, _ = run("--model", "users_code.py:broken", "--task", "classification", "--fast")
    assert code == 1
    assert "Repair first:" in out
    code, out, _ = run("--model", "users_code:broken", "--task", "classification", "--fast", "--json")
    assert code == 1
    report = json.loads(out)
    assert not report["ok"]
    assert report["first"] == report["problems"][0]["check"]


def test_a_folder_with_the_data_of_a_file(run, model_folder, tmp_path):
    rows = [(f"the {noun} was {word}", "negative" if word in ("awful", "dull") else "positive")
            for noun in ("film", "novel", "hotel", "play", "trip", "museum")
            for word in ("awful", "dull", "superb", "lovely")]  # fmt: skip
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    data = ("--data", "reviews.csv", "--text-column", "text", "--label-column", "label")
    code, out, err = run("--model", model_folder, "--task", "classification", *data, "--fast", "--json")
    assert code in (0, 1), err
    found = json.loads(out)["findings"]
    assert not [item for item in found if "itself failed" in item["summary"]]
    ran = {item["check"]: item for item in found if item["status"] != "not applicable"}
    assert {item["family"] for item in ran.values()} >= {"data", "model"}
    assert not [item for item in ran.values() if item["summary"].startswith("it raised")]


def test_classes_that_are_given_let_the_rest_be_looked_at(run):
    code, out, err = run("--model", "users_code:Bent", "--task", "classification", "--classes", 2, "--fast")
    assert code == 1, err
    assert "7, 7]' is invalid for input" in " ".join(out.split())


def test_data_without_a_task_are_for_a_classifier(run, model_folder, tmp_path):
    rows = "".join(f"a {noun},{label}\n" for noun in "abcdefghijkl" for label in ("positive", "negative"))
    (tmp_path / "reviews.csv").write_text("text,label\n" + rows)
    data = ("--data", "reviews.csv", "--text-column", "text", "--label-column", "label")
    code, out, err = run("--model", model_folder, *data, "--only", "label range", "--json")
    assert code == 0, (out, err)


@pytest.mark.parametrize("command", ["diagnose", "evaluate"])
def test_a_model_for_other_labels(run, monkeypatch, model_folder, tmp_path, command):
    """Both commands compare a folder's labels with those of the data, by one function."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    config = json.loads((other / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (other / "config.json").write_text(json.dumps(config))
    given = ("--model", other) if command == "diagnose" else (other,)
    code, out, err = run(*given, "--task", "sentiment", command=command)
    assert (code, out) == (2, "")
    assert "other predicts bad, good; sentiment has negative, positive" in err
    (tmp_path / "reviews.csv").write_text("text,label\n" + "fine,good\npoor,dire\n" * 20)
    columns = ("--text-column", "text", "--label-column", "label")
    code, out, err = run(*given, "--data", "reviews.csv", *columns, command=command)
    assert (code, out) == (2, "")
    assert "reviews.csv, row 3: unknown label 'dire'" in err


def test_the_records_of_a_run(run, tmp_path):
    lines = [
        {"step": step, "loss": "nan" if step > 20 else 2.0, "learning_rate": 1e-3, "grad_norm": 1.0}
        for step in range(1, 41)
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = run(*RIGHT, "--records", "run.jsonl", "--fast", "--json")
    assert code == 1
    assert "dynamics" in {item["family"] for item in json.loads(out)["problems"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model"),
        (("--model", "users_code:make"), "--task"),
        (
            ("--model", "users_code:make", "--task", "translation"),
            "the task is 'translation', expected one of",
        ),
        (
            ("--model", "nowhere", "--task", "classification"),
            "nowhere does not exist, expected a model folder",
        ),
        (("--model", "nowhere:make", "--task", "classification"), "there is no module 'nowhere'"),
        (("--model", "users_code:build", "--task", "classification"), "users_code has no 'build'"),
        (("--model", "users_code:CONFIG", "--task", "classification"), "expected a function or a class"),
        (("--model", "users_code:loader", "--task", "classification"), "expected a torch.nn.Module"),
        (("--model", ".", "--task", "classification"), "holds no config.json"),
        ((*RIGHT, "--only", "causalty"), "no check 'causalty'; near it: causality"),
        ((*RIGHT, "--train-step", "users_code:guess"), "say nothing to the doctor: a, b, c"),
        ((*RIGHT, "--train-step", "step"), "'step' names no function"),
        ((*RIGHT, "--batches", "users_code:make"), "expected a loader of batches"),
        ((*RIGHT, "--records", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        ((*RIGHT, "--data", "nowhere.csv"), "--data nowhere.csv needs its columns"),
        (("--model", "users_code:fails", "--task", "classification"), FAILS),
        (
            ("--model", "users_code:leaves", "--task", "classification"),
            "SystemExit in leaves (users_code.py:",
        ),
        ((*RIGHT, "--batches", "users_code:fails"), FAILS),
        ((*RIGHT, "--batches", "users_code:yields"), "RuntimeError in yields (users_code.py:"),
        ((*RIGHT, "--batches", "users_code:step"), "users_code:step needs model, optimizer, batch, expected"),
        (
            ("--model", "users_code:Bent", "--task", "classification"),
            "seen in Bent: its forward raised RuntimeError in forward (users_code.py:",
        ),
        (("--model", "users_code:Bent", "--task", "classification"), "or give classes (--classes)"),
        (("--model", "users_code:Tableless", "--task", "classification"), "Give vocab_size (--vocab-size)"),
        (
            (*RIGHT, "--data", "nowhere.csv", "--text-column", "text", "--label-column", "label"),
            "nowhere.csv: no such file",
        ),
        ((*RIGHT, "--nothing"), "--nothing"),
        ((*RIGHT, "--threads", 0), "--threads"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, arguments, words):
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert words in err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before
