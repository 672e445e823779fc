"""Attention and gradients: seen in any model, equal to what the model says itself, and drawn with words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from companion.debugging import recipe
from companion.debugging.attention_maps import attention_maps
from companion.debugging.gradient_history import GradientHistory, short_run
from companion.debugging.pictures import head_entropies, plot_attention, plot_entropy
from companion.debugging.subject import jitter_, seeded
from companion.debugging.zoo.subjects import reference_subject
from companion.models import Transformer, TransformerConfig
from companion.training.monitoring import plot_gradient_norms, plot_update_ratios

IDS = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.tensor([6, 4, 1])[:, None]).long()
TOKENS = ["the", "film", "was", "not", "$5", "."]


def jittered(make) -> nn.Module:
    with seeded(0):
        model = make()
        jitter_(model)
    return model.eval()


def reference(**shape) -> nn.Module:
    return jittered(lambda: Transformer(TransformerConfig(vocab_size=20, width=16, **shape)))


def sums_to_one(weights) -> bool:
    return torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize(
    "shape", [{}, {"causal": True, "positions": "rotary"}, {"classes": 3, "norm": "post"}]
)
def test_the_reference_models_attention_is_seen_in_every_layer(shape):
    model = reference(**shape).train()
    maps = attention_maps(model, IDS, MASK)
    assert [name for name, _ in maps] == ["blocks.0.attention", "blocks.1.attention"]
    for _, weights in maps:
        assert weights.shape == (3, 4, 6, 6)
        assert sums_to_one(weights)
        assert not weights[1, :, :4, 4:].any()  # padding
        assert bool(weights.triu(diagonal=1).any()) != bool(shape.get("causal"))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_subjects_attention_is_that_of_a_model_of_its_own():
    subject = reference_subject("classification", width=16)
    maps = attention_maps(subject, subject.ids(), torch.ones(2, 12, dtype=torch.long))
    assert len(maps) == 2
    assert maps[0][1].shape == (2, 4, 12, 12)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_weights_of_hugging_face_models_are_those_that_they_give_themselves(family, implementation):
    made = {
        "bert": lambda: BertModel(
            BertConfig(
                vocab_size=20,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
            )
        ),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        ),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
        ),
    }
    model = jittered(made[family])
    model.set_attn_implementation("eager")
    more = {"decoder_input_ids": IDS} if family == "t5" else {}
    with torch.no_grad():
        said = model(input_ids=IDS, attention_mask=MASK, output_attentions=True, **more)
    kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    expected = {kind: getattr(said, kind) for kind in kinds} if more else {"attentions": said.attentions}
    if family != "t5":
        model.set_attn_implementation(implementation)
    maps = attention_maps(model, IDS, MASK)
    if more:  # layer by layer, to itself and then to the encoder
        found = [weights for name, weights in maps if name.startswith("encoder")]
        decoder = [weights for name, weights in maps if name.startswith("decoder")]
        found += [*decoder[0::2], *decoder[1::2]]
    else:
        found = [weights for _, weights in maps]
    layers = [weights for stack in expected.values() for weights in stack]
    assert len(found) == len(layers)
    real = MASK.bool()
    for ours, theirs in zip(found, layers, strict=True):
        assert torch.allclose(ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real], atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_encoder_layers_are_seen_with_each_head(batch_first):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 16)
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, input_ids, key_padding_mask):
            x = self.table(input_ids)
            x = self.encoder(x if batch_first else x.transpose(0, 1), src_key_padding_mask=key_padding_mask)
            return x if batch_first else x.transpose(0, 1)

    before = torch.backends.mha.get_fastpath_enabled()
    maps = attention_maps(jittered(Encoder), IDS, MASK)
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert [name for name, _ in maps] == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    for _, weights in maps:
        assert weights.shape == (3, 4, 6, 6)
        assert sums_to_one(weights)
        assert not weights[1, :, :, 4:].any()


class Functional(nn.Module):
    """Attention in one function of torch, and a softmax over classes that is none."""

    def __init__(self, **options):
        super().__init__()
        self.table, self.map, self.options = nn.Embedding(20, 16), nn.Linear(16, 48), options

    def forward(self, input_ids):
        query, key, value = self.map(self.table(input_ids)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        if self.options.get("enable_gqa"):
            key, value = key[:, :2], value[:, :2]
        x = nn.functional.scaled_dot_product_attention(query, key, value, **self.options)
        self.kept = (value, x)
        return x.transpose(1, 2).flatten(2).softmax(dim=-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 2.0},
        {"enable_gqa": True},
        {"attn_mask": torch.ones(6, 6).tril().bool()},
        {"attn_mask": torch.arange(36.0).view(6, 6) / 9},
        {"attn_mask": (torch.arange(6) > 0)[:, None].expand(6, 6)},  # the first row sees nothing
    ],
)
def test_weights_out_of_torchs_fused_function_give_what_it_gives(options):
    model = jittered(lambda: Functional(**options))
    [(name, weights)] = attention_maps(model, IDS)
    value, expected = model.kept
    if options.get("enable_gqa"):
        value = value.repeat_interleave(2, dim=1)
    assert name == ""
    assert torch.allclose(weights @ value, expected, atol=1e-5)


def test_a_model_without_attention_is_refused_with_what_to_do():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
    with pytest.raises(ValueError, match="computes nothing that looks like attention"):
        attention_maps(model, IDS)


# --- pictures of attention


def test_a_heat_map_says_where_the_largest_weight_goes():
    weights = torch.full((1, 2, 3, 3), 0.1)
    weights[0, 1, 2] = torch.tensor([0.05, 0.9, 0.05])
    plot = plot_attention([("layer", weights)], ["a", "film", "$5"], layer="layer", head=1)
    assert "'$5' to 'film'" in plot.alt
    assert "0.90" in plot.alt
    assert "Up to 20% of a row goes to later tokens." in plot.alt
    assert "<image" not in plot.svg  # a picture of pixels could not follow the page's colours
    assert "$5" in plot.svg
    assert "var(--plot-1, " in plot.html()


def test_a_causal_map_is_said_to_look_at_nothing_ahead_and_an_empty_row_is_marked():
    maps = attention_maps(reference(causal=True), IDS)
    assert "No token looks ahead." in plot_attention(maps, TOKENS).alt
    weights = maps[0][1].clone()
    weights[0, 0, 1] = math.nan
    plot = plot_attention([("x", weights)], TOKENS)
    assert "1 of 6 rows are not numbers" in plot.alt
    assert plot.svg.count("×") == 6


def test_what_cannot_be_drawn_is_refused():
    maps = attention_maps(reference(), IDS)
    for tokens, options, message in (
        ([*TOKENS, "more"], {}, "7 tokens"),
        (TOKENS, {"layer": 5}, "layer 5"),
        (TOKENS, {"layer": "x"}, "layer 'x'"),
        (TOKENS, {"head": 4}, "head 4"),
        (TOKENS, {"row": 3}, "text 3"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_attention(maps, tokens, **options)
    with pytest.raises(ValueError, match="no attention maps"):
        plot_entropy([], MASK)


def test_a_long_text_names_only_some_tokens_and_keeps_its_size():
    weights = torch.softmax(torch.randn(1, 1, 60, 60, generator=torch.Generator().manual_seed(0)), dim=-1)
    plot = plot_attention([("x", weights)], [f"t{i}" for i in range(60)])
    assert ">t0<" in plot.svg
    assert ">t1<" not in plot.svg


def test_entropy_is_one_for_uniform_heads_and_zero_for_sharp_ones():
    uniform, sharp = torch.full((2, 6, 6), 1 / 6), torch.eye(6).expand(2, 6, 6)
    maps = [("first", torch.stack((uniform, sharp), dim=1))]
    mask = torch.ones(2, 6, dtype=torch.long)
    [[wide, narrow]] = head_entropies(maps, mask)
    assert wide == pytest.approx(1.0)
    assert narrow == 0.0
    alt = plot_entropy(maps, mask).alt
    assert "sharpest is head 1 of first with 0.00" in alt
    assert "widest head 0 of first with 1.00" in alt


def test_entropy_of_a_real_model_lies_between_and_other_lengths_are_refused():
    maps = attention_maps(reference(), IDS, MASK)
    assert all(0 < value <= 1 for row in head_entropies(maps, MASK) for value in row)
    assert plot_entropy(maps, MASK).svg.startswith("<svg")
    with pytest.raises(ValueError, match="attention of a text to itself"):
        head_entropies(maps, torch.ones(3, 9))


# --- gradients over time


def run_of(subject, *, watched: bool, steps: int = 4, every: int = 1):
    model = subject.model()
    optimizer = subject.make_optimizer(model)
    history = GradientHistory(model, optimizer, every=every)
    with seeded(0):
        if watched:
            with history:
                for batch in subject.batches[:steps]:
                    subject.train_step(model, optimizer, [batch])
        else:
            for batch in subject.batches[:steps]:
                subject.train_step(model, optimizer, [batch])
    return model, optimizer, history


def test_a_watched_run_is_the_same_run_and_its_norms_are_those_before_clipping():
    subject = reference_subject("classification", width=16, layers=1, settings={"max_grad_norm": 0.01})
    plain, _, nothing = run_of(subject, watched=False)
    model, optimizer, history = run_of(subject, watched=True)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert nothing.observations == []
    assert [seen.step for seen in history.observations] == [1, 2, 3, 4]
    for seen in history.observations:
        assert list(seen.grad_norm_by_layer) == ["embeddings", "layer 0", "head"]
        assert seen.grad_norm > 0.05  # and clipped, it is 0.01
        squares = sum(norm**2 for norm in seen.grad_norm_by_layer.values())
        assert seen.grad_norm == pytest.approx(math.sqrt(squares))
        assert all(ratio > 0 for ratio in seen.update_ratio_by_layer.values())
    subject.train_step(model, optimizer, [subject.batches[0]])
    assert len(history.observations) == 4  # no hook is left
    assert "_seen_before" not in torch.nn.utils.clip_grad_norm_.__qualname__


def test_norms_and_ratios_are_those_of_the_step():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    with GradientHistory(model, optimizer) as history:
        model(torch.tensor([[0.6, 0.8]])).backward()
        optimizer.step()
    [seen] = history.observations
    assert seen.grad_norm_by_layer == {"head": pytest.approx(1.0)}
    assert seen.update_ratio_by_layer == {"head": pytest.approx(0.1)}
    assert seen.learning_rate == 0.5


def test_every_second_step():
    subject = reference_subject("classification", width=16, layers=1)
    _, _, history = run_of(subject, watched=True, every=2)
    assert [seen.step for seen in history.observations] == [1, 2, 4]


def test_a_model_with_nothing_to_train_is_refused():
    model = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        GradientHistory(model, torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0))


def test_a_short_run_keeps_what_plots_and_checks_need():
    subject = reference_subject("classification", width=16, layers=1)
    run = short_run(subject, steps=6)
    assert [record.step for record in run.steps] == [1, 2, 3, 4, 5, 6]
    assert [seen.loss for seen in run.observations] == [record.loss for record in run.steps]
    assert run.steps[0].loss == pytest.approx(math.log(2), abs=0.2)
    assert run.steps[-1].learning_rate < max(record.learning_rate for record in run.steps)
    for seen in run.observations:
        assert list(seen.attention_entropy_by_layer) == ["blocks.0.attention"]
        assert 0.9 < seen.attention_entropy_by_layer["blocks.0.attention"] <= 1
    assert "head" in plot_gradient_norms(run.observations).alt
    assert "Update-to-weight ratio" in plot_update_ratios(run.observations).alt
    again = short_run(subject, steps=6)
    assert [record.loss for record in again.steps] == [record.loss for record in run.steps]


def test_a_train_step_that_returns_nothing_is_given_the_loss_before_it():
    def silent(model, optimizer, parts):
        recipe.train_step(model, optimizer, parts, recipe.Settings())

    subject = replace(reference_subject("classification", width=16, layers=1), train_step=silent)
    run = short_run(subject, steps=2)
    assert run.steps[0].loss == pytest.approx(math.log(2), abs=0.2)


def test_a_subject_that_cannot_be_trained_is_refused():
    subject = reference_subject("classification", width=16, layers=1)
    with pytest.raises(ValueError, match="train_step"):
        short_run(replace(subject, train_step=None))
    with pytest.raises(ValueError, match="took no optimizer step"):
        short_run(replace(subject, train_step=lambda *_: 0.0), steps=1)
