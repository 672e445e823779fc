"""One command for a model folder: what may be taken, what is taken, and that it is said why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from strangers import news, write

import companion.inference.exporting as exporting
import companion.inference.optimizing.optimization as optimization
from companion.artifacts import digest
from companion.data import Example, Task
from companion.inference import (
    Estimate,
    OnnxPredictor,
    Tried,
    optimize,
    read_manifest,
)
from companion.inference.benchmarking.report import Benchmark, LatencyRow, MeasuredFolder, ThroughputRow
from companion.inference.benchmarking.warmup import Warmup
from companion.inference.optimizing.choosing import choose, refusal
from companion.inference.optimizing.evidence import Remembered, gather
from companion.inference.timing import Timing
from companion.models import load

NAMES = ["fp32", "int8", "int8-weights", "int8-fixed", "int4-weights"]


@pytest.fixture
def quick(fp32_folder, monkeypatch) -> None:
    """Take the traced graph of the toy model from its FP32 export: tracing takes seconds."""
    model = onnx.load(str(fp32_folder / "model.onnx"))
    monkeypatch.setattr(exporting, "trace", lambda classifier: model)


# --- the evidence


class Answers:
    """A predictor that counts how often it is asked."""

    labels, is_regression, asked = ("a", "b"), False, 0

    def logits(self, texts, pairs=None, *, batch_size=32):
        self.asked += 1
        return np.array([[len(text) % 2, 0.5] for text in texts], dtype=np.float32)


def test_a_reference_is_asked_once():
    slow = Answers()
    remembered = Remembered(slow)
    first = remembered.logits(["x", "xx"])
    first[:] = 7
    assert remembered.logits(["x", "xx"])[0, 0] == 1
    remembered.logits(["x", "xx"], ["p", "q"])
    remembered.logits(["x"])
    assert slow.asked == 3
    assert remembered.labels == ("a", "b")


def test_without_labels_the_source_labels_and_its_changes_count():
    texts = [Example("x" * (i % 5)) for i in range(100)]
    evidence = gather(Answers(), texts)
    assert not evidence.labelled
    assert [example.label for example in evidence.examples] == [1 - len(e.text) % 2 for e in texts]

    class Other(Answers):
        def logits(self, texts, pairs=None, *, batch_size=32):
            found = super().logits(texts)
            found[np.array([len(text) == 3 for text in texts]), 1] = 2
            return found

    quality, gate = evidence.judge(Other(), 0.5)
    assert (quality.reference, quality.candidate) == (1.0, 0.8)
    assert quality.flips.value == pytest.approx(quality.drop.value) == pytest.approx(0.2)
    assert gate.detail.startswith("fails: agreement with the source drops by 20.00 points")
    assert "as the source labels it" in quality.task


@pytest.mark.parametrize(
    ("examples", "task", "words"),
    [
        ([], None, "there are no held-out examples.*give labelled ones"),
        (
            [Example("x", 0), Example("y")],
            None,
            "1 of 2 held-out examples have a label, expected all or none",
        ),
        (
            [Example("x", 0)],
            Task("t", "accuracy", ("c", "d"), False, ""),
            "the source predicts a, b; t has c, d",
        ),
    ],
)
def test_what_is_no_evidence(examples, task, words):
    with pytest.raises(ValueError, match=words):
        gather(Answers(), examples, task)


def test_a_number_needs_numbers():
    class Number(Answers):
        labels, is_regression = ("score",), True

    with pytest.raises(ValueError, match="predicts a number, and the held-out examples have none"):
        gather(Number(), [Example("x")])
    assert gather(Number(), [Example("x", 1.5)]).task.metric == "pearson"


# --- the rules


def measured(name: str, seconds: list[float]) -> MeasuredFolder:
    timing = Timing(tuple(seconds))
    single = LatencyRow((1, 9), len(seconds), (), None, timing)
    many = ThroughputRow(32, len(seconds), *timing.rate(64), None, timing)
    return MeasuredFolder(name, 1, ("a",), Warmup(3, True, 0.0, 1.0), (single,), (many,), None, None, None)


def candidate(name: str, seconds: list[float], changed: float = 0.0, size: int = 1) -> Tried:
    class Found:
        flips = Estimate(changed, 0, 1)

    return Tried(name, name, bytes=size, quality=Found(), measured=measured(name, seconds))


STEADY = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0, 1.01, 0.99]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_the_fastest_is_taken_and_of_equals_the_one_that_changes_least(objective):
    fp32 = candidate("fp32", [3 * s for s in STEADY])
    exact = candidate("int8", [1.002 * s for s in reversed(STEADY)], changed=0.001)
    rough = candidate("int4-weights", STEADY, changed=0.1)
    slower = candidate("int8-weights", [1.5 * s for s in STEADY])
    assert choose([fp32, exact, rough, slower], objective) == (exact, (rough,))
    clearly = candidate("int8", [1.1 * s for s in STEADY], changed=0.001)
    assert choose([fp32, clearly, rough, slower], objective) == (rough, ())
    assert choose([fp32], objective) == (fp32, ())


def test_of_equals_that_change_equally_little_the_simplest_is_taken():
    twins = [candidate(name, STEADY) for name in ("int4-weights", "int8", "int8-fixed")]
    winner, tied = choose(twins, "latency")
    assert winner.name == "int8"
    assert {one.name for one in tied} == {"int4-weights", "int8-fixed"}


def test_the_smallest_is_taken_whatever_its_speed():
    small = candidate("int4-weights", [9 * s for s in STEADY], changed=0.1, size=3)
    large = candidate("int8", STEADY, size=5)
    assert choose([large, small], "size") == (small, ())


def test_a_single_fast_turn_does_not_win():
    lucky = candidate("int4-weights", [0.1] + [1.2] * 9, changed=0.1)
    steady = candidate("int8", STEADY)
    assert choose([lucky, steady], "latency")[0] is steady


def test_too_few_examples_refuse_unless_that_is_accepted(toy, torch_one, fp32_folder):
    one = OnnxPredictor(fp32_folder, threads=1)
    quality, gate = gather(torch_one, toy[:60]).judge(one, 0.5)
    assert refusal(quality, gate, accept_undecided=False) == gate.detail
    assert "not enough data to tell" in gate.detail
    assert refusal(quality, gate, accept_undecided=True) is None
    worse = replace(quality, drop=Estimate(0.02, -0.01, 0.05))
    assert refusal(worse, worse.passes(0.5), accept_undecided=True) is not None
    quality, gate = gather(torch_one, toy).judge(one, 2)
    assert refusal(quality, gate, accept_undecided=False) is None


# --- the whole


@pytest.fixture
def instant(monkeypatch) -> None:
    """Measure nothing: INT8 is four times faster than the source, all others are twice."""

    def pretend(folders, texts, pairs, *, plan, threads):
        names = [str(folder) for folder in folders]
        speeds = [1 if i == 0 else 4 if Path(name).name == "int8" else 2 for i, name in enumerate(names)]
        made = [
            measured(name, [0.01 * s / speed for s in STEADY])
            for name, speed in zip(names, speeds, strict=True)
        ]
        return Benchmark(tuple(made), len(texts), threads, 2, 0.95)

    monkeypatch.setattr(optimization, "benchmark", pretend)


def test_a_labelled_model(model_folder, toy, quick, instant, tmp_path):
    out, lines = tmp_path / "out", []
    found = optimize(
        model_folder,
        out,
        held_out=toy[:240],
        calibration=toy[200:],
        max_drop=3,
        threads=1,
        progress=lines.append,
    )
    assert [one.name for one in found.tried][:5] == NAMES
    held_out = {example.text for example in toy[:240]}
    overlap = sum(example.text in held_out for example in toy[200:])
    assert 40 <= overlap < 120
    assert f"{overlap} texts of the calibration are held out too, and were not used." in found.notes
    assert len(lines) >= 6
    assert (found.chosen, found.tied, found.fallback) == ("int8", (), False)
    winner = found.winner
    assert winner.gate.outcome == "passes"
    manifest = read_manifest(out)
    assert manifest.precision == "int8"
    assert manifest.quality == winner.quality
    assert OnnxPredictor(out, threads=1).labels == ("negative", "positive")
    names = [one.name for one in found.benchmark.candidates]
    assert names == [str(model_folder)] + [one.name for one in found.tried if one.refused is None]
    assert (found.benchmark.threads, found.labelled, found.metric) == (1, True, "accuracy")
    told = found.text()
    for name in NAMES:
        assert f"\n{name} " in told
    assert f"int8 answers one text fastest. It is written to {out}." in told
    assert "One text takes 2.50 ms" in told
    assert "against fp32 in onnxruntime that is 2.00 times faster" in told
    assert "points of accuracy on 240 held-out examples" in told
    assert "Within the budget, but slower: fp32 (2.00 times slower" in told
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["chosen"] == "int8"
    assert [one["name"] for one in data["tried"]][:5] == NAMES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_smallest_folder(model_folder, toy, quick, instant, tmp_path):
    out = tmp_path / "out"
    found = optimize(model_folder, out, held_out=toy[:240], max_drop=3, objective="size", threads=1)
    sizes = {one.name: one.bytes for one in found.tried if one.refused is None}
    assert sizes[found.chosen] == min(sizes.values()) < sizes["fp32"]
    # The manifest in the folder holds the quality as well.
    assert sum(path.stat().st_size for path in out.iterdir()) == sizes[found.chosen]
    assert "int8-fixed was not tried" in found.text()
    assert "has the smallest folder" in found.explanation()
    assert "Larger: " in found.explanation()


def test_too_few_examples_fall_back_to_the_model_as_it_is(model_folder, toy, quick, instant, tmp_path):
    few = {"held_out": toy[:60], "calibration": toy[60:90], "threads": 1}
    found = optimize(model_folder, tmp_path / "out", **few)
    assert (found.chosen, found.fallback) == ("fp32", True)
    assert found.winner.gate.outcome == "not enough data to tell"
    assert read_manifest(tmp_path / "out").precision == "fp32"
    told = found.explanation()
    assert "No narrow candidate is shown to stay within 0.5 points" in told
    assert "examples like these would let it pass, there are 60" in told
    assert "--accept-undecided" in told
    assert "fp32: not enough" not in told, "what is written is not called refused"
    accepted = optimize(model_folder, tmp_path / "out", accept_undecided=True, **few)
    assert not accepted.fallback
    assert "too few to be sure" in accepted.text()


def test_nothing_is_written_where_not_even_fp32_answers_alike(
    model_folder, toy, quick, tmp_path, monkeypatch
):
    traced = exporting.trace(None)
    broken = onnx.ModelProto()
    broken.CopyFrom(traced)
    for item in broken.graph.initializer:
        if item.name == "model.classifier.weight" or item.name == "model.classifier.weight.T":
            weight = onnx.numpy_helper.to_array(item)
            item.CopyFrom(onnx.numpy_helper.from_array(-weight, item.name))
    monkeypatch.setattr(exporting, "trace", lambda classifier: broken)
    found = optimize(model_folder, tmp_path / "out", held_out=toy[:60], threads=1)
    assert (found.chosen, found.benchmark, found.fallback) == (None, None, True)
    assert "Nothing is written" in found.text()
    json.dumps(found.to_dict(), allow_nan=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def spiked(tmp_path_factory) -> Path:
    """Return a model whose matrices after the heads no narrow grid can hold; what it answers is unchanged.

    What the heads hand over is divided by a thousand in one place, and multiplied again by the next matrix:
    one row of that is so large that on its columns' grids all others are zero.
    """
    folder = write(tmp_path_factory.mktemp("spiked") / "model", "bert")
    classifier = load(folder)
    with torch.no_grad():
        for layer in classifier.model.bert.encoder.layer:
            layer.attention.self.value.weight[3] /= 1000
            layer.attention.self.value.bias[3] /= 1000
            layer.attention.output.dense.weight[:, 3] *= 1000
    classifier.model.save_pretrained(folder)
    return folder


def test_where_int8_costs_too_much_what_costs_it_stays_wide(spiked, instant, tmp_path):
    texts = [Example(text) for text, _ in news(200, seed=5)]
    found = optimize(spiked, tmp_path / "out", held_out=texts, max_drop=5, threads=1)
    assert not found.labelled
    by_name = {one.name: one for one in found.tried}
    assert by_name["int8"].gate.outcome == by_name["int8-weights"].gate.outcome == "fails"
    mixed = by_name["int8-mixed"]
    assert mixed.refused is None
    assert mixed.kept[0].endswith("attention.output.dense.weight.T")
    assert len(mixed.kept) <= 3 < mixed.of
    told = found.text()
    assert f"int8-mixed, {len(mixed.kept)} of {mixed.of} weights kept" in told
    assert "passes by luck" in told
    assert "have no labels" in told
    assert "Refused:\n- int8: fails: agreement with the source drops by" in told


def test_mistakes_come_before_the_work(model_folder, encoder_folder, onnx_folder, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "trace", lambda classifier: pytest.fail("traced"))
    out, few = tmp_path / "out", {"held_out": toy[:20]}
    with pytest.raises(ValueError, match="is an ONNX folder already, expected the model folder"):
        optimize(onnx_folder, out, **few)
    with pytest.raises(ValueError, match="objective is 'speed', expected one of latency, throughput, size"):
        optimize(model_folder, out, objective="speed", **few)
    with pytest.raises(ValueError, match="max_drop is -1, expected points of at least 0"):
        optimize(model_folder, out, max_drop=-1, **few)
    with pytest.raises(ValueError, match="not fine-tuned"):
        optimize(encoder_folder, out, **few)
    with pytest.raises(ValueError, match="there are no held-out examples"):
        optimize(model_folder, out, held_out=[])
    with pytest.raises(ValueError, match="all 5 texts of the calibration are held out too"):
        optimize(model_folder, out, calibration=toy[:5], **few)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"not empty and has no manifest\.json"):
        optimize(model_folder, tmp_path / "thesis", **few)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_a_run_that_is_killed_while_it_writes_leaves_what_was_there(model_folder, fp32_folder, onnx_copy):
    before = {path.name: digest(path) for path in onnx_copy.iterdir()}
    code = f"""if True:
        import os, signal, onnx
        from pathlib import Path
        import companion.inference.exporting as exporting
        import companion.inference.optimizing.optimization as optimization
        from companion.data import Example

        def half(source, target, **rest):
            (target / "model.onnx").write_bytes((source / "model.onnx").read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

        model = onnx.load({str(fp32_folder / "model.onnx")!r})
        exporting.trace = lambda classifier: model
        optimization._NARROW = ("int8",)
        optimization._measure = lambda folder, work, tried, *rest: (tried, None)
        optimization.choose = lambda candidates, objective: (candidates[0], ())
        optimization.shutil.copytree = half
        texts = [Example(f"The film was superb {{i}}.") for i in range(20)]
        optimization.optimize(Path({str(model_folder)!r}), Path({str(onnx_copy)!r}), held_out=texts,
                              max_drop=100, threads=1)
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.name: digest(path) for path in onnx_copy.iterdir()} == before
    assert OnnxPredictor(onnx_copy, threads=1).logits(["a"]).shape == (1, 2)
