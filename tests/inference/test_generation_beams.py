"""Beam search finds what that of `transformers` finds, and keeps its cache in order."""

from __future__ import annotations

import pytest
import torch
from decoders import VOCABULARY, decoder, jittered, left_padded, prompts
from transformers import GPT2Config, GPT2LMHeadModel

from companion.inference import Beam, generate
from companion.models import KeyValueCache, from_transformers

EOS = 7


def gpt2(seed: int, scale: float) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        return jittered(GPT2LMHeadModel(config), scale)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_beams_are_those_of_transformers(length_penalty, early_stopping):
    ended, lengths = [], set()
    for seed in range(3):
        # Softer scores than elsewhere, so that the end of the text comes into the beam now and then.
        theirs, width = gpt2(seed, 0.15), (2, 5)[seed % 2]
        ids, mask = prompts(seed=seed), left_padded([8, 3, 6], 8)
        expected = theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=24,
            num_beams=width,
            do_sample=False,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=EOS,
            pad_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = generate(
            from_transformers(theirs),
            ids,
            attention_mask=mask,
            max_new_tokens=24,
            strategy=Beam(width, length_penalty, early_stopping),
            eos_token_id=EOS,
        )
        rows = [
            row[: row.index(EOS) + 1] if EOS in row else row for row in expected.sequences[:, 8:].tolist()
        ]
        assert [list(row) for row in found.token_ids] == rows
        scores = [sum(row) / len(row) ** length_penalty for row in found.log_probabilities]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4)
        ended += found.finished
        lengths |= set(map(len, rows))
    assert any(ended)  # or the end of the text was not tested
    assert len(lengths) > 1


def test_without_an_end_beams_are_those_of_transformers():
    theirs, ids = gpt2(9, 0.6), prompts()
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=50,
        num_beams=4,
        do_sample=False,
        pad_token_id=0,
    )
    for use_cache in (True, False):
        found = generate(
            from_transformers(theirs), ids, max_new_tokens=50, strategy=Beam(4), use_cache=use_cache
        )
        assert [list(row) for row in found.token_ids] == expected[:, 8:].tolist()


def test_a_beam_of_one_is_greedy_and_wider_ones_find_likelier_texts():
    model, ids = decoder(), prompts(6)
    greedy = generate(model, ids, max_new_tokens=20)
    assert generate(model, ids, max_new_tokens=20, strategy=Beam(1)).token_ids == greedy.token_ids
    wide = generate(model, ids, max_new_tokens=20, strategy=Beam(8))
    gains = [
        sum(ours) - sum(theirs)
        for ours, theirs in zip(wide.log_probabilities, greedy.log_probabilities, strict=True)
    ]
    assert sum(gains) > 1


def test_a_beam_that_covers_all_finds_the_best_text_of_two_words():
    model, ids = decoder(), prompts(1)
    found = generate(model, ids, max_new_tokens=2, strategy=Beam(VOCABULARY // 2))
    with torch.inference_mode():
        first = model(ids)[:, -1].log_softmax(-1)[0]
        longer = torch.cat((ids.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]), dim=1)
        second = model(longer)[:, -1].log_softmax(-1)
    best = int((first[:, None] + second).argmax())
    assert found.token_ids[0] == (best // VOCABULARY, best % VOCABULARY)


def test_prompts_are_read_once_and_ended_rows_leave_the_batch():
    model, ids = decoder(), prompts(2)
    found = generate(model, ids, max_new_tokens=10, strategy=Beam(4))
    assert found.work.tokens == ids.numel() + 9 * 2 * 4
    eos = found.token_ids[0][0]
    early = generate(model, ids, max_new_tokens=10, strategy=Beam(1, early_stopping=True), eos_token_id=eos)
    assert early.token_ids[0] == (eos,)
    assert early.work.scored == 1 + len(early.token_ids[1])


def test_rows_of_a_cache_are_reordered_repeated_and_dropped():
    model, ids = decoder(layers=3), prompts(4, 6)
    cache = KeyValueCache(model.config, 4, capacity=10)
    with torch.inference_mode():
        model(ids, cache=cache)
        before = [memory.clone() for memory in (*cache.keys, *cache.values)]
        for rows in ([2, 0, 0, 3], [1, 1], [1, 0, 0, 1, 0]):
            cache.select(torch.tensor(rows))
            before = [memory[rows] for memory in before]
            for found, expected in zip((*cache.keys, *cache.values), before, strict=True):
                assert torch.equal(found, expected)
    assert cache.length == 6
