"""What a run minimises: sums over examples or tokens, and how many there are.

A mean of means is not the mean: micro-batches with uneven numbers of tokens would weigh each token by where
it happens to lie. So an objective gives sums and counts apart, and the loop divides by the counts of the
whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch.nn import functional

from companion.data import Batch

__all__ = [
    "CausalLanguageModelling",
    "Classification",
    "MaskedLanguageModelling",
    "Objective",
    "Regression",
    "mask_tokens",
    "model_inputs",
]

IGNORED = -100
_ONE: Mapping[str, float] = MappingProxyType({"loss": 1.0})


class Objective(Protocol):
    """A loss as a weighted sum of terms, each a mean over its own examples or tokens."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term."""

    @property
    def changes_ids(self) -> bool:
        """Whether `prepare` puts token ids into a batch that the texts do not have."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Complete a batch of the loader, on the CPU: labels, masks. It draws from `generator` alone."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many examples or tokens each term is a mean over."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Run the model; return each term summed over its examples or tokens, a scalar float32."""


def model_inputs(batch: Batch) -> Batch:
    """Return what a model's `forward` takes: ids, mask and, for pairs, token types."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of the label, in nats. Needs ``labels``, int64 (batch,).

    Attributes
    ----------
    label_smoothing : float
        Share of the target that is spread over all labels [1]_.

    References
    ----------
    .. [1] Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    label_smoothing: float = 0.0
    weights: ClassVar[Mapping[str, float]] = _ONE
    changes_ids: ClassVar[bool] = False

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to add."""
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count examples."""
        return {"loss": len(batch["labels"])}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum over examples."""
        logits: torch.Tensor = model(**model_inputs(batch)).logits.float()
        loss = functional.cross_entropy(
            logits, batch["labels"], reduction="sum", label_smoothing=self.label_smoothing
        )
        return {"loss": loss}


@dataclass(frozen=True)
class Regression:
    """Squared error. Needs ``labels``, float32 (batch,)."""

    weights: ClassVar[Mapping[str, float]] = _ONE
    changes_ids: ClassVar[bool] = False

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Nothing to add."""
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count examples."""
        return {"loss": len(batch["labels"])}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum over examples."""
        predicted: torch.Tensor = model(**model_inputs(batch)).logits.float().squeeze(-1)
        return {"loss": functional.mse_loss(predicted, batch["labels"], reduction="sum")}


@dataclass(frozen=True)
class CausalLanguageModelling:
    """Cross-entropy of each next token, in nats. Padding is neither read nor predicted."""

    weights: ClassVar[Mapping[str, float]] = _ONE
    changes_ids: ClassVar[bool] = False

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Set ``targets``, int64 (batch, seq): the next token, or `IGNORED` where there is none."""
        targets = torch.full_like(batch["input_ids"], IGNORED)
        targets[:, :-1] = batch["input_ids"][:, 1:]
        # Both tokens must be real: with padding on the left, the last pad would predict the first word.
        real = (batch["attention_mask"][:, :-1] & batch["attention_mask"][:, 1:]).bool()
        targets[:, :-1].masked_fill_(~real, IGNORED)
        return {**batch, "targets": targets}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count predicted tokens."""
        return {"loss": int((batch["targets"] != IGNORED).sum())}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum over predicted tokens."""
        return {"loss": _token_loss(model, batch)}


@dataclass(frozen=True)
class MaskedLanguageModelling:
    """Cross-entropy of hidden tokens, in nats, with a new mask each time a text is seen [1]_.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
        Knows the mask token and the special ones, which are never hidden.
    share : float
        Share of the tokens that are chosen. Of those, 80% become the mask token, 10% a random token, and 10%
        stay.

    References
    ----------
    .. [1] Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019.
    """

    tokenizer: Any
    share: float = 0.15
    weights: ClassVar[Mapping[str, float]] = _ONE
    changes_ids: ClassVar[bool] = True

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide tokens; set ``targets``, int64 (batch, seq): the hidden ones, `IGNORED` elsewhere."""
        return mask_tokens(batch, self.tokenizer, share=self.share, generator=generator)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Count hidden tokens."""
        return {"loss": int((batch["targets"] != IGNORED).sum())}

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum over hidden tokens."""
        return {"loss": _token_loss(model, batch)}


def mask_tokens(batch: Batch, tokenizer: Any, *, share: float, generator: torch.Generator) -> Batch:
    """Hide a share of the tokens as BERT does [1]_.

    Parameters
    ----------
    batch : dict
        With ``input_ids`` and ``attention_mask``, (batch, seq).
    tokenizer : PreTrainedTokenizerBase
        Must have a mask token.
    share : float
        Chance of each token that is neither special nor padding.
    generator : torch.Generator

    Returns
    -------
    dict
        A new batch: ``input_ids`` with tokens hidden, ``targets`` with what was there, `IGNORED` elsewhere.

    Raises
    ------
    ValueError
        When the tokenizer has no mask token, or `share` is not between 0 and 1.

    References
    ----------
    .. [1] Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019, appendix A.1.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no mask token: expected a masked language model's")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected a share above 0, up to 1")
    ids = batch["input_ids"]
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    maskable = batch["attention_mask"].bool() & ~torch.isin(ids, special)
    chosen = maskable & (torch.rand(ids.shape, generator=generator) < share)
    fate = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(len(tokenizer), ids.shape, generator=generator)
    hidden = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, ids)
    hidden = torch.where(chosen & (fate >= 0.9), random_ids, hidden)
    return {**batch, "input_ids": hidden, "targets": torch.where(chosen, ids, IGNORED)}


def _token_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum the cross-entropy of the targets; logits of other positions are not even made float32."""
    logits: torch.Tensor = model(**model_inputs(batch)).logits
    predicted = batch["targets"] != IGNORED
    return functional.cross_entropy(logits[predicted].float(), batch["targets"][predicted], reduction="sum")
