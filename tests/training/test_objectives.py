"""Sums and counts: micro-batches add up to the batch, and nothing is learned from padding."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from companion.data import Example, batches
from companion.models import load
from companion.training import (
    CausalLanguageModelling,
    Classification,
    MaskedLanguageModelling,
    Regression,
    TrainingConfig,
    fit,
    mean_loss,
)
from companion.training.callbacks import Callback
from companion.training.objectives import IGNORED, mask_tokens, model_inputs
from companion.training.preparation import default_objective

LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def tokenizer(encoder_folder: Path):
    return load(encoder_folder, labels=LABELS).tokenizer


@pytest.fixture(scope="module")
def texts(toy):
    """Sixteen texts from short to ten times as long, without labels."""
    found = sorted(toy, key=lambda example: len(example.text))
    return [example._replace(label=None) for example in found[::20]]


def classifier(encoder: Path, **options):
    model = load(encoder, **(options or {"labels": LABELS})).model
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def language_model(kind: str):
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "causal":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 800}
            return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForMaskedLM(BertConfig(vocab_size=800, max_position_embeddings=64, **sizes, **off))


class Gradients(Callback):
    """Keeps the gradients of the first step, before they are clipped."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_gradients(self, state):
        if not self.found:
            self.found = {
                name: parameter.grad.double().clone()
                for name, parameter in state.model.named_parameters()
                if parameter.grad is not None
            }


def gradients(model, tokenizer, examples, objective, micro_batch_size) -> tuple[torch.Tensor, float]:
    """Return all gradients of one step in one vector, and the loss."""
    seen = Gradients()
    config = TrainingConfig(
        max_steps=1,
        batch_size=len(examples),
        micro_batch_size=micro_batch_size,
        max_length=48,
        precision="fp32",
        learning_rate=1e-5,
    )
    run = fit(model, tokenizer, examples, config=config, objective=objective, callbacks=[seen])
    return torch.cat([seen.found[name].flatten() for name in sorted(seen.found)]), run.steps[0].loss


def objective_of(kind: str, tokenizer):
    return {
        "classification": Classification(),
        "smoothed classification": Classification(label_smoothing=0.1),
        "regression": Regression(),
        "causal": CausalLanguageModelling(),
        "masked": MaskedLanguageModelling(tokenizer),
    }[kind]


KINDS = ["classification", "smoothed classification", "regression", "causal", "masked"]


def made(kind: str, encoder: Path, toy, texts):
    if "classification" in kind:
        # 13 of one label, 3 of the other: where both are as frequent, a fresh head's pulls nearly cancel,
        # and what is left is small against the rounding of what cancelled.
        return classifier(encoder), [*toy[:26:2], *toy[1:7:2]]
    if kind == "regression":
        return classifier(encoder, regression=True), [e._replace(label=float(e.label)) for e in toy[:16]]
    return language_model(kind), texts


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_micro_batches_are_those_of_the_batch(
    encoder_folder, tokenizer, toy, texts, kind, micro_batch_size
):
    """Within 1e-6 of the whole gradient's length: uneven lengths, a last micro-batch that is smaller."""
    objective = objective_of(kind, tokenizer)
    model, examples = made(kind, encoder_folder, toy, texts)
    whole, loss = gradients(model, tokenizer, examples, objective, None)
    model, examples = made(kind, encoder_folder, toy, texts)
    parts, loss_of_parts = gradients(model, tokenizer, examples, objective, micro_batch_size)
    assert torch.linalg.norm(parts - whole) / torch.linalg.norm(whole) < 1e-6
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_mean_of_means_would_not_be(encoder_folder, tokenizer, toy, texts, kind):
    """What the test above would miss if the texts were all of one length: the usual mistake is far off."""
    objective = objective_of(kind, tokenizer)
    model, examples = made(kind, encoder_folder, toy, texts)
    whole, _ = gradients(model, tokenizer, examples, objective, None)
    model, _ = made(kind, encoder_folder, toy, texts)
    halves = []
    for part in (examples[:8], examples[8:]):
        model, _ = made(kind, encoder_folder, toy, texts)
        halves.append(gradients(model, tokenizer, part, objective, None)[0])
    wrong = (halves[0] + halves[1]) / 2
    assert torch.linalg.norm(wrong - whole) / torch.linalg.norm(whole) > 1e-2


def batch_of(tokenizer, examples, **options):
    [batch] = batches(examples, tokenizer, batch_size=len(examples), max_length=48, **options)
    return batch


