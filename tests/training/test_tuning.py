"""A search survives kills, finds a known optimum, and names a winner only where the spread supports it."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest

from companion.data import Task
from companion.models import load
from companion.training import TrainingConfig
from companion.training.tuning import (
    Candidate,
    Fitting,
    Options,
    Phase,
    Range,
    Reporter,
    SearchSpace,
    TuningResult,
    Validated,
    Validation,
    choose,
    fine_tuning_space,
    history_plot,
    importance,
    importance_plot,
    load_studies,
    set_dropout,
    tune,
)

SPACE = SearchSpace(
    {
        "learning_rate": Range(1e-6, 1e-1, log=True),
        "batch_size": Options((8, 16, 32)),
        "dropout": Range(0.0, 0.5),
    }
)
BEST_RATE = 1e-3


def surface(candidate: Candidate, reporter: Reporter) -> float:
    """A parabola over the logarithm of the rate, a slight slope over dropout, noise drawn from the seed."""
    rate, dropout = candidate.config.learning_rate, float(candidate.extras.get("dropout", 0.1))
    if rate > 3e-2:
        return math.nan
    noise = np.random.default_rng([candidate.config.seed, int(1e9 * rate)]).normal(0, 0.01)
    value = 0.9 - 0.1 * math.log10(rate / BEST_RATE) ** 2 - 0.02 * dropout + noise
    for part in (1, 2, 3):
        if reporter.report(part, value * part / 4):
            return math.nan  # what a pruned run returns does not count
    return value


def search(storage: Path, run=surface, **changes) -> TuningResult:
    arguments = {
        "base": TrainingConfig(learning_rate=1e-5),
        "coarse": Phase(8, examples=64),
        "fine": Phase(4, examples=128),
        "validation": Validation(candidates=2, seeds=3, examples=256),
    }
    return tune(run, SPACE, storage=storage, **{**arguments, **changes})


def table(result: TuningResult) -> list[dict]:
    rows = [asdict(trial) for trial in result.trials]
    for row in rows:
        assert row.pop("seconds") >= 0
    return rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> TuningResult:
    return search(tmp_path_factory.mktemp("tuning") / "study.db", coarse=Phase(24, examples=64))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TuningResult:
    """Return a small search in one piece."""
    return search(tmp_path_factory.mktemp("tuning") / "whole.db")


# --- the three phases


def test_finds_a_known_optimum_and_supports_it(found):
    assert abs(math.log10(found.config.learning_rate / BEST_RATE)) < 0.7
    assert found.choice.distinguishable and found.choice.name != "default"
    assert found.choice.p_value < 0.05
    assert found.config.seed == 0 and found.config.epochs == TrainingConfig().epochs
    assert set(found.extras) == {"dropout"}
    default = found.validated[0]
    assert (default.name, default.values) == ("default", {})
    assert all(len(one.scores) == 3 and one.spread > 0 for one in found.validated)


def test_each_phase_does_its_part(found):
    assert Counter(trial.phase for trial in found.trials) == {
        "coarse": 24,
        "fine": 4,
        "validate": 3 * len(found.validated),
    }
    coarse, fine, validate = (
        [trial for trial in found.trials if trial.phase == phase] for phase in ("coarse", "fine", "validate")
    )
    rates = [math.log10(trial.values["learning_rate"]) for trial in coarse]
    assert min(rates) < -5.5 and max(rates) > -1.5, "coarse goes through the whole range"
    assert {trial.values["batch_size"] for trial in coarse} == {8, 16, 32}
    best = max((t for t in coarse if t.state == "complete"), key=lambda t: t.value)
    assert fine[0].values == pytest.approx(best.values), "fine begins with the best coarse one"
    spread = [math.log10(trial.values["learning_rate"]) for trial in fine]
    assert max(spread) - min(spread) < 0.6 * (max(rates) - min(rates))
    for trial, examples in ((coarse[0], 64), (fine[0], 128), (validate[0], 256)):
        steps = math.ceil(examples / trial.config["batch_size"])
        assert trial.config["max_steps"] == steps
    assert {trial.config["seed"] for trial in coarse + fine} == {0}
    for index in range(len(found.validated)):
        assert [t.config["seed"] for t in validate if t.candidate == index] == [1, 2, 3]


def test_bad_trials_end_early_and_diverged_ones_are_kept(found):
    coarse = [trial for trial in found.trials if trial.phase == "coarse"]
    pruned = [trial for trial in coarse if trial.state == "pruned"]
    diverged = [trial for trial in coarse if trial.state == "diverged"]
    complete = [trial for trial in coarse if trial.state == "complete"]
    assert pruned and diverged and len(complete) >= 6
    assert all(max(trial.reports) in (2, 3) for trial in pruned), "not before half of the budget"
    assert all(set(trial.reports) == {1, 2, 3} for trial in complete)
    assert all(trial.value is None for trial in diverged)
    assert {trial.values["learning_rate"] > 3e-2 for trial in diverged} == {True}
    mean = {
        state: np.mean([t.reports[2] for t in group]) for state, group in (("p", pruned), ("c", complete))
    }
    assert mean["p"] < mean["c"]
    assert not any(t.state == "pruned" for t in found.trials if t.phase == "validate")


def test_the_study_is_optunas_own(found):
    study = optuna.load_study(study_name="coarse", storage=f"sqlite:///{found.storage}")
    assert len(study.trials) == 24
    assert study.best_trial.user_attrs["candidate"]["config"]["learning_rate"] == pytest.approx(
        study.best_params["learning_rate"]
    )
    assert study.best_trial.user_attrs["outcome"].keys() == {"state", "seconds"}


def test_a_minimum_is_found_as_well(tmp_path):
    def loss(candidate: Candidate, reporter: Reporter) -> float:
        return 1 + math.log10(candidate.config.learning_rate / BEST_RATE) ** 2 + 0.01 * candidate.config.seed

    result = search(
        tmp_path / "s.db", loss, higher_is_better=False, fine=Phase(1), validation=Validation(1, seeds=2)
    )
    assert abs(math.log10(result.config.learning_rate / BEST_RATE)) < 0.7
    assert result.choice.distinguishable


# --- going on after a kill


def logged_search(storage: Path, log: Path) -> None:
    """Run in a child: each run writes down when it starts, and takes a moment."""

    def run(candidate: Candidate, reporter: Reporter) -> float:
        with log.open("a") as file:
            file.write(json.dumps(key(candidate.phase, asdict(candidate.config), candidate.extras)) + "\n")
        time.sleep(0.02)
        return surface(candidate, reporter)

    search(storage, run)


def key(phase, config, extras) -> list:
    return [phase, config["seed"], config["learning_rate"], config["batch_size"], extras.get("dropout")]


def lines(log: Path) -> list[list]:
    """Return the complete lines."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def done(storage: Path) -> list[list]:
    found = []
    for phase, study in load_studies(storage).items():
        for trial in study.get_trials(
            states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        ):
            candidate = trial.user_attrs["candidate"]
            found.append(key(phase, candidate["config"], candidate["values"]))
    return found


