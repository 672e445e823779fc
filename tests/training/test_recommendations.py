"""Recommendations follow the published rules, say so, and say where the rules end."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.claims import claim as published
from companion.claims import ledger
from companion.training.recommendations import (
    BRACKETS,
    lamb_rate,
    learning_rate_range,
    linear_scaling,
    recommend,
    square_root_scaling,
    table,
)

BERT, SMALL = 110_000_000, 22_700_000


def said(recommendation, subject: str) -> str:
    return "\n".join(reason for reason in recommendation.reasons if reason.startswith(f"{subject}:"))


def advice(kind="encoder", **changes):
    basis = {"parameters": BERT, "examples": 67_000, "mean_tokens": 13.0}
    return recommend(kind, **{**basis, **changes})


def test_linear_scaling_is_the_one_of_goyal():
    """Their reference: 0.1 at 256 images, 3.2 at 8,192."""
    scaled = linear_scaling(0.1, from_batch=256, to_batch=8192)
    assert (scaled.learning_rate, scaled.factor, scaled.holds) == (pytest.approx(3.2), 32, True)
    assert not linear_scaling(0.1, from_batch=256, to_batch=16384).holds
    assert not linear_scaling(0.1, from_batch=256, to_batch=32).holds


def test_square_root_scaling_is_the_one_of_malladi():
    scaled = square_root_scaling(1e-4, from_batch=32, to_batch=128)
    assert scaled.learning_rate == pytest.approx(2e-4)
    assert scaled.betas == pytest.approx((0.6, 0.996))
    assert scaled.holds
    back = square_root_scaling(scaled.learning_rate, from_batch=128, to_batch=32, betas=scaled.betas)
    assert (back.learning_rate, back.betas) == (pytest.approx(1e-4), pytest.approx((0.9, 0.999)))
    # A batch ten times as large would need a beta1 of 0.
    over = square_root_scaling(1e-4, from_batch=32, to_batch=321)
    assert (over.holds, over.betas) == (False, None)
    assert square_root_scaling(1e-4, from_batch=32, to_batch=321, betas=(0.95, 0.999)).holds


def test_lamb_rate_has_the_ends_of_its_table():
    assert lamb_rate(512).learning_rate == pytest.approx(5e-3 / 8)
    assert lamb_rate(32768).learning_rate == pytest.approx(5e-3)
    assert [lamb_rate(batch).holds for batch in (256, 512, 32768, 65536)] == [False, True, True, False]


@pytest.mark.parametrize("rule", [linear_scaling, square_root_scaling])
def test_what_cannot_be_scaled_is_named(rule):
    for rate in (0.0, -1e-4, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning_rate is"):
            rule(rate, from_batch=1, to_batch=1)
    with pytest.raises(ValueError, match="to_batch is 0"):
        rule(1e-4, from_batch=1, to_batch=0)
    with pytest.raises(ValueError, match="betas are"):
        square_root_scaling(1e-4, from_batch=1, to_batch=2, betas=(0.9, 1.0))


@pytest.mark.parametrize(
    ("kind", "parameters", "claim"),
    [
        ("encoder", BERT, "lr-bert"),
        ("decoder", 124_000_000, "lr-gpt"),
        ("pretraining", BERT, "lr-pretraining"),
    ],
)
def test_ranges_are_those_of_the_ledger(kind, parameters, claim):
    found = learning_rate_range(kind, parameters)
    number = published(claim).quantities[0]
    assert (found.low, found.high) == (number.low, number.high)
    assert f"claim {claim}" in found.reasons[0]


def test_small_encoders_get_higher_rates_and_the_reason():
    small = learning_rate_range("encoder", SMALL)
    assert (small.low, small.high) == (1e-4, 2e-4)
    assert "plateau" in small.reasons[1]
    assert "size correction: the published 1e-5 to 5e-5 is for 110M" in small.reasons[1]
    middle = learning_rate_range("encoder", 66_000_000)
    assert 1e-5 < middle.low < 1e-4
    assert 5e-5 < middle.high < 2e-4
    large = learning_rate_range("encoder", 340_000_000)
    assert (large.low, large.high) == (1e-5, 5e-5)
    assert not any("size correction" in reason for reason in large.reasons)
    tiny = learning_rate_range("encoder", 5_000_000)
    assert (tiny.low, tiny.high) == (1e-4, 2e-4)
    assert "run a range test" in tiny.reasons[-1]


def test_a_size_with_a_bracket_gets_that_bracket():
    for kind, brackets in BRACKETS.items():
        assert [bracket.parameters for bracket in brackets] == sorted(
            bracket.parameters for bracket in brackets
        )
        for bracket in brackets:
            found = learning_rate_range(kind, bracket.parameters)
            assert (found.low, found.high) == (bracket.low, bracket.high)


@given(st.sampled_from(["encoder", "pretraining"]), st.integers(10**6, 2 * 10**11), st.floats(1, 100))
def test_larger_models_never_get_higher_rates(kind, parameters, times):
    one, other = (learning_rate_range(kind, size) for size in (parameters, int(parameters * times)))
    assert one.low >= other.low
    assert one.high >= other.high
    assert one.low <= one.high


def test_small_data_means_lower_longer_and_smaller():
    few, many = advice(examples=4000), advice()
    assert few.learning_rate < many.learning_rate
    assert (few.batch_size, many.batch_size) == (16, 32)
    assert (few.epochs, many.epochs) == (20, 3)
    assert few.warmup_steps == math.ceil(0.1 * few.total_steps)
    assert many.warmup_steps == math.ceil(0.06 * many.total_steps)
    assert "fewer than 10,000 examples" in said(few, "learning rate")


def test_batches_within_the_published_ones_are_not_scaled():
    assert advice(batch_size=16).learning_rate == advice(batch_size=32).learning_rate
    assert "sqrt" not in said(advice(batch_size=24), "learning rate")


def test_a_larger_batch_takes_the_square_root_and_tells_the_linear_rate():
    given = advice(parameters=SMALL, batch_size=40)
    base = 1e-4 * 2 ** (2 / 3)
    assert given.learning_rate == pytest.approx(base * math.sqrt(40 / 32), rel=0.03)
    why = said(given, "learning rate")
    assert "Malladi et al. 2022" in why
    assert "Goyal et al. 2017" in why
    assert "in proportion to the batch it would be 1.98e-4" in why
    assert "outside" not in why


def test_a_scaled_rate_that_leaves_its_range_is_said_and_held():
    given = advice(batch_size=256)
    assert given.learning_rate == given.learning_rate_high == 5e-5
    assert re.search(r"scaled it would be 8\.\d+e-5, outside 1e-5 to 5e-5", said(given, "learning rate"))
    assert "outside the range of the square-root rule" not in said(given, "learning rate")
    assert "outside the range of the square-root rule" in said(advice(batch_size=512), "learning rate")
    low = advice("pretraining", batch_size=16, examples=10**6)
    assert low.learning_rate == low.learning_rate_low == 1e-4
    assert "outside" in said(low, "learning rate")


def test_very_large_batches_take_lamb():
    adam, lamb = (advice("pretraining", examples=10**8, batch_size=batch) for batch in (8192, 16384))
    assert (adam.optimizer, lamb.optimizer) == ("adamw", "lamb")
    assert lamb.learning_rate == pytest.approx(5e-3 / math.sqrt(2), rel=0.02)
    assert lamb.warmup_steps == math.ceil(0.1 * lamb.total_steps)
    assert "Nado et al. 2021" in said(lamb, "optimizer")
    beyond = advice("pretraining", examples=10**8, batch_size=131072)
    assert beyond.learning_rate == beyond.learning_rate_high
    assert "outside what was shown" in said(beyond, "learning rate")
    assert "for fine-tuning none are published" in said(
        advice(examples=10**6, batch_size=16384), "learning rate"
    )


def test_the_batch_is_spread_over_passes_and_devices():
    given = advice(batch_size=96, devices=2, per_device_limit=20)
    assert (given.micro_batch_size, given.accumulation) == (16, 3)
    whole = advice(batch_size=96, devices=2, per_device_limit=48)
    assert (whole.micro_batch_size, whole.accumulation) == (48, 1)
    prime = advice(batch_size=31, per_device_limit=8)
    assert (prime.micro_batch_size, prime.accumulation) == (1, 31)
    assert "a batch of 32 would fill the devices" in said(prime, "accumulation")


@pytest.mark.parametrize(("devices", "batch"), [(1, 32), (2, 64), (8, 256), (16, 256), (64, 256)])
def test_the_batch_grows_with_devices_within_its_range(devices, batch):
    assert advice(devices=devices).batch_size == batch


def test_large_decoders_start_at_the_lower_end():
    large, small = advice("decoder", parameters=7 * 10**9), advice("decoder", parameters=124_000_000)
    assert large.learning_rate == large.learning_rate_low == 2e-5
    assert small.learning_rate > 5e-5
    assert (large.epochs, small.epochs, small.schedule) == (2, 3, "cosine")


def test_pretraining_counts_tokens():
    scarce = advice("pretraining", examples=1_000_000, mean_tokens=128)
    assert scarce.epochs == 4
    assert "Muennighoff" in said(scarce, "epochs")
    ample = advice("pretraining", examples=40_000_000, mean_tokens=128)
    assert ample.epochs == 1
    assert ample.warmup_steps == 10_000
    assert ample.warmup_steps <= 0.1 * ample.total_steps
    assert scarce.warmup_steps == math.ceil(0.1 * scarce.total_steps)
    assert advice("pretraining", examples=40_000_000, mean_tokens=128, epochs=7).epochs == 7
    long = advice("pretraining", examples=1_300_000_000, mean_tokens=128)
    assert long.warmup_steps == 50_000


def test_short_runs_checkpoint_by_epoch_and_long_ones_by_step():
    short, long = advice(examples=4000), advice(examples=390_000)
    assert short.checkpoint_every == short.steps_per_epoch == 250
    assert long.checkpoint_every == 2000 < long.steps_per_epoch
    assert long.log_every == 100
    assert advice(examples=3_900_000).log_every == 500
    assert advice(examples=320, epochs=1).log_every == 2
    assert short.keep >= 3


def test_a_recommendation_is_a_configuration():
    given = advice(batch_size=96, per_device_limit=32, examples=390_000)
    config = given.config(seed=7)
    assert (config.seed, config.batch_size, config.micro_batch_size) == (7, 96, 32)
    assert (config.learning_rate, config.epochs, config.schedule) == (given.learning_rate, 3, "linear")
    assert config.warmup_steps(given.total_steps) == given.warmup_steps
    assert config.checkpoint_every == 2000
    assert advice(examples=4000).config().checkpoint_every is None, (
        "a run checkpoints after each epoch anyway"
    )


SIZES = st.integers(10**6, 10**11)


@settings(max_examples=150)
@given(
    st.sampled_from(["encoder", "decoder", "pretraining"]),
    SIZES,
    st.integers(64, 10**8),
    st.floats(1, 4096),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(1, 300)),
)
def test_every_recommendation_is_consistent(kind, parameters, examples, tokens, devices, limit):
    given = recommend(
        kind,
        parameters=parameters,
        examples=examples,
        mean_tokens=tokens,
        devices=devices,
        per_device_limit=limit,
    )
    assert given.learning_rate_low <= given.learning_rate <= given.learning_rate_high
    assert given.micro_batch_size * given.accumulation * devices == given.batch_size <= examples
    assert limit is None or given.micro_batch_size <= limit
    assert given.total_steps == given.epochs * given.steps_per_epoch
    assert given.steps_per_epoch == math.ceil(examples / given.batch_size)
    assert 1 <= given.warmup_steps <= given.total_steps
    assert 1 <= given.checkpoint_every <= given.steps_per_epoch
    assert 1 <= given.log_every <= given.total_steps
    given.config()


def test_every_reason_names_a_source_and_every_claim_exists():
    claims = {entry.id for entry in ledger()}
    reasons = [reason for row in table() for reason in row.recommendation.reasons]
    assert len(reasons) > 60
    for reason in reasons:
        assert re.search(r"\((.*(19|20)\d\d.*|.*claim .*|no source|the caller)\)", reason), reason
        assert set(re.findall(r"claim ([\w-]+)", reason)) <= claims, reason
        assert re.match(r"[a-z -]+: ", reason), reason


def test_the_table_has_a_row_a_situation():
    rows = table()
    assert len({row.situation.name for row in rows}) == len(rows)
    assert {row.situation.kind for row in rows} == {"encoder", "decoder", "pretraining"}
    assert table(()) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "gpt"}, "kind is 'gpt', expected one of 'encoder'"),
        ({"parameters": 110}, "parameters is 110, .*110_000_000, not 110"),
        ({"parameters": math.nan}, "parameters is nan"),
        ({"examples": 0}, "examples is 0"),
        ({"examples": 2.5}, "examples is 2.5"),
        ({"mean_tokens": math.nan}, "mean_tokens is nan"),
        ({"mean_tokens": 0.0}, "mean_tokens is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 70_000}, "batch_size is 70000 with 67000 examples"),
        ({"batch_size": 30, "devices": 4}, "no multiple of 4 devices: take 28 or 32"),
        ({"batch_size": 3, "devices": 4}, "no multiple of 4 devices: take 4"),
        ({"devices": -1}, "devices is -1"),
        ({"devices": True}, "devices is True"),
        ({"devices": 8, "examples": 5}, "take at most 5 devices"),
        ({"epochs": 0}, "epochs is 0"),
        ({"per_device_limit": 0}, "per_device_limit is 0"),
    ],
)
def test_a_situation_that_cannot_be_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        advice(**changes)
