"""Who rides together: the oldest always, others only where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.batching.choosing import choose
from companion.inference.throughput.cost import BatchCost
from companion.inference.throughput.grouping import by_cost, padded_length

PER_BATCH = BatchCost(per_batch=1e-2, per_token=1e-5)
"""Almost all of the cost is that of a batch: company pays."""
PER_TOKEN = BatchCost(per_batch=0.0, per_token=1e-4)
"""Nothing is won by company, and padding is lost."""
MUCH = {"padded_tokens": 10**6, "batch_size": 64}

lengths = st.lists(st.integers(1, 128), min_size=1, max_size=40)
costs = st.builds(
    BatchCost,
    per_batch=st.sampled_from([0.0, 1e-4, 1e-3, 1e-2]),
    per_token=st.sampled_from([1e-6, 1e-5, 1e-4]),
    per_token_squared=st.sampled_from([0.0, 1e-9, 1e-7]),
)
LAWS = settings(max_examples=150, deadline=None, derandomize=True)


def test_equal_lengths_ride_together_where_a_batch_is_dear():
    assert choose([20] * 5, PER_BATCH, **MUCH) == [0, 1, 2, 3, 4]


def test_the_oldest_rides_alone_where_company_costs_more():
    steep = BatchCost(per_batch=1e-3, per_token=1e-4, per_token_squared=1e-4)
    assert choose([20] * 5, steep, **MUCH) == [0]


def test_company_that_saves_nothing_is_none():
    assert choose([24, 24, 24], PER_TOKEN, **MUCH) == [0]


def test_the_oldest_goes_first_with_those_of_its_length():
    # The long ones came first, one of them before everyone.
    some = BatchCost(per_batch=1e-3, per_token=1e-4)
    assert choose([120, 8, 8, 118, 8, 115], some, **MUCH) == [0, 3, 5]
    assert choose([8, 120, 118, 8, 8, 115], some, **MUCH) == [0, 3, 4]


def test_the_budget_counts_padding():
    # Three rows of 33 tokens are padded to 40 each: 120 tokens.
    assert len(choose([33] * 9, PER_BATCH, padded_tokens=120, batch_size=64)) == 3
    assert len(choose([33] * 9, PER_BATCH, padded_tokens=119, batch_size=64)) == 2


def test_a_text_beyond_the_budget_rides_alone():
    assert choose([128, 8, 128], PER_BATCH, padded_tokens=64, batch_size=64) == [0]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_batch_size_is_kept(size):
    assert len(choose([16] * 12, PER_BATCH, padded_tokens=10**6, batch_size=size)) == size


@LAWS
@given(lengths=lengths, cost=costs, budget=st.integers(1, 2000), size=st.integers(1, 20))
def test_laws_of_a_choice(lengths, cost, budget, size):
    chosen = choose(lengths, cost, padded_tokens=budget, batch_size=size)
    assert chosen[0] == 0, "the oldest rides"
    assert chosen == sorted(set(chosen))
    assert max(chosen) < len(lengths)
    assert len(chosen) <= size
    if len(chosen) > 1:
        width = max(padded_length(lengths[place]) for place in chosen)
        assert len(chosen) * width <= budget
        alone = sum(float(cost.seconds(1, padded_length(lengths[place]))) for place in chosen)
        assert float(cost.seconds(len(chosen), width)) < alone, "a batch is formed only where it saves"


@LAWS
@given(lengths=lengths, cost=costs)
def test_what_is_chosen_belongs_to_the_cheapest_division(lengths, cost):
    """Taking the chosen batch first never makes all the work dearer than the best plan."""

    def total(left):
        groups = by_cost(left, cost.seconds, batch_size=64)
        return sum(
            float(cost.seconds(len(group), max(padded_length(left[place]) for place in group)))
            for group in groups
        )

    chosen = choose(lengths, cost, **MUCH)
    width = max(padded_length(lengths[place]) for place in chosen)
    first = float(cost.seconds(len(chosen), width))
    rest = [length for place, length in enumerate(lengths) if place not in chosen]
    assert first + (total(rest) if rest else 0.0) <= total(lengths) * (1 + 1e-9)


def test_positions_are_plain_numbers():
    assert all(type(place) is int for place in choose([9, 9, 9], PER_BATCH, **MUCH))
    assert not isinstance(choose([9], PER_BATCH, **MUCH), np.ndarray)
