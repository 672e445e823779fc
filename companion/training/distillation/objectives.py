"""The two stages of distillation as objectives, so that `companion.training.fit` trains both.

The teacher belongs to the objective, not to the model: no optimizer, checkpoint or sharding touches it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from companion.data import Batch
from companion.training.distillation.cache import TeacherCache
from companion.training.distillation.losses import cosine_distance, kl_with_temperature, masked_cross_entropy
from companion.training.distillation.teacher import Pairs, ask, logits_at, ready
from companion.training.objectives import Regression, mask_tokens, model_inputs

__all__ = ["LanguageDistillation", "Positions", "RegressionDistillation", "TaskDistillation", "evenly_paired"]

Positions = Literal["all", "masked"]
_IGNORED = -100
_LAST: Pairs = ((-1, -1),)


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageDistillation:
    """The triple loss of a masked language model that learns from another one [1]_.

    Three means: the divergence from the teacher over `positions`, the cross-entropy over the hidden tokens,
    the cosine distance of hidden states over all tokens. Padding is in none. Tokens are hidden anew each
    time, the same ones for both models.

    Attributes
    ----------
    teacher : PreTrainedModel
        A masked language model with the student's vocabulary.
    tokenizer : PreTrainedTokenizerBase
    temperature : float
    kl, mlm, cosine : float
        Weights of the three means, as published; 0 leaves a term out. They presuppose the factor
        ``temperature**2`` in the first.
    positions : {"all", "masked"}
        Where the student imitates the distribution: at every token that is not padding, as published, or
        where a token was hidden. The second needs a seventh of the output layer's work.
    share : float
        Share of the tokens that are hidden.
    pairs : tuple of (int, int)
        Hidden states whose direction is compared: the last ones, as published.

    References
    ----------
    .. [1] Sanh et al., "DistilBERT, a distilled version of BERT", 2019.
    """

    teacher: PreTrainedModel
    tokenizer: Any
    temperature: float = 2.0
    kl: float = 5.0
    mlm: float = 2.0
    cosine: float = 1.0
    positions: Positions = "all"
    share: float = 0.15
    pairs: Pairs = _LAST
    changes_ids: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions is {self.positions!r}, expected 'all' or 'masked'")
        _check(self.temperature, self.pairs, kl=self.kl, mlm=self.mlm, cosine=self.cosine)

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term that is not left out."""
        return _present(kl=self.kl, mlm=self.mlm, cosine=self.cosine)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide tokens; set ``targets``, int64 (batch, seq): the hidden ones, -100 elsewhere."""
        return mask_tokens(batch, self.tokenizer, share=self.share, generator=generator)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count tokens: those imitated, those hidden, those whose states are compared, once per pair."""
        hidden = int((batch["targets"] != _IGNORED).sum())
        real = int(batch["attention_mask"].sum())
        counts = {
            "kl": real if self.positions == "all" else hidden,
            "mlm": hidden,
            "cosine": real * len(self.pairs),
        }
        return {name: counts[name] for name in self.weights}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Run student and teacher on the same hidden tokens; sum each term."""
        _check_models(model, self.teacher, self.weights, self.pairs, "vocab_size")
        real, masked = batch["attention_mask"].bool(), batch["targets"] != _IGNORED
        chosen = real if self.positions == "all" and "kl" in self.weights else masked
        states = "cosine" in self.weights
        logits, hidden = logits_at(cast(PreTrainedModel, model), batch, chosen, hidden_states=states)
        sums: dict[str, torch.Tensor] = {}
        if "mlm" in self.weights:
            sums["mlm"] = masked_cross_entropy(logits, batch["targets"][chosen], masked[chosen])
        if {"kl", "cosine"} & self.weights.keys():
            with torch.no_grad():
                teacher = ready(self.teacher, batch)
                wanted = chosen if "kl" in self.weights else torch.zeros_like(chosen)
                soft, taught = logits_at(teacher, batch, wanted, hidden_states=states)
            if "kl" in self.weights:
                sums["kl"] = kl_with_temperature(logits, soft, temperature=self.temperature)
            if states:
                parts = (cosine_distance(hidden[own], taught[its], real) for own, its in self.pairs)
                sums["cosine"] = torch.stack(list(parts)).sum()
        return sums


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskDistillation:
    """A classifier that learns from a fine-tuned one: its distribution, the true labels, its hidden states.

    For a teacher that predicts a number use `RegressionDistillation`.

    Attributes
    ----------
    teacher : PreTrainedModel
        Fine-tuned for the task.
    temperature : float
    kl : float
        Weight of the divergence from the teacher's softened distribution, a mean over examples, with its
        factor ``temperature**2``. Of numbers: of the squared error against the teacher's.
    hard : float
        Weight of the cross-entropy of the label, a mean over examples, and the only term that needs labels.
        Of numbers: of the squared error.
    cosine : float
        Weight of the cosine distance of hidden states, a mean over tokens and pairs.
    pairs : tuple of (int, int)
        Hidden states whose direction is compared; see `evenly_paired`.
    cache : TeacherCache, optional
        The teacher's answers for the training examples. Without it the teacher is asked at every step.
    """

    teacher: PreTrainedModel
    temperature: float = 2.0
    kl: float = 1.0
    hard: float = 1.0
    cosine: float = 1.0
    pairs: Pairs = _LAST
    cache: TeacherCache | None = None
    changes_ids: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _check(self.temperature, self.pairs, kl=self.kl, hard=self.hard, cosine=self.cosine)
        wanted = self.layers
        if self.cache is not None and self.cache.layers != wanted:
            raise ValueError(
                f"the cache holds the teacher's hidden states {list(self.cache.layers)}, but the pairs need "
                f"{list(wanted)}: compute it with layers={wanted!r}"
            )
        regression = self.teacher.config.problem_type == "regression"
        if regression != isinstance(self, Regression):
            needed = "RegressionDistillation" if regression else "TaskDistillation"
            raise ValueError(f"the teacher's problem is {self.teacher.config.problem_type!r}: use {needed}")

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term that is not left out."""
        return _present(kl=self.kl, hard=self.hard, cosine=self.cosine)

    @property
    def layers(self) -> tuple[int, ...]:
        """The teacher's hidden states that are needed."""
        return tuple(its for _, its in self.pairs) if self.cosine else ()

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Add nothing; check that the teacher's stored answers are for these texts."""
        if "hard" in self.weights and "labels" not in batch:
            raise ValueError(
                "the examples have no labels: set the weight `hard` to 0 to learn from the teacher alone"
            )
        if self.cache is not None:
            self.cache.check(batch)
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count examples, and tokens whose states are compared, once per pair."""
        rows = len(batch["index"])
        counts = {"kl": rows, "hard": rows, "cosine": int(batch["attention_mask"].sum()) * len(self.pairs)}
        return {name: counts[name] for name in self.weights}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Run the student; ask or look up the teacher; sum each term."""
        _check_models(model, self.teacher, self.weights, self.pairs, "num_labels")
        output = model(**model_inputs(batch), output_hidden_states="cosine" in self.weights)
        sums: dict[str, torch.Tensor] = {}
        if "hard" in self.weights:
            sums["hard"] = self._hard(output.logits.float(), batch["labels"])
        if {"kl", "cosine"} & self.weights.keys():
            cache = self.cache
            taught = cache.taught(batch) if cache else ask(self.teacher, batch, self.layers)
            if "kl" in self.weights:
                sums["kl"] = self._soft(output.logits.float(), taught.logits.float())
            if "cosine" in self.weights:
                real = batch["attention_mask"].bool()
                states = (output.hidden_states[own][real] for own, _ in self.pairs)
                parts = [cosine_distance(o, t) for o, t in zip(states, taught.hidden, strict=True)]
                sums["cosine"] = torch.stack(parts).sum()
        return sums

    def _hard(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels, reduction="sum")

    def _soft(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        return kl_with_temperature(logits, taught, temperature=self.temperature)


class RegressionDistillation(TaskDistillation, Regression):  # type: ignore[override]  # both read weights only
    """`TaskDistillation` for a teacher that predicts a number: squared errors, and no temperature.

    Being a `Regression`, it makes `companion.training.fit` read the labels as numbers.
    """

    def _hard(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")

    def _soft(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(logits, taught, reduction="sum")


def evenly_paired(student_layers: int, teacher_layers: int) -> Pairs:
    """Pair each of the student's layers with the teacher's at the same share of the way up.

    Parameters
    ----------
    student_layers, teacher_layers : int

    Returns
    -------
    tuple of (int, int)
        Of 3 and 6 layers: ``((1, 2), (2, 4), (3, 6))``. The last ones are always a pair.
    """
    return tuple(
        (layer, round(layer * teacher_layers / student_layers)) for layer in range(1, student_layers + 1)
    )


def _present(**weights: float) -> Mapping[str, float]:
    return MappingProxyType({name: weight for name, weight in weights.items() if weight})


def _check(temperature: float, pairs: Pairs, **weights: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}, expected a finite number above 0")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight {name} is {weight}, expected a finite number, 0 or more")
    if not any(weights.values()):
        raise ValueError(f"the weights {', '.join(weights)} are all 0: expected at least one above")
    if weights["cosine"] and not pairs:
        raise ValueError("there are no pairs of hidden states: give some, or set the weight cosine to 0")


def _check_models(
    student: Any, teacher: Any, weights: Mapping[str, float], pairs: Pairs, outputs: str
) -> None:
    """Refuse two models whose outputs cannot be compared, before torch broadcasts them or complains."""
    own, its = student.config, teacher.config
    sizes = {"vocab_size": "token ids", "num_labels": "labels"}
    if getattr(own, outputs) != getattr(its, outputs):
        raise ValueError(
            f"the student has {getattr(own, outputs)} {sizes[outputs]}, the teacher {getattr(its, outputs)}: "
            "expected the same"
        )
    if "cosine" not in weights:
        return
    if own.hidden_size != its.hidden_size:
        raise ValueError(
            f"the student is {own.hidden_size} wide, the teacher {its.hidden_size}: the cosine needs equal "
            "hidden sizes. Set its weight to 0, or make the student of the teacher's layers"
        )
    for pair in pairs:
        for layer, config, who in zip(pair, (own, its), ("student", "teacher"), strict=True):
            depth = config.num_hidden_layers
            if not -depth - 1 <= layer <= depth:
                raise ValueError(
                    f"hidden state {layer} of the {who} is paired, but it has {depth} layers: "
                    f"expected 0 (the embeddings) to {depth}"
                )
