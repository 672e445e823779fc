"""Which layer pays for a narrow number, and how few of them must stay wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from companion.inference.quantization.schemes import Scheme, quantize, weights_of
from companion.inference.sessions import run_all

__all__ = ["Sensitivity", "divergence", "fewest_kept", "layer_of", "sensitivities"]


@dataclass(frozen=True)
class Sensitivity:
    """What narrowing one matrix alone does to the answers.

    Attributes
    ----------
    weight : str
        Its name in the graph.
    divergence : float
        See `divergence`.
    flips : int
        Texts whose most likely label changed.
    parameters : int
        Numbers that it holds.
    """

    weight: str
    divergence: float
    flips: int
    parameters: int

    @property
    def layer(self) -> str:
        """The name of its layer in the model."""
        return layer_of(self.weight)


def sensitivities(
    model: onnx.ModelProto, feeds: Sequence[dict[str, NDArray[Any]]], scheme: Scheme
) -> tuple[Sensitivity, ...]:
    """Narrow each matrix and table alone, and compare the answers with those of the whole model.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32.
    feeds : sequence of dict
        Inputs of the graph, one text each. From `feeds_of`.
    scheme : Rows, Fixed or WeightsOnly

    Returns
    -------
    tuple of Sensitivity
        The most sensitive first.
    """
    expected = run_all(model.SerializeToString(), feeds)
    weights = weights_of(model)
    sizes = {item.name: int(np.prod(item.dims)) for item in model.graph.initializer}
    found = []
    for weight in weights:
        alone = quantize(model, scheme, keep=set(weights) - {weight})
        logits = run_all(alone.SerializeToString(), feeds)
        flips = int((logits.argmax(1) != expected.argmax(1)).sum())
        found.append(Sensitivity(weight, divergence(expected, logits), flips, sizes[weight]))
    return tuple(sorted(found, key=lambda one: -one.divergence))


def divergence(expected: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Say how far answers are from those expected, on average over the texts.

    Parameters
    ----------
    expected, logits : ndarray of float32, shape (texts, num_labels)

    Returns
    -------
    float
        The Kullback-Leibler divergence in nats; of one output, a number, the mean squared difference.
    """
    if expected.shape[1] == 1:
        return float(np.square(expected - logits, dtype=np.float64).mean())
    right, other = (_log_shares(values) for values in (expected, logits))
    return float((np.exp(right) * (right - other)).sum(axis=1).mean())


def fewest_kept(
    order: Sequence[str], acceptable: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...] | None:
    """Find the shortest beginning of an order that is acceptable, by bisection.

    Parameters
    ----------
    order : sequence of str
        Weights, those to keep wide first: the most sensitive.
    acceptable : callable
        Says whether keeping these is enough. Taken to be monotone: more kept is never worse. Noise may break
        that; the result itself was always tried.

    Returns
    -------
    tuple of str or None
        None when not even keeping all of them is acceptable.
    """
    tried = partial(_tried, order, acceptable, {})
    if not tried(len(order)):
        return None
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle) else (middle + 1, high)
    return tuple(order[:high])


def layer_of(weight: str) -> str:
    """Return the name of the layer that a graph's weight belongs to."""
    return weight.removeprefix("model.").removesuffix(".T").removesuffix(".weight")


def _tried(
    order: Sequence[str], acceptable: Callable[[tuple[str, ...]], bool], known: dict[int, bool], count: int
) -> bool:
    if count not in known:
        known[count] = acceptable(tuple(order[:count]))
    return known[count]


def _log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    shares: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return shares
