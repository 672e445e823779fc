"""Norms, updates and entropies against numbers worked out by hand, on plain and on sharded models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from companion.models import load
from companion.training.monitoring import signals
from companion.training.monitoring.attention import attention_entropy, entropy_by_layer
from companion.training.monitoring.health import Thresholds, check_layers, loss_spike
from companion.training.monitoring.observations import Observation
from companion.training.records import StepRecord
from companion.training.vocabulary import use_rows


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        self.head = nn.Linear(2, 1)


def test_norms_and_ratios_by_hand():
    model = Tower()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    model.blocks[0].weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    model.head.weight.grad = torch.tensor([[1.0, 2.0]])
    model.head.bias.grad = torch.tensor([2.0])
    layers = signals.parameters_by_layer(model)
    assert signals.gradient_norms(layers) == {"embeddings": 0, "layer 0": 5, "layer 1": 0, "head": 3}
    before = signals.copy_weights(layers)
    with torch.no_grad():
        model.blocks[0].weight.sub_(torch.tensor([[0.3, 0.0], [0.0, 0.4]]))
        model.head.bias.add_(1.0)
    ratios = signals.update_ratios(before, layers)
    assert ratios["layer 0"] == pytest.approx(0.5 / 4)
    assert ratios["head"] == pytest.approx(1 / math.sqrt(12))
    assert (ratios["embeddings"], ratios["layer 1"]) == (0, 0)


def test_weights_that_were_zero_have_an_infinite_ratio_once_they_change():
    weight = nn.Parameter(torch.zeros(3))
    layers = {"head": [weight]}
    assert signals.update_ratios(signals.copy_weights(layers), layers) == {"head": 0}
    before = signals.copy_weights(layers)
    weight.data.fill_(1)
    assert signals.update_ratios(before, layers) == {"head": math.inf}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_found(value):
    model = Tower()
    layers = signals.parameters_by_layer(model)
    assert signals.gradients_are_finite(layers), "no gradient at all is finite"
    model.head.bias.grad = torch.ones(1)
    assert signals.gradients_are_finite(layers)
    model.head.bias.grad.fill_(value)
    assert not signals.gradients_are_finite(layers)


def tiny(kind: str):
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    bert = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    if kind.startswith("bert"):
        config = BertConfig(num_hidden_layers=2, **bert)
        return BertForMaskedLM(config) if kind == "bert-mlm" else BertForSequenceClassification(config)
    if kind == "distilbert":
        return DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=20, dim=8, n_heads=2, hidden_dim=8, n_layers=2)
        )
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_head=2, n_layer=2, **ends))
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, **ends)
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ["embeddings", "layer 0", "layer 1", "head"]),
        ("bert-mlm", ["embeddings", "layer 0", "layer 1", "head"]),
        ("distilbert", ["embeddings", "layer 0", "layer 1", "head"]),
        ("gpt2", ["embeddings", "layer 0", "layer 1", "head"]),
        ("t5", ["embeddings", *(f"{s} layer {i}" for s in ("encoder", "decoder") for i in (0, 1)), "head"]),
    ],
)
def test_layers_of_the_usual_models(kind, names):
    model = tiny(kind)
    layers = signals.parameters_by_layer(model)
    assert list(layers) == names
    grouped = [id(parameter) for group in layers.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()), "each once"
    table = model.get_input_embeddings().weight
    assert any(parameter is table for parameter in layers["embeddings"])
    assert len({len(group) for name, group in layers.items() if "layer 1" in name}) <= 2


def test_the_used_rows_of_a_table_are_embeddings():
    model = tiny("bert")
    rows = use_rows(model, torch.tensor([1, 2, 5]))
    assert any(parameter is rows.weight for parameter in signals.parameters_by_layer(model)["embeddings"])
    entropies = entropy_by_layer(
        model, {"input_ids": torch.tensor([[1, 2, 7]]), "attention_mask": torch.ones(1, 3)}
    )
    assert list(entropies) == ["layer 0", "layer 1"]


# --- attention


def test_entropy_by_hand():
    mask = torch.tensor([[1, 1, 1, 0]])
    rows = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    value = attention_entropy(rows.expand(1, 2, 4, 4), mask)
    assert value == pytest.approx((1 + 0 + math.log(2) / math.log(3)) / 3), (
        "the padding's own row is left out"
    )


def test_causal_entropy_counts_what_a_token_can_see():
    uniform = torch.tril(torch.ones(3, 3)) / torch.tensor([[1.0], [2.0], [3.0]])
    assert attention_entropy(uniform[None, None], torch.ones(1, 3), causal=True) == pytest.approx(1)
    left = torch.tensor([[0, 1, 1]])
    padded = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 0.5]])
    assert attention_entropy(padded[None, None], left, causal=True) == pytest.approx(1)
    assert attention_entropy(torch.ones(1, 1, 1, 1), torch.ones(1, 1)) is None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_entropy_of_a_model_that_attends_uniformly_is_one(kind):
    model = tiny(kind).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("query", "q_lin", "c_attn")):
                parameter.zero_()
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    before = model.config._attn_implementation
    entropies = entropy_by_layer(model, {"input_ids": mask * 3, "attention_mask": mask, "labels": mask})
    assert entropies == pytest.approx({"layer 0": 1, "layer 1": 1}, abs=1e-5)
    assert model.config._attn_implementation == before == "sdpa"
    assert all(module.training for module in model.modules())


def test_entropy_reads_some_rows_only():
    model, widths = tiny("bert"), []
    model.bert.embeddings.register_forward_hook(lambda *call: widths.append(tuple(call[2].shape)))
    mask = torch.ones(5, 6, dtype=torch.int64)
    mask[:2, 4:] = 0
    entropy_by_layer(model, {"input_ids": mask, "attention_mask": mask}, rows=2)
    assert widths == [(2, 4, 8)], "and not the columns that are padding in all of them"


def test_no_entropy_where_there_are_no_attention_weights():
    batch = {"input_ids": torch.ones(1, 2), "attention_mask": torch.ones(1, 2)}
    assert entropy_by_layer(Tower(), batch) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sharded_model_is_measured_like_a_plain_one(encoder_folder: Path, toy):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    def measured(model):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(**batch).logits.pow(2).sum().backward()
        layers = signals.parameters_by_layer(model)
        before, norms = signals.copy_weights(layers), signals.gradient_norms(layers)
        assert signals.gradients_are_finite(layers)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        ratios, entropies = signals.update_ratios(before, layers), entropy_by_layer(model, batch)
        return norms, ratios, entropies

    plain, split = (load(encoder_folder, labels=("no", "yes")) for _ in range(2))
    batch = dict(
        plain.tokenizer([e.text for e in toy[:4]], padding=True, truncation=True, return_tensors="pt")
    )
    expected = measured(plain.model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for module in (*split.model.bert.encoder.layer, split.model):
            fully_shard(module)
        found = measured(split.model)
        assert all(hasattr(parameter, "full_tensor") for parameter in split.model.parameters())
    finally:
        dist.destroy_process_group()
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


# --- thresholds


def history(*losses: float) -> list[StepRecord]:
    return [StepRecord(step, loss, 1e-3, 1.0, 1.0) for step, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "spike"),
    [
        ([0.7, 0.68, 0.72] * 10 + [2.0], True),
        ([0.7, 0.68, 0.72] * 10 + [0.9], False),  # within 1.5 times the largest
        ([0.7, 0.68, 0.72] * 6 + [2.0], False),  # too early to tell
        ([0.7] * 30 + [2.0], True),  # no deviation at all
        ([0.7] * 30 + [0.001] * 60 + [0.2], False),  # one hard text near zero
        ([0.7] * 30 + [0.001] * 60 + [0.6], True),
        ([0.7, 0.68, 0.72] * 5 + [9.0] + [0.7, 0.68, 0.72] * 5 + [20.0], True),  # after another one
        ([3.0 - step / 50 for step in range(100)], False),  # a loss that falls
    ],
)
def test_what_a_spike_is(losses, spike):
    assert (loss_spike(history(*losses), Thresholds()) is not None) == spike


def seen(step: int, norms=None, ratios=None, entropies=None, *, rate=1e-3, total=1.0) -> Observation:
    return Observation(step, 0.5, rate, total, norms or {}, ratios or {}, entropies or {}, 1.0, 1, 0.0)


@pytest.mark.parametrize(
    ("observations", "kinds"),
    [
        ([seen(1, {"a": 1e-8, "b": 1.0})], []),  # once is not yet dead, and too small to be merely low
        ([seen(i, {"a": 1e-8, "b": 1.0}) for i in (1, 2)], ["dead layer"]),
        ([seen(i, {"a": 1e-5, "b": 1.0}) for i in (1, 2)], ["gradient norm"]),
        ([seen(1, {"a": 1e-5, "b": 1e-5}, total=2e-5)], []),  # all are small: the run has learned
        ([seen(1, {"a": 11.0, "b": 1.0})], ["gradient norm"]),
        ([seen(i, {"a": 1.0}, {"a": 1e-8}) for i in (1, 2)], ["dead layer"]),
        ([seen(i, {"a": 1.0}, {"a": 1e-8}, rate=1e-5) for i in (1, 2)], []),  # the schedule's end
        ([seen(i, {"a": 1.0}, {"a": 0.0}, rate=0.0) for i in (1, 2)], []),  # has an alarm of its own
        ([seen(i, {"a": math.nan, "b": 1.0}) for i in (1, 2)], []),  # so has this
        ([seen(1, entropies={"a": 0.5}), seen(2, entropies={"a": 0.08})], ["attention collapse"]),
        ([seen(1, entropies={"a": 0.09}), seen(2, entropies={"a": 0.08})], []),  # sharp from the start
        ([seen(1, entropies={"a": 0.9}), seen(2, entropies={"a": 0.2})], []),
    ],
)
def test_what_an_unhealthy_layer_is(observations, kinds):
    assert [a.kind for a in check_layers(observations, Thresholds(), peak_rate=1e-3)] == kinds
