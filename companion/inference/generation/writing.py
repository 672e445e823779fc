"""Text from a decoder, word by word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.inference.generation.beams import Path, search
from companion.inference.generation.cost import Work
from companion.inference.generation.steps import (
    CompiledStep,
    Reader,
    WithCache,
    WithCompiledStep,
    WithoutCache,
)
from companion.inference.generation.strategies import Beam, Greedy, Sampling, Strategy
from companion.models.transformer import Transformer

__all__ = ["Generated", "generate"]


@dataclass(frozen=True)
class Generated:
    """The continuations of a batch of prompts.

    Attributes
    ----------
    token_ids : tuple of tuple of int
        For each row its new tokens, without the prompt; the end of the text is the last, where it came.
    log_probabilities : tuple of tuple of float
        Of each new token, given all before it, under the model itself: no temperature, no filter.
    finished : tuple of bool
        Whether a row came to the end of its text; otherwise it came to `max_new_tokens`.
    work : Work
        What the model was made to compute.
    """

    token_ids: tuple[tuple[int, ...], ...]
    log_probabilities: tuple[tuple[float, ...], ...]
    finished: tuple[bool, ...]
    work: Work


@torch.inference_mode()
def generate(
    model: Transformer,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    strategy: Strategy = Greedy(),  # noqa: B008 - frozen, without a field
    eos_token_id: int | None = None,
    use_cache: bool = True,
    attention_mask: Tensor | None = None,
    compiled: CompiledStep | None = None,
) -> Generated:
    """Continue a batch of texts.

    Parameters
    ----------
    model : Transformer
        A decoder with scores for words, in evaluation mode.
    input_ids : Tensor
        int64 (batch, seq): the prompts.
    max_new_tokens : int
        For each row, at most. They have to fit the model's `max_length` together with the longest prompt.
    strategy : Greedy, Sampling or Beam
    eos_token_id : int, optional
        The word that ends a text. A row that has ended is taken out of the batch: it costs nothing more.
    use_cache : bool
        Keep keys and values, and read each token once. Otherwise the whole text is read for each new token.
        The cache is made for the tokens that it will hold: all but the last, which is never read.
    attention_mask : Tensor, optional
        int64 (batch, seq), 0 for padding, which stands on the left.
    compiled : CompiledStep, optional
        From `compile_step`: runs the steps of one token over a cache of fixed shapes. A row that has ended
        stays in the computation there, and out of the answer.

    Returns
    -------
    Generated

    Raises
    ------
    ValueError
        When the model cannot generate, the texts do not fit it, or padding stands on the right.
    """
    _check_model(model, compiled, use_cache)
    input_ids, mask = _checked_prompt(model, input_ids, attention_mask)
    longest = compiled.capacity if compiled is not None else model.config.max_length
    _check_lengths(input_ids.size(1), max_new_tokens, longest)
    words = model.config.vocab_size
    if isinstance(strategy, Beam) and words < 2 * strategy.width:
        raise ValueError(
            f"a beam of width {strategy.width} chooses among {2 * strategy.width} words, and the model has "
            f"{words}: choose a smaller width"
        )
    reader = _reader(model, mask, input_ids.size(1) + max_new_tokens - 1, use_cache, compiled)
    if isinstance(strategy, Beam):
        paths = search(reader, input_ids, strategy, max_new_tokens, eos_token_id)
    else:
        paths = _one_text_a_row(reader, input_ids, strategy, max_new_tokens, eos_token_id)
    return Generated(
        tuple(path.token_ids for path in paths),
        tuple(path.log_probabilities for path in paths),
        tuple(path.token_ids[-1] == eos_token_id for path in paths),
        reader.work,
    )


def _one_text_a_row(
    reader: Reader,
    input_ids: Tensor,
    strategy: Greedy | Sampling,
    max_new_tokens: int,
    eos_token_id: int | None,
) -> list[Path]:
    """Choose word after word; take a row out of the batch when its text ends."""
    paths = [Path() for _ in input_ids]
    chances = strategy.generators(len(paths)) if isinstance(strategy, Sampling) else []
    running = list(range(len(paths)))
    scores = reader.read(input_ids)
    for length in range(1, max_new_tokens + 1):
        if isinstance(strategy, Sampling):
            chosen = strategy.draw(scores, [chances[row] for row in running])
        else:
            chosen = scores.argmax(dim=-1)
        logs = scores.float().log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)
        for row, token, log in zip(running, chosen.tolist(), logs.tolist(), strict=True):
            paths[row] = paths[row].then(token, log)
        open_rows = [i for i, row in enumerate(running) if paths[row].token_ids[-1] != eos_token_id]
        if not open_rows or length == max_new_tokens:
            break
        if len(open_rows) < len(running):
            running = [running[i] for i in open_rows]
            rows = torch.tensor(open_rows, device=chosen.device)
            reader.select(rows)
            chosen = chosen[rows]
        scores = reader.read(chosen[:, None])
    return paths


def _reader(
    model: Transformer, mask: Tensor, capacity: int, use_cache: bool, compiled: CompiledStep | None
) -> Reader:
    if compiled is not None:
        return WithCompiledStep(compiled, mask)
    return WithCache(model, mask, capacity) if use_cache else WithoutCache(model, mask)


def _check_model(model: Transformer, compiled: CompiledStep | None, use_cache: bool) -> None:
    if not model.config.causal or model.config.classes:
        kind = "scores classes" if model.config.classes else "is an encoder, whose tokens see what follows"
        raise ValueError(
            f"the model {kind}, expected a decoder with scores for words: causal, without classes"
        )
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes the words: call model.eval()")
    if compiled is not None and compiled.model is not model:
        raise ValueError("the compiled step is that of another model: make it with compile_step(model)")
    if compiled is not None and not use_cache:
        raise ValueError("a compiled step always uses a cache: leave out `compiled`, or use_cache=False")


def _checked_prompt(model: Transformer, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ids and mask, without columns that are padding in every row."""
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(
            f"input_ids has the shape {tuple(ids.shape)}, expected (batch, seq) with a token at least: "
            "an empty prompt begins with the model's own token for that"
        )
    mask = torch.ones_like(ids) if mask is None else mask.long()
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, "
            f"expected that of input_ids, {tuple(ids.shape)}"
        )
    if (mask[:, -1] == 0).any():
        row = int((mask[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"row {row} ends in padding, expected a token there, which the new ones follow: pad on the left"
        )
    words = model.config.vocab_size
    wrong = ids[(mask != 0) & ((ids < 0) | (ids >= words))]
    if len(wrong):
        raise ValueError(
            f"input_ids holds {int(wrong[0])}, expected 0 to {words - 1}: use the model's own tokenizer"
        )
    first = int(mask.any(dim=0).int().argmax())
    # Whatever stands at padding is looked up too, and then hidden.
    return (ids * (mask != 0))[:, first:], mask[:, first:]


def _check_lengths(prompt: int, max_new_tokens: int, longest: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if prompt + max_new_tokens > longest:
        room = f"max_new_tokens of {longest - prompt} at most, or " if prompt < longest else ""
        raise ValueError(
            f"a prompt of {prompt} tokens and {max_new_tokens} new ones make {prompt + max_new_tokens}, "
            f"expected {longest} at most: give {room}shorter prompts"
        )
