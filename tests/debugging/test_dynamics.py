"""Checks on a run's records: silent on right runs, however noisy, and loud on planted curves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from companion import models, training
from companion.debugging import recipe
from companion.debugging.checks import dynamics, numbers, signals
from companion.debugging.checks.curves import constant_guess, curve_of, spikes, step_seconds
from companion.debugging.checks.registry import CHECKS
from companion.debugging.gradient_history import short_run
from companion.debugging.subject import copies_of, seeded
from companion.debugging.zoo.subjects import reference_subject
from companion.training.monitoring import Monitor, Observation
from companion.training.records import Evaluation, StepRecord

ALL = [found for found in CHECKS.values() if found.family == "dynamics"]
KINDS = ("classification", "causal language model")
SUBJECTS = {kind: reference_subject(kind) for kind in KINDS}
GUESSES = {kind: constant_guess(SUBJECTS[kind]) for kind in KINDS}


def records(losses, *, rates=None, norms=None, seconds=None, first=1) -> tuple[StepRecord, ...]:
    count = len(losses)
    rates = rates if rates is not None else warmed_up(count)
    norms = norms if norms is not None else [1.0] * count
    elapsed = np.cumsum(seconds if seconds is not None else np.ones(count))
    return tuple(
        StepRecord(first + i, float(losses[i]), float(rates[i]), float(norms[i]), 8 * (i + 1) / elapsed[i])
        for i in range(count)
    )


def warmed_up(count, peak=1e-3):
    rise = max(1, count // 10)
    return [peak * min((i + 1) / rise, (count - i) / (count - rise)) for i in range(count)]


def learning(count, start, end, *, noise=0.05, seed=0, pace=5.0):
    """A curve that falls from `start` to `end`, with noise in proportion to the loss, and a heavy tail."""
    rng = np.random.default_rng(seed)
    trend = end + (start - end) * np.exp(-pace * np.arange(count) / count)
    return trend * np.exp(noise * rng.standard_t(5, size=count))


def evaluations(metric, values, *, every=50):
    return tuple(Evaluation(i, i * every, {metric: value}) for i, value in enumerate(values, start=1))


def with_run(kind, losses, **more):
    held_out = more.pop("evaluations", ())
    return replace(SUBJECTS[kind], steps=records(losses, **more), evaluations=held_out)


class Observed:
    """A subject with a monitor's observations."""

    def __init__(self, subject, observations):
        self.subject, self.observations = subject, observations

    def __getattr__(self, name):
        return getattr(self.subject, name)


def observed(norms, entropies=None, *, steps=3):
    return tuple(
        Observation(
            step=1 + 50 * i,
            loss=0.5,
            learning_rate=1e-3,
            grad_norm=1.0,
            grad_norm_by_layer=norms,
            update_ratio_by_layer=dict.fromkeys(norms, 1e-3),
            attention_entropy_by_layer=entropies[i] if entropies else {},
            examples_per_second=100.0,
            memory=1,
            seconds_of_monitoring=0.0,
        )
        for i in range(steps)
    )


def problems(subject):
    return {found.name: finding.summary for found in ALL if (finding := found(subject)).is_problem}


# --- right runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [20, 45, 200])
def test_runs_that_learn_raise_no_alarm_however_noisy(kind, count):
    start = 1.2 * GUESSES[kind]
    for seed in range(4):
        for noise in (0.01, 0.1, 0.3):
            for end in (0.02 if kind == "classification" else 0.4, 0.5):
                run = with_run(kind, learning(count, start, end * start, noise=noise, seed=seed))
                assert problems(replace(run, batches=())) == {}


def test_a_run_that_has_converged_at_a_low_loss_is_on_no_plateau():
    for seed in range(8):
        curve = learning(400, 0.7, 0.02, pace=60, noise=0.4, seed=seed)
        assert problems(replace(with_run("classification", curve), batches=())) == {}


def test_a_model_that_goes_on_learning_a_known_language_raises_no_alarm():
    """It begins far below a guess, and falls by less than its noise."""
    for seed in range(8):
        curve = learning(200, 3.3, 3.25, noise=0.08, seed=seed)
        assert problems(replace(with_run("causal language model", curve), batches=())) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_short_run_of_the_recipe_raises_no_alarm(kind):
    for seed in range(2):
        subject = reference_subject(kind, norm=("pre", "post")[seed], layers=1)
        run = short_run(subject, steps=30, seed=seed)
        found = problems(Observed(replace(subject, steps=run.steps), run.observations))
        found.pop("throughput holds", None)  # the machine is not on trial
        assert found == {}
        assert [record.step for record in run.steps] == list(range(1, 31))
        assert min(run.steps, key=lambda record: record.loss).step > 5


