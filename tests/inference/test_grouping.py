"""Groups of texts: each text once, budgets kept, and the cheapest cut really the cheapest."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.inference import by_arrival, by_budget, by_cost, by_length, in_windows, padding_of
from companion.inference.throughput.grouping import padded_length

lengths_of = st.lists(st.integers(1, 130), max_size=40)
sizes = st.integers(1, 9)


def linear(rows, longest):
    return 3.0 + 0.01 * rows * longest


def curved(rows, longest):
    return 3.0 + 0.01 * rows * longest + 2e-5 * (rows * longest) ** 2


@given(lengths_of, sizes)
def test_each_text_is_in_one_group(lengths, size):
    for groups in (
        by_arrival(lengths, batch_size=size),
        by_length(lengths, batch_size=size),
        by_budget(lengths, budget=40 * size),
        by_budget(lengths, budget=40 * size, batch_size=3),
        by_cost(lengths, linear),
        by_cost(lengths, curved, batch_size=size),
        in_windows(lengths, partial(by_length, batch_size=3), window=size),
    ):
        assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
        assert all(groups), "no group is empty"


@given(lengths_of, sizes)
def test_arrival_keeps_the_order_and_length_sorts(lengths, size):
    arrived = by_arrival(lengths, batch_size=size)
    assert [place for group in arrived for place in group] == list(range(len(lengths)))
    assert all(len(group) == size for group in arrived[:-1])
    order = [place for group in by_length(lengths, batch_size=size) for place in group]
    assert order == list(np.argsort(-np.array(lengths, dtype=int), kind="stable"))


@given(lengths_of, st.integers(1, 600), st.none() | sizes)
def test_a_budget_is_kept_and_used(lengths, budget, size):
    groups = by_budget(lengths, budget=budget, batch_size=size)
    areas = [len(group) * padded_length(max(lengths[place] for place in group)) for group in groups]
    for group, area in zip(groups, areas, strict=True):
        assert area <= budget or len(group) == 1
        assert size is None or len(group) <= size
    for group, after in pairwise(groups):
        more = (len(group) + 1) * padded_length(lengths[group[0]])
        assert more > budget or len(group) == size, "the next text would have had room"
        assert min(lengths[place] for place in group) >= max(lengths[place] for place in after)


def all_cuts(order):
    """Yield every way to cut a list."""
    if not order:
        yield []
    for end in range(1, len(order) + 1):
        for rest in all_cuts(order[end:]):
            yield [order[:end], *rest]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 2**32))
def test_no_cut_of_the_sorted_texts_is_cheaper(lengths, size, seed):
    # Any cost at all, not only those that we would fit.
    table = np.random.default_rng(seed).random((10, 9))

    def cost(rows, longest):
        return table[rows, longest // 8]

    def total(groups):
        return sum(
            cost(len(group), padded_length(max(lengths[place] for place in group))) for group in groups
        )

    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    allowed = [cut for cut in all_cuts(order) if max(map(len, cut)) <= size]
    found = by_cost(lengths, cost, batch_size=size)
    assert found in allowed
    assert total(found) == pytest.approx(min(map(total, allowed)))


def test_a_dear_batch_joins_texts_and_dear_padding_parts_them():
    lengths = [10, 100, 11, 101]
    assert by_cost(lengths, lambda rows, longest: 1000 + rows * longest) == [[0, 2, 1, 3]]
    assert by_cost(lengths, lambda rows, longest: 1 + rows * longest) == [[0, 2], [1, 3]]


@given(st.lists(st.integers(1, 130), min_size=1, max_size=70), sizes)
def test_the_cheapest_is_never_dearer_than_the_others(lengths, size):
    def total(groups):
        return sum(
            curved(len(group), padded_length(max(lengths[place] for place in group))) for group in groups
        )

    found = total(by_cost(lengths, curved, batch_size=64))
    assert found <= total(by_length(lengths, batch_size=size)) + 1e-9
    assert found <= total(by_budget(lengths, budget=32 * size, batch_size=64)) + 1e-9


@given(lengths_of, sizes)
def test_a_window_waits_for_no_later_text(lengths, window):
    groups = in_windows(lengths, partial(by_length, batch_size=4), window=window)
    of = [{place // window for place in group} for group in groups]
    assert all(len(windows) == 1 for windows in of)
    assert of == sorted(of, key=min)


def test_padding_is_counted():
    found = padding_of([3, 9, 20, 1], [[0, 1], [2, 3]])
    assert (found.texts, found.batches, found.tokens) == (4, 2, 33)
    assert found.padded_tokens == 2 * 16 + 2 * 24
    assert found.largest == 48
    assert found.efficiency == pytest.approx(33 / 80)
    assert found.rows == 2
    assert found.to_dict()["efficiency"] == found.efficiency
    assert padding_of([3, 9], [[0], [1]], multiple=1).efficiency == 1.0
    assert padding_of([], []).efficiency == 1.0


@given(lengths_of, sizes)
def test_sorting_never_pads_more(lengths, size):
    lengths = lengths[: len(lengths) // size * size]  # a last batch with fewer rows may be lucky as it came
    came, ordered = by_arrival(lengths, batch_size=size), by_length(lengths, batch_size=size)
    assert padding_of(lengths, ordered).padded_tokens <= padding_of(lengths, came).padded_tokens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(by_arrival, batch_size=0), "batch_size is 0"),
        (partial(by_length, batch_size=-1), "batch_size is -1"),
        (partial(by_budget, budget=0), "budget is 0"),
        (partial(by_budget, budget=9, batch_size=0), "batch_size is 0"),
        (partial(by_cost, cost=linear, batch_size=0), "batch_size is 0"),
        (partial(in_windows, group=partial(by_arrival, batch_size=1), window=0), "window is 0"),
    ],
)
def test_numbers_that_group_nothing(call, message):
    with pytest.raises(ValueError, match=message):
        call([3, 4])


def test_a_server_can_group_without_a_runtime():
    code = (
        "import sys, companion.inference as i; i.by_cost([3, 4], i.BatchCost(1, 1).seconds);"
        "print({'torch', 'onnxruntime', 'transformers', 'scipy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
