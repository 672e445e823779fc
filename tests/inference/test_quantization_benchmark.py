"""The scripts of the quantization benchmark, on the toy model. No timing decides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from companion import data

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Any:
    """Let the tests import the scripts as they import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def benchmark() -> ModuleType:
    import quantization

    return quantization


@pytest.fixture
def recovery() -> ModuleType:
    import quantization_recovery

    return quantization_recovery


class Fixed:
    """Answers with given logits; by batch size where there are several."""

    labels, is_regression = ("negative", "positive"), False

    def __init__(self, logits: Any, otherwise: Any = None) -> None:
        self.answers = np.asarray(logits, dtype=np.float32)
        self.alone = self.answers if otherwise is None else np.asarray(otherwise, dtype=np.float32)

    def logits(self, texts: Any, pairs: Any = None, *, batch_size: int = 32) -> np.ndarray:
        return self.alone if batch_size == 1 else self.answers


def work_of(benchmark: ModuleType, labels: list[int]) -> Any:
    task = data.TASKS["sentiment"]
    dev = tuple(data.Example(f"text {index}", label) for index, label in enumerate(labels))
    return benchmark.Work(data.TaskData(task, dev, dev), Path("nowhere"), dev)


def chosen(labels: list[int]) -> np.ndarray:
    return np.array([[1.0, -1.0] if label == 0 else [-1.0, 1.0] for label in labels])


def test_a_row_of_accuracy_counts_what_differs(benchmark):
    truth = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    reference = Fixed(chosen(truth))
    answers = [1, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    moved = [0, 1, 1, 1, 0, 1, 0, 1, 0, 0]
    row = benchmark.answers(reference, Fixed(chosen(answers), chosen(moved)), work_of(benchmark, truth), None)
    assert (row["reference"], row["accuracy"], row["flips"], row["examples"]) == (1.0, 0.8, 2, 10)
    assert row["drop_points"]["low"] < row["drop_points"]["value"] == pytest.approx(20)
    assert (row["moved_by_batch"], row["same_bits"]) == (2, False)
    same = benchmark.answers(reference, Fixed(chosen(truth)), work_of(benchmark, truth), None)
    assert (same["flips"], same["moved_by_batch"], same["same_bits"]) == (0, 0, True)
    assert json.dumps(row)


def test_all_candidates_are_timed_on_all_texts(benchmark):
    seen: dict[str, list[tuple[int, int]]] = {}

    class Counting(Fixed):
        def __init__(self, name: str) -> None:
            super().__init__([[0.0, 1.0]])
            self.name = name

        def logits(self, texts: Any, pairs: Any = None, *, batch_size: int = 32) -> np.ndarray:
            seen.setdefault(self.name, []).append((len(texts), batch_size))
            return self.answers

    names = ("int8", "fp32", "another")
    row = benchmark.raced(
        {name: Counting(name) for name in names}, work_of(benchmark, [0, 1, 0]).texts, 8, repeats=3
    )
    assert seen == {name: [(3, 8)] * 4 for name in names}  # one round to warm up
    assert row["int8_is_faster"]["int8"] == {"median": 1, "low": 1, "high": 1}
    assert all(len(seconds) == 3 for seconds in row["seconds"].values())


def test_mixed_precision_keeps_the_fewest_that_hold_the_budget(benchmark, model_folder, toy):
    from companion import models
    from companion.inference.exporting import feeds_of, to_onnx
    from companion.inference.quantization.schemes import WeightsOnly, weights_of

    classifier = models.load(model_folder)
    graph = to_onnx(classifier, precision="fp32")
    feeds = list(feeds_of(classifier, toy[:24]))
    order, truth = weights_of(graph), data.labels_of(toy[:24])

    def mixed(budget: float) -> Any:
        return benchmark.mixed(graph, feeds, feeds, truth, WeightsOnly(4), order, budget)

    all_may_flip, none_may = mixed(1.0), mixed(0.0)
    assert all_may_flip["kept"] == ()
    assert all_may_flip["mixed"] == all_may_flip["none kept"]
    assert none_may["mixed"]["flips"] == 0
    assert none_may["mixed"]["share_of_fp32"] >= all_may_flip["mixed"]["share_of_fp32"]
    assert tuple(order[: len(none_may["kept"])]) == none_may["kept"]


# --- the whole command


@pytest.fixture(scope="module")
def measured(
    model_folder: Path, scripts: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, Any]]:
    """Run the command on the toy model: its words, and what it stored."""
    out = tmp_path_factory.mktemp("benchmark") / "quantization.json"
    parts = ["--parts", "accuracy", "speed", "sensitivity", "peers"]
    words = ["--task", "sentiment", "--model", str(model_folder), "--out", str(out), "--threads", "1"]
    command(words := [*words, "--quick", *parts])
    return words, json.loads(out.read_text())["rows"]


def command(words: list[str]) -> None:
    import quantization

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantization.py", *words])
        quantization.main()


