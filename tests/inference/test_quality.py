"""The release gate: what is measured, what passes, and a record that is not believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from companion.artifacts import digest
from companion.data import Example, Task, score
from companion.inference import (
    OnnxPredictor,
    Quality,
    TorchPredictor,
    assess,
    paired_difference,
    proportion,
    read_manifest,
    state_quality,
)
from companion.inference.quality.reading import quality_from
from companion.inference.quality.resampling import resampled_correlation, resampled_score

LABELS = ("negative", "positive")


class Answers:
    """A predictor that looks its logits up: text ``"3"`` gets row 3."""

    def __init__(self, rows, labels=LABELS, *, is_regression=False) -> None:
        self.rows, self.labels, self.is_regression = np.asarray(rows, np.float32), labels, is_regression
        self.pairs: list[str] | None = None

    def logits(self, texts, pairs=None, *, batch_size=32):
        self.pairs = None if pairs is None else list(pairs)
        return self.rows[[int(text) for text in texts]]


def task(metric="accuracy", labels=LABELS, paired=False) -> Task:
    return Task("reviews", metric, labels, paired, "")


def one_hot(chosen, classes=2, confidence=2.0):
    return confidence * np.eye(classes, dtype=np.float32)[np.asarray(chosen)]


def examples(truth) -> list[Example]:
    return [Example(str(i), label) for i, label in enumerate(truth)]


def by_counts(both=0, only_reference=0, only_candidate=0, neither=0, metric="accuracy") -> Quality:
    """Assess a pair of predictors that agree and disagree so often, the classes in turn."""
    kinds = [(1, 1)] * both + [(1, 0)] * only_reference + [(0, 1)] * only_candidate + [(0, 0)] * neither
    truth = [i % 2 for i in range(len(kinds))]
    answers = [
        one_hot([label if kind[side] else 1 - label for label, kind in zip(truth, kinds, strict=True)])
        for side in (0, 1)
    ]
    return assess(Answers(answers[0]), Answers(answers[1]), examples(truth), task(metric))


# --- what is measured


def test_every_number_by_hand():
    truth = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    first = [0, 0, 0, 1, 1, 1, 1, 1, 0, 1]
    other = [0, 1, 0, 0, 1, 1, 1, 0, 0, 0]
    found = assess(Answers(one_hot(first)), Answers(one_hot(other)), examples(truth), task())
    assert (found.task, found.metric, found.examples, found.level) == ("reviews", "accuracy", 10, 0.95)
    assert (found.reference, found.candidate) == (0.8, 0.6)
    assert (found.only_reference_right, found.only_candidate_right) == (3, 1)
    expected = paired_difference(3, 1, 10)
    assert found.drop.value == pytest.approx(0.2)
    assert (found.drop.low, found.drop.high) == (expected.low, expected.high)
    assert (found.method, found.resamples, found.seed) == ("Tango score interval", None, None)
    assert found.flips == proportion(4, 10)
    negative, positive = found.classes
    assert (negative.label, negative.examples, negative.reference, negative.candidate) == (
        "negative",
        4,
        0.75,
        0.75,
    )
    assert negative.flips == proportion(2, 4)
    assert negative.drop == paired_difference(1, 1, 4)
    assert (positive.label, positive.examples) == ("positive", 6)
    assert (positive.reference, positive.candidate) == (pytest.approx(5 / 6), pytest.approx(3 / 6))
    assert positive.flips == proportion(2, 6)
    assert negative.too_few and positive.too_few
    assert "fewer than 30 examples" in found.text()


def test_a_class_of_many_is_not_called_small_and_one_of_none_says_so():
    three = ("a", "b", "c")
    truth = [0] * 40 + [1] * 29
    rows = one_hot(truth, 3)
    found = assess(Answers(rows, three), Answers(rows, three), examples(truth), task(labels=three))
    assert [item.too_few for item in found.classes] == [False, True, True]
    assert (found.classes[2].examples, found.classes[2].reference, found.classes[2].flips) == (0, None, None)
    lines = found.text().splitlines()[-3:]
    assert ["fewer" in line for line in lines] == [False, True, False]
    assert "no examples" in lines[2]


def test_calibration_moves_where_only_the_confidence_does():
    truth = [i % 2 for i in range(200)]
    chosen = [label if i % 10 else 1 - label for i, label in enumerate(truth)]
    modest, boastful = one_hot(chosen, confidence=np.log(9)), one_hot(chosen, confidence=20.0)
    found = assess(Answers(modest), Answers(boastful), examples(truth), task())
    assert found.flips.value == found.drop.value == 0
    assert found.calibration.ece_reference == pytest.approx(0, abs=1e-4)
    assert found.calibration.ece_candidate == pytest.approx(0.1, abs=1e-4)
    assert found.calibration.brier_candidate == pytest.approx(0.2, abs=1e-4)


def test_second_texts_are_used_for_pairs_and_for_nothing_else():
    truth = [0, 1] * 10
    told = [Example(str(i), label, f"second {i}") for i, label in enumerate(truth)]
    one, other = Answers(one_hot(truth)), Answers(one_hot(truth))
    assess(one, other, told, task(paired=True))
    assert one.pairs == other.pairs == [f"second {i}" for i in range(20)]
    assess(one, other, told, task())
    assert one.pairs is None


def test_a_regression_has_its_metric_alone():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    first = truth + 0.3 * rng.normal(size=300)
    worse = first + 0.5 * rng.normal(size=300)
    predictors = [Answers(v[:, None], ("score",), is_regression=True) for v in (first, worse)]
    found = assess(*predictors, examples(truth.tolist()), task("pearson", ()))
    assert found.reference - found.candidate == pytest.approx(found.drop.value)
    assert 0 < found.drop.low < found.drop.value < found.drop.high
    assert found.method == "paired bootstrap"
    assert (found.flips, found.classes, found.calibration) == (None, (), None)
    assert found.only_reference_right is None
    assert "flips" not in found.text()
    assert found.passes(0.5).outcome == "fails"
    assert found == assess(*predictors, examples(truth.tolist()), task("pearson", ()))
    other = assess(*predictors, examples(truth.tolist()), task("pearson", ()), seed=1)
    assert other.drop.low != found.drop.low


# --- the bootstrap


@pytest.mark.parametrize("metric", ["f1", "matthews"])
@pytest.mark.parametrize(("worse", "better"), [(0.05, 0.05), (0.06, 0.02), (0.004, 0.004)])
def test_the_bootstrap_covers_the_true_drop(metric, worse, better):
    """Drawn many times from a population of known scores."""
    rng, n, rounds = np.random.default_rng(5), 400, 150
    weights = np.zeros((2, 2, 2))
    for label, share in ((0, 0.6), (1, 0.4)):
        weights[label, label, label] = share * (0.9 - worse - better)
        weights[label, 1 - label, 1 - label] = share * 0.1
        weights[label, label, 1 - label] = share * worse
        weights[label, 1 - label, label] = share * better
    cells = np.indices((2, 2, 2)).reshape(3, 8)
    exact = np.repeat(cells, np.rint(1e5 * weights.ravel()).astype(int), axis=1)
    kind = task(metric)
    true = score(kind, exact[0], exact[1])[metric] - score(kind, exact[0], exact[2])[metric]
    held = 0
    for seed in range(rounds):
        sample = cells[:, rng.choice(8, size=n, p=weights.ravel())]
        low, high = resampled_score(kind, *sample, 0.95, 400, seed)
        held += low <= true <= high
    assert held / rounds >= 0.9


def test_the_bootstrap_of_a_correlation_covers_the_true_drop():
    rng, n, rounds = np.random.default_rng(6), 150, 150
    # Each answer is the truth with noise: its correlation is 1 / sqrt(1 + noise ** 2).
    true = 1 / np.sqrt(1 + 0.4**2) - 1 / np.sqrt(1 + 0.4**2 + 0.3**2)
    held = 0
    for seed in range(rounds):
        truth = rng.normal(size=n)
        first = truth + 0.4 * rng.normal(size=n)
        other = first + 0.3 * rng.normal(size=n)
        low, high = resampled_correlation(truth, first, other, 0.95, 300, seed)
        held += low <= true <= high
    assert 0.88 <= held / rounds < 1


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_the_resampled_metric_is_the_metric(metric):
    """On a sample so large that made-up examples do not count, the middle of the resamples is the drop."""
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=40_000)
    first = np.where(rng.random(40_000) < 0.9, truth, 1 - truth)
    other = np.where(rng.random(40_000) < 0.8, truth, 1 - truth)
    kind = task(metric)
    drop = score(kind, truth, first)[metric] - score(kind, truth, other)[metric]
    low, high = resampled_score(kind, truth, first, other, 0.95, 400, 0)
    assert (low + high) / 2 == pytest.approx(drop, abs=0.002)
    with pytest.raises(ValueError, match="expected 'f1' or 'matthews'"):
        resampled_score(task("accuracy"), truth, first, other, 0.95, 400, 0)


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_a_few_examples_without_a_flip_prove_nothing(metric):
    assert by_counts(both=45, neither=5, metric=metric).passes(0.5).outcome == "not enough data to tell"
    assert by_counts(both=9000, neither=1000, metric=metric).passes(0.5).outcome == "passes"


# --- the gate


def test_three_outcomes():
    passes = by_counts(both=9000, only_reference=10, only_candidate=10, neither=980).passes(0.5)
    assert (passes.outcome, bool(passes), passes.examples_needed) == ("passes", True, None)
    fails = by_counts(both=800, only_reference=100, only_candidate=10, neither=90).passes(0.5)
    assert (fails.outcome, bool(fails), fails.examples_needed) == ("fails", False, None)
    open_ = by_counts(both=180, only_reference=1, only_candidate=1, neither=18).passes(0.5)
    assert (open_.outcome, bool(open_)) == ("not enough data to tell", False)
    assert (
        f"about {open_.examples_needed:,} examples like these would let it pass, there are 200"
        in open_.detail
    )
    for gate in (passes, fails, open_):
        assert gate.detail.startswith(gate.outcome)
        assert json.loads(json.dumps(gate.to_dict()))["outcome"] == gate.outcome


def test_it_passes_only_when_the_bad_end_is_within_the_budget():
    found = by_counts(both=900, only_reference=12, only_candidate=8, neither=80)
    edge = 100 * found.drop.high
    assert found.passes(edge + 1e-9)
    assert found.passes(edge - 1e-3).outcome == "not enough data to tell"
    worse = by_counts(both=900, only_reference=40, only_candidate=8, neither=52)
    edge = 100 * worse.drop.low
    assert worse.passes(edge - 1e-3).outcome == "fails"
    assert worse.passes(edge + 1e-3).outcome == "not enough data to tell"


@pytest.mark.parametrize("counts", [(0, 0), (1, 1), (3, 1), (8, 0), (6, 1), (0, 3)])
def test_so_many_examples_would_do_and_one_less_would_not(counts):
    n, budget = 200, 0.02
    gate = by_counts(both=n - sum(counts), only_reference=counts[0], only_candidate=counts[1]).passes(
        100 * budget
    )

    def decided(total):
        found = paired_difference(*(count * total / n for count in counts), total)
        return found.high <= budget or found.low > budget

    assert decided(n) == (gate.outcome != "not enough data to tell") == (gate.examples_needed is None)
    if decided(n):
        return
    needed = gate.examples_needed
    assert needed > n
    assert decided(needed)
    assert not decided(needed - 1)


def test_a_drop_on_the_edge_is_never_decided():
    found = by_counts(both=95, only_reference=1, neither=4)
    gate = found.passes(1.0)
    assert (gate.outcome, gate.examples_needed) == ("not enough data to tell", None)
    assert "more examples would not decide it" in gate.detail
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected points of at least 0"):
            found.passes(bad)


def test_false_alarms_are_as_rare_as_promised():
    """A candidate that drops exactly to the limit passes at most every fortieth time."""
    rng, n, rounds = np.random.default_rng(2), 2000, 1500
    draws = rng.multinomial(n, [0.02, 0.01, 0.97], size=rounds)
    passed = sum(paired_difference(int(a), int(b), n).high <= 0.01 for a, b, _ in draws)
    assert passed / rounds < 0.04


# --- bad input


def test_what_cannot_be_compared():
    rows = one_hot([0, 1])
    good, two = Answers(rows), examples([0, 1])
    with pytest.raises(ValueError, match="there are no examples"):
        assess(good, good, [], task())
    with pytest.raises(ValueError, match="example 1 has no label"):
        assess(good, good, [Example("0", 0), Example("1")], task())
    other = Answers(rows, ("bad", "good"))
    with pytest.raises(ValueError, match="the candidate predicts bad, good; reviews has negative, positive"):
        assess(good, other, two, task())
    with pytest.raises(ValueError, match="the reference predicts bad, good"):
        assess(other, good, two, task())
    unnamed = Answers(rows, ("LABEL_0", "LABEL_1"))
    assert assess(unnamed, unnamed, two, task()).flips.value == 0
    with pytest.raises(ValueError, match="expected the same labels in the same order"):
        assess(good, unnamed, two, task())
    with pytest.raises(ValueError, match="reviews has numbers"):
        assess(good, good, two, task("pearson", ()))
    with pytest.raises(ValueError, match="NaN or infinity"):
        assess(good, Answers(rows * np.nan), two, task())
    with pytest.raises(ValueError, match="level is 95"):
        assess(good, good, two, task(), level=95)
    with pytest.raises(ValueError, match="resamples is 10"):
        assess(good, good, two, task("f1"), resamples=10)


# --- the record in a manifest


@pytest.fixture(scope="module")
def quality(model_folder: Path, onnx_folder: Path, toy) -> Quality:
    return assess(TorchPredictor(model_folder), OnnxPredictor(onnx_folder, threads=1), toy[:120], task())


def test_the_record_of_a_real_export(quality, onnx_copy):
    assert quality.examples == 120
    assert quality.reference > 0.9
    assert quality.flips.value < 0.1
    before = {path.name: digest(path) for path in onnx_copy.iterdir()}
    old = read_manifest(onnx_copy)
    assert old.quality is None
    assert "quality" not in json.loads((onnx_copy / "manifest.json").read_text())
    written = state_quality(onnx_copy, quality)
    assert read_manifest(onnx_copy) == written == replace(old, quality=quality)
    assert written.model_version == old.model_version
    after = {path.name: digest(path) for path in onnx_copy.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json"}
    again = replace(quality, task="other")
    assert state_quality(onnx_copy, again).quality == again, "takes the place of an earlier one"
    assert OnnxPredictor(onnx_copy, threads=1).manifest.quality == again


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_a_record_reads_as_it_was_written(metric):
    found = by_counts(both=80, only_reference=5, only_candidate=3, neither=12, metric=metric)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert quality_from(data, labels=LABELS, is_regression=False) == found


def test_a_record_for_another_model_is_not_written(quality, onnx_copy):
    before = (onnx_copy / "manifest.json").read_bytes()
    classes = tuple(replace(item, label=item.label.upper()) for item in quality.classes)
    with pytest.raises(ValueError, match="but the labels are"):
        state_quality(onnx_copy, replace(quality, classes=classes))
    with pytest.raises(ValueError, match="the model predicts labels"):
        state_quality(onnx_copy, replace(quality, metric="pearson"))
    (onnx_copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the file"):
        state_quality(onnx_copy, quality)
    assert (onnx_copy / "manifest.json").read_bytes() == before
    assert not list(onnx_copy.glob(".*"))


def test_a_record_that_is_cut_off_leaves_the_old_one(quality, onnx_copy, monkeypatch):
    before = (onnx_copy / "manifest.json").read_bytes()

    def breaks(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("companion.inference.manifest.json.dumps", lambda *a, **k: "{" * 10)
    monkeypatch.setattr("companion.artifacts.staging._fsync", breaks)
    with pytest.raises(OSError, match="free some space"):
        state_quality(onnx_copy, quality)
    assert (onnx_copy / "manifest.json").read_bytes() == before
    assert not list(onnx_copy.glob(".*"))


def changed(path: str, value: object):
    """Return a function that changes one number of a record."""

    def change(data: dict) -> None:
        *parents, last = path.split(".")
        for name in parents:
            data = data[int(name)] if name.isdigit() else data[name]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("candidate", 1.2), "quality.candidate is 1.2, expected a number from 0 to 1"),
        (changed("reference", -0.1), "quality.reference is -0.1"),
        (changed("reference", True), "quality.reference is True"),
        (changed("reference", None), "quality.reference is None"),
        (changed("candidate", float("nan")), "quality.candidate is nan"),
        (changed("candidate", 0.5), "quality.drop is 0.02, but 0.85 and 0.5 differ by 0.35"),
        (changed("flips.value", -0.01), "quality.flips.value is -0.01"),
        (changed("flips.low", 0.5), "expected an interval around its value"),
        (changed("flips", None), "quality.flips is None, expected a mapping"),
        (changed("drop.surprise", 1), "quality.drop has the unknown surprise"),
        (changed("surprise", 1), "quality has the unknown surprise"),
        (changed("metric", "bleu"), "quality.metric is 'bleu', expected one of"),
        (changed("metric", "pearson"), "the model predicts labels"),
        (changed("method", "by eye"), "quality.method is 'by eye'"),
        (changed("level", 1), "level is 1, expected a share between 0 and 1"),
        (changed("level", 95), "quality.level is 95"),
        (changed("task", 3), "quality.task is 3"),
        (changed("examples", 0), "quality.examples is 0, expected a whole number of at least 1"),
        (changed("examples", 1000), "quality.drop is 0.02, but the counted disagreements give 0.002"),
        (changed("only_reference_right", -1), "only_reference_right is -1"),
        (changed("only_candidate_right", 99), "counts 104 disagreements in 100 examples"),
        (changed("only_candidate_right", None), "only_candidate_right is None"),
        (changed("classes.0.label", "neutral"), "but the labels are"),
        (changed("classes.0.examples", 51), "hold 101 examples, but quality.examples is 100"),
        (changed("classes.1.candidate", 1.01), r"classes\['positive'\].candidate is 1.01"),
        (changed("classes.1.flips", None), r"\['positive'\].flips is None, but there are 50 examples"),
        (changed("classes", None), "quality.classes is None, expected a list"),
        (changed("calibration.ece_candidate", 1.5), "ece_candidate is 1.5"),
        (changed("calibration", []), "quality.calibration is"),
        (lambda data: data.pop("seed"), "quality lacks seed"),
        (lambda data: data.clear(), "quality lacks calibration, candidate, classes"),
    ],
)
def test_a_record_that_lies_is_refused(change, words):
    data = by_counts(both=80, only_reference=5, only_candidate=3, neither=12).to_dict()
    data = json.loads(json.dumps(data))
    change(data)
    with pytest.raises(ValueError, match=words):
        quality_from(data, labels=LABELS, is_regression=False)


def test_a_manifest_with_such_a_record_is_refused(quality, onnx_copy):
    state_quality(onnx_copy, quality)
    data = json.loads((onnx_copy / "manifest.json").read_text())
    for lie in ({"candidate": 7}, {"flips": -1}):
        text = json.dumps(data | {"quality": data["quality"] | lie})
        (onnx_copy / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged: quality.*Export the model again"):
            OnnxPredictor(onnx_copy)


def test_labels_of_a_regression_are_refused():
    data = by_counts(both=10).to_dict()
    with pytest.raises(ValueError, match="the model predicts a number"):
        quality_from(data, labels=("score",), is_regression=True)
    with pytest.raises(ValueError, match="the model predicts a number"):
        quality_from(data | {"metric": "pearson"}, labels=("score",), is_regression=True)
