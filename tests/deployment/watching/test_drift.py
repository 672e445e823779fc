"""Drift: false alarms as rare as stated, shifts seen as surely as stated, and versions kept apart."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.watching import (
    DriftSettings,
    Period,
    TooFewAnswersError,
    answers_needed,
    block_for,
    columns_of_texts,
    compare_windows,
    detectable_shift,
    judge_versions,
    lengthened,
    rehearse,
    relabelled,
    share_plot,
    unsure,
    watch_windows,
)
from companion.deployment.watching.permutation import cuts_for
from companion.inference.intervals import proportion

QUICK = DriftSettings(shift=0.5, permutations=99, block=1)
"""99 cuts are few, and exact all the same: the largest of a hundred is an alarm in 1%."""


def never(alarms: int, rounds: int, rate: float) -> bool:
    """Say whether so many alarms practically never happen at that rate: once in a thousand tests."""
    return not proportion(alarms, rounds, level=0.998).low <= rate


# --- the rate of false alarms


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_false_alarms_are_as_rare_as_stated(answers, rate):
    """Ten measures, very differently distributed, some depending on each other: one rate for all."""
    found = rehearse(
        answers(300, 1), window=60, rounds=200, settings=replace(QUICK, false_alarms=rate), seed=3
    )
    assert found.windows == 200
    assert not never(found.alarms, 200, rate)
    assert found.rate.high > rate / 2, "and no rarer than half of that: power is not given away"


def test_bursts_alarm_a_test_that_takes_answers_for_independent(answers):
    """Every text comes eight times in a row. Alone they are drawn alike at all times: there is no drift."""

    def alarms(block: int | None) -> int:
        chosen = replace(QUICK, false_alarms=0.1, block=block)
        return sum(
            compare_windows(one.take(slice(0, 960)), one.take(slice(960, None)), settings=chosen).drifted
            for one in (answers(1280, seed, burst=8) for seed in range(20))
        )

    assert alarms(1) >= 14, "neighbours are alike, and the naive test falls for it"
    assert not never(alarms(None), 20, 0.1)


def test_blocks_are_found_where_neighbours_are_alike(answers):
    assert [block_for(answers(2000, seed)) for seed in range(4)].count(1) >= 3
    blocks = [block_for(answers(2000, seed, burst=8)) for seed in range(4)]
    assert min(blocks) >= 8
    shuffled = answers(2000, 0, burst=8).take(np.random.default_rng(0).permutation(2000))
    assert block_for(shuffled) == 1
    constant = replace(answers(100, 0), inputs={})
    assert block_for(constant.take(np.zeros(100, dtype=int))) == 1


def test_the_rate_of_answers_in_order_shows_what_depends_on_time(answers):
    bursts = answers(1200, 5, burst=12)
    chosen = replace(QUICK, false_alarms=0.1)
    in_order = rehearse(bursts, window=240, rounds=25, in_order=True, settings=chosen)
    shuffled = rehearse(bursts, window=240, rounds=25, settings=chosen)
    assert in_order.alarms > shuffled.alarms + 5


# --- power


def test_a_shift_that_is_called_detectable_is_detected(answers):
    pool = answers(1600, 2)
    size = 200
    shift = detectable_shift(1400, size, false_alarms=0.01, measures=10)
    chosen = replace(QUICK, permutations=199)
    seen = rehearse(pool, window=size, rounds=40, shift=relabelled(shift), settings=chosen)
    assert seen.rate.high >= 0.8, "4 of 5, as stated"
    faint = rehearse(pool, window=size, rounds=40, shift=relabelled(shift / 3), settings=chosen)
    assert faint.alarms < seen.alarms / 2


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.05, 0.5),
    st.integers(500, 10**6),
    st.sampled_from([0.001, 0.01, 0.1]),
    st.integers(1, 20),
    st.integers(2, 12),
    st.floats(1, 20),
)
def test_the_answers_needed_are_just_enough(shift, reference, false_alarms, measures, labels, effect):
    keywords = {
        "false_alarms": false_alarms,
        "measures": measures,
        "labels": labels,
        "design_effect": effect,
    }
    needed = answers_needed(shift, reference=reference, **keywords)
    if needed is None:
        assert detectable_shift(reference, 10**12, **keywords) >= shift * (1 - 1e-9)
        return
    assert detectable_shift(reference, needed, **keywords) <= shift * (1 + 1e-9)
    if needed > 1:
        assert detectable_shift(reference, needed - 1, **keywords) >= shift * (1 - 1e-9)


@pytest.mark.parametrize(
    ("shift", "measures"),
    [
        (lengthened(1.5), {"characters"}),
        (relabelled(0.3), {"label"}),
        (unsure(0.12), {"mean confidence", "confidence"}),
    ],
)
def test_an_alarm_names_what_moved(answers, shift, measures):
    window = shift(answers(400, 11), np.random.default_rng(0))
    report = compare_windows(answers(1600, 10), window, settings=QUICK)
    assert report.drifted
    assert set(report.moved) == measures
    assert report.verdict() == f"verdict: DRIFT in {', '.join(report.moved)}"


def test_the_report_says_by_how_much(answers):
    before, after = answers(1600, 10), relabelled(0.3)(answers(400, 11), np.random.default_rng(0))
    report = compare_windows(before, after, settings=QUICK)
    negative, positive = report.labels
    assert negative.window - negative.reference == pytest.approx(negative.difference.value)
    assert negative.difference.low < 0.3 < negative.difference.high
    assert positive.difference.value == pytest.approx(-negative.difference.value)
    [label] = [change for change in report.changes if change.measure == "label"]
    assert label.distance == pytest.approx(negative.difference.value)
    assert label.p == 0.01
    [length] = [change for change in report.changes if change.measure == "characters"]
    means = [side.inputs["characters"].mean() for side in (before, after)]
    assert (length.reference, length.window) == pytest.approx(means)
    assert length.difference.low < 0 < length.difference.high
    text = report.text()
    assert "reference  1,600 answers, 1970-01-01 00:00:00 to 1970-01-01 00:26:39 UTC" in text
    assert "Of windows without drift, 1% give an alarm." in text
    assert text.endswith("verdict: DRIFT in label")


def test_intervals_hold_for_shares_of_nothing(answers):
    """No answer of a label on either side: the interval has a width all the same."""
    sides = [replace(answers(n, n), chosen=np.zeros(n, dtype=np.int64)) for n in (800, 400)]
    report = compare_windows(*sides, settings=QUICK)
    for share in report.labels:
        assert share.difference.low < 0 < share.difference.high
    assert report.drifted is False


# --- what a comparison depends on


def test_a_strictly_increasing_scale_changes_nothing(answers):
    before, after = answers(800, 0), lengthened(1.1)(answers(200, 1), np.random.default_rng(0))
    rounded = [
        replace(one, inputs={"characters": np.round(one.inputs["characters"] / 20)})
        for one in (before, after)
    ]
    scaled = [replace(one, inputs={"characters": np.exp(one.inputs["characters"] / 5)}) for one in rounded]
    first, second = (compare_windows(*sides, settings=QUICK).changes[0] for sides in (rounded, scaled))
    assert (first.p, first.distance) == (second.p, second.distance)


def test_the_same_seed_gives_the_same_report(answers):
    sides = answers(800, 0), answers(200, 1)
    assert compare_windows(*sides, settings=QUICK) == compare_windows(*sides, settings=QUICK)


def test_features_that_one_side_lacks_are_named(answers):
    blind = answers(200, 1)
    blind = replace(blind, inputs=blind.inputs | {"tokens_per_word": np.full(200, np.nan)})
    report = compare_windows(answers(800, 0), blind, settings=QUICK)
    assert report.not_compared == ("tokens_per_word",)
    assert "not known on both sides: tokens_per_word" in report.text()
    assert len(report.changes) == 9


def test_a_regression_is_watched_by_its_score(answers):
    def scored(count: int, seed: int, shift: float = 0.0):
        one = answers(count, seed)
        return replace(one, labels=(), chosen=np.zeros(count, dtype=np.int64), scores=one.scores * 5 + shift)

    same = compare_windows(scored(800, 0), scored(300, 1), settings=QUICK)
    assert [change.measure for change in same.changes][-2:] == ["mean score", "score"]
    assert not same.drifted
    assert "mean score" in compare_windows(scored(800, 0), scored(300, 1, 0.5), settings=QUICK).moved


def test_versions_are_not_compared_by_accident(answers):
    old, new = answers(800, 0, version="old"), answers(300, 1, version="new")
    with pytest.raises(ValueError, match="answered by model version old, the window by new: a change could"):
        compare_windows(old, new)
    report = compare_windows(old, new, settings=QUICK, across_versions=True)
    assert "compared with version old: changes can be the model's own" in report.text()
    other = replace(new, labels=("bad", "good"))
    with pytest.raises(ValueError, match="expected the same labels"):
        compare_windows(old, other, across_versions=True)


# --- too little to say anything


def test_a_small_window_is_refused_with_what_it_takes(answers):
    reference = answers(1600, 0)
    chosen = replace(QUICK, shift=0.2)
    with pytest.raises(TooFewAnswersError, match=r"the window has 40 answers, the reference 1,600") as caught:
        compare_windows(reference, answers(40, 1), settings=chosen)
    needed = caught.value.needed
    assert f"a window needs {needed} answers" in str(caught.value)
    assert 100 < needed < 150
    with pytest.raises(TooFewAnswersError):
        compare_windows(reference, answers(needed - 1, 1), settings=chosen)
    assert compare_windows(reference, answers(needed, 1), settings=chosen).detectable_shift <= 0.2


def test_a_small_reference_is_refused_whatever_the_window(answers):
    with pytest.raises(TooFewAnswersError, match="both need more than") as caught:
        compare_windows(answers(60, 0), answers(5000, 1), settings=replace(QUICK, shift=0.2))
    assert caught.value.needed is None
    with pytest.raises(TooFewAnswersError):
        compare_windows(answers(0, 0), answers(500, 1))


def test_dependence_makes_windows_larger(answers):
    chosen = replace(QUICK, shift=0.3, block=None)
    needed = []
    for burst in (1, 8):
        with pytest.raises(TooFewAnswersError) as caught:
            compare_windows(answers(4000, 0, burst=burst), answers(30, 1), settings=chosen)
        needed.append(caught.value.needed)
    assert needed[1] > 4 * needed[0]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"false_alarms": 0.0}, "false_alarms is 0.0"),
        ({"false_alarms": float("nan")}, "false_alarms is nan"),
        ({"shift": 0.6}, "shift is 0.6"),
        ({"block": 0}, "block is 0, expected at least 1"),
        ({"permutations": 0}, "permutations is 0"),
    ],
)
def test_settings_that_make_no_sense(keywords, words):
    with pytest.raises(ValueError, match=words):
        DriftSettings(**keywords)


def test_too_few_permutations_to_ever_alarm():
    with pytest.raises(ValueError, match=r"50 permutations cannot show what happens in 0.01 of all windows"):
        cuts_for(100, 100, block=1, false_alarms=0.01, seed=0, permutations=50)
    assert cuts_for(100, 100, block=1, false_alarms=0.01, seed=0, permutations=99).compared == 99
    assert cuts_for(100, 100, block=1, false_alarms=0.001, seed=0).compared == 9999


# --- window after window


def drifting(answers, *, after: int = 600, count: int = 1600):
    """Answers whose label moves by a third from number `after` on."""
    one = answers(count, 4)
    late = relabelled(0.33)(one.take(slice(after, None)), np.random.default_rng(0))
    chosen = np.concatenate([one.chosen[:after], late.chosen])
    return replace(one, chosen=chosen, times=one.times * 60)


def test_windows_alarm_from_the_shift_on(answers):
    found = watch_windows(answers(1200, 3), drifting(answers), window=200, settings=QUICK)
    assert len(found.windows) == 8
    assert set(found.alarms) >= {3, 4, 5, 6, 7}
    assert len(found.alarms) <= 6, "three windows before the shift, of which one may be a false alarm"
    assert found.expected_false_alarms == pytest.approx(0.08)
    assert not found.overlap
    assert "of 8 windows are alarms; without drift 0.08 would be, on average." in found.text()
    again = compare_windows(answers(1200, 3), drifting(answers).take(slice(1400, None)), settings=QUICK)
    assert again == found.windows[-1]
    json.dumps(found.to_dict(), allow_nan=False)


def test_windows_may_share_answers(answers):
    found = watch_windows(answers(800, 3), answers(350, 4), window=200, step=50, settings=QUICK)
    assert [report.window.start for report in found.windows] == [0.0, 50.0, 100.0, 150.0]
    assert found.overlap
    assert "alarms come in groups" in found.text()
    with pytest.raises(ValueError, match="window is 200 and step 0"):
        watch_windows(answers(800, 3), answers(350, 4), window=200, step=0)


def test_the_plot_says_in_words_what_it_shows(answers):
    found = watch_windows(answers(1200, 3), drifting(answers), window=200, settings=QUICK)
    plot = share_plot(found)
    assert "share of answers 'negative'" in plot.alt
    assert f"{len(found.alarms)} of the windows are alarms, the first is number" in plot.alt
    assert "time since the first window, hours" in plot.svg
    assert ">alarm<" in plot.svg
    quiet = watch_windows(answers(800, 3), answers(400, 5), window=200, settings=QUICK)
    assert quiet.alarms == ()
    calm = share_plot(quiet, label="positive")
    assert calm.alt.endswith("No window is an alarm.")
    assert ">alarm<" not in calm.svg
    with pytest.raises(ValueError, match="label is 'neutral', expected one of negative, positive"):
        share_plot(found, label="neutral")


# --- choosing windows out of logs


def test_each_version_is_judged_against_itself(answers):
    late = answers(900, 1, version="new")
    late = relabelled(0.4)(late, np.random.default_rng(0))
    moved = answers(900, 2, version="old")
    moved = replace(moved, chosen=np.concatenate([moved.chosen[:600], np.zeros(300, dtype=np.int64)]))
    few = answers(30, 3, version="tiny")
    found = judge_versions({"old": moved, "new": late, "tiny": few}, settings=QUICK)
    assert [(one.version, one.drifted) for one in found] == [("old", True), ("new", False), ("tiny", False)]
    assert found[0].history.windows[-1].reference.answers == 600
    assert found[2].history is None and "answers" in found[2].reason
    [only] = judge_versions({"old": moved, "new": late}, version="new", settings=QUICK)
    assert only.version == "new"
    [across] = judge_versions(
        {"old": moved.take(slice(0, 600)), "new": late},
        version="new",
        reference_version="old",
        settings=QUICK,
    )
    assert across.drifted and across.history.windows[-1].reference_version == "old"
    with pytest.raises(TooFewAnswersError, match="version tiny: the window has 10 answers"):
        judge_versions({"tiny": few}, settings=QUICK)
    with pytest.raises(ValueError, match=r"no answers of model version gone; it has those of tiny \(30\)"):
        judge_versions({"tiny": few}, version="gone")


def test_a_stretch_of_time_as_reference(answers):
    log = {"v1": answers(1000, 1)}
    [found] = judge_versions(log, Period(100.0, 500.0), window=200, settings=QUICK)
    report = found.history.windows[-1]
    assert (report.reference.answers, report.reference.start, report.reference.end) == (400, 100.0, 499.0)
    assert (report.window.start, report.window.end) == (800.0, 999.0)
    [whole] = judge_versions(log, Period(None, 500.0), window=200, whole=True, settings=QUICK)
    assert [one.window.start for one in whole.history.windows] == [600.0, 800.0]
    with pytest.raises(ValueError, match="no answer of model version v1 lies in the time of the reference"):
        judge_versions(log, Period(5000.0, None), settings=QUICK)
    with pytest.raises(TooFewAnswersError):
        judge_versions(log, Period(500.0, None), settings=QUICK)


def test_another_log_as_reference(answers):
    log, earlier = {"v1": answers(300, 1)}, {"v1": answers(800, 2), "v0": answers(800, 3, version="v0")}
    [found] = judge_versions(log, earlier, settings=QUICK)
    assert found.history.windows[-1].reference.answers == 800
    assert found.history.windows[-1].window.answers == 300
    with pytest.raises(ValueError, match=r"reference has no answers of model version v1, only of v0 \(800\)"):
        judge_versions(log, {"v0": earlier["v0"]}, settings=QUICK)


def test_texts_that_were_held_out_as_reference(answers):
    from types import SimpleNamespace

    class Model:
        labels = ("negative", "positive")
        is_regression = False
        manifest = SimpleNamespace(model_version="v1")

        def probabilities(self, texts, pairs=None, *, batch_size=32):
            high = np.array([0.9 if "good" in text else 0.2 for text in texts], dtype=np.float32)
            return np.stack([1 - high, high], axis=1)

        logits = probabilities

    texts = ["a good film"] * 200 + ["a dull film, really"] * 200  # sorted, which means nothing
    reference = columns_of_texts(Model(), texts)
    assert len(reference) == 400 and reference.version == "v1"
    assert reference.chosen.mean() == 0.5
    assert 0.3 < reference.chosen[:100].mean() < 0.7
    places = np.random.default_rng(0).integers(400, size=200)
    window = replace(reference.take(places), times=np.arange(200.0))
    report = compare_windows(reference, window, settings=replace(QUICK, block=None))
    assert not report.drifted
    assert report.not_compared == ("tokens_per_word", "unknown_tokens")
    json.dumps(report.to_dict(), allow_nan=False)
    assert "reference  400 answers\n" in report.text()
    with pytest.raises(ValueError, match="no texts"):
        columns_of_texts(Model(), [])