def test_a_real_run_of_fit_raises_no_alarm(encoder_folder, toy):
    classifier = models.load(encoder_folder, labels=("negative", "positive"))
    monitor = Monitor(None, every=10)
    config = training.TrainingConfig(
        epochs=4, batch_size=16, learning_rate=3e-3, max_length=48, precision="fp32"
    )
    run = training.fit(classifier.model, classifier.tokenizer, toy, config=config, callbacks=[monitor])
    subject = replace(
        SUBJECTS["classification"], steps=run.steps, evaluations=run.evaluations, batches=(), splits={}
    )
    watched = Observed(subject, monitor.observations)
    found = problems(watched)
    found.pop("throughput holds", None)
    assert found == {}
    assert dynamics.loss_decreases(watched).status == "ok"
    assert signals.attention_stays_open(watched).status == "ok"
    assert signals.layers_learn(watched).status == "ok"


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_no_check_says_anything_of_a_run_of_five_steps(found):
    subject = replace(with_run("classification", [0.7] * 5), batches=(), make_model=nn.Identity)
    status = found(subject).status
    assert status == ("ok" if found is numbers.finite_run else "not applicable")


def test_no_check_alarms_without_records():
    for found in ALL:
        if found is not numbers.finite_activations:
            assert found(replace(SUBJECTS["classification"], steps=())).status == "not applicable"


# --- planted curves


def test_a_flat_curve_does_not_decrease_and_is_a_plateau():
    for kind in KINDS:
        flat = learning(200, GUESSES[kind], GUESSES[kind], noise=0.01)
        found = problems(replace(with_run(kind, flat), batches=SUBJECTS[kind].batches))
        assert {"loss decreases", "learns more than a constant"} <= set(found)


def test_a_language_model_that_learns_only_how_frequent_words_are_is_on_a_plateau():
    kind = "causal language model"
    curve = learning(300, 6.0, GUESSES[kind], noise=0.02, pace=20)
    subject = with_run(kind, curve)
    assert dynamics.learns_more_than_a_constant(subject).is_problem
    assert dynamics.loss_decreases(subject).status == "ok"
    summed = tuple(replace(record, terms={"a": 1.0, "b": 2.0}) for record in subject.steps)
    assert dynamics.learns_more_than_a_constant(replace(subject, steps=summed)).status == "not applicable"


def test_noise_that_could_hide_learning_is_not_called_flat():
    curve = learning(60, 0.7, 0.65, noise=0.5)
    assert dynamics.loss_decreases(with_run("classification", curve)).status == "not applicable"


def test_divergence_is_found_from_the_start_and_after_learning():
    grows = np.linspace(0.7, 3.0, 100)
    comes_back_up = [*learning(100, 0.7, 0.2), *np.linspace(0.2, 0.68, 100)]
    for losses in (grows, comes_back_up):
        finding = dynamics.loss_stays_down(with_run("classification", losses))
        assert finding.is_problem
        assert "step" in finding.where


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_every_spike_is_found_and_no_other_step(noise):
    losses = learning(300, 4.0, 2.0, noise=noise, seed=3)
    assert spikes(records(losses)) == []
    losses[[120, 121, 240]] = 15.0
    assert [record.step for record in spikes(records(losses))] == [121, 241]
    finding = dynamics.no_loss_spikes(with_run("causal language model", losses))
    assert finding.evidence["spikes"] == 2
    assert finding.where == "steps 121, 241"


def test_a_loss_that_becomes_nan_is_reported_with_its_first_step():
    losses = learning(60, 0.7, 0.3)
    losses[30:] = math.nan
    finding = numbers.finite_run(with_run("classification", losses))
    assert finding.is_problem
    assert finding.where == "step 31"
    assert "stays so" in finding.summary


def test_one_nan_between_finite_losses_points_at_the_loss():
    losses = learning(60, 0.7, 0.3)
    losses[30] = math.nan
    finding = numbers.finite_run(with_run("classification", losses))
    assert finding.is_problem
    assert finding.component == "loss"


def test_steps_that_a_scaler_skips_are_no_alarm_and_lasting_infinity_is():
    losses = learning(60, 0.7, 0.3)
    skipped = [math.inf] * 3 + [1.0] * 57
    assert numbers.finite_run(with_run("classification", losses, norms=skipped)).status == "ok"
    lasting = [1.0] * 20 + [math.nan] * 40
    finding = numbers.finite_run(with_run("classification", losses, norms=lasting))
    assert finding.where == "step 21"


