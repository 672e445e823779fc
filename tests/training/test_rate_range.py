"""The range test takes the steps of the loop with a rising rate, and gives the model back untouched."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from companion.models import load
from companion.training import TrainingConfig, fit
from companion.training.rate_range import RangeTest, range_test, range_test_plot

CONFIG = TrainingConfig(batch_size=16, max_length=32, precision="fp32")


@pytest.fixture
def classifier(encoder_folder: Path):
    return load(encoder_folder, labels=("negative", "positive"))


@pytest.fixture(scope="module")
def tested(encoder_folder: Path, toy) -> RangeTest:
    source = load(encoder_folder, labels=("negative", "positive"))
    return range_test(source.model, source.tokenizer, toy, config=CONFIG, lowest=1e-6, highest=30.0)


def curve(losses, low=1e-6, high=1e1, diverged_at=None) -> RangeTest:
    rates = tuple(np.geomspace(low, high, len(losses)).tolist())
    return RangeTest(rates, tuple(losses), tuple(losses), diverged_at)


def test_the_model_comes_back_untouched(classifier, toy):
    model = classifier.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    embeddings = model.get_input_embeddings()
    random_state = torch.get_rng_state()
    range_test(model, classifier.tokenizer, toy, config=CONFIG, lowest=1e-3, highest=10.0, steps=10)
    assert model.training
    assert model.get_input_embeddings() is embeddings
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_finds_rates_that_learn_and_rates_that_explode(tested):
    assert tested.diverged_at is not None and tested.diverged_at > 1e-2
    assert 1e-5 < tested.steepest < tested.diverged_at
    assert 1e-5 < tested.tenth_of_minimum < tested.diverged_at
    assert min(tested.smoothed) < 0.8 * tested.smoothed[0]
    assert len(tested.rates) == len(tested.losses) == len(tested.smoothed) <= 100
    ratios = np.array(tested.rates[1:]) / np.array(tested.rates[:-1])
    assert ratios == pytest.approx((30.0 / 1e-6) ** (1 / 99)), "the rate rises exponentially"


def test_the_test_ends_once_the_smoothed_loss_is_four_times_its_lowest(tested):
    smoothed = np.array(tested.smoothed)
    exploded = smoothed > 4 * np.minimum.accumulate(smoothed)
    assert not exploded[:-1].any()
    assert exploded[-1] or tested.rates[-1] < tested.diverged_at, "or the loss was not finite"


def test_the_running_mean_is_corrected_for_its_start(tested):
    mean = 0.0
    for done, (loss, smoothed) in enumerate(zip(tested.losses, tested.smoothed, strict=True), start=1):
        mean = 0.9 * mean + 0.1 * loss
        assert smoothed == pytest.approx(mean / (1 - 0.9**done))


def test_a_step_is_a_step_of_the_loop(encoder_folder, toy):
    """With one rate for all steps, the losses are those of `fit` with that constant rate."""
    source = load(encoder_folder, labels=("negative", "positive"))
    flat = range_test(
        source.model, source.tokenizer, toy, config=CONFIG, lowest=1e-3, highest=1e-3 * (1 + 1e-12), steps=25
    )
    config = TrainingConfig(
        batch_size=16,
        max_length=32,
        precision="fp32",
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        epochs=2,
        max_steps=25,
    )
    run = fit(source.model, source.tokenizer, toy, config=config)
    assert flat.losses == pytest.approx([step.loss for step in run.steps], rel=1e-5)
    # and the rates matter: another rate gives other losses from the second step on
    fresh = load(encoder_folder, labels=("negative", "positive"))
    rising = range_test(fresh.model, fresh.tokenizer, toy, config=CONFIG, lowest=1e-3, highest=1e-1, steps=25)
    assert rising.losses[0] == pytest.approx(flat.losses[0])
    assert rising.losses[-1] != pytest.approx(flat.losses[-1], rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_test_instead_of_raising(classifier, toy):
    test = range_test(
        classifier.model, classifier.tokenizer, toy, config=CONFIG, lowest=1e-4, highest=1e38, steps=10
    )
    assert test.diverged_at is not None and len(test.losses) < 10
    assert all(map(math.isfinite, test.losses))


def test_suggestions_on_known_curves():
    x = np.linspace(-6, 1, 141)
    fall = 2 - 1.5 / (1 + np.exp(-4 * (x + 3)))  # steepest at 1e-3
    rise = np.where(x > -1, (x + 1) ** 2, 0)  # lowest near 1e-1
    test = curve(fall + rise)
    assert test.steepest == pytest.approx(1e-3, rel=0.2)
    assert test.tenth_of_minimum == pytest.approx(1e-2, rel=0.5)
    rising = curve(np.linspace(1, 2, 50))
    assert rising.steepest is None and rising.tenth_of_minimum is None


def test_the_plot_states_the_finding(tested):
    plot = range_test_plot(tested)
    assert f"explodes at {tested.diverged_at:.1e}" in plot.alt
    assert f"{tested.steepest:.1e}" in plot.alt and f"{tested.tenth_of_minimum:.1e}" in plot.alt
    assert "learning rate" in plot.svg
    flat = range_test_plot(curve(np.linspace(1, 2, 50)))
    assert "never falls" in flat.alt and "does not explode" in flat.alt


@pytest.mark.parametrize(
    "wrong",
    [
        {"lowest": 0.0},
        {"lowest": 1.0, "highest": 0.1},
        {"highest": math.inf},
        {"steps": 3},
        {"smoothing": 1.0},
    ],
)
def test_arguments_that_cannot_work(classifier, toy, wrong):
    with pytest.raises(ValueError, match="expected"):
        range_test(classifier.model, classifier.tokenizer, toy, **wrong)


def test_what_is_not_divergence_is_raised(classifier):
    with pytest.raises(ValueError, match="no training examples"):
        range_test(classifier.model, classifier.tokenizer, [])
