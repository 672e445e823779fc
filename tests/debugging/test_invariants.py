"""Faults of the cache, the gradient of the scores, the residual stream and the effect of a step are found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import edited, planted
from torch import nn
from torch.nn import functional
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from companion.debugging import recipe, subject_from, subjects_from
from companion.debugging.checks.caches import cached_scores_are_the_same
from companion.debugging.checks.residual_stream import (
    each_part_reaches_the_stream,
    empty_blocks_change_nothing,
)
from companion.debugging.checks.score_gradients import (
    each_class_counts,
    enough_words_are_seen,
    other_scores_are_pushed_down,
    several_labels_do_not_compete,
    the_loss_aims_high,
)
from companion.debugging.checks.step_effects import (
    clipping_holds,
    padding_leaves_the_step,
    the_step_lasts,
    the_step_reads_its_batch,
)
from companion.debugging.zoo.subjects import reference_subject

STREAM = (empty_blocks_change_nothing, each_part_reaches_the_stream)
LOSS = (other_scores_are_pushed_down, each_class_counts, the_loss_aims_high)
STEP = (clipping_holds, the_step_lasts, the_step_reads_its_batch, padding_leaves_the_step)
CAUSAL = "causal language model"
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GPT2 = GPT2Config(
    vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
)


class ForgetfulGPT2(GPT2LMHeadModel):
    """Counts places from 0 again after what is cached."""

    def forward(self, input_ids=None, past_key_values=None, position_ids=None, **others):
        if past_key_values is not None and past_key_values.get_seq_length():
            position_ids = torch.zeros_like(input_ids)
        return super().forward(
            input_ids=input_ids, past_key_values=past_key_values, position_ids=position_ids, **others
        )


def wrong_recipe(*edits, kind="classification", **settings):
    return reference_subject(kind, recipe=edited(*edits, of=recipe), settings=settings)


@pytest.mark.parametrize(
    ("edit", "component"),
    [
        (("clamp(min=0)[:, -new:]", "clamp(min=0)[:, :new]"), "positions"),
        (("tril()[-new:]", "tril()[:new]"), "attention"),
    ],
)
def test_a_cache_that_moves_scores_is_found(edit, component):
    found = cached_scores_are_the_same(planted(edit))
    assert found.is_problem and found.component == component


def test_caches_of_transformers():
    right, wrong = (
        subject_from(lambda make=make: make(GPT2), task="causal-lm")
        for make in (GPT2LMHeadModel, ForgetfulGPT2)
    )
    assert cached_scores_are_the_same(right).status == "ok"
    found = cached_scores_are_the_same(wrong)
    assert found.is_problem and "wpe" in found.where


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_a_right_cache_is_quiet(positions):
    assert cached_scores_are_the_same(reference_subject(CAUSAL, positions=positions)).status == "ok"
    assert cached_scores_are_the_same(reference_subject()).status == "not applicable"


ADDED = "self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))"
STREAM_FAULTS = {
    "relu": (
        "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "return torch.relu(x + self.dropout(self.feed_forward(self.feed_forward_norm(x))))",
    ),
    "dropout": (
        "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))",
        "return self.dropout(x + self.feed_forward(self.feed_forward_norm(x)))",
    ),
    "norm": (
        "x = x + self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))",
        "x = self.attention_norm(x)\n            x = x + self.attention(x, visible, turns, cache)",
    ),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_what_changes_the_stream_is_found(name):
    found = empty_blocks_change_nothing(planted(STREAM_FAULTS[name]))
    assert found.is_problem and found.where == "blocks.0"
    assert found.component == ("dropout" if name == "dropout" else "layers")


def test_an_attention_that_is_not_added_to_the_stream_is_found():
    subject = planted(
        (f"x = x + {ADDED}", f"y = x + {ADDED}"),
        (
            "feed_forward_norm(x)))\n        x = self.attention_norm",
            "feed_forward_norm(y)))\n        x = self.attention_norm",
        ),
    )
    assert "attention" in each_part_reaches_the_stream(subject).summary
    assert each_part_reaches_the_stream(subject).is_problem
    assert each_part_reaches_the_stream(
        planted(("x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))", "x"))
    ).is_problem


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("check", STREAM, ids=lambda it: it.name)
def test_right_streams_are_quiet(norm, check):
    assert check(reference_subject(CAUSAL, norm=norm)).status == "ok"
    assert check(reference_subject(norm=norm, positions="rotary")).status == "ok"


@pytest.mark.parametrize("check", STREAM, ids=lambda it: it.name)
def test_shared_layers_and_two_texts_are_quiet(check):
    albert = AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=16))
    assert check(subject_from(lambda: albert, task="classification")).status == "ok"
    t5 = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    parts = subjects_from(lambda: T5ForConditionalGeneration(t5), task="seq2seq")
    assert [check(part).status for part in parts.values()] == ["ok", "ok"]


SUM = 'ignore_index=IGNORED, reduction="sum"'


@pytest.mark.parametrize(
    ("check", "edit"),
    [
        (other_scores_are_pushed_down, ("functional.cross_entropy(", "functional.nll_loss(")),
        (each_class_counts, (SUM, f"{SUM}, weight=torch.tensor([0.0, 1.0])")),
        (the_loss_aims_high, (SUM, f"{SUM}, label_smoothing=0.9")),
    ],
    ids=["nll", "weight", "smoothing"],
)
def test_losses_that_ask_for_the_wrong_scores_are_found(check, edit):
    assert check(wrong_recipe(edit)).is_problem


@pytest.mark.parametrize("check", LOSS, ids=lambda it: it.name)
@pytest.mark.parametrize("more", ["", ", label_smoothing=0.2", ", weight=torch.tensor([0.2, 1.0])"])
def test_losses_in_use_are_quiet(check, more):
    assert check(wrong_recipe((SUM, SUM + more))).status == "ok"


def test_focal_loss_and_log_probabilities_are_quiet():
    def focal(model, batch):
        chosen = model(batch["input_ids"], batch["attention_mask"]).log_softmax(-1)
        chosen = chosen.gather(-1, batch["labels"][:, None])
        return -((1 - chosen.exp()) ** 2 * chosen).mean()

    subject = replace(reference_subject(), loss=focal)
    assert not any(check(subject).is_problem for check in LOSS)
    normal = edited(("        return self.head(hidden)", "        return self.head(hidden).log_softmax(-1)"))
    nll = edited(("functional.cross_entropy(", "functional.nll_loss("), of=recipe)
    assert not other_scores_are_pushed_down(reference_subject(transformer=normal, recipe=nll)).is_problem


@pytest.mark.parametrize(
    ("loss", "status"),
    [
        (functional.cross_entropy, "problem"),
        (functional.binary_cross_entropy_with_logits, "ok"),
        (lambda scores, labels: functional.cross_entropy(scores, labels / labels.sum(-1)[:, None]), "ok"),
    ],
    ids=["softmax", "sigmoids", "shares"],
)
def test_several_labels(loss, status):
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    subject = reference_subject(classes=3)
    batch = {**{name: value[:4] for name, value in subject.batches[0].items()}, "labels": labels}
    told = replace(
        subject,
        batches=[batch],
        loss=lambda model, it: loss(model(it["input_ids"], it["attention_mask"]), it["labels"]),
    )
    assert several_labels_do_not_compete(told).status == status


def test_too_many_hidden_words_are_found():
    often = wrong_recipe(
        ("generator=generator) < 0.15)", "generator=generator) < 0.85)"), kind="masked language model"
    )
    assert enough_words_are_seen(often).is_problem
    assert enough_words_are_seen(reference_subject("masked language model")).status == "ok"


def bert_step(model, optimizer, batch):
    model.train()
    optimizer.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def without_mask(model, optimizer, batch):
    return bert_step(model, optimizer, {k: v for k, v in batch.items() if k != "attention_mask"})


def averaged_back(model, optimizer, batch):
    before = [it.detach().clone() for it in model.parameters()]
    loss = bert_step(model, optimizer, batch)
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.copy_(old.lerp(parameter, 0.01))
    return loss


def scaled(model, optimizer, batch):
    model.train()
    optimizer.zero_grad()
    loss = model(**batch).loss
    (1024 * loss).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= 1024
    optimizer.step()
    return loss.item()


def always_the_first():
    held = {}
    return lambda model, optimizer, batch: bert_step(model, optimizer, held.setdefault("batch", batch))


def bert_subject(step):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 97, (3, 6, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, ::2, 9:] = 0
    batches = [
        {"input_ids": i.masked_fill(m == 0, 0), "attention_mask": m, "labels": torch.tensor([0, 1, 2] * 2)}
        for i, m in zip(ids, mask, strict=True)
    ]
    return subject_from(
        lambda: BertForSequenceClassification(BertConfig(**SMALL, num_labels=3)),
        task="classification",
        batches=batches,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
        train_step=step,
    )


@pytest.mark.parametrize(
    ("check", "step"),
    [
        (padding_leaves_the_step, without_mask),
        (the_step_lasts, averaged_back),
        (clipping_holds, scaled),
        (the_step_reads_its_batch, always_the_first()),
    ],
    ids=["mask", "average", "scale", "first"],
)
def test_steps_that_do_something_else_are_found(check, step):
    assert check(bert_subject(step)).is_problem
    assert check(bert_subject(bert_step)).status == "ok"


def test_clipping_before_the_division_is_found():
    early = (
        "    # Divided by all that",
        "    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)\n    # Divided by all that",
    )
    assert clipping_holds(wrong_recipe(early)).is_problem


@pytest.mark.parametrize("kind", ["classification", CAUSAL, "masked language model"])
def test_right_steps_are_quiet(kind):
    subject = reference_subject(kind)
    assert [check(subject).status for check in STEP] == ["ok"] * 4