@pytest.mark.parametrize(
    ("metric", "values"),
    [("loss", [0.6, 0.45, 0.4, 0.5, 0.6, 0.8]), ("accuracy", [0.6, 0.8, 0.85, 0.82, 0.79, 0.78])],
)
def test_a_development_metric_that_turns_is_found_with_its_best_step(metric, values):
    run = with_run("classification", learning(300, 0.7, 0.01), evaluations=evaluations(metric, values))
    finding = dynamics.generalises(run)
    assert finding.is_problem
    assert finding.where == "from step 150 on"


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("loss", [0.6, 0.45, 0.4, 0.41, 0.40, 0.41]),
        ("loss", [0.6, 0.5, 0.4, 0.35, 0.33, 0.45]),  # one worse evaluation is not a turn
        ("accuracy", [0.6, 0.8, 0.85, 0.84, 0.86, 0.84]),
        ("accuracy", [0.5, 0.9, 0.6, 0.88, 0.62, 0.6]),  # it jumps: nothing can be said
    ],
)
def test_a_development_metric_that_holds_is_left_alone(metric, values):
    run = with_run("classification", learning(300, 0.7, 0.01), evaluations=evaluations(metric, values))
    assert not dynamics.generalises(run).is_problem


def test_a_loss_that_rises_while_the_score_holds_is_not_called_overfitting():
    seen = tuple(
        Evaluation(i, 50 * i, {"loss": loss, "accuracy": 0.8 + 0.01 * i})
        for i, loss in enumerate([0.5, 0.4, 0.5, 0.6, 0.7], start=1)
    )
    assert (
        dynamics.generalises(with_run("classification", learning(250, 0.7, 0.01), evaluations=seen)).status
        == "ok"
    )


def test_a_language_model_that_knows_too_much_is_found():
    kind = "causal language model"
    guess = GUESSES[kind]
    curve = learning(200, guess, 0.01, pace=30)
    for held_out in (0.02, 5.1):
        run = with_run(kind, curve, evaluations=(Evaluation(1, 200, {"loss": held_out}),))
        assert dynamics.loss_is_plausible(run).is_problem
    many = with_run(kind, curve, evaluations=(Evaluation(40, 200, {"loss": 5.1}),))
    assert dynamics.loss_is_plausible(many).status == "not applicable"
    plausible = with_run(kind, learning(200, guess, 2.0), evaluations=(Evaluation(1, 200, {"loss": 2.2}),))
    assert dynamics.loss_is_plausible(plausible).status == "ok"


def test_a_language_that_is_regular_may_be_known():
    counting = torch.arange(600).remainder(50).view(20, 30) + 3
    run = with_run(
        "causal language model",
        learning(200, 4.0, 0.01, pace=30),
        evaluations=(Evaluation(1, 200, {"loss": 0.01}),),
    )
    run = replace(run, batches=[{"input_ids": counting, "attention_mask": torch.ones_like(counting)}])
    assert dynamics.loss_is_plausible(run).status == "not applicable"


# --- gradients, rates, attention, throughput


@pytest.mark.parametrize(
    ("losses", "norms", "expected"),
    [
        ("learns", [1.0] * 100, "ok"),
        ("learns", [30.0] * 100, "ok"),
        ("learns", [1e-6] * 100, "ok"),
        ("flat", [30.0] * 100, "problem"),
        ("flat", [1e-6] * 100, "problem"),
        ("flat", [1.0] * 100, "ok"),
        ("learns", [500.0] * 100, "problem"),
        ("learns", list(np.geomspace(0.5, 200, 100)), "problem"),
    ],
)
def test_a_norm_outside_the_band_is_an_alarm_only_with_a_run_that_shows_it(losses, norms, expected):
    curve = learning(100, 0.7, 0.1) if losses == "learns" else learning(100, 0.7, 0.7, noise=0.01)
    assert signals.gradient_norm_healthy(with_run("classification", curve, norms=norms)).status == expected


def test_a_dead_layer_is_named():
    subject = with_run("classification", learning(100, 0.7, 0.1))
    alive = {"embeddings": 0.5, "layer 0": 0.4, "head": 0.6}
    assert signals.layers_learn(Observed(subject, observed(alive))).status == "ok"
    finding = signals.layers_learn(Observed(subject, observed({**alive, "layer 0": 0.0})))
    assert finding.is_problem
    assert finding.where == "layer 0"
    assert signals.layers_learn(subject).status == "not applicable"


def test_attention_that_collapses_is_found_and_attention_that_was_sharp_is_not():
    subject, norms = with_run("classification", learning(100, 0.7, 0.1)), {"layer 0": 1.0, "layer 1": 1.0}

    def seen(*values):
        return Observed(subject, observed(norms, [{"layer 0": 0.8, "layer 1": value} for value in values]))

    finding = signals.attention_stays_open(seen(0.9, 0.3, 0.02))
    assert finding.is_problem
    assert finding.where == "layer 1"
    assert signals.attention_stays_open(seen(0.07, 0.06, 0.06)).status == "ok"
    assert signals.attention_stays_open(seen(0.9, 0.7, 0.5)).status == "ok"