def test_classification_is_the_cross_entropy_of_torch(encoder_folder, tokenizer, toy):
    model, batch = classifier(encoder_folder), batch_of(tokenizer, toy[:8])
    with torch.no_grad():
        found = Classification().sums(model, batch)["loss"]
        expected = model(**model_inputs(batch), labels=batch["labels"]).loss * 8
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert Classification().counts(batch) == {"loss": 8}


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_targets_are_the_next_tokens_and_never_padding(tokenizer, texts, side):
    batch = batch_of(tokenizer, texts[:4])
    if side == "left":
        lengths = batch["attention_mask"].sum(1)
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.stack(
                [row.roll(int(len(row) - n)) for row, n in zip(batch[name], lengths, strict=True)]
            )
    ready = CausalLanguageModelling().prepare(batch, torch.Generator())
    for ids, mask, targets in zip(ready["input_ids"], ready["attention_mask"], ready["targets"], strict=True):
        real = ids[mask.bool()].tolist()
        assert targets[targets != IGNORED].tolist() == real[1:], "each real token but the first, once"
        at = (targets != IGNORED).nonzero().flatten().tolist()
        assert [ids[i + 1].item() for i in at] == real[1:], "where the token before it is"
    assert CausalLanguageModelling().counts(ready) == {"loss": int(batch["attention_mask"].sum()) - 4}


def test_causal_loss_is_that_of_transformers(tokenizer, texts):
    model, batch = language_model("causal").eval(), batch_of(tokenizer, texts[:4])
    ready = CausalLanguageModelling().prepare(batch, torch.Generator())
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        found = (
            CausalLanguageModelling().sums(model, ready)["loss"]
            / CausalLanguageModelling().counts(ready)["loss"]
        )
        expected = model(**model_inputs(batch), labels=labels).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_stands_in_the_padding_does_not_matter(tokenizer, texts):
    for kind in ("causal", "masked"):
        objective, model = objective_of(kind, tokenizer), language_model(kind).eval()
        batch = batch_of(tokenizer, texts[:4])
        assert (batch["attention_mask"] == 0).any()
        ready = objective.prepare(batch, torch.Generator().manual_seed(1))
        scribbled = {**ready, "input_ids": torch.where(ready["attention_mask"] == 0, 7, ready["input_ids"])}
        with torch.no_grad():
            one, other = (objective.sums(model, inputs)["loss"].item() for inputs in (ready, scribbled))
        assert one == pytest.approx(other, rel=1e-5)


# --- hiding tokens


def test_masking_hides_the_shares_that_bert_hides(tokenizer):
    ids = torch.randint(5, 800, (200, 64), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ready = mask_tokens(batch, tokenizer, share=0.15, generator=torch.Generator().manual_seed(0))
    chosen = ready["targets"] != IGNORED
    assert torch.equal(ready["targets"][chosen], ids[chosen])
    assert torch.equal(ready["input_ids"][~chosen], ids[~chosen])
    n, hidden = int(chosen.sum()), ready["input_ids"][chosen]
    for share, expected, of in (
        (n / ids.numel(), 0.15, ids.numel()),
        ((hidden == tokenizer.mask_token_id).double().mean().item(), 0.8, n),
        ((hidden == ids[chosen]).double().mean().item(), 0.1, n),
    ):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / of)


def test_special_tokens_and_padding_are_never_hidden(tokenizer, texts):
    batch = batch_of(tokenizer, texts)
    ready = mask_tokens(batch, tokenizer, share=1.0, generator=torch.Generator().manual_seed(0))
    special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(ready["targets"] == IGNORED, special | (batch["attention_mask"] == 0))


def test_masks_are_new_each_time_and_the_same_for_the_same_seed(tokenizer, texts):
    batch = batch_of(tokenizer, texts)
    first, again, other = (
        mask_tokens(batch, tokenizer, share=0.15, generator=torch.Generator().manual_seed(seed))["targets"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer, texts):
    class Bare:
        mask_token_id = None

    with pytest.raises(ValueError, match="has no mask token"):
        mask_tokens(batch_of(tokenizer, texts), Bare(), share=0.15, generator=torch.Generator())
    with pytest.raises(ValueError, match="share is 0"):
        mask_tokens(batch_of(tokenizer, texts), tokenizer, share=0, generator=torch.Generator())


# --- language models through the one loop


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_language_model_learns(tokenizer, toy, kind):
    model = language_model(kind)
    assert type(default_objective(model, tokenizer)).__name__.lower().startswith(kind)
    examples = [example._replace(label=None) for example in toy]
    config = TrainingConfig(epochs=4, batch_size=16, learning_rate=3e-3, max_length=48, precision="fp32")
    run = fit(model, tokenizer, examples[:256], config=config, dev=examples[256:])
    assert [list(evaluation.metrics) for evaluation in run.evaluations] == [["loss"]] * 4
    first, last = run.evaluations[0].metrics["loss"], run.evaluations[-1].metrics["loss"]
    assert last < first < math.log(800)
    again = mean_loss(
        model, tokenizer, examples[256:], objective=default_objective(model, tokenizer), max_length=48
    )
    assert again["loss"] == pytest.approx(last, rel=1e-6)


def test_a_regression_is_the_squared_error(encoder_folder, tokenizer):
    examples = [Example("the film was dull", 1.5), Example("the film was superb", 4.0)]
    batch = batch_of(tokenizer, examples, regression=True)
    model = classifier(encoder_folder, regression=True)
    with torch.no_grad():
        predicted = model(**model_inputs(batch)).logits[:, 0]
        expected = functional.mse_loss(predicted, batch["labels"], reduction="sum")
        assert Regression().sums(model, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
