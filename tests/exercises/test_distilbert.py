"""The checks of exercise 1: fair to right answers of any form; wrong ones fail, and the mistake is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional
from transformers import BertModel, PreTrainedModel

from companion import exercises
from companion.exercises import StepResult
from companion.training.distillation import cosine_distance, kl_with_temperature, make_student
from companion.training.objectives import mask_tokens

Tensor = torch.Tensor
SEEDS = range(2)


def check(step: str, work: Any, seed: int) -> StepResult:
    return exercises.load("distilbert").check(step, work, seed=seed)


def passes(step: str, work: Any) -> StepResult:
    for seed in SEEDS:
        result = check(step, work, seed)
        assert result.passed, str(result)
    return result


def fails(step: str, work: Any, names: str) -> None:
    """See that it fails for every seed, with numbers, and that the finding names the mistake."""
    for seed in SEEDS:
        result = check(step, work, seed)
        assert result.status == "failed" and names.lower() in result.says.lower(), str(result)
        assert any(not item.passed for item in result.evidence), str(result)


# --- kl: right in unusual forms


def kl_by_hand(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    p = (t.detach() / temperature).softmax(-1)
    q = (s / temperature).softmax(-1)
    return temperature * temperature * ((p * (p / q).log()).sum(-1) * m).sum()


def kl_by_torch_distributions(a: Tensor, b: Tensor, where: Tensor, tau: float) -> Tensor:
    teacher, student = (torch.distributions.Categorical(logits=x / tau) for x in (b.detach(), a))
    return torch.where(where, torch.distributions.kl_divergence(teacher, student), 0.0).sum() * tau**2


def kl_batchmean_times_count(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (
        functional.log_softmax(s[m] / temperature, -1),
        functional.softmax(t[m] / temperature, -1).detach(),
    )
    return functional.kl_div(own, its, reduction="batchmean") * len(own) * temperature**2


def kl_token_by_token(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((1,), dtype=torch.float64)
    for row, place in m.nonzero().tolist():
        own, its = s[row, place].double() / temperature, t[row, place].detach().double() / temperature
        total = total + (its.softmax(0) * (its.log_softmax(0) - own.log_softmax(0))).sum() * temperature**2
    return total


def kl_numpy(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> np.float64:
    own, its = (log_softmax(x.numpy().astype("float64")[m.numpy()] / temperature, axis=-1) for x in (s, t))
    return (np.exp(its) * (its - own)).sum() * temperature**2


RIGHT_KL = [
    kl_with_temperature,
    kl_by_hand,
    kl_by_torch_distributions,
    kl_batchmean_times_count,
    kl_token_by_token,
]


@pytest.mark.parametrize("work", RIGHT_KL)
def test_a_right_divergence_passes_in_any_form(work: Any) -> None:
    assert passes("kl", work).remarks == ()


@pytest.mark.parametrize(
    "work", [kl_numpy, lambda *a: kl_by_hand(*a).item(), lambda *a: kl_by_hand(*a).detach()]
)
def test_a_number_without_a_gradient_passes_and_is_told_that_it_cannot_train(work: Any) -> None:
    assert "nothing can be trained with it" in passes("kl", work).remarks[0]


# --- kl: wrong


def log_probabilities(x: Tensor, axis: int = -1, temperature: float = 1.0) -> Tensor:
    return functional.log_softmax(x / temperature, dim=axis)


def kl_with(reduction: str) -> Callable[..., Tensor]:
    def work(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
        own, its = (log_probabilities(x[m], -1, temperature) for x in (s, t.detach()))
        return functional.kl_div(own, its, reduction=reduction, log_target=True) * temperature**2

    return work


def kl_over(axis: int) -> Callable[..., Tensor]:
    def work(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
        own, its = (log_probabilities(x, axis, temperature) for x in (s, t.detach()))
        return functional.kl_div(own, its, reduction="none", log_target=True)[m].sum() * temperature**2

    return work


def kl_cross_entropy(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (log_probabilities(x[m], -1, temperature) for x in (s, t.detach()))
    return -(its.exp() * own).sum() * temperature**2


def kl_without_log(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (log_probabilities(x[m], -1, temperature) for x in (s, t.detach()))
    return functional.kl_div(own.exp(), its.exp(), reduction="sum") * temperature**2


def kl_of_flat_batch(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (log_probabilities(x, -1, temperature) for x in (s, t.detach()))
    return functional.kl_div(own, its, reduction="batchmean", log_target=True) * temperature**2


def kl_teacher_learns(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (log_probabilities(x[m], -1, temperature) for x in (s, t))
    return functional.kl_div(own, its, reduction="sum", log_target=True) * temperature**2


def kl_half_detached(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    own, its = (log_probabilities(x[m], -1, temperature) for x in (s, t.detach()))
    return (
        (its.exp() * its).sum() - (its.exp() * own).sum() * 0.5 - (its.exp() * own.detach()).sum() * 0.5
    ) * (temperature**2)


def kl_in_place(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    t /= temperature
    return kl_with_temperature(s / temperature, t, m, 1.0) * temperature**2


def kl_that_remembers() -> Callable[..., Tensor]:
    calls: list[int] = []

    def work(*arguments: Any) -> Tensor:
        calls.append(1)
        return kl_with_temperature(*arguments) * (1 if len(calls) <= 3 else 2)

    return work


WRONG_KL = {
    "the factor T² is missing": lambda s, t, m, T: kl_with_temperature(s, t, m, T) / T**2,
    "the factor is T instead of T²": lambda s, t, m, T: kl_with_temperature(s, t, m, T) / T,
    "divided by T² instead": lambda s, t, m, T: kl_with_temperature(s, t, m, T) / T**4,
    "not divided by the temperature": lambda s, t, m, T: kl_with_temperature(s, t, m, 1.0) * T**2,
    "only the student's logits are divided": lambda s, t, m, T: kl_with_temperature(s / T, t, m, 1.0) * T**2,
    "only the teacher's logits are divided": lambda s, t, m, T: kl_with_temperature(s, t / T, m, 1.0) * T**2,
    "swapped in the divergence": lambda s, t, m, T: kl_with_temperature(t, s, m, T),
    "padding is counted too": lambda s, t, m, T: kl_with_temperature(s, t, None, T),
    "a mean over the positions": kl_with("batchmean"),
    "reduction='mean'": kl_with("mean"),
    "padding is counted too and it is divided by the number of texts": kl_of_flat_batch,
    "over the positions instead of the classes": kl_over(1),
    "over the batch instead of the classes": kl_over(0),
    "a cross-entropy and not a divergence": kl_cross_entropy,
    "as probabilities where kl_div wants": kl_without_log,
    "a gradient flows into the teacher": kl_teacher_learns,
    "the student's gradient is not": kl_half_detached,
    "changes what it is given: the teacher's tensor": kl_in_place,
    "7 times what it should be": lambda s, t, m, T: kl_with_temperature(s, t, m, T) * 7,
    "not by a mistake that this check knows": lambda s, t, m, T: s.square().sum(),
}


@pytest.mark.filterwarnings("ignore:reduction")  # torch warns of what one of them does
@pytest.mark.parametrize("names", WRONG_KL)
def test_a_wrong_divergence_fails_and_its_mistake_is_named(names: str) -> None:
    fails("kl", WRONG_KL[names], names)


def test_several_mistakes_at_once_are_named_together() -> None:
    for seed in SEEDS:
        says = check("kl", lambda s, t, m, T: kl_with_temperature(t, s, None, T) / T**2, seed).says
        assert all(part in says for part in ("swapped", "padding is counted", "the factor T² is missing"))


def test_an_answer_learnt_by_heart_fails_on_other_inputs() -> None:
    first = check("kl", lambda *a: 0.0, 1).evidence[0].expected
    assert check("kl", lambda *a: float(first), 2).status == "failed"
    assert check("kl", lambda *a: float(first), 1).status == "failed"  # it is not the only case


def test_a_divergence_that_changes_from_call_to_call_fails() -> None:
    assert "keeps something between calls" in check("kl", kl_that_remembers(), 0).says


# --- cosine

FREE = torch.nn.CosineSimilarity(dim=-1)


def cosine_by_torch_loss(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
    ones = torch.ones(int(m.sum()))
    return functional.cosine_embedding_loss(s[m], t.detach()[m], ones, reduction="sum")


def cosine_by_hand(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
    own, its = (functional.normalize(x.double(), dim=-1) for x in (s, t.detach()))
    return m.sum() - ((own * its).sum(-1) * m).sum()


def cosine_by_distance(s: Tensor, t: Tensor, m: Tensor) -> Tensor:
    own, its = (functional.normalize(x, dim=-1) for x in (s, t.detach()))
    return ((own - its).square().sum(-1) / 2).masked_select(m).sum()


@pytest.mark.parametrize("work", [cosine_distance, cosine_by_torch_loss, cosine_by_hand, cosine_by_distance])
def test_a_right_cosine_passes_in_any_form(work: Any) -> None:
    assert passes("cosine", work).remarks == ()


def flat(x: Tensor) -> Tensor:
    return x.detach().flatten(0, 1)


WRONG_COSINE = {
    "padding is counted too": lambda s, t, m: cosine_distance(s, t),
    "padding is set to zero but still counted": lambda s, t, m: cosine_distance(
        s * m[..., None], t * m[..., None]
    ),
    "a mean over the chosen positions": lambda s, t, m: cosine_distance(s, t, m) / m.sum(),
    "a mean over all positions": lambda s, t, m: cosine_distance(s, t, m) / m.numel(),
    "which would push student and teacher apart": lambda s, t, m: FREE(s, t.detach())[m].sum(),
    "each position is 1 too low": lambda s, t, m: -FREE(s, t.detach())[m].sum(),
    "over the positions instead of the hidden": lambda s, t, m: (
        1 - functional.cosine_similarity(s, t.detach(), dim=1)
    ).sum(),
    "a product, not a cosine": lambda s, t, m: (1 - (s * t.detach()).sum(-1))[m].sum(),
    "a gradient flows into the teacher": lambda s, t, m: (1 - FREE(s, t))[m].sum(),
}


@pytest.mark.parametrize("names", WRONG_COSINE)
def test_a_wrong_cosine_fails_and_its_mistake_is_named(names: str) -> None:
    fails("cosine", WRONG_COSINE[names], names)


# --- masking


def hide(batch: Any, tokenizer: Any, share: float, generator: torch.Generator) -> dict[str, Tensor]:
    return mask_tokens(batch, tokenizer, share=share, generator=generator)


def hide_one_after_the_other(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    """Hide as the collator of transformers does: in place on a copy, the second chance relative to the "
    "rest."""
    ids, targets = batch["input_ids"].clone(), batch["input_ids"].clone()
    chances = torch.full(ids.shape, share)
    special = [
        tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in ids.tolist()
    ]
    chances.masked_fill_(torch.tensor(special, dtype=torch.bool), 0.0)
    chosen = torch.bernoulli(chances, generator=generator).bool()
    targets[~chosen] = -100
    replaced = torch.bernoulli(torch.full(ids.shape, 0.8), generator=generator).bool() & chosen
    ids[replaced] = tokenizer.convert_tokens_to_ids(tokenizer.mask_token)
    drawn = torch.bernoulli(torch.full(ids.shape, 0.5), generator=generator).bool() & chosen & ~replaced
    ids[drawn] = torch.randint(len(tokenizer), ids.shape, generator=generator)[drawn]
    return {"targets": targets, "input_ids": ids}


