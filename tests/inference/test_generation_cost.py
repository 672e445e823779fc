"""The formulas of memory and multiplications against what is measured."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch
from decoders import decoder, left_padded, prompts
from torch.utils.flop_counter import FlopCounterMode

from companion.inference import Beam, Greedy, Work, cache_bytes, generate, token_flops
from companion.models import KeyValueCache, TransformerConfig

SHAPES = [
    {},
    {"width": 48, "heads": 3, "layers": 3, "hidden": 40},
    {"norm": "post", "positions": "rotary", "tied": False},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_the_cost_of_a_token_is_what_torch_counts(shape, length):
    model, ids = decoder(**shape), prompts(1, length)
    cache, mask = KeyValueCache(model.config, 1), torch.ones_like(ids)
    with torch.inference_mode():
        if length > 1:
            model.encode(ids[:, :-1], mask[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as cached:
            model.head(model.encode(ids[:, -1:], mask, cache=cache)[:, -1])
        with FlopCounterMode(display=False) as whole:
            model.head(model.encode(ids, mask)[:, -1])
    # Exactly: torch counts the products of matrices, and so does the formula.
    assert token_flops(model.config, length, cached=True) == cached.get_total_flops()
    assert token_flops(model.config, length, cached=False) == whole.get_total_flops()


@pytest.mark.parametrize("strategy", [Greedy(), Beam(3)], ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_work_of_a_text_is_what_torch_counts(strategy, use_cache):
    model, ids = decoder(), prompts()
    with FlopCounterMode(display=False) as counted:
        found = generate(
            model,
            ids,
            attention_mask=left_padded([8, 2, 5], 8),
            max_new_tokens=30,
            strategy=strategy,
            eos_token_id=7,
            use_cache=use_cache,
        )
    assert found.work.flops(model.config) == counted.get_total_flops() > 0


def test_with_a_cache_a_token_costs_about_the_same_at_any_length():
    config = TransformerConfig(1000, width=64, layers=4, max_length=1024, causal=True)
    short, long = (token_flops(config, length, cached=True) for length in (16, 512))
    assert long < 2 * short
    assert token_flops(config, 512, cached=False) > 25 * token_flops(config, 16, cached=False)


def test_the_formula_of_the_memory():
    config = TransformerConfig(10, width=384, layers=6, heads=12, causal=True)
    assert cache_bytes(config) == 2 * 6 * 12 * 32 * 4
    assert cache_bytes(config, batch=8, tokens=272, dtype=torch.bfloat16) == 2 * 6 * 12 * 32 * 2 * 8 * 272


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_text_takes_the_memory_of_the_formula(rows, dtype):
    model = decoder().to(dtype)
    found = generate(model, prompts(rows), max_new_tokens=30)
    # All tokens but the last: nobody reads it.
    assert found.work.cache_bytes == cache_bytes(model.config, batch=rows, tokens=8 + 30 - 1, dtype=dtype)
    wide = generate(model, prompts(rows), max_new_tokens=30, strategy=Beam(4))
    assert wide.work.cache_bytes == 4 * found.work.cache_bytes
    assert generate(model, prompts(rows), max_new_tokens=3, use_cache=False).work.cache_bytes == 0


def test_the_process_grows_by_the_memory_of_the_formula():
    config = TransformerConfig(10, width=512, layers=2, heads=8, max_length=8192, causal=True)
    tokens, batch, block = 5000, 4, 500
    expected = cache_bytes(config, batch=batch, tokens=tokens)
    keys = torch.randn(batch, 8, block, 64)
    gc.collect()
    before = psutil.Process().memory_info().rss
    cache = KeyValueCache(config, batch, capacity=tokens)
    made = psutil.Process().memory_info().rss - before
    for _ in range(tokens // block):
        for layer in range(config.layers):
            cache.extend(layer, keys, keys)
        cache.length += block
    grown = psutil.Process().memory_info().rss - before
    assert expected > 150e6
    assert cache.nbytes == expected
    assert grown == pytest.approx(expected, rel=0.02)
    assert made <= grown


def test_work_adds_up():
    one = Work().after(2, 5, 5, 100)
    assert one == Work(passes=1, tokens=10, pairs=50, scored=2, cache_bytes=100)
    assert one.after(2, 1, 6, 60) == Work(passes=2, tokens=12, pairs=62, scored=4, cache_bytes=100)
