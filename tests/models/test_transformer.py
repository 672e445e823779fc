"""The transformer to read gives the answers of the models people use, in every variant."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from companion.models import KeyValueCache, Transformer, TransformerConfig, embedded_folder, from_transformers

SHAPES = [
    {"causal": causal, "norm": norm, "positions": positions, "tied": tied}
    for causal, norm, positions, tied in itertools.product(
        (False, True), ("pre", "post"), ("learned", "sinusoidal", "rotary"), (True, False)
    )
]
VOCABULARY = 50


def make(seed: int = 0, **options) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(VOCABULARY, width=32, max_length=24, **options)).eval()
    with torch.no_grad():  # fresh weights attend to all alike, and would hide most differences
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * (parameter.dim() > 1))
    return model


def some(rows: int = 3, seq: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, seq), generator=torch.Generator().manual_seed(seed))


def masked(lengths: list[int], seq: int) -> torch.Tensor:
    return (torch.arange(seq) < torch.tensor(lengths)[:, None]).long()


@pytest.mark.weights
def test_the_embedded_encoder_gives_the_same_hidden_states():
    theirs = AutoModel.from_pretrained(embedded_folder(), dtype=torch.float32).eval()
    ours = from_transformers(theirs)
    ids = torch.randint(1000, theirs.config.vocab_size, (4, 40), generator=torch.Generator().manual_seed(0))
    mask, types = masked([40, 17, 1, 31], 40), (torch.arange(40) > 20).long().expand(4, -1)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        found = ours.encode(ids, mask, types)
    real = mask.bool()
    assert expected[real].std() > 0.3
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


def jittered(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_gpt2_with_random_weights_gives_the_same_scores(activation):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=24)
    config.activation_function = activation
    theirs = jittered(GPT2LMHeadModel(config))
    ids, mask = some(), masked([12, 5, 9], 12)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        found = from_transformers(theirs)(ids, mask)
    assert expected.std() > 1
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_bert_with_random_weights_gives_the_same_hidden_states():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    theirs = jittered(BertModel(config))
    ids, mask = some(), masked([12, 5, 9], 12)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        found = from_transformers(theirs).encode(ids, mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"type is 'distilbert', expected one of \['bert', 'gpt2'\]"):
        from_transformers(
            DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=1, hidden_dim=8))
        )
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, hidden_act="silu"
    )
    with pytest.raises(ValueError, match="activation is 'silu', expected one of"):
        from_transformers(BertModel(config))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_padding_and_neighbours_change_nothing(shape):
    model, ids = make(**shape), some(rows=1, seq=7)
    noise = some(rows=2, seq=12, seed=9)
    right, left = noise.clone(), noise.clone()
    right[0, :7], left[0, 5:] = ids[0], ids[0]
    mask = masked([7, 12], 12)
    with torch.inference_mode():
        alone = model(ids)[0]
        torch.testing.assert_close(model(right, mask)[0, :7], alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(left, mask.flip(1))[0, 5:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_a_decoder_sees_what_came_before_and_an_encoder_sees_all(shape):
    model, ids = make(**shape), some()
    changed = ids.clone()
    changed[:, 8] = (changed[:, 8] + 1) % VOCABULARY
    with torch.inference_mode():
        moved = (model(ids) - model(changed)).abs().amax(dim=(0, 2))
    assert (moved[8:] > 1e-3).all()
    assert (moved[:8] < 1e-5).all() if shape["causal"] else (moved[:8] > 1e-3).all()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_order_matters(positions):
    model, ids = make(positions=positions), some()
    with torch.inference_mode():
        assert (model(ids).flip(1) - model(ids.flip(1))).abs().max() > 1e-2


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_the_cache_changes_no_score(positions):
    model, ids = make(causal=True, positions=positions), some()
    mask = masked([12, 8, 10], 12).flip(1)
    cache = KeyValueCache(model.config, batch=3)
    with torch.inference_mode():
        whole = model(ids, mask)
        parts = [model(ids[:, :5], mask[:, :5], cache=cache)]
        parts += [model(ids[:, [i]], mask[:, : i + 1], cache=cache) for i in range(5, 12)]
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="25 tokens, expected 24 at most"):
        model(some(seq=13), cache=cache)


def test_a_row_without_a_real_token_is_not_nan():
    mask = masked([12, 0, 3], 12)
    for causal in (False, True):
        assert make(causal=causal)(some(), mask).isfinite().all()
        assert make(causal=causal, classes=2)(some(), mask).isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_classifier_reads_one_token_on_either_side_of_the_padding(causal):
    model, ids = make(causal=causal, classes=3), some()
    mask = masked([12, 5, 9], 12)
    with torch.inference_mode():
        right = model(ids, mask)
        shifted = torch.stack(
            [row.roll(int(12 - length)) for row, length in zip(ids, mask.sum(1), strict=True)]
        )
        left = model(shifted, mask.flip(1))
    assert right.shape == (3, 3)
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_tying_shares_one_table_and_classifiers_have_none_to_share():
    tied, untied, classifier = make(), make(tied=False), make(classes=2)
    assert tied.head.weight is tied.tokens.weight
    assert untied.head.weight is not untied.tokens.weight
    assert parameters(untied) - parameters(tied) == VOCABULARY * 32
    assert classifier.head.weight.shape == (2, 32)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="width 10 cannot be split into 4 heads"):
        TransformerConfig(VOCABULARY, width=10)
    with pytest.raises(ValueError, match="heads of width 3 have an odd one"):
        TransformerConfig(VOCABULARY, width=12, positions="rotary")
