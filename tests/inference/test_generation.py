"""Generated text is that of `transformers`, the same with and without a cache, alone and in company."""

from __future__ import annotations

import itertools

import pytest
import torch
from decoders import VOCABULARY, decoder, jittered, left_padded, prompts
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from companion.inference import Beam, Greedy, Sampling, generate
from companion.models import from_transformers

SHAPES = [
    {"norm": norm, "positions": positions, "tied": tied}
    for norm, positions, tied in itertools.product(
        ("pre", "post"), ("learned", "sinusoidal", "rotary"), (True, False)
    )
]
STRATEGIES = [Greedy(), Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=5), Beam(3)]


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        return jittered(GPT2LMHeadModel(config))


def varied(token_ids: tuple[tuple[int, ...], ...]) -> bool:
    """Whether texts are worth comparing: one word again and again would hide most differences."""
    return len(set().union(*token_ids)) >= 10


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ends", [False, True])
def test_greedy_text_is_that_of_transformers(seed, ends):
    theirs, ids, mask = gpt2(seed), prompts(seed=seed), left_padded([8, 3, 6], 8)
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False, pad_token_id=0)
    expected = expected[:, 8:].tolist()
    eos = expected[1][20] if ends else None
    found = generate(from_transformers(theirs), ids, attention_mask=mask, max_new_tokens=40, eos_token_id=eos)
    rows = [row[: row.index(eos) + 1] if eos in row else row for row in expected]
    assert [list(row) for row in found.token_ids] == rows
    assert found.finished == tuple(eos in row for row in rows)
    assert varied(expected)


def assert_the_cache_changes_no_word(model, max_new_tokens):
    ids, mask = prompts(), left_padded([8, 1, 5], 8)
    with_cache, without = (
        generate(model, ids, attention_mask=mask, max_new_tokens=max_new_tokens, use_cache=use)
        for use in (True, False)
    )
    assert with_cache.token_ids == without.token_ids
    assert varied(with_cache.token_ids)
    assert [len(row) for row in with_cache.token_ids] == [max_new_tokens] * 3
    for here, there in zip(with_cache.log_probabilities, without.log_probabilities, strict=True):
        assert here == pytest.approx(there, abs=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_the_cache_changes_no_word_of_any_decoder(shape):
    assert_the_cache_changes_no_word(decoder(**shape), 56)


# Each norm, way of placing and tying at least once; the whole product would take a minute.
@pytest.mark.parametrize(
    "shape",
    [SHAPES[0], SHAPES[5], SHAPES[9], SHAPES[10]],
    ids=lambda shape: "-".join(map(str, shape.values())),
)
def test_the_cache_changes_no_word_of_256(shape):
    assert_the_cache_changes_no_word(decoder(max_length=264, **shape), 256)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_cache_changes_no_word_at_any_batch_size(rows, strategy):
    model, ids = decoder(), prompts(rows)
    options = {"max_new_tokens": 40, "strategy": strategy, "eos_token_id": 7}
    with_cache, without = (generate(model, ids, use_cache=use, **options) for use in (True, False))
    assert with_cache.token_ids == without.token_ids
    assert with_cache.finished == without.finished


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_alone_is_the_row_in_a_padded_batch(strategy, positions, use_cache):
    model, ids, lengths = decoder(positions=positions), prompts(), [3, 8, 5]
    options = {"max_new_tokens": 40, "eos_token_id": 7, "use_cache": use_cache}
    together = generate(model, ids, attention_mask=left_padded(lengths, 8), strategy=strategy, **options)
    for row, length in enumerate(lengths):
        own = Sampling(0.8, 20, 0.9, seed=5 + row) if isinstance(strategy, Sampling) else strategy
        alone = generate(model, ids[row : row + 1, -length:], strategy=own, **options)
        assert alone.token_ids[0] == together.token_ids[row]
        assert alone.log_probabilities[0] == pytest.approx(together.log_probabilities[row], abs=1e-4)
        assert alone.finished[0] == together.finished[row]


def test_columns_of_padding_alone_cost_nothing():
    model, ids = decoder(), prompts()
    wide = torch.cat((torch.full((3, 30), 10**9), ids), dim=1)
    found = generate(model, wide, attention_mask=left_padded([8, 8, 8], 38), max_new_tokens=50)
    assert found == generate(model, ids, max_new_tokens=50)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_row_that_has_ended_leaves_the_batch(use_cache):
    model, ids = decoder(tied=False), prompts()
    free = generate(model, ids, max_new_tokens=30)
    eos = next(
        word for i, word in enumerate(free.token_ids[0]) if i > 3 and word not in free.token_ids[0][:i]
    )
    found = generate(model, ids, max_new_tokens=30, eos_token_id=eos, use_cache=use_cache)
    for row, long in zip(found.token_ids, free.token_ids, strict=True):
        assert row == (long[: long.index(eos) + 1] if eos in long else long)
    assert found.finished == tuple(eos in row for row in free.token_ids)
    # Each new word was scored once, and none after the end of its text.
    assert found.work.scored == sum(map(len, found.token_ids)) < 90
    assert found.work.passes == max(map(len, found.token_ids))
    if use_cache:
        assert found.work.tokens == ids.numel() + sum(len(row) - 1 for row in found.token_ids)


def test_log_probabilities_are_those_of_the_model():
    model, ids = decoder(), prompts()
    for strategy in STRATEGIES:
        found = generate(model, ids, max_new_tokens=20, strategy=strategy)
        new = torch.tensor(found.token_ids)
        with torch.inference_mode():
            scores = model(torch.cat((ids, new), dim=1))[:, 7:-1].log_softmax(-1)
        expected = scores.gather(-1, new[..., None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(found.log_probabilities), expected, atol=1e-4, rtol=1e-4)


# --- sampling


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.7, 5, 1.0), (1.5, None, 0.8), (0.9, 30, 0.6), (1.0, 500, 0.99), (1.0, 1, 1e-9)],
)
def test_the_filtered_distribution_is_that_of_transformers(temperature, top_k, top_p):
    scores = 3 * torch.randn(64, VOCABULARY, generator=torch.Generator().manual_seed(0))
    scores[:, 10] = scores[:, 11]  # words of one score
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(64, 1, dtype=torch.long), scores.clone()).softmax(-1)
    found = Sampling(temperature, top_k, top_p).probabilities(scores)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found > 0, expected > 0)


