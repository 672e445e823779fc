"""Who is asked, how answers are compared, how long they took: all that is decided without a server."""

from __future__ import annotations

import json
import math
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from companion.deployment.answering import Answer, Question
from companion.deployment.rollout import Caller, CopyRules, RolloutSettings, VersionFacts, calling
from companion.deployment.rollout.comparing import Agreement, difference, fault, wilson
from companion.deployment.rollout.copying import QuestionCopy, next_copy
from companion.deployment.rollout.inspecting import inspect_folder, why_unfit
from companion.deployment.rollout.routing import (
    Traffic,
    compared,
    copied,
    current_caller,
    place,
    to_candidate,
)
from companion.deployment.rollout.timing import LatencyWindow

SETTINGS = settings(deadline=None, max_examples=100)
shares = st.floats(0, 1)
names = st.text(max_size=40)
Q = Question("a text")

# --- routing


@SETTINGS
@given(identity=names, salt=names, low=shares, high=shares)
def test_who_is_in_at_a_small_share_is_in_at_a_large_one(identity, salt, low, high):
    low, high = sorted((low, high))
    caller = Caller(identity)
    small, large = (to_candidate(Traffic(canary=share), caller, Q, salt) for share in (low, high))
    assert large or not small
    assert 0 <= place(identity, salt) < 1
    assert not to_candidate(Traffic(canary=0), caller, Q, salt)
    assert to_candidate(Traffic(canary=1), caller, Q, salt)
    for chosen in (
        lambda share: copied(Traffic(shadow=share), caller, Q, salt),
        lambda share: compared(share, caller, Q, salt),
    ):
        assert chosen(high) or not chosen(low)
        assert chosen(1)
        assert not chosen(0)


def test_places_do_not_change_between_releases():
    """A new release must not shuffle the callers of a canary that runs."""
    assert place("someone", "canary v2") == 0.37356514041788735


def test_shares_are_kept_and_decisions_are_independent():
    callers = [Caller(f"user-{n}") for n in range(4000)]
    canary = {c.sticky for c in callers if to_candidate(Traffic(canary=0.2), c, Q, "v2")}
    shadow = {c.sticky for c in callers if copied(Traffic(shadow=0.5), c, Q, "v2")}
    other = {c.sticky for c in callers if to_candidate(Traffic(canary=0.2), c, Q, "v3")}
    for found, share in ((canary, 0.2), (shadow, 0.5), (canary & shadow, 0.1), (canary & other, 0.04)):
        low, high = binom.interval(0.9999, 4000, share)
        assert low <= len(found) <= high


