"""Checks of the step, the optimizer and the schedule find planted faults, and leave right ones alone."""

from __future__ import annotations

import inspect
import itertools
import math
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from companion.debugging import recipe
from companion.debugging.checks import accumulation, optimizers, order, schedules, steps
from companion.debugging.spying import NoDropout, apart, length, spied
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

STEP_CHECKS = [
    steps.parameters_move,
    order.order_of_the_step,
    steps.gradients_are_zeroed,
    steps.training_mode,
    accumulation.accumulation_equivalence,
    accumulation.step_follows_the_loss,
]
OPTIMIZER_CHECKS = [
    optimizers.optimizer_coverage,
    optimizers.decay_groups,
    optimizers.adam_settings,
    schedules.schedule_shape,
    schedules.warm_up,
]
LM = "causal language model"
BACKWARD = "        loss.backward()  # type: ignore[no-untyped-call]\n"
ZERO = "    optimizer.zero_grad()\n"
CLIP = "    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)\n"
STEP = "    optimizer.step()\n"
DIVIDE = """    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= max(count, 1)
"""


def edited(*edits: tuple[str, str]) -> types.ModuleType:
    """Return the recipe with some of its source replaced."""
    source = inspect.getsource(recipe)
    for before, after in edits:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    module = types.ModuleType(recipe.__name__)
    exec(compile(source, "recipe", "exec"), vars(module))
    return module


def broken(*edits: tuple[str, str], kind: str = LM, **options) -> Subject:
    return reference_subject(kind, recipe=edited(*edits), **options)


def huggingface(kind: str, step, **options) -> Subject:
    """Return a tiny GPT-2 or BERT with labels in its batches and the loss inside."""
    right = reference_subject(kind)
    if kind == LM:
        config = GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        make, batches = partial(GPT2LMHeadModel, config), []
        for batch in right.batches:
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            batches.append({**batch, "labels": labels})
    else:
        config = BertConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        make, batches = partial(BertForSequenceClassification, config), list(right.batches)
    made = Subject(
        make_model=make,
        kind=kind,
        vocab_size=400,
        classes=right.classes,
        max_length=64,
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=5e-4),
        loss=lambda model, batch: model(**batch).loss,
        train_step=step,
        batches=batches,
    )
    return replace(made, **options)


def plain(model, optimizer, parts):
    for part in parts:
        loss = model(**part).loss / len(parts)
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def only_the_first(model, optimizer, parts):
    model.train()
    optimizer.zero_grad(set_to_none=False)
    loss = model(**parts[0]).loss
    loss.backward()
    optimizer.step()


def alarms(subject: Subject, checks) -> list[str]:
    return [
        f"{found.check}: {found.summary}" for found in (one(subject) for one in checks) if found.is_problem
    ]


FAULTS = {
    "no zero_grad": (steps.gradients_are_zeroed, [(ZERO, "")]),
    "zero_grad before step": (order.order_of_the_step, [(STEP, ZERO + STEP)]),
    "clip after step": (order.order_of_the_step, [(CLIP + STEP, STEP + CLIP)]),
    "no step": (order.order_of_the_step, [(STEP, "")]),
    "two steps": (order.order_of_the_step, [(STEP, STEP + STEP)]),
    "no backward": (order.order_of_the_step, [(BACKWARD, "")]),
    "zero_grad for each part": (
        accumulation.accumulation_equivalence,
        [(BACKWARD, "        optimizer.zero_grad()\n        loss.backward()\n")],
    ),
    "mean of means": (
        accumulation.accumulation_equivalence,
        [(BACKWARD, "        (loss / predicted / len(parts)).backward()\n"), (DIVIDE, "")],
    ),
    "not divided by the number of parts": (
        accumulation.accumulation_equivalence,
        [(BACKWARD, "        (loss / predicted).backward()\n"), (DIVIDE, "")],
    ),
    "each part clipped": (
        accumulation.accumulation_equivalence,
        [
            (
                BACKWARD,
                "        loss.backward()\n        nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n",
            )
        ],
    ),
    "sum instead of mean": (accumulation.step_follows_the_loss, [(DIVIDE, "")]),
    "uphill": (accumulation.step_follows_the_loss, [(BACKWARD, "        (-loss).backward()\n")]),
    "in evaluation mode": (
        steps.training_mode,
        [("    model.train()\n    optimizer", "    model.eval()\n    optimizer")],
    ),
    "biases left out": (
        optimizers.optimizer_coverage,
        [("groups = [\n", "others = others[:1]\n    groups = [\n")],
    ),
    "of another model": (
        optimizers.optimizer_coverage,
        [("    matrices =", "    import copy\n    model = copy.deepcopy(model)\n    matrices =")],
    ),
    "weight decay on norms": (
        optimizers.decay_groups,
        [('"weight_decay": 0.0}', '"weight_decay": settings.weight_decay}')],
    ),
    "betas the wrong way round": (
        optimizers.adam_settings,
        [("lr=settings", "betas=(0.999, 0.9), lr=settings")],
    ),
    "four times too fast": (
        schedules.schedule_shape,
        [("    warmup = max", "    steps //= 4\n    warmup = max")],
    ),
    "four times too slow": (
        schedules.schedule_shape,
        [("    warmup = max", "    steps *= 4\n    warmup = max")],
    ),
}
NO_WARM_UP = ("        if step < warmup:\n            return (step + 1) / (warmup + 1)\n", "")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name):
    check, edits = FAULTS[name]
    found = check(broken(*edits))
    assert found.is_problem, found.summary
    assert found.why and found.fix


