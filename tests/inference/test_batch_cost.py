"""The cost of batches: found where it is known, never below zero, and followed where it changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.inference import BatchCost, OnlineCost, TimedBatch, fit_cost

SHAPES = [(rows, longest) for rows in (1, 2, 4, 8, 16, 32) for longest in (8, 16, 32, 64, 128)]
STRAIGHT = BatchCost(1e-3, 4e-5)
CURVED = BatchCost(1e-3, 4e-5, 2e-8)


def batches(cost, noise=0.0, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [
        TimedBatch(rows, longest, float(cost.seconds(rows, longest)) * (1 + noise * rng.standard_normal()))
        for rows, longest in shapes
    ]


def test_seconds_of_many_batches_at_once():
    found = CURVED.seconds(np.array([1, 4]), np.array([8, 16]))
    assert found == pytest.approx([1e-3 + 8 * 4e-5 + 64 * 2e-8, 1e-3 + 64 * 4e-5 + 64**2 * 2e-8])


@settings(max_examples=20)
@given(st.floats(1e-6, 1e-1), st.floats(1e-7, 1e-3), st.floats(0, 1e-7))
def test_a_cost_is_found_again(per_batch, per_token, squared):
    cost = BatchCost(per_batch, per_token, squared)
    found = fit_cost(batches(cost), curved=True)
    seconds = [(found.cost.seconds(*shape), cost.seconds(*shape)) for shape in SHAPES]
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in seconds)
    assert found.error < 1e-3


def test_the_square_is_there_if_the_data_ask_for_it():
    assert fit_cost(batches(STRAIGHT, 0.05)).cost.per_token_squared == 0
    found = fit_cost(batches(CURVED, 0.05))
    assert found.cost.per_token_squared == pytest.approx(2e-8, rel=0.2)
    assert found.error == pytest.approx(0.05, rel=0.4)
    assert found.worst >= found.error
    assert fit_cost(batches(CURVED), curved=False).cost.per_token_squared == 0


@settings(max_examples=20)
@given(st.lists(st.floats(1e-4, 10), min_size=len(SHAPES), max_size=len(SHAPES)))
def test_no_term_is_below_zero_whatever_was_measured(seconds):
    measured = [TimedBatch(*shape, value) for shape, value in zip(SHAPES, seconds, strict=True)]
    cost = fit_cost(measured, curved=True).cost
    assert min(cost.per_batch, cost.per_token, cost.per_token_squared) >= 0
    assert max(cost.per_batch, cost.per_token, cost.per_token_squared) > 0


def test_the_fit_is_that_of_scipy():
    from scipy.optimize import nnls

    for seed in range(5):
        rng = np.random.default_rng(seed)
        measured = [TimedBatch(*shape, float(rng.lognormal(-5, 1.5))) for shape in SHAPES]
        tokens = np.array([rows * longest for rows, longest in SHAPES], dtype=float)
        seconds = np.array([batch.seconds for batch in measured])
        terms = np.stack([tokens**0, tokens, tokens**2], axis=1) / seconds[:, None]
        scale = np.linalg.norm(terms, axis=0)
        expected = nnls(terms / scale, np.ones(len(SHAPES)))[0] / scale
        found = fit_cost(measured, curved=True).cost
        assert [found.per_batch, found.per_token, found.per_token_squared] == pytest.approx(expected)


def test_the_error_is_that_of_batches_left_out():
    measured = batches(STRAIGHT, 0.1)
    errors = []
    for left_out in measured:
        others = fit_cost([batch for batch in measured if batch is not left_out], curved=False).cost
        errors.append(float(others.seconds(left_out.rows, left_out.longest)) / left_out.seconds - 1)
    found = fit_cost(measured, curved=False)
    assert found.error == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert found.worst == pytest.approx(np.abs(errors).max())


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([], "batches of 0 different sizes"),
        (batches(STRAIGHT, shapes=[(1, 8), (2, 8), (1, 16)]), "2 different sizes"),
        ([TimedBatch(1, 8, 0.1), TimedBatch(2, 8, 0.0), TimedBatch(4, 8, 0.1)], "took 0 seconds"),
    ],
)
def test_too_little_to_fit(measured, message):
    with pytest.raises(ValueError, match=message):
        fit_cost(measured)


def test_it_says_what_it_found():
    text = fit_cost(batches(CURVED)).text()
    assert text.startswith("1 ms a batch + 40 us a padded token + 20 ns x tokens^2; off by 0%")


def test_an_online_cost_begins_where_it_starts_and_follows_a_machine_that_slows_down():
    online = OnlineCost(STRAIGHT, half_life=50)
    assert online.cost.seconds(8, 64) == pytest.approx(STRAIGHT.seconds(8, 64))
    slow = BatchCost(3e-3, 8e-5)
    rng = np.random.default_rng(0)
    for _ in range(500):
        rows, longest = SHAPES[rng.integers(len(SHAPES))]
        online.update(rows, longest, float(slow.seconds(rows, longest)) * (1 + 0.05 * rng.standard_normal()))
    for shape in ((1, 8), (8, 64), (32, 128)):
        assert online.cost.seconds(*shape) == pytest.approx(slow.seconds(*shape), rel=0.15)


def test_an_online_cost_stays_sane_where_all_batches_are_alike():
    online = OnlineCost(CURVED, half_life=20)
    for _ in range(1000):
        online.update(1, 8, float(CURVED.seconds(1, 8)))
    for shape in SHAPES:
        assert online.cost.seconds(*shape) == pytest.approx(CURVED.seconds(*shape), rel=1e-6)
    online.update(1, 8, 0.0)
    assert online.cost.seconds(1, 8) == pytest.approx(CURVED.seconds(1, 8))


@pytest.mark.parametrize("wrong", [{"half_life": 0}, {"trust": 0}, {"start": BatchCost(0, 0)}])
def test_an_online_cost_that_could_not_learn(wrong):
    with pytest.raises(ValueError, match="above 0"):
        OnlineCost(**{"start": STRAIGHT, **wrong})
