"""Measures what one training step keeps in memory, part by part, and how long it takes."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from companion.training.device import choose_device
from companion.training.memory.accounting import LiveTensors, SavedForBackward, storages

__all__ = ["StepMemory", "measure_step"]

Attention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class StepMemory:
    """What one optimizer step needed. All sizes in bytes.

    Attributes
    ----------
    parameter_bytes, gradient_bytes, optimizer_bytes : int
        The model's states: weights, their gradients after the backward pass, AdamW's moments and counters.
    activation_bytes : int
        Most that was held at one moment for the backward pass. A storage counts once; parameters, buffers and
        autocast's copies of parameters do not count.
    weight_copy_bytes : int
        Most that was held at one moment in bf16 copies of parameters, which autocast makes and the backward
        pass needs. They do not grow with the batch. 0 in fp32.
    attention_bytes : int or None
        The part of the activations that has a number for each pair of tokens, (batch, heads, seq, seq). None
        when it cannot be told: not a transformers model, or `seq` equals one of the model's widths.
    peak_bytes : int
        Most that was allocated at one moment of the step: all of the above, inputs and working memory.
    seconds, seconds_low, seconds_high : float
        Wall-clock time of a step: median, fastest and slowest of the timed steps.
    device : str
        Where it was measured.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    weight_copy_bytes: int
    attention_bytes: int | None
    peak_bytes: int
    seconds: float
    seconds_low: float
    seconds_high: float
    device: str

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and optimizer states together."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


def measure_step(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    activation_checkpointing: bool = False,
    micro_batch_size: int | None = None,
    attention: Attention | None = None,
    repeats: int = 3,
) -> StepMemory:
    """Take training steps on a copy of a model, and measure their memory and their time.

    A step is what the training loop does: forward and backward pass of every micro-batch, one step of AdamW,
    gradients dropped. It is taken `repeats` + 2 times: once to count what is saved for the backward pass,
    once for the peak, then undisturbed for the time. On CUDA the peak is the allocator's own; elsewhere the
    storages of all live tensors are followed, which finds no memory that a kernel uses inside itself.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is, wherever it is: a deep copy is trained, on the device of the settings.
    batch : mapping of str to Tensor
        Arguments of the model, each of shape (batch, ...); `index` is ignored. With `labels` the model's own
        loss is used, otherwise the mean square of its output.
    precision : {"fp32", "bf16"}
        bf16 is autocast: weights, gradients and optimizer states stay in fp32.
    activation_checkpointing : bool
        Keep only each layer's input and compute the rest again in the backward pass (Chen et al., "Training
        Deep Nets with Sublinear Memory Cost", 2016).
    micro_batch_size : int, optional
        Examples of one forward and backward pass; gradients add up over them. By default the whole batch.
    attention : {"sdpa", "eager"}, optional
        By default the model's own. Eager attention saves its scores. A fused kernel does not; but where torch
        has none for the case at hand (on a CPU: with dropout on the attention), ``"sdpa"`` saves them too.
    repeats : int
        Timed steps.

    Returns
    -------
    StepMemory

    Raises
    ------
    ValueError
        When an argument is out of range, or the model cannot do what is asked.
    """
    batch = {name: tensor for name, tensor in batch.items() if name != "index"}
    size = _check(model, batch, precision, micro_batch_size, repeats)
    device = choose_device()
    parts = _Parts(micro_batch_size or size, size, device, precision == "bf16")
    trained = _copy(model, attention, activation_checkpointing, device)
    learned = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=device.type in ("cpu", "cuda"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        # Counted with the reentrant form: it recomputes with our hooks in place, so what a layer saves the
        # second time is seen too. The form that training uses puts its own hooks over ours.
        _checkpointing(trained, activation_checkpointing, reentrant=True)
        saved = SavedForBackward(trained, batch)
        with saved, saved.hooks():
            gradient_bytes = parts.step(trained, optimizer, batch)
        _checkpointing(trained, activation_checkpointing, reentrant=False)
        peak_bytes = _peak(trained, optimizer, lambda: parts.step(trained, optimizer, batch), device)
        times = sorted(parts.timed_step(trained, optimizer, batch) for _ in range(repeats))
    states = [value for state in optimizer.state.values() for value in state.values()]
    return StepMemory(
        parameter_bytes=_nbytes(trained.parameters()),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=_nbytes(value for value in states if isinstance(value, torch.Tensor)),
        activation_bytes=saved.activations.peak,
        weight_copy_bytes=saved.copies.peak,
        attention_bytes=saved.attention.peak if saved.scores is not None else None,
        peak_bytes=peak_bytes,
        seconds=statistics.median(times),
        seconds_low=times[0],
        seconds_high=times[-1],
        device=str(device),
    )


@dataclass(frozen=True)
class _Parts:
    """A step over a batch in parts."""

    micro_batch_size: int
    batch_size: int
    device: torch.device
    bf16: bool

    def step(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, torch.Tensor]
    ) -> int:
        """Take a step; return the bytes of its gradients."""
        for start in range(0, self.batch_size, self.micro_batch_size):
            # A copy, as a loader would hand it over: a view would keep the whole batch alive.
            part = {
                name: tensor[start : start + self.micro_batch_size].to(self.device, copy=True)
                for name, tensor in batch.items()
            }
            share = min(self.micro_batch_size, self.batch_size - start) / self.batch_size
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = _loss(model(**part), "labels" in part)
            (loss * share).backward()
            del loss  # it holds the graph's last node, and with it a little memory, through the next part
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return _nbytes(gradients)

    def timed_step(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, torch.Tensor]
    ) -> float:
        """Take a step; return its seconds, with all that the device still had to do."""
        _finish(self.device)
        start = time.perf_counter()
        self.step(model, optimizer, batch)
        _finish(self.device)
        return time.perf_counter() - start