def over_calls(every: int, *, zeroed="after", start=0):
    """Return a training step that counts its calls, and lets the optimizer step at every few of them."""
    calls = itertools.count(start + 1)

    def step(model, optimizer, parts):
        model.train()
        number = next(calls)
        if zeroed == "always":
            optimizer.zero_grad()
        (recipe.mean_loss(model, parts[0]) / every).backward()
        if number % every == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if zeroed == "after":
                model.zero_grad()

    return step


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("every", [2, 4, 5])
def test_a_step_at_every_few_calls_is_judged_by_all_of_them(every, start):
    subject = reference_subject(LM, layers=1)
    for check in STEP_CHECKS:
        found = check(replace(subject, train_step=over_calls(every, start=start)))
        assert not found.is_problem, (found.check, found.summary)
    found = order.order_of_the_step(replace(subject, train_step=over_calls(every, start=start)))
    assert f"a step at every {every} calls" in found.summary and found.evidence["calls"] == every


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize(
    ("zeroed", "said"), [("always", "zeroed in between"), ("never", "are still there at the first")]
)
def test_gradients_lost_or_kept_between_the_calls_of_a_step_are_found(zeroed, said, start):
    step = over_calls(3, zeroed=zeroed, start=start)
    found = order.order_of_the_step(replace(reference_subject(LM, layers=1), train_step=step))
    assert found.is_problem and said in found.summary, found.summary


def test_a_step_that_never_comes_says_what_was_expected():
    found = order.order_of_the_step(broken((STEP, ""), layers=1))
    assert f"no step in {steps.PATIENCE} calls, expected one at each" in found.summary
    assert "(seen: zero_grad -> backward -> clip)" in found.summary
    assert "one call of the training step is one step of the optimizer" in found.fix
    assert "moved in 32 calls" in steps.parameters_move(broken((STEP, ""), layers=1)).summary


def test_what_an_optimizer_forgets_does_not_move():
    found = steps.parameters_move(broken(("groups = [\n", "others = others[:1]\n    groups = [\n")))
    assert found.is_problem and found.component == "optimizer" and "attention_norm.weight" in found.where
    assert steps.parameters_move(broken((STEP, ZERO + STEP))).component == "training step"


@pytest.mark.parametrize("kind", [LM, "classification"])
@pytest.mark.parametrize("settings", [{}, {"pad_left": True, "micro_batches": 4}])
def test_the_recipe_gives_no_alarm(kind, settings):
    assert alarms(reference_subject(kind, settings=settings), STEP_CHECKS + OPTIMIZER_CHECKS) == []


@pytest.mark.parametrize(
    "edits",
    [
        [(ZERO, ""), (STEP, STEP + ZERO)],
        [(ZERO, "    optimizer.zero_grad(set_to_none=False)\n")],
        [(CLIP, "")],
        [("torch.optim.AdamW(groups", "torch.optim.SGD(groups, momentum=0.9")],
        [
            (ZERO, "    model.zero_grad()\n"),
            (CLIP, "    nn.utils.clip_grad_value_(model.parameters(), 0.1)\n"),
        ],
    ],
    ids=["zero at the end", "zeros kept", "no clipping", "SGD", "model.zero_grad"],
)
def test_steps_written_otherwise_give_no_alarm(edits):
    assert alarms(broken(*edits), STEP_CHECKS + OPTIMIZER_CHECKS[:3]) == []


def test_the_mode_may_be_left_to_the_loop_unless_an_evaluation_changes_it():
    subject = broken(("    model.train()\n    optimizer", "    optimizer"))
    assert alarms(replace(subject, evaluate=None), STEP_CHECKS + OPTIMIZER_CHECKS[:3]) == []
    found = steps.training_mode(subject)
    assert found.is_problem and found.component == "dropout"
    assert "next training step" in found.summary


@pytest.mark.parametrize("step", [plain, only_the_first])
def test_hugging_face_classifiers_give_no_alarm(step):
    assert alarms(huggingface("classification", step), STEP_CHECKS + OPTIMIZER_CHECKS) == []


