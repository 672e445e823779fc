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
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command beside a module of the user's; give its exit code, stdout and stderr."""
    (tmp_path / "users_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPANION_THREADS", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["companion", "diagnose", *map(str, arguments)])
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
        ((*RIGHT, "--data", "nowhere.csv"), "no data: give --task"),
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