def test_the_command_measures_every_precision(measured):
    _, rows = measured
    precisions = {"fp32", "int8", "int8-fixed", "int8-weights", "int4-weights", "int2-weights"}
    others = {"standard dynamic INT8", "plain quantize_dynamic", "torch bf16"}
    assert {key.removeprefix("accuracy/") for key in rows if key.startswith("accuracy/")} == (
        precisions | others
    )
    assert rows["accuracy/fp32"]["flips"] == 0
    assert rows["accuracy/fp32"]["share_of_fp32"] == 1
    assert rows["accuracy/int4-weights"]["bytes"] < rows["accuracy/int8"]["bytes"]
    assert rows["accuracy/int8"]["cpu_features"] == []
    assert rows["accuracy/standard dynamic INT8"]["cpu_features"]
    assert all(rows[f"accuracy/{name}"]["moved_by_batch"] == 0 for name in ("int8", "int8-fixed"))
    for size in (1, 8, 32):
        assert set(rows[f"speed/{size}"]["seconds"]) == precisions | others | {"torch FP32"}
        assert "optimum avx2" not in rows[f"peers/{size}"]["seconds"]
    assert len(rows["sensitivity/int4-weights"]["layers"]) == len(rows["sensitivity/int8"]["layers"]) > 10
    assert rows["mixed/int8/0.005"]["of"] == len(rows["sensitivity/int8"]["layers"])


def test_the_command_goes_on_where_it_stopped(measured, benchmark, monkeypatch, capsys):
    words, rows = measured
    out = Path(words[words.index("--out") + 1])
    stored = json.loads(out.read_text())
    del stored["rows"]["speed/8"]
    out.write_text(json.dumps(stored))
    again: list[int] = []
    monkeypatch.setattr(benchmark, "raced", lambda *rest: again.append(rest[2]) or rows["speed/8"])
    command(words)
    assert again == [8]
    assert json.loads(out.read_text())["rows"].keys() == rows.keys()
    table = capsys.readouterr().out
    assert "int4-weights" in table
    assert "flips of at most 0.50%" in table
    stored["settings"]["repeats"] = 9
    out.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="repeats 9, not 3"):
        command(words)


# --- other tools


def test_a_model_answers_from_another_process_as_it_does_here(model_folder, torch_one, toy):
    from quantization_candidates import Elsewhere

    texts = [example.text for example in toy[:20]]
    expected = torch_one.logits(texts)
    with Elsewhere(Path(sys.executable), model_folder, "torch FP32", 1, torch_one.labels) as there:
        for size in (1, 8):
            np.testing.assert_allclose(there.logits(texts, batch_size=size), expected, atol=1e-5)
    assert there.process.returncode == 0


def test_a_tool_that_is_not_there_ends_the_benchmark(model_folder):
    from quantization_candidates import Elsewhere

    with pytest.raises(RuntimeError, match="the peers' Python ended with 1"):
        Elsewhere(Path(sys.executable), model_folder, "nonsense", 1, ())


def test_the_peers_say_their_versions(capfd):
    import torch
    from quantization_candidates import peers_versions

    versions = peers_versions(Path(sys.executable))
    assert versions["torch"] == torch.__version__
    assert versions["torchao"] == "none"
    script = BENCHMARKS / "quantization_peers.py"
    done = subprocess.run([sys.executable, str(script), "nonsense"], capture_output=True, text=True)
    assert "expected one of versions, optimum, serve" in done.stderr


# --- training with rounding


def packed(values: list[int]) -> str:
    return np.packbits(np.array(values, dtype=bool)).tobytes().hex()


def seed_of(recovery: ModuleType, fp32: list[int], static: list[int], aware: list[int]) -> dict[str, Any]:
    right = {recovery.FP32: packed(fp32), recovery.STATIC: packed(static), recovery.AWARE: packed(aware)}
    return {"examples": len(fp32), "right": right}


def test_the_share_recovered_is_that_of_all_seeds_together(recovery):
    fp32, half = [1] * 60 + [0] * 3, [1] * 45 + [0] * 18
    one = seed_of(recovery, fp32, [1] * 30 + [0] * 33, half)
    two = seed_of(recovery, fp32, [1] * 50 + [0] * 13, [1] * 60 + [0] * 3)
    found = recovery.recovered([one, two])
    assert found.lost[recovery.STATIC].value == pytest.approx(40 / 126)
    assert found.lost[recovery.AWARE].value == pytest.approx(15 / 126)
    assert found.share.value == pytest.approx(25 / 40)
    assert found.share.low < 25 / 40 < found.share.high
    assert found.shares == (pytest.approx(0.5), pytest.approx(1.0))
    alone = recovery.recovered([one])
    assert alone.share.low > 0.2
    assert alone.share.high < 0.8


def test_where_nothing_is_lost_there_is_nothing_to_recover(recovery):
    same = [1] * 20 + [0] * 5
    found = recovery.recovered([seed_of(recovery, same, same, same)])
    assert found.share is None
    assert found.shares == (None,)
    hardly = recovery.recovered([seed_of(recovery, same, [1] * 19 + [0] * 6, same)])
    assert hardly.share.low == -np.inf  # a resample without the one example says nothing


def test_a_configuration_is_run_from_the_encoder_to_the_answers(recovery, encoder_folder, toy):
    task = data.TaskData(data.TASKS["sentiment"], tuple(toy[:64]), tuple(toy[64:104]))
    configuration = recovery.Configuration("int4-weights", layers=1)
    row = recovery.recovery(task, str(encoder_folder), configuration, 0)
    assert list(row["accuracy"]) == list(row["right"])
    assert len(row["accuracy"]) == 5
    for name, accuracy in row["accuracy"].items():
        assert recovery.bits(row, name).mean() == pytest.approx(accuracy)
    again = recovery.recovery(task, str(encoder_folder), configuration, 0)
    assert again == row
    classifier = recovery.fine_tuned(task, str(encoder_folder), configuration, 0)
    assert classifier.model.config.num_hidden_layers == 1
    assert classifier.labels == ("negative", "positive")