def hide_token_by_token(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    ids = batch["input_ids"].numpy().copy()
    targets = np.full_like(ids, -100)
    special = {*tokenizer.all_special_ids}
    for place in zip(*np.nonzero(batch["attention_mask"].numpy()), strict=True):
        chance, fate, word = torch.rand(3, generator=generator).tolist()
        if ids[place] not in special and chance < share:
            targets[place] = ids[place]
            ids[place] = (
                ids[place]
                if fate < 0.1
                else tokenizer.mask_token_id
                if fate < 0.9
                else int(word * len(tokenizer))
            )
    return {"input_ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets)}


@pytest.mark.parametrize("work", [hide, hide_one_after_the_other, hide_token_by_token])
def test_right_masking_passes_in_any_order_of_draws(work: Any) -> None:
    passes("masking", work)


def hide_static(batch: Any, tokenizer: Any, share: float, generator: torch.Generator) -> dict[str, Tensor]:
    return hide(batch, tokenizer, share, torch.Generator().manual_seed(0))


def hide_special_tokens(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    chosen = real & (torch.rand(ids.shape, generator=generator) < share)
    return {
        "input_ids": torch.where(chosen, tokenizer.mask_token_id, ids),
        "targets": torch.where(chosen, ids, -100),
    }


def hide_padding(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    chosen = torch.rand(ids.shape, generator=generator) < share
    return {
        "input_ids": torch.where(chosen, tokenizer.mask_token_id, ids),
        "targets": torch.where(chosen, ids, -100),
    }


def hide_all(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    return found | {
        "input_ids": torch.where(found["targets"] >= 0, tokenizer.mask_token_id, batch["input_ids"])
    }


def hide_80_then_10(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    chosen = found["targets"] >= 0
    first = torch.rand(chosen.shape, generator=generator) < 0.8
    second = torch.rand(chosen.shape, generator=generator) < 0.1
    words = torch.randint(len(tokenizer), chosen.shape, generator=generator)
    ids = torch.where(chosen & first, tokenizer.mask_token_id, batch["input_ids"])
    return found | {"input_ids": torch.where(chosen & ~first & second, words, ids)}


def hide_with_targets_copied_late(
    batch: Any, tokenizer: Any, share: float, generator: Any
) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    return found | {"targets": torch.where(found["targets"] >= 0, found["input_ids"], -100)}


def hide_in_place(batch: Any, tokenizer: Any, share: float, generator: Any) -> Any:
    found = hide(batch, tokenizer, share, generator)
    batch["input_ids"].copy_(found["input_ids"])
    return batch | {"targets": found["targets"]}


def hide_columns(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    usual = batch["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = usual & (torch.rand(ids.shape[1], generator=generator) < share)
    return {
        "input_ids": torch.where(chosen, tokenizer.mask_token_id, ids),
        "targets": torch.where(chosen, ids, -100),
    }


def hide_with_global_randomness(
    batch: Any, tokenizer: Any, share: float, generator: Any
) -> dict[str, Tensor]:
    return hide(batch, tokenizer, share, torch.Generator().manual_seed(int(torch.randint(2**40, ()))))


def hide_one_word(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    other = (found["input_ids"] != batch["input_ids"]) & (found["input_ids"] != tokenizer.mask_token_id)
    return found | {"input_ids": torch.where(other, batch["input_ids"][0, 1], found["input_ids"])}


def hide_and_disturb(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    places = (found["targets"] < 0) & batch["attention_mask"].bool()
    places &= ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    return found | {"input_ids": torch.where(places, batch["input_ids"].roll(1, 1), found["input_ids"])}


WRONG_MASKING = {
    "static masking": hide_static,
    "special tokens are hidden": hide_special_tokens,
    "padding is hidden": hide_padding,
    "no token is replaced by another or left": hide_all,
    "relative to what is left": hide_80_then_10,
    "something else than the original tokens": hide_with_targets_copied_late,
    "changes what it is given: batch['input_ids']": hide_in_place,
    "every row hides the same places": hide_columns,
    "does not draw from the generator alone": hide_with_global_randomness,
    "nearly always the same": hide_one_word,
    "whose target is -100": hide_and_disturb,
    "of the tokens, ": lambda b, t, s, g: hide(b, t, 0.5, g),
    "no token becomes the mask token": lambda b, t, s, g: hide_unmasked(b, t, s, g),
}


def hide_unmasked(batch: Any, tokenizer: Any, share: float, generator: Any) -> dict[str, Tensor]:
    found = hide(batch, tokenizer, share, generator)
    unknown = tokenizer.unk_token_id
    masked = found["input_ids"] == tokenizer.mask_token_id
    return found | {"input_ids": torch.where(masked, unknown, found["input_ids"])}


@pytest.mark.parametrize("names", WRONG_MASKING)
def test_wrong_masking_fails_and_its_mistake_is_named(names: str) -> None:
    fails("masking", WRONG_MASKING[names], names)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([1, 2], "returned a list, expected a dict"),
        ({"input_ids": torch.zeros(2, 2)}, "shape"),
        ({"labels": 1}, "input_ids is missing"),
    ],
)
def test_masking_of_another_form_is_told_what_is_expected(answer: Any, says: str) -> None:
    assert says.lower() in check("masking", lambda *a: answer, 0).says.lower()


# --- student


def student_by_deletion(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    student: Any = copy.deepcopy(teacher)
    student.bert.encoder.layer = nn.ModuleList(student.bert.encoder.layer[i] for i in layers)
    student.config.num_hidden_layers = len(layers)
    student.train()  # the mode is the learner's choice
    return student  # type: ignore[no-any-return]


def student_by_configuration(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    student: Any = type(teacher)(config)
    stack = teacher.get_submodule("bert.encoder.layer")
    student.bert.embeddings.load_state_dict(teacher.get_submodule("bert.embeddings").state_dict())
    student.cls.load_state_dict(teacher.get_submodule("cls").state_dict())
    for own, number in zip(student.bert.encoder.layer, layers, strict=True):
        own.load_state_dict(stack[number].state_dict())  # type: ignore[index]
    return student  # type: ignore[no-any-return]


@pytest.mark.parametrize("work", [make_student, student_by_deletion, student_by_configuration])
def test_a_right_student_passes_in_any_form(work: Any) -> None:
    passes("student", work)


def student_in_shared_memory(teacher: Any, layers: list[int]) -> Any:
    student = copy.deepcopy(teacher)
    student.bert.encoder.layer = nn.ModuleList(teacher.bert.encoder.layer[i] for i in layers)
    student.config.num_hidden_layers = len(layers)
    return student


def student_with_the_old_configuration(teacher: Any, layers: list[int]) -> Any:
    student = student_by_deletion(teacher, layers)
    student.config.num_hidden_layers = teacher.config.num_hidden_layers
    return student


def student_without_its_embeddings(teacher: Any, layers: list[int]) -> Any:
    student = make_student(teacher, layers)
    student.bert.embeddings.position_embeddings.reset_parameters()
    return student


def student_with_fresh_layers(teacher: Any, layers: list[int]) -> Any:
    student = make_student(teacher, layers)
    student.bert.encoder.layer[1].output.dense.reset_parameters()
    return student


def student_that_scales(teacher: Any, layers: list[int]) -> Any:
    student = make_student(teacher, layers)
    student.bert.encoder.layer[0].register_forward_hook(lambda module, given, output: output * 1.5)
    return student


def student_that_spoils_its_teacher(teacher: Any, layers: list[int]) -> Any:
    student = make_student(teacher, layers)
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight.zero_()
    return student


def student_that_hangs(teacher: Any, layers: list[int]) -> Any:
    student = make_student(teacher, layers)

    def forward(*arguments: Any, **names: Any) -> Any:
        raise RuntimeError("no answer")

    student.forward = forward  # type: ignore[method-assign]
    return student


WRONG_STUDENT = {
    "it took the first layers": lambda t, layers: make_student(t, range(len(layers))),
    "not in the order that was given": lambda t, layers: make_student(t, sorted(layers)),
    "it counts layers from 1": lambda t, layers: make_student(t, [(i - 1) % 6 for i in layers]),
    "shares memory with the teacher": student_in_shared_memory,
    "the configuration does not say": student_with_the_old_configuration,
    "embeddings or head are not the teacher's": student_without_its_embeddings,
    "fresh weights, or only some": student_with_fresh_layers,
    "computes something else": student_that_scales,
    "changes what it is given: the teacher": student_that_spoils_its_teacher,
    "expected the teacher's class": lambda t, layers: BertModel(t.config),
    "raised RuntimeError: no answer": student_that_hangs,
}


@pytest.mark.parametrize("names", WRONG_STUDENT)
def test_a_wrong_student_fails_and_its_mistake_is_named(names: str) -> None:
    fails("student", WRONG_STUDENT[names], names)


# --- triple


def triple(
    student: Any,
    teacher: Any,
    batch: Any,
    weights: dict[str, float],
    temperature: float,
    *,
    kl_mask: str = "real",
    cosine_mask: str = "real",
    state: int = -1,
    divergence: Any = kl_with_temperature,
    learn: bool = False,
) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    s = student(**inputs, output_hidden_states=True)
    with torch.set_grad_enabled(learn):
        t = teacher(**inputs, output_hidden_states=True)
    real, hidden = batch["attention_mask"].bool(), batch["targets"] != -100
    masks = {"real": real, "hidden": hidden, "all": torch.ones_like(real)}
    kl = divergence(s.logits, t.logits, masks[kl_mask], temperature) / masks[kl_mask].sum()
    mlm = functional.cross_entropy(s.logits.flatten(0, 1), batch["targets"].flatten())
    angle = cosine_distance(s.hidden_states[state], t.hidden_states[state], masks[cosine_mask])
    cosine = angle / masks[cosine_mask].sum()
    return weights["kl"] * kl + weights["mlm"] * mlm + weights["cosine"] * cosine


def triple_in_double_precision(s: Any, t: Any, batch: Any, weights: Any, temperature: float) -> Tensor:
    return triple(s, t, batch, weights, temperature).double().reshape(1, 1)


def triple_backwards(s: Any, t: Any, batch: Any, weights: Any, temperature: float) -> Tensor:
    """Add the terms one at a time, in another order, each from a pass of its own."""
    one = {name: 0.0 for name in weights}
    parts = [triple(s, t, batch, one | {name: weights[name]}, temperature) for name in reversed(weights)]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("work", [triple, triple_in_double_precision, triple_backwards])
def test_a_right_sum_passes_in_any_form(work: Any) -> None:
    passes("triple", work)


def swapped(**new: str) -> Callable[..., Tensor]:
    def work(s: Any, t: Any, batch: Any, weights: Any, temperature: float) -> Tensor:
        return triple(s, t, batch, {**weights, **{k: weights[v] for k, v in new.items()}}, temperature)

    return work


def normalised(s: Any, t: Any, batch: Any, weights: Any, temperature: float) -> Tensor:
    return triple(s, t, batch, weights, temperature) / sum(weights.values())


def kl_no_factor(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    return kl_with_temperature(s, t, m, temperature) / temperature**2


def kl_learning(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    return kl_teacher_learns(s, t, m, temperature)


def kl_frozen(s: Tensor, t: Tensor, m: Tensor, temperature: float) -> Tensor:
    return kl_with_temperature(s.detach(), t, m, temperature)


WRONG_TRIPLE = {
    "the weights of kl and mlm are swapped": swapped(kl="mlm", mlm="kl"),
    "the weights of kl and cosine are swapped": swapped(kl="cosine", cosine="kl"),
    "the weights are divided by their sum": normalised,
    "the weights are not used": lambda s, t, b, w, T: triple(s, t, b, dict.fromkeys(w, 1.0), T),
    "mlm gets 1 - alpha": lambda s, t, b, w, T: triple(s, t, b, w | {"mlm": 1 - w["kl"]}, T),
    "the cosine is missing": lambda s, t, b, w, T: triple(s, t, b, w | {"cosine": 0.0}, T),
    "the factor T² is missing": lambda *a: triple(*a, divergence=kl_no_factor),
    "the divergence counts padding": lambda *a: triple(*a, kl_mask="all"),
    "the divergence looks at the hidden tokens only": lambda *a: triple(*a, kl_mask="hidden"),
    "the cosine counts padding": lambda *a: triple(*a, cosine_mask="all"),
    "not by a mistake that this check knows": lambda *a: triple(*a, state=1),
    "a gradient flows into the teacher": lambda *a: triple(*a, divergence=kl_learning, learn=True),
    "the student's gradient is not": lambda *a: triple(*a, divergence=kl_frozen),
    "has no gradient": lambda *a: triple(*a).item(),
}


@pytest.mark.parametrize("names", WRONG_TRIPLE)
def test_a_wrong_sum_fails_and_its_mistake_is_named(names: str) -> None:
    fails("triple", WRONG_TRIPLE[names], names)


# --- the whole exercise


def test_the_package_solves_its_own_exercise_and_a_beginner_has_done_nothing() -> None:
    def starter(*arguments: Any) -> Any:
        raise NotImplementedError("your turn")

    exercise = exercises.load("distilbert")
    for step in exercise.steps:
        assert exercise.check(step, starter).status == "not done yet"
    answers = {
        "kl": kl_with_temperature,
        "cosine": cosine_distance,
        "masking": hide,
        "student": make_student,
        "triple": triple,
    }
    for step, work in answers.items():
        assert exercise.check(step, work), step
    assert exercise.progress().done
