"""The semantic cache's threshold: what it promises holds, and where nothing can be promised it says so."""

from __future__ import annotations

import json
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from companion.deployment.answering import Answer
from companion.deployment.caching import (
    Certificate,
    FalseHitAlarm,
    HitBudget,
    NeighbourIndex,
    SemanticReport,
    Trial,
    certify,
    pair_trials,
    replay,
    same_answer,
)
from companion.deployment.caching.neighbours import unit

NAMES = {"embedder": "e", "model_version": "v"}
TRAFFIC_ONLY = HitBudget(0.02, None)


def made(seed: int, count: int, wrong_at: float, kind: str = "traffic") -> list[Trial]:
    """Draw similarities evenly from 0 to 1; the answer is wrong with a chance of `wrong_at * (1 - s)`."""
    rng = random.Random(seed)
    similarities = [rng.random() for _ in range(count)]
    return [Trial(s, rng.random() >= wrong_at * (1 - s), kind) for s in similarities]


# --- the promise


def test_the_share_of_false_hits_is_within_the_budget_as_often_as_promised():
    """Here the true share at a threshold is known: half of what it is at the threshold itself."""
    runs, broken, found = 150, 0, 0
    for seed in range(runs):
        threshold = certify(made(seed, 3000, 0.05), TRAFFIC_ONLY, **NAMES).threshold
        if threshold is not None:
            found += 1
            broken += 0.05 * (1 - threshold) / 2 > TRAFFIC_ONLY.false_hits
    assert broken <= binom.ppf(0.999, runs, 0.05)
    assert found > 0.8 * runs  # and it is not kept by finding nothing


def test_the_share_of_opposites_let_through_is_within_the_budget_as_often_as_promised():
    budget, runs, broken, found = HitBudget(0.05, 0.1), 100, 0, 0
    for seed in range(runs):
        opposites = [Trial(trial.similarity, False, "negation") for trial in made(seed, 500, 0.0)]
        threshold = certify(made(-seed - 1, 2000, 0.0) + opposites, budget, **NAMES).threshold
        if threshold is not None:
            found += 1
            broken += 1 - threshold > budget.opposites
    assert broken <= binom.ppf(0.999, runs, 0.05)
    assert found > 0.8 * runs


def test_the_bounds_are_those_of_clopper_and_pearson():
    trials = made(1, 4000, 0.02) + [Trial(0.1, False, "negation")] * 800
    found = certify(trials, HitBudget(0.02, 0.01), **NAMES)
    hits = [trial for trial in trials[:4000] if trial.similarity >= found.threshold]
    false = sum(not trial.right for trial in hits)
    assert (found.false_hits.count, found.false_hits.total) == (false, len(hits))
    assert found.hit_share == len(hits) / 4000
    # At the bound, so few false hits come with exactly the error probability that this walk may spend.
    spent = binom.cdf(false, len(hits), found.false_hits.bound)
    assert spent == pytest.approx(0.05 / 4, rel=1e-6)
    assert found.false_hits.bound <= 0.02
    assert (found.opposites.count, found.opposites.total) == (0, 800)
    assert found.opposites.bound == pytest.approx(1 - 0.0125 ** (1 / 800))


def test_a_cleaner_cache_gets_a_looser_threshold():
    thresholds = [
        certify(made(3, 5000, wrong), TRAFFIC_ONLY, **NAMES).threshold for wrong in (0.1, 0.05, 0.0)
    ]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] < 0.1


def test_opposites_close_to_the_original_close_the_cache():
    """Negations at 0.97, everything else at most at 0.95: no threshold is both useful and safe."""
    traffic = [Trial(0.95 * trial.similarity, True) for trial in made(4, 3000, 0.0)]
    opposites = [Trial(0.97, False, "negation")] * 500
    assert certify(traffic, TRAFFIC_ONLY, **NAMES).threshold is not None
    found = certify(traffic + opposites, HitBudget(0.02, 0.02), **NAMES)
    assert found.threshold is None
    assert "no similarity keeps the budget" in found.reason
    assert "500 of 500" in found.reason
    assert found.text().startswith("off: no similarity")
    assert found.hit_share == 0


def test_opposites_that_keep_the_answer_do_no_harm():
    opposites = [Trial(0.99, True, "negation")] * 500 + [Trial(0.0, False, "negation")] * 500
    found = certify(made(5, 3000, 0.0) + opposites, HitBudget(0.02, 0.02), **NAMES)
    assert found.opposites.total == 500
    assert found.threshold is not None