def _peak(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], object], device: torch.device
) -> int:
    """Return the most bytes that are allocated at one moment of the step, the model's own included."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [
        v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)
    ]
    before = {storage._cdata: storage.nbytes() for storage in storages(tensors)}
    resident = sum(before.values())
    if device.type == "cuda":
        gc.collect()  # what Python has not let go of yet would be freed in the middle of the measurement
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        return resident + torch.cuda.max_memory_allocated(device) - allocated
    peak = LiveTensors(set(before))
    with peak:
        step()
    return resident + peak.live.peak


def _copy(
    model: torch.nn.Module, attention: Attention | None, activation_checkpointing: bool, device: torch.device
) -> torch.nn.Module:
    """Return a copy that can be trained, stripped of gradients and of the caller's switches."""
    transformer = isinstance(model, PreTrainedModel)
    if activation_checkpointing and not (transformer and model.supports_gradient_checkpointing):
        raise ValueError(
            f"{type(model).__name__} has no activation checkpointing, expected a transformers model that "
            "supports it. Measure without."
        )
    trained = copy.deepcopy(model)
    if isinstance(trained, PreTrainedModel):
        if attention is not None:
            trained.set_attn_implementation(attention)
    elif attention is not None:
        raise ValueError(f"{type(model).__name__} is no transformers model: leave `attention` out")
    trained.zero_grad(set_to_none=True)
    return torch.nn.Module.to(trained, device).train()


def _checkpointing(model: torch.nn.Module, enable: bool, *, reentrant: bool) -> None:
    """Switch checkpointing on or off; off also where the caller's model had it on."""
    if not isinstance(model, PreTrainedModel):
        return
    if enable:
        model.config.use_cache = False  # or transformers warns that it switches the cache off
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    elif model.supports_gradient_checkpointing:
        model.activation_checkpointing_disable()


def _loss(output: Any, labelled: bool) -> Any:
    """Return the model's own loss, or the mean square of its main output."""
    if labelled and getattr(output, "loss", None) is not None:
        return output.loss
    if not isinstance(output, torch.Tensor):
        output = output.logits if getattr(output, "logits", None) is not None else output[0]
    return output.float().pow(2).mean()


def _check(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    precision: str,
    micro_batch_size: int | None,
    repeats: int,
) -> int:
    """Refuse what cannot be measured; return the number of examples."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is {precision!r}, expected 'fp32' or 'bf16'")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected at least 1 timed step")
    sizes = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in batch.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"the batch has {sizes or 'no tensors'}, expected tensors of as many examples each")
    size = next(iter(sizes.values()))
    if micro_batch_size is not None and not 1 <= micro_batch_size <= size:
        raise ValueError(f"micro_batch_size is {micro_batch_size}, expected 1 to {size}, the batch's size")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"no parameter of {type(model).__name__} requires a gradient: nothing to train")
    return size


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _finish(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