def test_a_search_that_is_killed_ends_as_one_in_one_piece(tmp_path, whole):
    storage, log = tmp_path / "killed.db", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(0)
    finished_before, kills = [], 0
    for _ in range(6):
        before = len(lines(log))
        child = context.Process(target=logged_search, args=(storage, log))
        child.start()
        while len(lines(log)) < before + 2 and child.is_alive():
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.08)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        finished_before.append((len(lines(log)), done(storage)))
    assert kills >= 4, "the search must still be going on when it is killed"
    assert 0 < len(finished_before[0][1]) < len(finished_before[-1][1])

    logged_search(storage, log)
    result = search(storage, refuses)
    assert whole.interrupted == 0
    assert table(result) == table(whole)
    assert [one.scores for one in result.validated] == [one.scores for one in whole.validated]
    starts = lines(log)
    assert 0 < result.interrupted <= kills
    assert len(whole.trials) < len(starts) <= len(whole.trials) + kills
    for logged, completed in finished_before:
        assert not [start for start in starts[logged:] if start in completed], "no finished trial ran again"


def refuses(candidate: Candidate, reporter: Reporter) -> float:
    raise AssertionError("everything is there: nothing is to be run")


def test_a_failing_run_ends_the_search_and_is_tried_again(tmp_path, whole):
    calls = []

    def fails_once(candidate: Candidate, reporter: Reporter) -> float:
        calls.append(candidate)
        if len(calls) == 3:
            raise OSError("the disk is full")
        return surface(candidate, reporter)

    with pytest.raises(OSError, match="disk is full"):
        search(tmp_path / "s.db", fails_once)
    result = search(tmp_path / "s.db", fails_once)
    assert calls[3] == calls[2]
    assert (result.interrupted, len(calls)) == (1, len(result.trials) + 1)
    assert table(result) == table(whole)