@pytest.mark.parametrize(
    ("trials", "budget", "words"),
    [
        ([], HitBudget(0.01), "takes 437 hits to show, there are 0 questions"),
        (made(6, 400, 0.0), HitBudget(0.01, None), "takes 437 hits to show, there are 400 questions"),
        (made(6, 500, 0.0), HitBudget(0.01, 0.01), "takes 437 of them to show, there are 0 with"),
        (made(6, 900, 1.0), HitBudget(0.01, None), "no similarity keeps the budget"),
        ([Trial(-0.5, True)] * 900, HitBudget(0.01, None), "takes 437 hits"),
    ],
)
def test_without_evidence_it_stays_off(trials, budget, words):
    found = certify(trials, budget, **NAMES)
    assert found.threshold is None
    assert words in found.reason


def test_ties_are_hits_together():
    found = certify([Trial(0.9, True)] * 2000, TRAFFIC_ONLY, **NAMES)
    assert (found.threshold, found.false_hits.total) == (0.9, 2000)


def test_a_certificate_survives_json():
    for trials in (made(7, 3000, 0.0) + [Trial(0.0, False, "names")] * 500, []):
        found = certify(trials, HitBudget(0.02, 0.02), **NAMES)
        assert Certificate.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "change", [{"threshold": 1.5}, {"threshold": "x"}, {"budget": None}, {"more": 1}, None]
)
def test_something_else_is_no_certificate(change):
    fields = certify(made(7, 3000, 0.0), TRAFFIC_ONLY, **NAMES).to_dict()
    with pytest.raises(ValueError, match="certificate"):
        Certificate.from_dict([] if change is None else {**fields, **change})


@pytest.mark.parametrize("fields", [{"false_hits": 0}, {"false_hits": 1}, {"opposites": -1}, {"level": 1}])
def test_a_budget_that_is_none_is_refused(fields):
    with pytest.raises(ValueError, match="expected a share"):
        HitBudget(**fields)


# --- trials


def letters(text: str) -> np.ndarray:
    return np.array([text.count(letter) for letter in "abcd"], dtype=np.float32)


def labelled(label: int) -> Answer:
    return Answer((1.0 - label, float(label)), ("no", "yes"), "v")


def test_a_replay_asks_the_nearest_of_all():
    stored = [("aab", labelled(0)), ("ccd", labelled(1)), ("a", labelled(1)), ("zzz", labelled(0))]
    asked = [("aaabb", labelled(0)), ("cccdd", labelled(0)), ("aab", labelled(0)), ("xyz", labelled(0))]
    trials = replay(stored, asked, letters, kind="names")
    # The text that is stored itself, and the one without a vector, are no trials.
    assert [(trial.right, trial.kind) for trial in trials] == [(True, "names"), (False, "names")]
    near = float(np.dot(unit(letters("aaabb")), unit(letters("aab"))))
    assert trials[0].similarity == pytest.approx(near)
    with pytest.raises(ValueError, match="none of 1 stored texts has a vector"):
        replay([("zzz", labelled(0))], asked, letters)


def test_labelled_pairs_are_trials():
    trials = pair_trials(
        [("ab", "aab", True), ("ab", "ab", True), ("ab", "cd", False), ("", "a", True)], letters
    )
    assert [(round(trial.similarity, 3), trial.right) for trial in trials] == [(0.949, True), (0.0, False)]


def test_answers_are_the_same_by_label_or_within_a_tolerance():
    same = same_answer(tolerance=0.25)
    assert same(Answer((0.6, 0.4), ("a", "b"), "v"), Answer((0.9, 0.1), ("a", "b"), "v"))
    assert not same(Answer((0.6, 0.4), ("a", "b"), "v"), Answer((0.4, 0.6), ("a", "b"), "v"))
    assert not same(Answer((0.6, 0.4), ("a", "b"), "v"), Answer((0.6, 0.4), ("b", "a"), "v"))
    assert same(Answer((3.0,), (), "v"), Answer((3.25,), (), "v"))
    assert not same(Answer((3.0,), (), "v"), Answer((3.3,), (), "v"))
    with pytest.raises(ValueError, match="tolerance"):
        same_answer(tolerance=-1)


# --- neighbours


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["add", "ask", "wait"]), st.integers(0, 359)), max_size=40),
)
@settings(deadline=None, max_examples=200)
def test_the_nearest_is_the_nearest_of_those_held(capacity, steps):
    clock = Clock()
    index = NeighbourIndex(capacity, ttl_s=100, clock=clock)
    held: list[tuple[float, int]] = []  # when, and at which angle

    def vector(angle: int) -> np.ndarray:
        return np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))], dtype=np.float32)

    for what, number in steps:
        if what == "add":
            index.add(vector(number), Answer((float(number),), (), "v"))
            held = [*held, (clock.now, number)][-capacity:]
        elif what == "wait":
            clock.now += number / 4
        held = [(born, angle) for born, angle in held if clock.now - born < 100]
        assert len(index) == len(held)
        found = index.nearest(vector(number))
        if not held:
            assert found is None
        else:
            best = max(np.cos(np.radians(angle - number)) for _, angle in held)
            assert found.similarity == pytest.approx(best, abs=1e-5)
            assert found.answer.values[0] in [angle for _, angle in held]
            assert np.cos(np.radians(found.answer.values[0] - number)) == pytest.approx(best, abs=1e-5)


