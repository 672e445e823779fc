"""Gives an encoder that came without one a masked-language-model head, so that it can teach."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from companion.data import Batch, Example, batches
from companion.models import resolve
from companion.training.config import TrainingConfig
from companion.training.distillation.losses import masked_cross_entropy
from companion.training.distillation.student import transplant
from companion.training.distillation.teacher import logits_at
from companion.training.evaluation import mean_loss
from companion.training.loop import fit
from companion.training.objectives import MaskedLanguageModelling
from companion.training.records import TrainingRun

__all__ = ["FittedHead", "fit_mlm_head", "unigram_loss"]

_IGNORED = -100
_CONFIG = TrainingConfig(epochs=3, learning_rate=2e-3)


@dataclass(frozen=True)
class FittedHead:
    """A masked language model whose head alone was trained, and what that brought.

    Attributes
    ----------
    model : PreTrainedModel
        All of its parameters can be trained again.
    before, after : float
        Cross-entropy of hidden tokens in held-out texts with the fresh head and with the fitted one, in nats.
    unigram : float
        The same for a model that knows nothing but how frequent each token is in the training texts: a head
        that is not below it has learnt nothing from the context.
    uniform : float
        The logarithm of the vocabulary's size: what a fresh head should be near.
    run : TrainingRun
    """

    model: PreTrainedModel
    before: float
    after: float
    unigram: float
    uniform: float
    run: TrainingRun


def fit_mlm_head(
    encoder: PreTrainedModel | Path | str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    held_out: float = 0.1,
    config: TrainingConfig | None = None,
    seed: int = 0,
) -> FittedHead:
    """Fit the head of a masked language model to a frozen encoder.

    The output layer shares the encoder's token table and stays frozen with it; what is trained is the head's
    transformation and its bias, which starts at the logarithm of the tokens' frequencies.

    Parameters
    ----------
    encoder : PreTrainedModel, Path or str
        A model, whose encoder is copied and which is left as it is, or a name or folder as in
        `companion.models.resolve`.
    tokenizer : PreTrainedTokenizerBase
        The encoder's, with a mask token.
    texts : sequence of str
    held_out : float
        Share of the texts that is not trained on but measured; drawn by the seed, at least one text.
    config : TrainingConfig, optional
        Default: three passes at a rate of 0.002.
    seed : int
        Draws the fresh head and the texts that are held out.

    Returns
    -------
    FittedHead

    Raises
    ------
    ValueError
        When there are fewer than two texts, `held_out` is no share, or the encoder's architecture has no
        masked language model.
    """
    if len(texts) < 2 or not 0 < held_out < 1:
        raise ValueError(
            f"{len(texts)} texts with a share of {held_out} held out: expected two texts or more, and a "
            "share between 0 and 1"
        )
    config = config or _CONFIG
    order = list(range(len(texts)))
    random.Random(f"companion/mlm-head/{seed}").shuffle(order)
    cut = max(1, int(len(texts) * held_out))
    dev, train = ([Example(texts[place]) for place in sorted(part)] for part in (order[:cut], order[cut:]))

    model = _with_fresh_head(encoder, seed)
    objective = _AtMasked(tokenizer)
    length = min(config.max_length, int(tokenizer.model_max_length))

    def measure() -> float:
        return mean_loss(model, tokenizer, dev, objective=objective, max_length=length, seed=seed)["loss"]

    before = measure()
    frequencies = _log_frequencies(train, tokenizer, length, model.config.vocab_size)
    bias = cast(torch.Tensor, model.get_output_embeddings().bias)
    with torch.no_grad():
        bias.copy_(frequencies)
    body = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in body)
    try:
        run = fit(model, tokenizer, train, config=config, objective=objective)
    finally:
        model.requires_grad_(True)
    unigram = unigram_loss(frequencies, dev, tokenizer, max_length=length, seed=seed)
    return FittedHead(model, before, measure(), unigram, math.log(model.config.vocab_size), run)


def unigram_loss(
    log_frequencies: torch.Tensor,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int = 0,
) -> float:
    """Return the cross-entropy of hidden tokens for a model that knows only frequencies, in nats.

    Parameters
    ----------
    log_frequencies : Tensor
        float32 (vocabulary,).
    examples : sequence of Example
    tokenizer : PreTrainedTokenizerBase
    max_length : int
    seed : int
        The tokens that are hidden are those of `companion.training.evaluation.mean_loss` with this seed.

    Returns
    -------
    float
    """
    objective, generator = MaskedLanguageModelling(tokenizer), torch.Generator().manual_seed(seed)
    total, count = 0.0, 0
    for batch in batches(examples, tokenizer, batch_size=32, max_length=max_length):
        targets = objective.prepare(batch, generator)["targets"]
        hidden = targets[targets != _IGNORED]
        total, count = total - log_frequencies[hidden].sum().item(), count + len(hidden)
    return total / max(1, count)


class _AtMasked(MaskedLanguageModelling):
    """The same loss, with the output layer computed at hidden tokens only: a seventh of its work."""

    def sums(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum over hidden tokens."""
        chosen = batch["targets"] != _IGNORED
        logits, _ = logits_at(cast(PreTrainedModel, model), batch, chosen)
        everywhere = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return {"loss": masked_cross_entropy(logits, batch["targets"][chosen], everywhere)}


def _with_fresh_head(encoder: PreTrainedModel | Path | str, seed: int) -> PreTrainedModel:
    """Build the encoder's masked language model with a head drawn from a seed."""
    body = encoder if isinstance(encoder, PreTrainedModel) else _loaded(encoder)
    config = copy.deepcopy(body.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast(PreTrainedModel, AutoModelForMaskedLM.from_config(config))
    torch.nn.Module.to(model, torch.float32)
    transplant(body, model)
    model.eval()
    return model


def _loaded(name: Path | str) -> PreTrainedModel:
    """Load an encoder without the progress bar that transformers draws."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        return cast(PreTrainedModel, AutoModel.from_pretrained(resolve(name), dtype=torch.float32))
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def _log_frequencies(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, size: int
) -> torch.Tensor:
    """Count the tokens of texts, each once more than it occurs, special ones left out."""
    counts: Counter[int] = Counter()
    for ids in tokenizer([example.text for example in examples], truncation=True, max_length=max_length)[
        "input_ids"
    ]:
        counts.update(ids)
    values = torch.ones(size, dtype=torch.float64)
    for token, count in counts.items():
        if token not in tokenizer.all_special_ids:
            values[token] += count
    return (values / values.sum()).log().float()
