"""The benchmark: turns, warm-up, refusals and ratios, proved with a clock that only work moves."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from itertools import count

import numpy as np
import pytest

from companion.inference import (
    BenchmarkPlan,
    Timing,
    benchmark,
    benchmark_predictors,
    percentile,
    side_by_side,
    warm_up,
)
from companion.inference.benchmarking.report import faster_than
from companion.inference.benchmarking.sending import groups_by_length

TEXTS = [" ".join(["word"] * (1 + i % 30)) for i in range(90)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Machine:
    """A predictor that takes `pace` seconds per word, and longer while it is cold; it notes each call."""

    is_regression = False

    def __init__(self, clock, pace, *, cold=0, labels=("no", "yes"), answer=0, log=None) -> None:
        self.clock, self.pace, self.cold, self.labels, self.answer = clock, pace, cold, labels, answer
        self.calls, self.log = [], log if log is not None else []

    def logits(self, texts, pairs=None, *, batch_size=32):
        words = sum(len(text.split()) for text in texts)
        slow = 1 + max(0, self.cold - len(self.calls)) / 12
        self.clock.now += slow * self.pace * words
        self.calls.append((tuple(texts), pairs, batch_size))
        self.log.append(self)
        rows = np.zeros((len(texts), 2), dtype=np.float32)
        rows[: self.answer, 1] = 1
        return rows


@pytest.fixture
def clock() -> Clock:
    return Clock()


def measured(clock, predictors, plan, texts=TEXTS, pairs=None):
    return benchmark_predictors(predictors, texts, pairs, plan=plan, clock=clock, sleep=clock.sleep)


PLAN = BenchmarkPlan(runs=80, rounds=7, batch_sizes=(1, 8))


def test_latency_by_length_and_what_few_runs_cannot_tell(clock):
    slow, fast = Machine(clock, 0.002), Machine(clock, 0.001)
    found = measured(clock, {"a": slow, "b": fast}, PLAN)
    first, other = found.candidates
    assert [row.words for row in first.latency] == [(1, 10), (11, 20), (21, 30), (1, 30)]
    assert [row.runs for row in first.latency] == [80, 80, 80, 240]
    for row in first.latency:
        p50, p95, p99 = row.percentiles
        assert (
            row.words[0] * 0.002 - 1e-9
            <= p50.estimate.low
            <= p50.estimate.high
            <= row.words[1] * 0.002 + 1e-9
        )
        assert p95.estimate is not None
        assert p99.estimate is None
        assert p99.reason == f"p99 needs at least 368 runs for a 95% interval, there are {row.runs}"
        assert row.faster is None
    for row in other.latency:
        assert row.faster.median == pytest.approx(2), "the same text in the same turn"
        assert row.faster.spread == pytest.approx((2, 2))
        assert (row.faster.low, row.faster.high) == pytest.approx((2, 2))


def test_throughput_by_batch_size(clock):
    found = measured(clock, {"a": Machine(clock, 0.002), "b": Machine(clock, 0.001)}, PLAN)
    first, other = found.candidates
    assert [(row.batch_size, row.rounds) for row in first.throughput] == [(1, 7), (8, 7)]
    for row in other.throughput:
        assert row.texts_per_second == pytest.approx(2 * first.throughput[0].texts_per_second)
        assert row.spread[0] <= row.texts_per_second + 1e-6 and row.spread[1] >= row.texts_per_second - 1e-6
        assert row.faster.median == pytest.approx(2)


def test_all_get_the_same_texts_and_batches_in_turns(clock):
    log: list[Machine] = []
    machines = {name: Machine(clock, 0.001, log=log) for name in "abc"}
    measured(clock, machines, BenchmarkPlan(runs=30, rounds=3, percents=(50,)))
    a, b, c = machines.values()
    same = len(b.calls) - 1  # the last: labels, in whole
    assert a.calls[:same] == b.calls[:same] == c.calls[:same]
    assert {size for _, _, size in a.calls[:same]} == {1, 8, 32}
    # In each round all three, and not always the same one first.
    cold = 3 * 12 * 3  # blocks, texts in a block, machines
    rounds = [log[i : i + 3] for i in range(cold, cold + 90, 3)]
    assert all(len({id(one) for one in turn}) == 3 for turn in rounds)
    assert len({id(turn[0]) for turn in rounds}) == 3


def test_warm_up_goes_on_until_all_are_stable(clock):
    # A block is 4 texts of each of 3 lengths; the second machine gets faster for 5 blocks.
    found = measured(clock, {"a": Machine(clock, 0.001), "b": Machine(clock, 0.001, cold=60)}, PLAN)
    for item in found.candidates:
        assert (item.warmup.blocks, item.warmup.stable) == (8, True)
        assert item.warmup.variation == pytest.approx(0)
    ratios = [row.faster.median for row in found.candidates[1].latency]
    assert ratios == pytest.approx([1] * 4), "nothing of the cold runs is left"


def test_what_never_gets_stable_is_told(clock):
    turns = count()

    def restless():
        clock.now += 1 + next(turns) % 2

    def steady():
        clock.now += 1

    found = warm_up({"restless": restless, "steady": steady}, at_most=7, clock=clock)
    assert (found["restless"].blocks, found["restless"].stable) == (7, False)
    assert found["restless"].variation == pytest.approx(1)
    assert (found["steady"].blocks, found["steady"].stable) == (7, True)
    assert found["restless"].seconds == pytest.approx(4 * 1 + 3 * 2)
    nothing = warm_up({"nothing": lambda: None}, clock=clock)["nothing"]
    assert (nothing.blocks, nothing.stable, nothing.variation) == (3, True, 0.0)
    with pytest.raises(ValueError, match="at_most is 2, expected at least 3"):
        warm_up({}, at_most=2)
    with pytest.raises(ValueError, match="block is 0, expected at least 1 run"):
        warm_up({}, block=0)
    with pytest.raises(ValueError, match="tolerance is 0"):
        warm_up({}, tolerance=0)


def test_a_single_interruption_does_not_count(clock):
    turns = count()

    def interrupted():
        clock.now += 100 if next(turns) % 3 == 1 else 1

    assert warm_up({"one": interrupted}, block=5, clock=clock)["one"].blocks == 3
    assert not warm_up({"one": interrupted}, block=1, clock=clock)["one"].stable


def test_labels_that_change_are_counted_and_other_labels_are_not_compared(clock):
    machines = {
        "a": Machine(clock, 0.001),
        "b": Machine(clock, 0.001, answer=4),
        "c": Machine(clock, 0.001, labels=("x", "y")),
    }
    a, b, c = measured(clock, machines, PLAN).candidates
    assert (a.flips, b.flips, c.flips) == (None, 4, None)
    assert (b.not_compared, c.not_compared) == (None, "other labels")
    machines["c"].is_regression = True
    machines["c"].labels = ("no", "yes")
    assert measured(clock, machines, PLAN).candidates[2].not_compared == "a number, no labels"


def test_a_rate_adds_the_open_loop(clock):
    plan = BenchmarkPlan(runs=400, rounds=3, batch_sizes=(1,), rate=20)
    found = measured(clock, {"a": Machine(clock, 0.001)}, plan)
    [item] = found.candidates
    assert item.arrivals.open.rate == 20
    assert item.arrivals.p99_ratio == pytest.approx(1)
    text = found.text()
    assert "a at 20 requests per second, busy 3" in text
    assert "constant rate: when it was due" in text
    assert "Not given" not in text


def test_pairs_go_with_their_texts(clock):
    pairs = [f"pair {i}" for i in range(90)]
    texts = [f"{i} {text}" for i, text in enumerate(TEXTS)]
    machine = Machine(clock, 0.001)
    measured(clock, {"a": machine}, PLAN, texts, pairs)
    for sent, second, _ in machine.calls:
        assert [f"pair {text.split()[0]}" for text in sent] == list(second)


def test_groups_by_length():
    groups = groups_by_length(TEXTS, groups=3)
    assert [len(group.texts) for group in groups] == [30, 30, 30]
    assert sorted(text for group in groups for text in group.texts) == sorted(TEXTS)
    assert list(groups[0].texts) != sorted(groups[0].texts, key=len), "not in the order of their length"
    assert groups == groups_by_length(TEXTS, groups=3)
    assert len(groups_by_length(["a b", "c d"], groups=3)) == 1
    assert [group.words for group in groups_by_length(["a", "a b"], groups=3)] == [(1, 1), (2, 2)]
    assert groups_by_length(["a", "a"], ["b", "b c d"], groups=2)[1].words == (4, 4)
    cycled = groups_by_length(["a", "b c"], ["d", "e"], groups=2)[0].cycle(3)
    assert (cycled.texts, cycled.pairs) == (("a",) * 3, ("d",) * 3)
    with pytest.raises(ValueError, match="found 0 texts"):
        groups_by_length([])


def test_ratios_have_a_median_an_interval_and_a_spread():
    first = Timing(tuple(float(i) for i in range(1, 21)))
    found = faster_than(first, Timing((2.0,) * 20))
    expected = percentile([i / 2 for i in range(1, 21)], 50).estimate
    assert (found.median, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert found.spread == (1, 9)
    few = faster_than(Timing((1.0, 2.0, 4.0)), Timing((1.0, 1.0, 1.0)))
    assert (few.median, few.low, few.high, few.spread) == (2, None, None, (1, 4))


def test_turns_rotate_only_when_asked(clock):
    seen: list[str] = []
    runs = {name: partial(seen.append, name) for name in "abc"}
    for rotate, expected in ((False, "abcabcabc"), (True, "abcbcacab")):
        seen.clear()
        side_by_side(runs, repeats=3, warmup=0, rotate=rotate, clock=clock)
        assert "".join(seen) == expected


def test_folders(onnx_folder, fp32_folder, model_folder, toy, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    monkeypatch.setattr("companion.inference.benchmarking.turns.usable_cores", lambda: 4)
    plan = BenchmarkPlan(runs=6, rounds=3, batch_sizes=(4,), batched_texts=12, percents=(50, 99), rate=500)
    texts = [example.text for example in toy[:30]]
    found = benchmark([fp32_folder, onnx_folder, model_folder], texts, plan=plan, threads=1)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert (found.threads, found.cores, found.texts) == (1, 4, 30)
    names = [item.name for item in found.candidates]
    assert names == [str(folder) for folder in (fp32_folder, onnx_folder, model_folder)]
    fp32, int8, torch = found.candidates
    assert int8.bytes == sum(path.stat().st_size for path in onnx_folder.iterdir())
    assert int8.bytes < fp32.bytes
    assert torch.flips == 0
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [item["name"] for item in told["candidates"]] == names
    row = told["candidates"][1]["latency"][0]
    assert row["percentiles"][0].keys() == {"percent", "value", "low", "high"}
    assert row["percentiles"][1].keys() == {"percent", "reason"}
    assert row["faster"]["median"] > 0
    text = found.text()
    for words in (
        "milliseconds",
        "texts per second",
        "1 thread each on 4 cores",
        "Not given (-): p99 needs at least 368 runs for a 95% interval, there are 6.",
        "times faster",
    ):
        assert words in text, text


def test_the_default_texts_are_generated(onnx_folder):
    plan = BenchmarkPlan(runs=6, rounds=3, batch_sizes=(1,), batched_texts=2, percents=(50,))
    found = benchmark([onnx_folder], plan=plan, threads=1)
    assert found.texts >= 100
    assert len(found.candidates[0].latency) == 4


def test_bad_input(clock, onnx_folder, tmp_path):
    with pytest.raises(ValueError, match="there are no folders"):
        benchmark([])
    with pytest.raises(FileNotFoundError, match="does not exist, expected a model folder or an ONNX folder"):
        benchmark([onnx_folder, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="is given twice"):
        benchmark([onnx_folder, onnx_folder / ".." / onnx_folder.name])
    with pytest.raises(ValueError, match="found 0 texts"):
        benchmark([onnx_folder], [], threads=1)
    with pytest.raises(ValueError, match="one string"):
        benchmark([onnx_folder], "one text", threads=1)
    with pytest.raises(ValueError, match="there are no predictors"):
        benchmark_predictors({}, TEXTS)
    for change, words in (
        ({"runs": 5}, "runs is 5, expected at least 6"),
        ({"runs": 70, "percents": (95, 99)}, "runs is 70, expected at least 72"),
        ({"percents": ()}, "percents is empty"),
        ({"percents": (100,)}, "percent is 100"),
        ({"rounds": 2}, "rounds is 2, expected at least 3"),
        ({"batch_sizes": ()}, "batch_sizes are"),
        ({"batch_sizes": (1, 0)}, "batch_sizes are"),
        ({"batched_texts": 0}, "batched_texts is 0"),
        ({"groups": 0}, "groups is 0"),
        ({"rate": 0.0}, "expected requests per second above 0"),
        ({"rate": -3.0}, "expected requests per second above 0"),
        ({"rate": math.nan}, "expected requests per second above 0"),
        ({"level": 95}, "level is 95"),
    ):
        with pytest.raises(ValueError, match=words):
            BenchmarkPlan(**change)