def test_a_file_of_another_search_is_refused(tmp_path, found):
    with pytest.raises(ValueError, match="another search: seed was 0 and is 1"):
        search(found.storage, refuses, coarse=Phase(24, examples=64), seed=1)
    with pytest.raises(ValueError, match="another search: coarse"):
        search(found.storage, refuses)
    with pytest.raises(ValueError, match="another search: inputs"):
        search(found.storage, refuses, coarse=Phase(24, examples=64), inputs={"data": "other"})
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        search(tmp_path / "missing" / "s.db", refuses)


def test_one_process_at_a_time(tmp_path):
    def nested(candidate: Candidate, reporter: Reporter) -> float:
        with pytest.raises(ValueError, match="another process is searching"):
            search(tmp_path / "s.db")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "s.db", nested)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("building")]


def test_a_search_in_which_everything_diverges(tmp_path):
    with pytest.raises(ValueError, match="0 of the coarse trials"):
        search(tmp_path / "s.db", lambda candidate, reporter: math.nan)


# --- the choice


def test_a_difference_within_the_spread_is_no_winner():
    default = Validated("default", {}, (0.80, 0.84, 0.82), 1.0)
    noisy = Validated("best", {"a": 1}, (0.81, 0.86, 0.82), 1.0)
    choice = choose([default, noisy])
    assert (choice.name, choice.distinguishable) == ("default", False)
    assert choice.p_value > 0.05 and "Not distinguishable" in choice.reason
    clear = Validated("second", {"a": 2}, (0.93, 0.94, 0.95), 1.0)
    assert choose([default, noisy, clear]).name == "second"
    assert choose([default, noisy, clear], higher_is_better=False).name == "default"


def test_a_reason_names_the_settings_of_the_candidate():
    default = Validated("default", {}, (0.80, 0.84, 0.82), 1.0)
    other = Validated("second", {"learning_rate": 0.012345, "batch_size": 8}, (0.81, 0.86, 0.82), 1.0)
    assert "second (learning_rate 0.0123, batch_size 8): 0.83 " in choose([default, other]).reason


def test_a_default_that_is_ahead_stays():
    choice = choose([Validated("default", {}, (0.9, 0.9), 1.0), Validated("best", {}, (0.8, 0.8), 1.0)])
    assert (choice.name, choice.distinguishable, choice.p_value) == ("default", False, None)


def test_of_two_that_cannot_be_told_apart_the_cheaper_one():
    default = Validated("default", {}, (0.70, 0.71, 0.72, 0.70), 1.0)
    best = Validated("best", {}, (0.90, 0.92, 0.91, 0.90), 2.0)
    near = Validated("second", {}, (0.90, 0.91, 0.91, 0.90), 1.0)
    assert choose([default, best, near]).name == "second"
    as_dear = Validated("second", {}, near.scores, 1.9)
    assert choose([default, best, as_dear]).name == "best"
    worse = Validated("second", {}, (0.80, 0.81, 0.80, 0.81), 1.0)
    assert choose([default, best, worse]).name == "best"


def test_one_seed_that_diverges_rules_a_configuration_out():
    default = Validated("default", {}, (0.80, 0.81, 0.82), 1.0)
    shaky = Validated("best", {}, (0.95, -math.inf, 0.95), 1.0)
    assert choose([default, shaky]).name == "default"