@pytest.mark.parametrize(
    ("rates", "where"),
    [
        (warmed_up(100), None),
        ([5e-5] * 100, None),
        ([0.0, *warmed_up(99)], None),
        ([0.0] * 100, "step 2"),
        ([*warmed_up(40), *[0.0] * 60], "step 41"),
        (list(np.linspace(0, 1e-4, 100)), "warm-up"),
        (list(np.repeat([1e-5, 2e-5, 3e-5, 4e-5], 25)), "warm-up"),
        (list(np.geomspace(1e-7, 1, 100)), None),  # a search for a rate
    ],
)
def test_rates_that_stay_at_zero_or_never_warm_up_are_found(rates, where):
    finding = signals.learning_rate_moves(with_run("classification", learning(100, 0.7, 0.1), rates=rates))
    assert finding.is_problem == (where is not None)
    assert finding.where == (where or "")


def test_a_run_without_warm_up_is_an_alarm_only_when_its_loss_jumps_up():
    calm, jumps = learning(100, 0.7, 0.1, noise=0.1), learning(100, 0.7, 0.5, noise=0.02)
    jumps[2:10] = 3.0
    falling = list(np.linspace(1e-3, 0, 100))
    for losses, rates, expected in (
        (calm, falling, "ok"),
        (jumps, falling, "problem"),
        (jumps, warmed_up(100), "ok"),
    ):
        subject = with_run("classification", losses, rates=rates)
        assert signals.learning_rate_moves(subject).status == expected


def test_steps_that_get_slower_and_time_spent_waiting_are_found():
    losses = learning(200, 0.7, 0.1)
    rng = np.random.default_rng(0)
    steady = rng.uniform(0.8, 1.6, 200)
    waits = steady * np.where(np.arange(200) % 8 == 0, 20, 1)
    for seconds, expected in (
        (steady, "ok"),
        (steady * np.linspace(1, 8, 200), "problem"),
        (waits, "problem"),
        (np.where(np.arange(200) == 100, 300, steady), "ok"),  # one pause
    ):
        subject = with_run("classification", losses, seconds=seconds)
        assert signals.throughput_holds(subject).status == expected
        assert step_seconds(subject.steps) == pytest.approx(seconds[1:] / 8)


# --- numbers


class Rooted(nn.Module):
    """Finite forward, and on the way back infinite: the slope of a root at zero."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(400, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        return self.head((x - x).sum(dim=1).sqrt())


class Divided(nn.Module):
    """Means over the tokens that are not padding, and forgets that there may be none."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(400, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) * attention_mask[..., None]
        return self.head(x.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_models_numbers_are_finite(kind):
    assert numbers.finite_activations(reference_subject(kind)).status == "ok"


def test_bert_is_finite():
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with seeded(0):
        model = BertForSequenceClassification(config)
    subject = replace(SUBJECTS["classification"], make_model=copies_of(model), loss=None)
    assert numbers.finite_activations(subject).status == "ok"


def test_a_module_that_divides_by_zero_is_named_by_the_check():
    batch = {name: tensor.clone() for name, tensor in SUBJECTS["classification"].batches[0].items()}
    batch["attention_mask"][0] = 0
    subject = replace(SUBJECTS["classification"], make_model=Divided, batches=[batch], loss=None)
    finding = numbers.finite_activations(subject)
    assert finding.is_problem
    assert "Divided" in finding.summary


def test_a_gradient_that_is_not_finite_is_named_by_the_check():
    def loss(model, batch):
        scores = model(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(scores, batch["labels"])

    subject = replace(SUBJECTS["classification"], make_model=Rooted, loss=loss)
    finding = numbers.finite_activations(subject)
    assert finding.is_problem
    assert finding.where == "table.weight"


def test_a_loss_without_targets_is_reported():
    def loss(model, batch):
        targets = torch.full((8,), recipe.IGNORED)
        return nn.functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), targets)

    finding = numbers.finite_activations(replace(SUBJECTS["classification"], loss=loss))
    assert finding.is_problem
    assert finding.where == "the loss"


def test_a_curves_levels_and_noise_are_those_of_what_made_it():
    rng = np.random.default_rng(0)
    curve = curve_of(records(2.0 + 0.1 * rng.standard_normal(1000)))
    assert len(curve.levels) == 10
    assert curve.noise == pytest.approx(0.1, rel=0.1)
    assert curve.error == pytest.approx(0.0125, rel=0.15)
    assert max(abs(level - 2.0) for level in curve.levels) < 4 * curve.error


def test_a_constant_guess_is_the_entropy_of_what_is_guessed():
    assert GUESSES["classification"] == pytest.approx(math.log(2), abs=0.02)
    ids = torch.arange(1000).remainder(10).view(10, 100) + 3
    subject = replace(SUBJECTS["causal language model"], batches=[{"input_ids": ids}])
    assert constant_guess(subject) == pytest.approx(math.log(10), abs=0.01)
    assert constant_guess(replace(subject, kind="encoder")) is None
