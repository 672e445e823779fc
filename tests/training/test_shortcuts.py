"""The shortcuts leave out work, and change nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from companion.data import batches
from companion.models import load
from companion.training import Classification, TrainingConfig, fit
from companion.training import shortcuts as shortcuts
from companion.training.objectives import model_inputs

LABELS = ("negative", "positive")


@pytest.fixture
def classifier(encoder_folder):
    return load(encoder_folder, labels=LABELS)


@pytest.fixture
def batch(classifier, toy):
    [batch] = batches(toy[:16], classifier.tokenizer, batch_size=16, max_length=48)
    return batch


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    Classification().sums(model, batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_first_position_is_all_a_classifier_needs(classifier, batch, attention):
    model = classifier.model
    model.set_attn_implementation(attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    whole = gradients(model, batch)
    widths = []
    watch = model.bert.encoder.layer[-1].output.register_forward_hook(
        lambda module, inputs, output: widths.append(output.shape[1])
    )
    with shortcuts.first_position_only(model):
        cut = gradients(model, batch)
        model.eval()
        read = model(**model_inputs(batch)).logits
    assert widths == [1, batch["input_ids"].shape[1]], "cut in training only"
    total = math.sqrt(sum(float(gradient.square().sum()) for gradient in whole.values()))
    apart = math.sqrt(sum(float((cut[name] - whole[name]).square().sum()) for name in whole))
    assert apart < 2e-6 * total
    torch.testing.assert_close(read, model(**model_inputs(batch)).logits)
    watch.remove()
    assert not model.bert.encoder.layer[-1].attention.output._forward_pre_hooks


def test_a_model_whose_head_reads_more_is_left_alone(batch):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=800, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    )
    with shortcuts.first_position_only(model):
        assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_fast_dropout_drops_as_often_and_scales_as_much(p):
    ones = torch.ones(1000, 1001)  # an odd number of elements
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept = shortcuts.FastDropout(p)(ones)
        other = shortcuts.FastDropout(p)(ones)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-6)]
    n, dropped = ones.numel(), kept == 0
    assert abs(dropped.double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / n)
    # Neighbours share a 64-bit word, and two draws share a generator: neither may know of the other.
    flat, again = dropped.flatten().double() - p, (other == 0).flatten().double() - p
    for one, two in ((flat[:-1], flat[1:]), (flat[:-2], flat[2:]), (flat, again)):
        assert abs(float((one * two).mean())) < 4 * p * (1 - p) / math.sqrt(n)
    assert torch.equal(shortcuts.FastDropout(p).eval()(ones), ones)


def test_fast_dropout_has_the_gradient_of_its_mask():
    values = torch.randn(64, 64, requires_grad=True)
    kept = shortcuts.FastDropout(0.3)(values)
    kept.sum().backward()
    assert torch.equal(values.grad == 0, kept == 0)
    assert torch.allclose(kept, values * values.grad)


@pytest.mark.parametrize(("cpu", "fast"), [("AMD EPYC", True), ("Intel(R) Xeon(R)", False)])
def test_dropout_is_exchanged_where_it_pays_and_put_back(classifier, monkeypatch, cpu, fast):
    monkeypatch.setattr(shortcuts, "machine", lambda: {"cpu": cpu})
    before = list(classifier.model.modules())
    with shortcuts.dropout_drawn_fast(classifier.model, torch.device("cpu")):
        kinds = {type(module) for module in classifier.model.modules()}
        assert (shortcuts.FastDropout in kinds) == fast
        assert (torch.nn.Dropout in kinds) == (not fast)
    assert all(one is other for one, other in zip(before, classifier.model.modules(), strict=True))
    with shortcuts.dropout_drawn_fast(classifier.model, torch.device("cuda")):
        assert shortcuts.FastDropout not in {type(module) for module in classifier.model.modules()}


def test_a_run_leaves_the_model_as_it_came(classifier, toy):
    before = [(name, type(module)) for name, module in classifier.model.named_modules()]
    config = TrainingConfig(batch_size=16, max_length=48, precision="fp32", max_steps=2)
    fit(classifier.model, classifier.tokenizer, toy[:32], config=config)
    assert [(name, type(module)) for name, module in classifier.model.named_modules()] == before
    assert not any(module.training for module in classifier.model.modules())
    assert not any(module._forward_pre_hooks for module in classifier.model.modules())
