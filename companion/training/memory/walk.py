"""Walks the out-of-memory ladder: what each rung saves and costs, measured on the model at hand."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion.data import Example, batches
from companion.training.device import choose_device, computes_bf16
from companion.training.memory.records import Ladder, Rung
from companion.training.memory.step import Attention, measure_step

__all__ = ["ladder"]


def ladder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    max_length: int = 512,
    budget_bytes: int | None = None,
    processes: int = 4,
    attention: Attention | None = None,
    keep_bf16: bool | None = None,
    repeats: int = 3,
) -> Ladder:
    """Walk the ladder and measure every rung: half the length, bf16, checkpointing, micro-batches, sharding.

    Each rung stands on those before it. Measured is the heaviest batch, that of the longest texts: it decides
    whether a run survives. Sharding (every process keeps its part of the model's states, as in FSDP and in
    ZeRO [1]_) cannot be measured in one process. It is computed, as a lower bound: the layer at work is
    gathered on top of it.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it is.
    tokenizer : PreTrainedTokenizerBase
    examples : sequence of Example
        At least `batch_size`.
    batch_size : int
        Examples of one optimizer step, on every rung.
    max_length : int
        Texts are cut to this many tokens at the start. The second rung halves what the longest one has left.
    budget_bytes : int, optional
        Stop at the first rung whose measured peak is not above it. By default all rungs are walked.
    processes : int
        Of the last rung.
    attention : {"sdpa", "eager"}, optional
        By default the model's own.
    keep_bf16 : bool, optional
        Whether the rungs after bf16 stand on it. By default only where the device computes in bf16: elsewhere
        it is many times slower, and measured for its own sake.
    repeats : int
        Timed steps a rung.

    Returns
    -------
    Ladder

    Raises
    ------
    ValueError
        When there are too few examples, they are too short to be halved, or a number is out of range.

    References
    ----------
    .. [1] Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020.
    """
    if processes < 2:
        raise ValueError(f"processes is {processes}, expected at least 2: one process has nothing to share")
    if budget_bytes is not None and budget_bytes <= 0:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes, or None")
    device = choose_device()
    keep_bf16 = computes_bf16(device) if keep_bf16 is None else keep_bf16
    texts = _Texts.of(tokenizer, examples, batch_size, max_length, model.config.problem_type == "regression")
    rungs: list[Rung] = []
    for plan in _plans(texts, batch_size, computes_bf16(device), keep_bf16):
        batch = texts.batch(plan.length)
        rung = _measured(plan, model, batch, batch_size, attention, repeats)
        rungs.append(replace(rung, below=_at(rungs, plan.below)))
        if rung.fits(budget_bytes):
            break
    else:
        rungs.append(_sharded(rungs[-1], processes))
    return Ladder(tuple(rungs), batch_size, budget_bytes, type(model).__name__, str(device))


def _plans(texts: _Texts, batch_size: int, has_bf16: bool, keep_bf16: bool) -> Iterator[Rung]:
    """Yield the rungs with their settings, each with the plan it stands on, before anything is measured."""
    plan = texts.cut(Rung("start", texts.width))
    yield plan
    plan = texts.cut(replace(plan, name="half the length", length=texts.width // 2, below=plan))
    yield plan
    lost = "digits: products have 8 significant bits instead of 24"
    lost += "" if has_bf16 else "; this device emulates bf16"
    lost += "" if keep_bf16 else "; not kept on the rungs above"
    bf16 = replace(plan, name="bf16", precision="bf16", gives_up=lost, below=plan)
    yield bf16
    plan = bf16 if keep_bf16 else plan
    plan = replace(
        plan,
        name="activation checkpointing",
        activation_checkpointing=True,
        gives_up="time: most of the forward pass is computed twice",
        below=plan,
    )
    yield plan
    for parts in (2, 4, 8):
        if parts <= batch_size:
            lost = "time: smaller products; the gradient stays the same"
            plan = replace(
                plan, name=f"{parts} micro-batches", micro_batches=parts, gives_up=lost, below=plan
            )
            yield plan


def _at(rungs: Sequence[Rung], plan: Rung | None) -> Rung | None:
    """Find the measured rung of a plan."""
    return next((rung for rung in rungs if plan is not None and rung.name == plan.name), None)


def _measured(
    plan: Rung,
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    batch_size: int,
    attention: Attention | None,
    repeats: int,
) -> Rung:
    """Measure a rung; one that runs out of memory has no measurement."""
    try:
        memory = measure_step(
            model,
            batch,
            precision=plan.precision,
            activation_checkpointing=plan.activation_checkpointing,
            micro_batch_size=-(-batch_size // plan.micro_batches),
            attention=attention,
            repeats=repeats,
        )
    except (RuntimeError, MemoryError) as error:
        # The CPU's allocator has no error class of its own.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(
            error
        ):
            raise
        memory = None
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return replace(plan, memory=memory, peak_bytes=memory.peak_bytes if memory is not None else None)


def _sharded(below: Rung, processes: int) -> Rung:
    """Compute the least that each of several processes needs."""
    peak = None
    if (memory := below.memory) is not None:
        # Not every gradient need be there at the peak, so what is left may not fall below what surely is.
        left = memory.peak_bytes - memory.state_bytes * (processes - 1) // processes
        held = memory.activation_bytes + memory.weight_copy_bytes
        held += (memory.parameter_bytes + memory.optimizer_bytes) // processes
        peak = max(left, held)
    return replace(
        below,
        name=f"sharding over {processes} processes",
        processes=processes,
        gives_up=f"{processes} devices and the traffic between them; computed, at least this much each",
        memory=None,
        peak_bytes=peak,
        below=below,
    )


@dataclass(frozen=True)
class _Texts:
    """The examples: how long they are, and the heaviest batch of them."""

    heaviest: tuple[Example, ...]
    lengths: tuple[int, ...]
    width: int
    tokenizer: PreTrainedTokenizerBase
    regression: bool

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        batch_size: int,
        max_length: int,
        regression: bool,
    ) -> _Texts:
        if not 1 <= batch_size <= len(examples):
            raise ValueError(f"batch_size is {batch_size}, expected 1 to {len(examples)}, the examples given")
        pairs = None if examples[0].pair is None else [example.pair or "" for example in examples]
        ids = tokenizer([example.text for example in examples], pairs, verbose=False)["input_ids"]
        lengths = tuple(len(row) for row in ids)
        width = min(max_length, max(lengths), int(tokenizer.model_max_length))
        if width < 8:
            raise ValueError(f"the longest text has {width} tokens, expected at least 8, to be halved")
        order = sorted(range(len(examples)), key=lambda index: -lengths[index])
        heaviest = tuple(examples[index] for index in order[:batch_size])
        return cls(heaviest, lengths, width, tokenizer, regression)

    def cut(self, rung: Rung) -> Rung:
        """Say what the rung's length cuts off."""
        tokens = sum(max(0, length - rung.length) for length in self.lengths) / sum(self.lengths)
        texts = sum(length > rung.length for length in self.lengths) / len(self.lengths)
        lost = f"text: {tokens:.1%} of the tokens, from {texts:.1%} of the texts" if texts else "nothing"
        return replace(rung, tokens_cut=tokens, texts_cut=texts, gives_up=lost)

    def batch(self, length: int) -> dict[str, torch.Tensor]:
        """Return the batch of the longest texts, cut to a length."""
        cut = batches(
            self.heaviest,
            self.tokenizer,
            batch_size=len(self.heaviest),
            max_length=length,
            multiple_of=1,
            regression=self.regression,
        )
        return next(iter(cut))