def test_one_caller_gets_one_version_but_his_questions_are_copied_one_by_one():
    caller = Caller("someone")
    questions = [Question(f"text {n}", "pair" if n % 2 else None) for n in range(200)]
    assert len({to_candidate(Traffic(canary=0.5), caller, q, "v2") for q in questions}) == 1
    assert len({copied(Traffic(shadow=0.5), caller, q, "v2") for q in questions}) == 2
    assert len({compared(0.5, caller, q, "v2") for q in questions}) == 2
    assert {to_candidate(Traffic(canary=0.5), None, q, "v2") for q in questions} == {True, False}
    assert len({to_candidate(Traffic(canary=0.5), None, Q, "v2") for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("traffic", "wish", "expected"),
    [
        (Traffic(canary=1), "live", False),
        (Traffic(canary=1, by_header=True), "live", False),
        (Traffic(by_header=True), "candidate", True),
        (Traffic(by_header=True), None, False),
        (Traffic(), "candidate", False),
        (Traffic(canary=1), "candidate", True),
    ],
)
def test_a_header_forces_a_version_where_that_is_allowed(traffic, wish, expected):
    assert to_candidate(traffic, Caller("someone", wish), Q, "v2") is expected


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_what_is_no_share_is_refused(share):
    for name in ("canary", "shadow"):
        with pytest.raises(ValueError, match=f"the share for {name}"):
            Traffic(**{name: share})


def test_the_caller_holds_inside_the_block():
    assert current_caller() is None
    with calling(Caller("a")):
        with calling(Caller("b", "live")):
            assert current_caller() == Caller("b", "live")
        assert current_caller() == Caller("a")
    assert current_caller() is None


def test_half_of_a_surrogate_pair_has_a_place():
    assert 0 <= place("\ud800", "v2") < 1


# --- answers and their differences

LABELS = ("negative", "positive")


def answer(*values: float, labels: tuple[str, ...] = LABELS) -> Answer:
    return Answer(values, labels, "v")


def test_difference_matches_labels_by_name():
    found = difference(answer(0.25, 0.75), answer(0.5, 0.5 - 1e-9, labels=("positive", "negative")))
    assert found.same_label
    assert found.largest == pytest.approx(0.25)
    found = difference(answer(0.4, 0.6), answer(0.9, 0.1))
    assert (found.same_label, found.largest) == (False, pytest.approx(0.5))
    found = difference(answer(1.5, labels=()), answer(4.0, labels=()))
    assert (found.same_label, found.largest) == (True, 2.5)


def test_agreement_counts():
    agreement = Agreement(tolerance=0.3)
    added = [agreement.add(difference(answer(0.2, 0.8), answer(p, 1 - p))) for p in (0.2, 0.45, 0.7, 0.0)]
    assert added == [True, True, False, True]
    agreement.add(difference(answer(0.0, 1.0), answer(0.4, 0.6)))  # the same label, but far apart
    assert (agreement.compared, agreement.agreed, agreement.same_label) == (5, 3, 4)
    assert agreement.largest == pytest.approx(0.5)
    assert agreement.mean == pytest.approx((0 + 0.25 + 0.5 + 0.2 + 0.4) / 5)
    with pytest.raises(ValueError, match="expected above 0"):
        Agreement(0)


@pytest.mark.parametrize(
    ("given", "labels", "words"),
    [
        (answer(0.5, 0.5), ("a", "b"), "labels negative, positive, expected a, b"),
        (answer(0.5, 0.5, labels=()), LABELS, "labels none, expected negative"),
        (answer(1.0), LABELS, "1 values, expected 2"),
        (answer(math.nan, 0.5), LABELS, "finite"),
        (answer(0.5, math.inf), LABELS, "finite"),
        (answer(0.6, 0.6), LABELS, "sum to 1"),
        (answer(-0.5, 1.5), LABELS, "sum to 1"),
        (answer(0.6, 0.4, labels=()), (), "2 values, expected 1"),
    ],
)
def test_what_is_no_answer_is_told(given, labels, words):
    assert words in str(fault(given, labels))


def test_what_is_an_answer_has_no_fault():
    assert fault(answer(0.25, 0.75), LABELS) is None
    assert fault(answer(-3.5, labels=()), ()) is None
    assert fault(answer(0.3333333, 0.3333333, 0.3333333, labels=tuple("abc")), tuple("abc")) is None


def test_wilson_by_the_paper_and_at_the_edges():
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson(15, 148)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson(0, 20)[0] == 0
    assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
    assert wilson(20, 20)[1] == 1
    with pytest.raises(ValueError, match="found 3 of 2"):
        wilson(3, 2)


# --- what runs next


def waiting(*births: float) -> deque[QuestionCopy]:
    return deque(QuestionCopy(Q, answer(0.5, 0.5), None, None, born) for born in births)


RULES = CopyRules(patience_s=0.125)


@pytest.mark.parametrize(
    ("canary", "shadow", "state", "taken"),
    [
        ((), (), {}, None),
        ((), (0.0,), {}, "shadow"),
        ((), (0.0,), {"busy": True}, None),
        ((), (0.0,), {"rested": 10.1}, None),
        ((), (0.0,), {"rested": 10.0}, "shadow"),
        ((9.99,), (0.0,), {}, "canary"),
        ((9.99,), (0.0,), {"busy": True}, None),
        ((9.875,), (0.0,), {"busy": True}, "canary"),
        ((9.99,), (), {"rested": 11.0}, "canary"),
    ],
)
def test_what_runs_next(canary, shadow, state, taken):
    queues = {"canary": waiting(*canary), "shadow": waiting(*shadow)}
    sizes = {name: len(queue) for name, queue in queues.items()}
    found = next_copy(*queues.values(), RULES, now=10.0, **{"busy": False, "rested": 0.0, **state})
    assert (found is not None) == (taken is not None)
    for name, queue in queues.items():
        assert sizes[name] - len(queue) == (name == taken)


def test_rules_and_settings_that_leave_no_room_are_refused():
    for wrong in (
        {"shadows": 0},
        {"budget": 0},
        {"budget": 1.1},
        {"max_age_s": 0},
        {"patience_s": -1},
        {"poll_s": 0},
    ):
        with pytest.raises(ValueError, match="CopyRules: "):
            CopyRules(**wrong)
    for wrong in (
        {"difference": 0},
        {"compare": 1.5},
        {"unwatched": 0},
        {"candidate_s": 0},
        {"least_s": 2.0},
        {"grace_s": math.nan},
    ):
        with pytest.raises(ValueError, match="RolloutSettings: "):
            RolloutSettings(**wrong)


# --- latencies


def test_latencies_are_of_the_latest_and_bounded():
    window = LatencyWindow(size=400)
    assert [found.estimate for found in window.percentiles()] == [None] * 3
    for n in range(1000):
        window.add(n / 1000)
    assert (window.count, window.kept) == (1000, 400)
    median, _, worst = window.percentiles()
    assert 0.6 <= median.estimate.low < median.estimate.value < median.estimate.high < 1
    assert median.estimate.value == pytest.approx(0.799)
    assert worst.estimate.value == pytest.approx(0.995)
    assert LatencyWindow().percentiles()[0].reason is not None


# --- what a folder must have in common with the live one

LIVE = VersionFacts("v1", LABELS, False, "tokens")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (VersionFacts("v1", LABELS, False, "tokens"), "live already"),
        (VersionFacts("v2", (), True, "tokens"), "a regression, the live version is a classifier"),
        (VersionFacts("v2", ("no", "yes"), False, "tokens"), "labels no, yes, the live version has negative"),
        (VersionFacts("v2", (*LABELS, "neutral"), False, "tokens"), "labels negative, positive, neutral"),
        (VersionFacts("v2", LABELS, False, "others"), "tokenizer is not the one of the live version"),
    ],
)
def test_what_is_unfit_is_told(found, words):
    assert words in str(why_unfit(found, LIVE))


