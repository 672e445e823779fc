"""Step ``triple``: the weighted sum of three means, on two models and a batch with hidden tokens."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from companion.data import Batch
from companion.exercises.distilbert.texts import make_batch, make_teacher, make_tokenizer
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, Probe
from companion.exercises.values import best_match, close, number, plain, shown
from companion.training.distillation import (
    LanguageDistillation,
    cosine_distance,
    kl_with_temperature,
    make_student,
)
from companion.training.objectives import IGNORED, model_inputs

__all__ = ["TRIPLE", "weighted_means"]

_TERMS = ("kl", "mlm", "cosine")


@dataclass(frozen=True)
class _Setting:
    """Two models, a batch, and the weights."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    original: torch.Tensor
    batch: Batch
    objective: LanguageDistillation

    @property
    def weights(self) -> dict[str, float]:
        return dict(self.objective.weights)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.student, self.teacher, self.batch, self.weights, self.objective.temperature


def weighted_means(objective: LanguageDistillation, student: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Combine an objective's sums and counts as `companion.training.fit` does.

    Parameters
    ----------
    objective : LanguageDistillation
    student : PreTrainedModel
    batch : dict
        Prepared by the objective.

    Returns
    -------
    Tensor
        A scalar with a gradient.
    """
    counts, sums = objective.counts(batch), objective.sums(student, batch)
    parts = [objective.weights[name] * sums[name] / max(1, counts[name]) for name in sums]
    return torch.stack(parts).sum()


def _examine(work: Any, probe: Probe) -> str:
    settings = [_setting(probe.seed + case) for case in range(3)]
    found, expected = [], []
    for case, setting in enumerate(settings, start=1):
        weights = ", ".join(f"{name} {weight:g}" for name, weight in setting.weights.items())
        what = f"batch {case}, T {setting.objective.temperature:g}, weights {weights}"
        watched = {f"batch[{name!r}]": tensor for name, tensor in setting.batch.items()}
        watched |= {f"the teacher's {name}": tensor for name, tensor in setting.teacher.state_dict().items()}
        answer = probe.call(work, *setting.arguments, what=what, watched=watched)
        found.append(number(answer))
        expected.append(weighted_means(setting.objective, setting.student, setting.batch).item())
        probe.show(what, shown(expected[-1]), shown(found[-1]), close(found[-1], expected[-1], 1e-3))
    if not all(item.passed for item in probe.evidence):
        raise Failed(_explain(settings, found))
    _trainable(probe, answer, settings[-1])
    return "it equals the package's LanguageDistillation, gradients included."


def _setting(seed: int) -> _Setting:
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    tokenizer, teacher = make_tokenizer(seed), make_teacher(seed, 4)
    student = make_student(make_teacher(seed + 1, 4), (0, 2))
    kl, mlm, cosine = (chance.choice((0.5, 1.0)) * factor for factor in chance.sample((2, 5, 9), 3))
    objective = LanguageDistillation(
        teacher=teacher,
        tokenizer=tokenizer,
        temperature=chance.choice((1.5, 2.5, 3.0)),
        kl=kl,
        mlm=mlm,
        cosine=cosine,
        share=0.3,
    )
    batch = make_batch(tokenizer, 6, 14, generator)
    return _Setting(student, teacher, batch["input_ids"], objective.prepare(batch, generator), objective)


def _trainable(probe: Probe, answer: Any, setting: _Setting) -> None:
    loss = plain(answer)
    if loss is None or not loss.requires_grad:
        probe.fail(
            "a gradient",
            "a tensor that knows how it was computed",
            "none",
            "the number is right but has no gradient, so nothing could be trained with it: look for .item(), "
            ".detach() or torch.no_grad() around the student.",
        )
    names = [name for name, parameter in setting.teacher.named_parameters() if parameter.requires_grad]
    teachers = [dict(setting.teacher.named_parameters())[name] for name in names]
    students = list(setting.student.parameters())
    grads = probe.call(
        lambda: torch.autograd.grad(loss.sum(), [*students, *teachers], allow_unused=True), what="gradients"
    )
    own, its = grads[: len(students)], grads[len(students) :]
    flows = max((grad.abs().max().item() for grad in its if grad is not None), default=0.0)
    probe.require(
        flows == 0,
        "gradient into the teacher's weights, largest",
        0,
        shown(flows),
        "a gradient flows into the teacher: run it under torch.no_grad().",
    )
    wanted = torch.autograd.grad(
        weighted_means(setting.objective, setting.student, setting.batch), students, allow_unused=True
    )
    away = _distance(own, wanted)
    probe.require(
        away < 1e-2,
        "gradient into the student, difference as a share",
        "below 0.01",
        shown(away),
        "the value is right but the student's gradient is not: one of the three terms is detached from it.",
    )


def _distance(own: Any, wanted: Any) -> float:
    def flat(parts: Any) -> torch.Tensor:
        return torch.cat(
            [
                torch.zeros_like(other).flatten() if part is None else part.flatten()
                for part, other in zip(parts, _filled(own, wanted), strict=True)
            ]
        )

    first, second = flat(own), flat(wanted)
    return float(((first - second).norm() / second.norm().clamp_min(1e-9)).item())


def _filled(own: Any, wanted: Any) -> list[torch.Tensor]:
    """For each parameter, one of the two gradients that is there, for its shape."""
    pairs = zip(own, wanted, strict=True)
    return [a if a is not None else b if b is not None else torch.zeros(1) for a, b in pairs]


def _explain(settings: list[_Setting], found: list[float]) -> str:
    columns: dict[tuple[str, ...], list[float]] = {}
    for setting in settings:
        for names, value in _deviations(setting):
            columns.setdefault(names, []).append(value)
    if names := best_match(found, columns.items()):
        return f"in every batch the number is what comes out when {' and '.join(names)}."
    return "the numbers differ from the right ones, and not by a mistake that this check knows."


def _deviations(setting: _Setting) -> Iterator[tuple[tuple[str, ...], float]]:
    """Compute what mistakes give: in one term, in the teacher's reading, in the weights, in the counts."""
    for reading, ids in (
        ("", setting.batch["input_ids"]),
        ("the teacher reads the text before tokens were hidden", setting.original),
    ):
        terms = _terms(setting, ids)
        for (kl, a), (mlm, b), (cosine, c) in itertools.product(*(terms[name].items() for name in _TERMS)):
            for weighing, weights in _weighings(setting.weights):
                value = sum(weight * mean for weight, mean in zip(weights, (a, b, c), strict=True))
                yield tuple(filter(None, (reading, kl, mlm, cosine, weighing))), value


def _terms(setting: _Setting, ids: torch.Tensor) -> dict[str, dict[str, float]]:
    """Compute each mean, right ("") and wrong."""
    batch, temperature = setting.batch, setting.objective.temperature
    real, hidden = batch["attention_mask"].bool(), batch["targets"] != IGNORED
    with torch.no_grad():
        own = setting.student(**model_inputs(batch), output_hidden_states=True)
        its = setting.teacher(**{**model_inputs(batch), "input_ids": ids}, output_hidden_states=True)
    everywhere = torch.ones_like(real)

    def divergence(mask: torch.Tensor, t: float = temperature) -> float:
        return kl_with_temperature(own.logits, its.logits, mask, t).item() / int(mask.sum())

    def angle(mask: torch.Tensor) -> float:
        first, second = own.hidden_states[-1], its.hidden_states[-1]
        return cosine_distance(first, second, mask).item() / int(mask.sum())

    right = divergence(real)
    loss = torch.nn.functional.cross_entropy
    predicted = loss(own.logits[hidden], batch["targets"][hidden], reduction="sum").item()
    every = loss(own.logits[real], setting.original[real]).item()
    return {
        "kl": {
            "": right,
            "the factor T² is missing": right / temperature**2,
            "the temperature is not used": divergence(real, 1.0),
            "the divergence counts padding": divergence(everywhere),
            "the divergence looks at the hidden tokens only": divergence(hidden),
            "the divergence is a sum": right * int(real.sum()),
            "the divergence is divided by the classes too": right / own.logits.shape[-1],
            "the divergence is divided by the number of texts": right * int(real.sum()) / len(real),
        },
        "mlm": {
            "": predicted / int(hidden.sum()),
            "the masked-language-model loss is a sum": predicted,
            "the masked-language-model loss is divided by all tokens": predicted / int(real.sum()),
            "the masked-language-model loss asks for every token, hidden or not": every,
        },
        "cosine": {
            "": angle(real),
            "the cosine counts padding": angle(everywhere),
            "the cosine looks at the hidden tokens only": angle(hidden),
            "the cosine is a sum": angle(real) * int(real.sum()),
        },
    }


def _weighings(weights: Mapping[str, float]) -> Iterator[tuple[str, tuple[float, float, float]]]:
    kl, mlm, cosine = (weights[name] for name in _TERMS)
    total = kl + mlm + cosine
    yield "", (kl, mlm, cosine)
    yield "the weights of kl and mlm are swapped", (mlm, kl, cosine)
    yield "the weights of kl and cosine are swapped", (cosine, mlm, kl)
    yield "the weights of mlm and cosine are swapped", (kl, cosine, mlm)
    yield "the weights are rotated by one term", (mlm, cosine, kl)
    yield "the weights are rotated by two terms", (cosine, kl, mlm)
    yield "the weights are not used", (1, 1, 1)
    yield "the weights are divided by their sum", (kl / total, mlm / total, cosine / total)
    yield "the divergence is missing", (0, mlm, cosine)
    yield "the masked-language-model loss is missing", (kl, 0, cosine)
    yield "the cosine is missing", (kl, mlm, 0)
    yield "mlm gets 1 - alpha instead of a weight of its own", (kl, 1 - kl, cosine)


TRIPLE = Step(
    name="triple",
    title="The weighted sum",
    task=(
        "triple_loss(student, teacher, batch, weights, temperature): two masked language models; batch with "
        "input_ids (tokens hidden), attention_mask and targets; weights, a dict with kl, mlm and cosine. "
        "Return the weighted sum of three means: kl over the tokens that are not padding, mlm over the "
        "hidden tokens, cosine of the last hidden states over the tokens that are not padding."
    ),
    hints=(
        "Each term is a mean over its own positions. How many positions has each of the three? They are not "
        "the same number.",
        "Run both models on the same input_ids and attention_mask with output_hidden_states=True, the "
        "teacher under torch.no_grad(). Your kl and cosine give sums: divide by real.sum(). cross_entropy "
        "ignores -100 and averages over the rest.",
        "weights['kl'] * kl(s.logits, t.logits, real, temperature) / real.sum() + weights['mlm'] * "
        "cross_entropy(s.logits.flatten(0, 1), batch['targets'].flatten()) + weights['cosine'] * "
        "cosine(s.hidden_states[-1], t.hidden_states[-1], real) / real.sum()",
    ),
    examine=_examine,
)