def test_a_choice_among_equals_keeps_the_default_as_often_as_promised():
    """The level is what it says: with pure noise, at most about one choice in twenty leaves the default."""
    rng = np.random.default_rng(0)
    left = 0
    for _ in range(200):
        scores = rng.normal(0.8, 0.02, (4, 5))
        names = ("default", "best", "second", "third")
        left += choose(
            [Validated(n, {}, tuple(s), 1.0) for n, s in zip(names, scores, strict=True)]
        ).distinguishable
    assert left <= 21  # 10 expected at most, and 3.6 standard deviations


# --- importance and plots


@pytest.mark.parametrize("method", ["fanova", "ped-anova"])
def test_importance_finds_what_the_surface_is_made_of(found, method):
    shares = importance(found.storage, method=method, resamples=2)
    assert next(iter(shares.shares)) == "learning_rate"
    assert sum(shares.shares.values()) == pytest.approx(1)
    assert shares.shares.keys() == SPACE.dimensions.keys()
    assert all(low <= shares.shares[name] <= high for name, (low, high) in shares.spreads.items())
    assert shares.trials == 24 and "unreliable" in shares.note
    if method == "fanova":
        assert shares.separated("learning_rate", "dropout")
    else:
        assert importance(found.storage, method=method, resamples=2) == shares, "the seed decides"


def test_plots_say_what_they_show(found):
    shares = importance(found.storage, method="ped-anova", resamples=2)
    plot = importance_plot(shares)
    assert "learning_rate" in plot.alt and "unreliable" in plot.alt and "24 trials" in plot.svg
    history = history_plot(found, value="accuracy (share)")
    assert "coarse: 24 trials" in history.alt and "accuracy (share)" in history.svg
    assert found.choice.reason in history.alt


def test_importance_needs_a_search(tmp_path, whole):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        importance(tmp_path / "none.db")
    with pytest.raises(ValueError, match="at least 8 trials"):
        importance(whole.storage, phase="fine")


# --- the space


def test_places_and_values_are_each_others_inverse():
    for dimension in (Range(1e-6, 1e-2, log=True), Range(-1.0, 3.0), Range(1, 512, log=True, integer=True)):
        values = [dimension.value(place) for place in np.linspace(0, 1, 23)]
        assert (values[0], values[-1]) == (dimension.low, dimension.high)
        assert all(one <= other for one, other in pairwise(values))
        assert [dimension.value(dimension.unit(value)) for value in values] == pytest.approx(values)
    assert Range(1e-6, 1e-2, log=True).value(0.5) == pytest.approx(1e-4)
    options = Options((8, 16, 32, 64))
    assert [options.value(place) for place in (0, 0.24, 0.26, 0.5, 0.99, 1)] == [8, 8, 16, 32, 64, 64]