def test_hugging_face_language_models_give_no_alarm():
    subject = huggingface(LM, plain)
    blocks = [{name: value[:, :8] for name, value in batch.items()} for batch in subject.batches]
    blocks = [batch for batch in blocks if bool(batch["attention_mask"].all())]
    assert alarms(replace(subject, batches=blocks), STEP_CHECKS + OPTIMIZER_CHECKS) == []
    assert accumulation.accumulation_equivalence(replace(subject, batches=blocks)).status == "ok"
    # Texts of different lengths make the same step wrong.
    assert accumulation.accumulation_equivalence(subject).is_problem
    assert alarms(huggingface(LM, only_the_first), STEP_CHECKS) == []


def test_checks_that_cannot_tell_say_so():
    subject = reference_subject(LM)
    one_row = [{name: value[:1] for name, value in subject.batches[0].items()}]
    assert steps.gradients_are_zeroed(replace(subject, batches=one_row)).status == "not applicable"
    assert accumulation.accumulation_equivalence(replace(subject, batches=one_row)).status == "not applicable"
    assert steps.training_mode(reference_subject(LM, dropout=0.0)).status == "not applicable"
    assert order.order_of_the_step(replace(subject, train_step=None)).status == "not applicable"
    sgd = replace(subject, make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    assert optimizers.adam_settings(sgd).status == schedules.warm_up(sgd).status == "not applicable"
    plateau = replace(subject, make_schedule=lambda optimizer, steps: ReduceLROnPlateau(optimizer))
    assert schedules.schedule_shape(plateau).status == "not applicable"


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1.0),
        lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        lambda optimizer, steps: CosineAnnealingLR(optimizer, steps, eta_min=1e-4),
        lambda optimizer, steps: get_linear_schedule_with_warmup(optimizer, steps // 10, steps),
        lambda optimizer, steps: get_cosine_schedule_with_warmup(optimizer, steps // 20, steps),
        lambda optimizer, steps: LambdaLR(
            optimizer, lambda step: min((step + 1) / 20, math.sqrt(20 / (step + 1)))
        ),
        lambda optimizer, steps: LambdaLR(optimizer, lambda step: 0.5 ** (step // (steps // 4))),
    ],
    ids=[
        "constant",
        "cosine",
        "cosine to a tenth",
        "linear",
        "cosine with warm-up",
        "inverse root",
        "stairs",
    ],
)
def test_usual_schedules_give_no_alarm(make):
    subject = reference_subject(LM, settings={"learning_rate": 5e-4})
    assert alarms(replace(subject, make_schedule=make), OPTIMIZER_CHECKS) == []


@pytest.mark.parametrize(
    "factor",
    [
        lambda step, steps: 0.0,
        lambda step, steps: max(0.0, (step - 10) / steps),
        lambda step, steps: 3.0 * (1 - step / steps),
        lambda step, steps: 0.5 + 0.5 * math.cos(4 * math.pi * step / steps),
        lambda step, steps: 1 - step / (3 * steps),
        lambda step, steps: -0.1,
    ],
    ids=["zero", "zero at first", "too high", "cosine goes on", "never down", "negative"],
)
def test_odd_schedules_are_found(factor):
    def make(optimizer, steps):
        return LambdaLR(optimizer, lambda step: factor(step, steps))

    assert schedules.schedule_shape(replace(reference_subject(LM), make_schedule=make)).is_problem


class Uncorrected(torch.optim.Optimizer):
    """Adam as in many a notebook: the means are not corrected for starting at zero."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * parameter.grad
                state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * parameter.grad**2
                parameter -= 1e-3 * state["m"] / (state["v"].sqrt() + 1e-8)


def test_an_uncorrected_adam_is_found():
    subject = replace(reference_subject(LM), make_optimizer=lambda model: Uncorrected(model.parameters()))
    found = optimizers.adam_settings(subject)
    assert found.is_problem and "not corrected" in found.summary
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam):
        right = replace(subject, make_optimizer=lambda model, kind=kind: kind(model.parameters(), lr=1e-3))
        assert not optimizers.adam_settings(right).is_problem, kind


def falls_at_once(optimizer, steps):
    return CosineAnnealingLR(optimizer, steps)


class Bag(nn.Module):
    """Means of words: nothing attends to anything."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(400, 16), nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None):
        return self.out(self.words(input_ids).mean(1))


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


def stepped(model, optimizer, parts):
    optimizer.zero_grad()
    classified(model, parts[0]).backward()
    optimizer.step()


def test_no_warm_up_is_found_where_each_sum_has_a_norm_after_it():
    for kind in (LM, "classification"):
        found = schedules.warm_up(broken(NO_WARM_UP, kind=kind, norm="post"))
        assert found.is_problem and "a norm after each sum" in found.summary
        assert found.evidence["highest / first loss"] < 1, "the loss alone does not show it"
    lower = broken(NO_WARM_UP, norm="post", settings={"learning_rate": 3e-4})
    assert schedules.warm_up(lower).status == "ok"


def test_a_first_step_that_is_too_long_is_found_wherever_norms_are():
    found = schedules.warm_up(broken(NO_WARM_UP, kind="classification", settings={"learning_rate": 2e-2}))
    assert found.is_problem and "raise its loss" in found.summary
    assert found.evidence["highest / first loss"] > 1.2 > found.evidence["at a tenth of the rate"]
    assert (
        schedules.warm_up(reference_subject("classification", settings={"learning_rate": 2e-2})).status
        == "ok"
    )


def test_a_fast_start_is_no_alarm_where_nothing_is_known_to_need_a_slow_one():
    falls = {"make_schedule": falls_at_once}
    for kind in (LM, "classification"):
        assert schedules.warm_up(replace(reference_subject(kind), **falls)).status == "ok"
    bag = replace(
        reference_subject("classification"), make_model=Bag, loss=classified, train_step=stepped, **falls
    )
    adam = replace(bag, make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-3))
    assert "no attention" in schedules.warm_up(adam).summary
    # Its first steps are as long as its gradients until it knows their size: it warms itself up.
    post = replace(reference_subject(LM, norm="post"), **falls)
    radam = replace(post, make_optimizer=lambda model: torch.optim.RAdam(model.parameters(), lr=1e-3))
    assert schedules.warm_up(radam).status == "not applicable"
    for kind in (torch.optim.Adam, torch.optim.NAdam):
        risky = replace(post, make_optimizer=lambda model, kind=kind: kind(model.parameters(), lr=1e-3))
        assert schedules.warm_up(risky).is_problem, kind


def test_vectors_that_are_normalised_before_the_blocks_are_no_post_norm():
    class NormedWords(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.norm = model, nn.LayerNorm(32, eps=1e-12)
            for weight in model.blocks.parameters():
                weight.data.mul_(0.1 if weight.dim() > 1 else 1.0)
            model.tokens.register_forward_hook(lambda module, arguments, output: self.norm(output))

        def forward(self, input_ids, attention_mask=None):
            return self.model(input_ids, attention_mask)

    pre = reference_subject(LM, norm="pre", positions="rotary")
    wrapped = replace(pre, make_model=lambda: NormedWords(pre.make_model()))
    assert not schedules.has_post_norm(wrapped)


def test_post_norm_is_recognised_without_names():
    assert schedules.has_post_norm(reference_subject(LM, norm="post"))
    assert schedules.has_post_norm(huggingface("classification", plain))
    assert not schedules.has_post_norm(reference_subject(LM, norm="pre"))
    assert not schedules.has_post_norm(huggingface(LM, plain))


def test_spying_leaves_everything_as_it_was():
    subject = reference_subject(LM)
    model = subject.model()
    optimizer = subject.make_optimizer(model)
    attributes, clip = set(vars(optimizer)), nn.utils.clip_grad_norm_
    with pytest.raises(RuntimeError, match="enough"), spied(model, optimizer) as record:
        optimizer.zero_grad()
        raise RuntimeError("enough")
    assert record.events == ["zero_grad"]
    assert set(vars(optimizer)) == attributes and nn.utils.clip_grad_norm_ is clip
    assert not model._forward_pre_hooks
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_closure_is_spied_on_as_well():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss

    with spied(model, optimizer) as record:
        optimizer.step(closure)
    assert record.events == ["step", "zero_grad", "backward"]
    assert record.at_step[0]["weight"].tolist() == [[1.0, 1.0]]


def test_no_dropout_reaches_every_way_to_drop():
    x = torch.ones(1, 2, 4, 8)
    attention = nn.MultiheadAttention(8, 2, dropout=0.5)
    with NoDropout():
        assert torch.equal(nn.functional.dropout(x), x)
        assert torch.equal(nn.Dropout(0.9)(x), x)
        one, other = (nn.functional.scaled_dot_product_attention(x, x, x, None, 0.9) for _ in range(2))
        assert torch.equal(one, other)
        assert torch.equal(attention(x[0], x[0], x[0])[0], attention(x[0], x[0], x[0])[0])
    assert not torch.equal(nn.Dropout(0.9)(x), x)


def test_directions_do_not_depend_on_length():
    one = {"a": torch.tensor([3.0, 4.0])}
    assert length(one) == 5.0
    assert apart(one, {"a": 10 * one["a"]}) < 1e-7
    assert apart(one, {"a": -one["a"]}) == pytest.approx(2.0)
    assert math.isnan(apart(one, {"a": torch.zeros(2)}))