def test_words_are_drawn_as_often_as_they_are_likely():
    rows, strategy = 6000, Sampling(temperature=1.3, top_k=12, seed=3)
    scores = 2 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    drawn = strategy.draw(scores.expand(rows, -1), strategy.generators(rows))
    counts = torch.bincount(drawn, minlength=VOCABULARY)
    expected = rows * strategy.probabilities(scores)[0]
    assert (counts[expected == 0] == 0).all()
    likely = expected > 0
    chi_squared = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_squared < 31.3  # 11 degrees of freedom: passed by chance once in a thousand


@pytest.mark.parametrize(("point", "word"), [(0.0, 2), (1 - 2**-53, 6)])
def test_the_ends_of_chance_draw_no_impossible_word(point, word, monkeypatch):
    scores = torch.tensor([[-torch.inf, -torch.inf, 0.3, 0.1, -torch.inf, 0.2, 0.7, -torch.inf]])
    strategy = Sampling()
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([point], dtype=torch.float64))
    assert strategy.draw(scores, strategy.generators(1)).tolist() == [word]


def test_the_same_seed_draws_the_same_text_and_others_draw_others():
    model, ids = decoder(), prompts(1).expand(3, -1)
    first, again, other = (
        generate(model, ids, max_new_tokens=20, strategy=Sampling(seed=seed)).token_ids for seed in (0, 0, 7)
    )
    assert first == again != other
    assert len(set(first)) == 3  # rows with one prompt draw different texts
    state = torch.get_rng_state()
    generate(model, ids, max_new_tokens=5, strategy=Sampling())
    assert torch.equal(state, torch.get_rng_state())


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 57},
            r"8 tokens and 57 new ones make 65, expected 64 at most: give max_new_tokens of 56",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"attention_mask": left_padded([8, 8, 5], 8).flip(1)}, "row 2 ends in padding.*pad on the left"),
        (
            {"attention_mask": torch.ones(3, 7)},
            r"attention_mask has the shape \(3, 7\), expected .* \(3, 8\)",
        ),
        ({"input_ids": torch.zeros(3, 0, dtype=torch.long)}, r"shape \(3, 0\), expected \(batch, seq\)"),
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"shape \(3,\), expected \(batch, seq\)"),
        ({"input_ids": torch.full((1, 4), 50)}, "input_ids holds 50, expected 0 to 49"),
        ({"input_ids": torch.zeros(1, 64, dtype=torch.long)}, "expected 64 at most: give shorter prompts"),
        ({"strategy": Beam(26)}, "a beam of width 26 chooses among 52 words, and the model has 50"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        generate(decoder(), **{"input_ids": prompts(), "max_new_tokens": 4} | options)


def test_the_whole_of_the_model_can_be_used():
    for use_cache in (True, False):
        found = generate(decoder(), prompts(), max_new_tokens=56, use_cache=use_cache)
        assert len(found.token_ids[0]) == 56


def test_models_that_cannot_generate_are_refused():
    with pytest.raises(ValueError, match=r"the model is an encoder.*expected a decoder"):
        generate(decoder(causal=False), prompts(), max_new_tokens=4)
    with pytest.raises(ValueError, match="the model scores classes, expected a decoder"):
        generate(decoder(classes=2), prompts(), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"training mode.*call model\.eval\(\)"):
        generate(decoder().train(), prompts(), max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"temperature is 0, expected more than 0: .* Greedy\(\)"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected more than 0"),
        ({"top_p": 1.5}, "top_p is 1.5, expected more than 0 and at most 1"),
    ],
)
def test_filters_that_leave_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
    with pytest.raises(ValueError, match="width is 0, expected at least 1"):
        Beam(0)
