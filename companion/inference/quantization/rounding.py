"""Quantization-aware training: a model is trained with the rounding that it will be served with.

The forward pass sees rounded weights and activations; the backward pass takes the rounding for the identity:
the straight-through estimator of Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons for Conditional Computation", arXiv 1308.3432. What is trained are the weights behind the rounding, so
that what comes out is an ordinary model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from companion.data import Example
from companion.inference.exporting import feeds_of
from companion.inference.quantization.calibration import Method, Observer
from companion.inference.quantization.grids import TINY, affine_scale
from companion.models import Classifier

__all__ = ["Rounded", "ranges_of", "round_blocks", "round_columns", "rounded"]

Rounded = Literal["int8-fixed", "int8-weights", "int4-weights", "int2-weights"]


@contextmanager
def rounded(
    classifier: Classifier,
    precision: Rounded,
    *,
    calibration: Sequence[Example] = (),
    method: Method = "error",
    block: int = 32,
) -> Iterator[None]:
    """Let a model compute with the rounding of an export, until the end of the block.

    Train inside (`companion.training.fit`), save and export outside. Embedding tables are not rounded: their
    rows have scales of their own, and lose next to nothing.

    Parameters
    ----------
    classifier : Classifier
        Changed in place, and put back at the end but for what was learned.
    precision : {"int8-fixed", "int8-weights", "int4-weights", "int2-weights"}
        As for `companion.inference.export`.
    calibration : sequence of Example
        For ``int8-fixed``, the same as for the export.
    method : {"error", "minmax"}
        For ``int8-fixed``, how ranges are chosen: see `companion.inference.calibrate`.
    block : int
        For the others, weights that share a scale: see `companion.inference.WeightsOnly`.

    Raises
    ------
    ValueError
        For an unknown precision or method, or ``int8-fixed`` without examples.
    """
    rounds: dict[str, Callable[[Tensor], Tensor]] = {
        "int8-fixed": round_columns,
        "int8-weights": partial(round_blocks, bits=8, block=block),
        "int4-weights": partial(round_blocks, bits=4, block=block),
        "int2-weights": partial(round_blocks, bits=2, block=block),
    }
    if precision not in rounds:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(rounds)}")
    model = classifier.model
    ranges = ranges_of(classifier, calibration, method=method) if precision == "int8-fixed" else {}
    with ExitStack() as stack:
        for name, layer in _products(model).items():
            vars(layer)["forward"] = partial(_product, layer, rounds[precision], ranges.get(name))
            stack.callback(vars(layer).pop, "forward")
        yield


def ranges_of(
    classifier: Classifier, examples: Sequence[Example], *, method: Method = "error"
) -> dict[str, tuple[float, float]]:
    """Find the range of what goes into each product, as `companion.inference.calibrate` does for a graph.

    Parameters
    ----------
    classifier : Classifier
    examples : sequence of Example
    method : {"error", "minmax"}

    Returns
    -------
    dict of str to (float, float)
        By the name of the module.
    """
    model = classifier.model
    observers = {name: Observer() for name in _products(model)}

    def see(observer: Observer, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        observer.see(inputs[0].detach().float().cpu().numpy())

    device, training = next(model.parameters()).device, model.training
    with ExitStack() as stack, torch.no_grad():
        stack.callback(model.train, training)
        model.eval()
        for name, layer in _products(model).items():
            stack.callback(layer.register_forward_pre_hook(partial(see, observers[name])).remove)
        for feed in feeds_of(classifier, examples):
            model(**{name: torch.from_numpy(ids).to(device) for name, ids in feed.items()})
    return {name: observer.range(method) for name, observer in observers.items()}


def round_columns(weight: Tensor) -> Tensor:
    """Round a matrix to the grid of `companion.inference.quantize_columns`.

    Parameters
    ----------
    weight : Tensor, shape (inputs, outputs)

    Returns
    -------
    Tensor, shape (inputs, outputs)
        The same numbers as there; the gradient passes as if nothing had been done.
    """
    with torch.no_grad():
        even = nn.functional.pad(weight, (0, 0, 0, weight.size(0) % 2)) / 127
        positive, negative = even.clamp(min=0), (-even).clamp(min=0)
        sums = torch.maximum(positive[0::2] + positive[1::2], negative[0::2] + negative[1::2])
        scale = sums.amax(dim=0).clamp(min=TINY)
        result = torch.round(weight / scale) * scale
    return weight + (result - weight).detach()


def round_blocks(weight: Tensor, *, bits: int, block: int = 32) -> Tensor:
    """Round a matrix to the grid of `companion.inference.quantize_blocks`.

    Parameters
    ----------
    weight : Tensor, shape (inputs, outputs)
    bits : {2, 4, 8}
    block : int

    Returns
    -------
    Tensor, shape (inputs, outputs)
        The same numbers as there; the gradient passes as if nothing had been done.
    """
    half = 2 ** (bits - 1)
    with torch.no_grad():
        inputs, outputs = weight.shape
        padded = nn.functional.pad(weight, (0, 0, 0, -inputs % block)).T.reshape(outputs, -1, block)
        largest = padded.gather(2, padded.abs().argmax(dim=2, keepdim=True))
        scale = -largest / half
        scale = torch.where(scale.abs() < TINY, TINY, scale)
        result = (torch.round(padded / scale).clamp(-half, half - 1) * scale).reshape(outputs, -1).T[:inputs]
    return weight + (result - weight).detach()


def _product(
    layer: nn.Linear | Conv1D,
    rounding: Callable[[Tensor], Tensor],
    ends: tuple[float, float] | None,
    x: Tensor,
) -> Tensor:
    """Compute what a layer would, with its weight rounded, and its input where there is a range for it."""
    weight = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight  # torch keeps (outputs, inputs)
    product = (x if ends is None else _round_input(x, *ends)) @ rounding(weight)
    return product if layer.bias is None else product + layer.bias


def _round_input(x: Tensor, low: float, high: float) -> Tensor:
    """Round an activation; what lies beyond the range is cut off, and learns nothing from it."""
    scale, zero_point = (float(value) for value in affine_scale(low, high))
    inside = x.clamp(-zero_point * scale, (255 - zero_point) * scale)
    result = torch.round(inside.detach() / scale) * scale
    return inside + (result - inside).detach()


def _products(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
