"""The experiments on throughput: what they run, count and refuse. How fast it was decides nothing here."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

from companion.inference import (
    Arrangement,
    BatchCost,
    Memory,
    MemorySample,
    OnnxPredictor,
    arrangements,
    batch_curve,
    compare_groupings,
    compare_placements,
    fit_cost,
    growth_of,
    mixed_texts,
    padding_of,
    soak,
)
from companion.inference.throughput.curves import BatchCurve, CurvePoint
from companion.inference.timing import Timing


@pytest.fixture(scope="module")
def predictor(onnx_folder) -> OnnxPredictor:
    return OnnxPredictor(onnx_folder, threads=1)


class Recorder:
    """A predictor that remembers which batches it ran."""

    def __init__(self, predictor: OnnxPredictor) -> None:
        self._predictor, self.batches = predictor, []

    def __getattr__(self, name: str):
        return getattr(self._predictor, name)

    def run(self, encodings):
        self.batches.append([len(encoding.ids) for encoding in encodings])
        return self._predictor.run(encodings)


def test_texts_are_of_mixed_length_and_always_the_same():
    texts = mixed_texts(2000)
    words = np.array([len(text.split()) for text in texts])
    assert (words.min(), words.max()) == (4, 120)
    assert np.median(words) == pytest.approx(24, abs=2)
    assert np.log(words).std() == pytest.approx(0.62, abs=0.06)
    assert mixed_texts(5) == texts[:5] != mixed_texts(5, seed=1)


def test_a_batch_is_the_same_bits_as_in_logits(predictor, texts):
    encodings = predictor.encode(texts)
    expected = predictor.logits(texts, batch_size=4)
    parts = [predictor.run(encodings[start : start + 7]) for start in range(0, len(texts), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert predictor.feed(encodings)["input_ids"].shape == (len(texts), predictor.max_length)


def test_a_curve_runs_batches_of_each_shape(predictor):
    recorder = Recorder(predictor)
    found = batch_curve(recorder, lengths=(8, 20, 500), batch_sizes=(4, 1), repeats=3)
    assert (found.lengths, found.batch_sizes) == ((8, 20), (1, 4)), "500 tokens are too many for the model"
    for point in found.points:
        batch = [point.tokens] * point.batch_size
        assert recorder.batches.count(batch) == 4 * (512 // (point.tokens * point.batch_size))
    assert {len(point.seconds.seconds) for point in found.points} == {3}
    assert found.text().splitlines()[1].split() == ["tokens", "1", "4", "best", "against", "1"]
    assert json.loads(json.dumps(found.to_dict()))["points"][0]["tokens"] == 8
    assert fit_cost(found.timed_batches()).batches == 4


def test_a_curve_counts_one_batch_though_it_times_several(predictor):
    ticks = count()
    found = batch_curve(
        predictor, lengths=(8, 16), batch_sizes=(1,), repeats=3, clock=lambda: float(next(ticks))
    )
    assert found.at(8, 1).seconds.seconds == (1 / 64,) * 3
    assert found.at(16, 1).texts_per_second == 32
    assert found.timed_batches()[1].longest == 16


def test_the_best_batch_size_of_a_length():
    speeds = {(8, 1): 1.0, (8, 2): 0.5, (8, 4): 4.0}
    found = BatchCurve(tuple(CurvePoint(*shape, Timing((s,) * 3)) for shape, s in speeds.items()))
    assert found.best(8).batch_size == 2
    assert found.text().splitlines()[-1].split() == ["8", "1", "4", "1", "2", "4.00x"]
    with pytest.raises(KeyError):
        found.at(9, 1)


@pytest.mark.parametrize("wrong", [{"lengths": ()}, {"lengths": (500,)}, {"batch_sizes": (0,)}])
def test_a_curve_of_nothing(predictor, wrong):
    with pytest.raises(ValueError, match="lengths are"):
        batch_curve(predictor, **wrong)
    with pytest.raises(ValueError, match="the texts have 2 words"):
        batch_curve(predictor, ["two words"], lengths=(20,))


def test_all_groupings_run_all_texts(predictor):
    recorder, texts = Recorder(predictor), mixed_texts(40, longest=40)
    found = compare_groupings(recorder, texts, cost=BatchCost(1e-3, 1e-5), window=8, budget=64, repeats=3)
    names = [run.name for run in found.runs]
    assert names[0] == "one by one"
    assert len(names) == 7
    tokens = sum(len(encoding.ids) for encoding in predictor.encode(texts))
    assert all((run.padding.texts, run.padding.tokens) == (40, tokens) for run in found.runs)
    assert sum(map(len, recorder.batches)) == 4 * 7 * 40
    assert len(recorder.batches) == 4 * sum(run.padding.batches for run in found.runs)
    assert found["one by one"].faster == 1
    assert found["as they come, 8"].padding.batches == 5
    assert found["all sorted, 32"].padding.efficiency > found["as they come, 32"].padding.efficiency
    assert found["window of 8, 64 tokens"].padding.largest <= 64
    assert {len(run.cpu_seconds.seconds) for run in found.runs} == {3}
    assert len(found.text().splitlines()) == 9
    assert json.loads(json.dumps(found.to_dict()))["runs"][1]["padding"]["batches"] == 5
    with pytest.raises(KeyError):
        found["unknown"]


def test_cpu_seconds_are_those_of_the_rounds_that_count(predictor):
    ticks = count()
    found = compare_groupings(
        predictor,
        ["one text", "and another"],
        groupings={"all": lambda lengths: [list(range(len(lengths)))]},
        cost=BatchCost(1, 1),
        repeats=3,
        cpu_clock=lambda: float(next(ticks) ** 2),
    )
    # The warm-up takes ticks 0 and 1; the differences of squares 3 - 2, 5 - 4 and 7 - 6 are 5, 9 and 13.
    assert found["all"].cpu_seconds.seconds == (5, 9, 13)
    assert found["all"].padding == padding_of(
        [len(e.ids) for e in predictor.encode(["one text", "and another"])], [[0, 1]]
    )


def test_a_cost_is_measured_where_none_is_given(predictor):
    found = compare_groupings(predictor, ["a b c", "d"], repeats=3)
    assert float(found.cost.seconds(1, 8)) > 0
    with pytest.raises(ValueError, match="no texts"):
        compare_groupings(predictor, [])


def test_arrangements_use_all_cores():
    assert [a.name for a in arrangements(2)] == [
        "1 process x 1 session x 2 threads",
        "1 process x 2 sessions x 1 thread",
        "2 processes x 1 session x 1 thread",
    ]
    assert arrangements(1) == (Arrangement(1, 1, 1),)
    for cores in (2, 3, 4, 6, 16):
        found = arrangements(cores)
        assert {a.processes * a.sessions * a.threads for a in found} == {cores}
        assert len(set(found)) == len(found)
    with pytest.raises(ValueError, match="cores is 0"):
        arrangements(0)


def test_processes_and_threads_share_the_batches(onnx_folder):
    found = compare_placements(
        onnx_folder,
        mixed_texts(12, longest=30),
        choices=(Arrangement(1, 2, 1), Arrangement(2, 1, 1)),
        batch_size=2,
        repeats=3,
    )
    assert (found.texts, found.batches) == (12, 6)
    assert [run.arrangement.processes for run in found.runs] == [1, 2]
    assert all(len(run.cpu_seconds.seconds) == len(run.seconds.seconds) == 3 for run in found.runs)
    assert all(run.memory > 10e6 for run in found.runs)
    assert found.runs[1].memory > found.runs[0].memory, "two processes hold everything twice"
    assert found.fastest in found.runs
    assert len(found.text().splitlines()) == 4
    assert json.loads(json.dumps(found.to_dict()))["runs"][1]["name"] == "2 processes x 1 session x 1 thread"


def test_a_process_that_ends_early_is_no_hang(tmp_path):
    from companion.inference.throughput.workers import Assignment, Workers

    workers = Workers(Assignment(tmp_path, ("a",), ((0,),)), processes=1, sessions=1, threads=1)
    try:
        with pytest.raises(RuntimeError, match="ended early"):
            workers.wait()
    finally:
        workers.end()


def test_placements_of_nothing(onnx_folder):
    with pytest.raises(ValueError, match="0 texts"):
        compare_placements(onnx_folder, [])
    with pytest.raises(ValueError, match="0 choices"):
        compare_placements(onnx_folder, ["a"], choices=())


# --- memory


def series(slope, noise, samples=100, every=20, step=0.0, seed=0):
    rng = np.random.default_rng(seed)
    values = 1e8 + slope * every * np.arange(samples) / 1000 + noise * rng.standard_normal(samples)
    values[samples // 10 :] += step
    return [MemorySample(every * (i + 1), int(value)) for i, value in enumerate(values)]


def test_growth_is_found_and_noise_is_not():
    found = growth_of(series(5e6, 2e5))
    assert found.slope.value == pytest.approx(5e6, rel=0.1)
    assert found.slope.low < 5e6 < found.slope.high
    assert found.verdict == "grows"
    assert growth_of(series(0, 1e5)).verdict == "steady"
    assert growth_of(series(0, 1e5, step=5e7)).verdict == "steady", "a step in the warm-up"
    assert growth_of(series(1e6, 5e6)).verdict == "not decided"
    assert growth_of(series(5e6, 2e5), tolerance=1e7).verdict == "steady"


def test_the_interval_of_growth_covers_the_truth():
    covered = [
        found.low <= 2e6 <= found.high
        for found in (growth_of(series(2e6, 1e6, seed=seed)).slope for seed in range(200))
    ]
    assert 0.97 <= np.mean(covered) < 1


def test_too_few_samples_for_a_slope():
    with pytest.raises(ValueError, match="found 6 samples"):
        growth_of(series(0, 0, samples=10))


def test_a_soak_visits_shapes_in_processes_of_their_own(onnx_folder):
    memories = {"arena": Memory(pattern=False), "shrinks": Memory(pattern=False, shrink=True)}
    found = soak(onnx_folder, memories, requests=100, rows=2, threads=1, repeats=3)
    assert [item.name for item in found.soaks] == ["arena", "shrinks"]
    assert 8 <= found.shapes <= 2 * 8
    for item in found.soaks:
        assert [sample.requests for sample in item.samples] == list(range(1, 101))
        assert item.peak >= item.samples[-1].bytes > 10e6
        assert item.growth.verdict in {"grows", "steady", "not decided"}
    assert len(found.text().splitlines()) == 4
    assert json.loads(json.dumps(found.to_dict()))["soaks"][1]["memory"]["shrink"] is True


@pytest.mark.parametrize("wrong", [{"requests": 99}, {"rows": 0}, {"memories": {}}])
def test_a_soak_that_shows_nothing(onnx_folder, wrong):
    with pytest.raises(ValueError, match="expected at least"):
        soak(onnx_folder, **wrong)


def test_memory_changes_no_answer(onnx_folder, texts):
    expected = OnnxPredictor(onnx_folder).logits(texts)
    for arena, pattern, shrink in ((True, False, True), (False, False, False), (False, True, False)):
        one = OnnxPredictor(onnx_folder, memory=Memory(arena, pattern, shrink))
        np.testing.assert_array_equal(one.logits(texts), expected)