def test_what_fits():
    assert why_unfit(VersionFacts("v2", LABELS, False, "tokens"), LIVE) is None
    assert why_unfit(VersionFacts("v2", LABELS[::-1], False, "tokens"), LIVE) is None
    assert why_unfit(VersionFacts("v2", LABELS, False, "others"), LIVE, other_tokenizer=True) is None


def test_a_tokenizer_is_the_same_whatever_it_cuts_and_pads(tmp_path, monkeypatch):
    manifest = SimpleNamespace(model_version="v", labels=LABELS, is_regression=False)
    monkeypatch.setattr("companion.deployment.rollout.inspecting.read_manifest", lambda folder: manifest)
    tokenizers = {
        "one": {"model": {"vocab": {"a": 0}}, "truncation": None, "padding": None},
        "cut": {"truncation": {"max_length": 64}, "padding": {"length": 8}, "model": {"vocab": {"a": 0}}},
        "other": {"model": {"vocab": {"b": 0}}, "truncation": None, "padding": None},
    }
    found = {}
    for name, content in tokenizers.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
        found[name] = inspect_folder(tmp_path / name)
    assert found["one"] == found["cut"]
    assert found["one"].tokenizer != found["other"].tokenizer
    for rubbish in ("{", "[]", '"text"'):
        (tmp_path / "one" / "tokenizer.json").write_text(rubbish)
        with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
            inspect_folder(tmp_path / "one")


def test_a_regression_has_no_labels(tmp_path, monkeypatch):
    manifest = SimpleNamespace(model_version="v", labels=("score",), is_regression=True)
    monkeypatch.setattr("companion.deployment.rollout.inspecting.read_manifest", lambda folder: manifest)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert inspect_folder(tmp_path).labels == ()