def test_the_space_shrinks_around_chosen_values():
    chosen = [
        {"learning_rate": rate, "batch_size": size, "dropout": 0.2} for rate, size in ((1e-4, 8), (1e-3, 16))
    ]
    space = SPACE.around(chosen)
    rate, dropout = space.dimensions["learning_rate"], space.dimensions["dropout"]
    assert 1e-5 < rate.low < 1e-4 and 1e-3 < rate.high < 1e-2
    assert space.dimensions["batch_size"] == Options((8, 16))
    assert (dropout.low, dropout.high) == pytest.approx((0.175, 0.225))
    edge = SPACE.around([{"learning_rate": 1e-6, "batch_size": 8, "dropout": 0.0}])
    assert edge.dimensions["learning_rate"].low == 1e-6
    assert edge.dimensions["batch_size"] == SPACE.dimensions["batch_size"], "one option is no choice"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchSpace({}), "empty"),
        (lambda: SearchSpace({"seed": Range(0, 9, integer=True)}), "chosen by nobody"),
        (lambda: SearchSpace({"max_steps": Range(1, 9, integer=True)}), "phases say"),
        (lambda: Range(1.0, 1.0), "low < high"),
        (lambda: Range(0.0, 1.0, log=True), "above 0"),
        (lambda: Options((1,)), "at least two"),
        (lambda: Phase(0), "at least 1 trial"),
        (lambda: Validation(seeds=1), "2 seeds"),
        (lambda: SearchSpace({"warmup": Range(0.0, 1.5)}).check(TrainingConfig()), "'warmup' has 1.5"),
        (lambda: SearchSpace({"schedule": Options(("linear", "step"))}).check(TrainingConfig()), "'step'"),
    ],
)
def test_plans_that_cannot_work(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_space_of_the_chapter_fits_the_configuration():
    space = fine_tuning_space()
    space.check(TrainingConfig())
    assert list(space.extras(space.at([0.5] * 5))) == ["dropout"]


# --- the real run


def test_tunes_a_real_model(tmp_path, encoder_folder, toy):
    task = Task("toy", "accuracy", ("negative", "positive"), False, "one adjective decides")
    base = TrainingConfig(learning_rate=1e-6, batch_size=16, max_length=24, precision="fp32")
    space = SearchSpace({"learning_rate": Range(1e-3, 1e-2, log=True), "dropout": Range(0.0, 0.3)})
    result = tune(
        Fitting(encoder_folder, toy[:128], toy[256:], task),
        space,
        storage=tmp_path / "s.db",
        base=base,
        coarse=Phase(6, examples=64, evaluations=2),
        fine=Phase(2, examples=128, evaluations=2),
        validation=Validation(candidates=1, seeds=2, examples=1024),
    )
    coarse = [trial for trial in result.trials if trial.phase == "coarse"]
    assert {trial.config["max_steps"] for trial in coarse} == {4}
    assert any(1 in trial.reports for trial in coarse)
    assert all(trial.state == "diverged" or 0 <= trial.value <= 1 for trial in result.trials)
    default, found = result.validated
    assert min(found.scores) > max(default.scores) + 0.2, "a rate of 1e-6 learns nothing, those searched do"


def test_a_run_that_diverges_is_a_value_and_not_an_error(encoder_folder, toy):
    task = Task("toy", "accuracy", ("negative", "positive"), False, "one adjective decides")
    fitting = Fitting(encoder_folder, toy[:64], toy[256:], task)
    study = optuna.create_study()
    config = TrainingConfig(
        learning_rate=1e38, epochs=1, batch_size=8, max_length=24, precision="fp32", warmup=0
    )
    assert math.isnan(fitting(Candidate(config, {}, "coarse"), Reporter(study.ask(), 4)))
    with pytest.raises(ValueError, match="'depth'"):
        fitting(Candidate(config, {"depth": 3}, "coarse"), Reporter(study.ask(), 4))
    wrong = Fitting(encoder_folder, [], toy[256:], task)
    with pytest.raises(ValueError, match="no training examples"):
        wrong(Candidate(config, {}, "coarse"), Reporter(study.ask(), 4))


def test_pruning_ends_a_real_run(encoder_folder, toy):
    """With a pruner that always prunes, the run ends at its first evaluation."""
    task = Task("toy", "accuracy", ("negative", "positive"), False, "one adjective decides")
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(lower=2.0))
    reporter = Reporter(study.ask(), 4)
    seen = []
    reporter.on_step = lambda state, record: seen.append(record.step)  # type: ignore[method-assign]
    config = TrainingConfig(max_steps=8, batch_size=8, max_length=24, precision="fp32", evaluate_every=2)
    Fitting(encoder_folder, toy[:64], toy[256:264], task)(Candidate(config, {}, "coarse"), reporter)
    assert reporter.pruned and seen == [1, 2]


def test_dropout_reaches_attention_and_all_else(encoder_folder):
    model = load(encoder_folder, labels=("negative", "positive")).model
    set_dropout(model, 0.37)
    assert model.bert.encoder.layer[0].attention.self.dropout.p == 0.37
    assert model.dropout.p == model.bert.embeddings.dropout.p == 0.37
    with pytest.raises(ValueError, match="dropout is 1"):
        set_dropout(model, 1.0)
