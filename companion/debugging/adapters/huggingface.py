"""Models of transformers: from a folder, called as their authors call them, in one part or in two."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from companion.debugging.adapters.sizes import counts_places
from companion.debugging.calling import Scores, default_scores, scores_of
from companion.debugging.checks.registry import NotApplicable
from companion.debugging.subject import seeded
from companion.models import resolve

__all__ = ["Folder", "decoder_scores", "opened", "pretrained_scores"]

_CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "causal language model": AutoModelForCausalLM,
    "masked language model": AutoModelForMaskedLM,
    "encoder": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_SOURCE = 13
"""Tokens of a made-up source: a length that no check gives to the text that it looks at."""


@dataclass(frozen=True)
class Folder:
    """What is in a model folder.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, float32, on the CPU.
    tokenizer : object or None
        Of transformers.
    fresh : tuple of str
        Parameters that the folder does not have, and that were drawn at random.
    """

    model: PreTrainedModel
    tokenizer: Any
    fresh: tuple[str, ...]

    def encode(self, max_length: int) -> Callable[[str], list[int]] | None:
        """Return what turns a text into at most `max_length` token ids; None without a tokenizer."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return None
        return lambda text: list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])


def opened(folder: Path, kind: str) -> Folder:
    """Load a model for a task, and the tokenizer beside it.

    Parameters
    ----------
    folder : Path
        In Hugging Face layout.
    kind : str
        A `Kind`, or ``seq2seq``.

    Raises
    ------
    FileNotFoundError, ValueError
        When there is no such folder, it holds no model, or none for this task.
    """
    resolve(folder)
    bars = hf_logging.is_progress_bar_enabled()
    verbosity = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        with seeded(0):
            model, info = _CLASSES[kind].from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
        tokenizer = AutoTokenizer.from_pretrained(folder) if _has_tokenizer(folder) else None
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{folder} cannot be loaded for --task {kind}: {first}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
    return Folder(model.eval(), tokenizer, tuple(sorted(info["missing_keys"])))


def pretrained_scores(model: PreTrainedModel, kind: str) -> Scores:
    """Return how a model of transformers is called.

    A decoder with absolute positions is told them, counted from the first real token, as
    ``generate`` does. An encoder's texts begin at its first place: padding in front of them is not what
    it is made for.
    """
    parameters = inspect.signature(model.forward).parameters
    told = kind == "causal language model" and "position_ids" in parameters
    counted = not told and counts_places(model, default_scores)

    def scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is None:
            return default_scores(model, input_ids)
        left = bool((attention_mask[:, 0] == 0).any())
        if left and counted:
            raise NotApplicable(f"{type(model).__name__} is made for padding on the right")
        if not told:
            return default_scores(model, input_ids, attention_mask)
        places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return scores_of(model(input_ids=input_ids, attention_mask=attention_mask, position_ids=places))

    return scores


def decoder_scores(example: nn.Module, source_words: int) -> Scores:
    """Return how the decoder of an encoder-decoder is called: with one fixed source for all rows.

    Parameters
    ----------
    example : Module
        A model of that kind: whether it counts places from the start of a text is tried out.
    source_words : int
        Words that the source may have.
    """

    def plain(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        source = fixed_source(len(input_ids), source_words).to(input_ids.device)
        given = {} if attention_mask is None else {"decoder_attention_mask": attention_mask}
        return scores_of(model(input_ids=source, decoder_input_ids=input_ids, **given))

    counted = counts_places(example, plain)

    def scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        left = attention_mask is not None and bool((attention_mask[:, 0] == 0).any())
        if left and counted:
            raise NotApplicable(f"the decoder of {type(model).__name__} is made for padding on the right")
        return plain(model, input_ids, attention_mask)

    return scores


def fixed_source(rows: int, words: int) -> Tensor:
    """Return the same made-up source text for each row: int64 (rows, 13)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(min(3, words - 1), words, (1, _SOURCE), generator=generator).expand(rows, -1)


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
    return any((folder / name).is_file() for name in names)