def test_vectors_of_another_length_are_refused():
    index = NeighbourIndex(2)
    index.add(np.ones(3, dtype=np.float32), labelled(0))
    for act in (index.nearest, lambda vector: index.add(vector, labelled(0))):
        with pytest.raises(ValueError, match="one embedding function"):
            act(np.ones(4, dtype=np.float32))
    index.clear()
    assert index.nearest(np.ones(4, dtype=np.float32)) is None
    index.add(np.ones(4, dtype=np.float32), labelled(0))
    for keywords in ({"capacity": 0}, {"ttl_s": 0}):
        with pytest.raises(ValueError, match="NeighbourIndex"):
            NeighbourIndex(**keywords)


def test_what_has_no_direction_is_no_vector():
    assert unit(np.zeros(3)) is None
    assert unit(np.array([1.0, np.nan])) is None
    assert unit(np.array([1.0, np.inf])) is None
    assert unit(np.ones((2, 2))) is None
    assert unit(np.array([1e-30, 0.0])).tolist() == [1.0, 0.0]


# --- the alarm


def first_alarm(share: float, seed: int, longest: int) -> int:
    alarm, rng = FalseHitAlarm(0.02, patience=500), random.Random(seed)
    for audit in range(1, longest + 1):
        if alarm.audited(rng.random() >= share):
            return audit
    return longest


def test_the_alarm_is_patient_with_a_share_within_the_budget():
    assert statistics.mean(first_alarm(0.02, seed, 3000) for seed in range(100)) > 500


def test_the_alarm_finds_a_worse_share_soon_even_after_a_good_past():
    assert statistics.median(first_alarm(0.1, seed, 3000) for seed in range(100)) < 150
    alarm = FalseHitAlarm(0.02, patience=500)
    assert not any(alarm.audited(True) for _ in range(10_000))
    assert any(alarm.audited(False) for _ in range(10))


@pytest.mark.parametrize(
    "keywords", [{"budget": 0}, {"budget": 0.1, "patience": 1}, {"budget": 0.1, "times": 1}]
)
def test_an_alarm_that_finds_nothing_is_refused(keywords):
    with pytest.raises(ValueError, match="FalseHitAlarm"):
        FalseHitAlarm(**keywords)


# --- the balance


def balance(hits: int, lookup_ms: float, model_ms: float, **more) -> SemanticReport:
    fields = {"audited": 0, "false_hits": 0, "budget": 0.01, **more}
    return SemanticReport(1000, hits, lookup_s=lookup_ms / 1000, model_s=model_ms / 1000, **fields)


@pytest.mark.parametrize(
    ("report", "pays", "words"),
    [
        (balance(500, 1, 10), True, "yes: it needs more than 10.0% of hits and has 50.0%"),
        (balance(20, 1, 10), False, "no: it needs more than 10.0% of hits and has 2.0%"),
        (balance(105, 1, 10), None, "not known: it needs more than 10.0%"),
        (balance(1000, 10, 10), False, "no: looking up takes 1.00 times as long as the model"),
        (balance(500, 1, 10, audited=400, false_hits=40), False, "no: more than 1.00% of its hits are false"),
        (balance(500, 1, 10, off="no threshold"), False, "no: it is off, no threshold"),
        (SemanticReport(0, 0, 0, 0, None, None, 0.01), None, "not known: nothing was measured"),
    ],
)
def test_the_verdict(report, pays, words):
    assert report.pays is pays
    assert report.verdict.startswith(words)
    assert words in report.text()
    assert json.loads(json.dumps(report.to_dict()))["pays"] is pays


@given(st.integers(1, 2000), st.data(), st.floats(1e-6, 1), st.floats(1e-6, 1))
@settings(deadline=None)
def test_it_pays_only_where_time_is_saved(questions, data, lookup_s, model_s):
    hits = data.draw(st.integers(0, questions))
    report = SemanticReport(questions, hits, 0, 0, lookup_s, model_s, 0.01)
    saved = report.saved_s
    assert saved.low <= saved.value <= saved.high
    assert report.won_s - report.spent_s == pytest.approx(saved.value * questions, rel=1e-6, abs=1e-9)
    if report.pays:
        assert report.won_s > report.spent_s
        assert report.break_even < hits / questions
    if report.break_even >= 1:
        assert report.pays is not True
        assert report.verdict.startswith("no")
