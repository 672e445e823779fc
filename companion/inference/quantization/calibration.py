"""Fixed scales: what each activation ranges over, found by running texts through the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from companion.inference.graph import Graph
from companion.inference.quantization.schemes import OPSET, activations_of
from companion.inference.sessions import open_session

__all__ = ["Method", "Observer", "calibrate", "clipped"]

Method = Literal["error", "minmax"]

_SAMPLE = 1024  # numbers kept of an activation for each text
_SHARES = np.linspace(1.0, 0.3, 36, dtype=np.float32)


def calibrate(
    model: onnx.ModelProto,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    method: Method = "error",
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Run inputs through a graph, and choose the range of each activation that is multiplied.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32.
    feeds : iterable of mapping
        Inputs of the graph, one text each: padding would be measured too.
    method : {"error", "minmax"}
        ``"minmax"``: all that was seen. ``"error"``: the range whose grid has the least mean squared error on
        a sample of what was seen. It cuts off rare large numbers where that makes all others more precise.
    seed : int
        Draws the sample.

    Returns
    -------
    dict of str to (float, float)
        For `Fixed`.

    Raises
    ------
    ValueError
        Without a single input, or for an unknown method.
    """
    _check(method)
    names = activations_of(model)
    session = _session_with(model, names)
    observers = {name: Observer(seed) for name in names}
    for feed in feeds:
        for name, values in zip(names, session.run(list(names), dict(feed)), strict=True):
            observers[name].see(values)
    return {name: observer.range(method) for name, observer in observers.items()}


class Observer:
    """Remembers what one activation ranges over, and a sample of it.

    Parameters
    ----------
    seed : int
        Draws the sample.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._low, self._high = 0.0, 0.0
        self._samples: list[NDArray[np.float32]] = []

    def see(self, values: NDArray[np.float32]) -> None:
        """Take the activation of one text into account."""
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._samples.append(self._generator.choice(values.reshape(-1), _SAMPLE))

    def range(self, method: Method = "error") -> tuple[float, float]:
        """Return the range to cover.

        Raises
        ------
        ValueError
            When nothing was seen, or for an unknown method.
        """
        _check(method)
        if not self._samples:
            raise ValueError(
                "there is nothing to calibrate with, expected texts like those that will be served"
            )
        if method == "minmax":
            return self._low, self._high
        return clipped(np.concatenate(self._samples), self._low, self._high)


def clipped(values: NDArray[np.float32], low: float, high: float) -> tuple[float, float]:
    """Shrink a range until the 8-bit grid over it has the least mean squared error.

    Parameters
    ----------
    values : ndarray of float32, shape (n,)
        A sample of the numbers.
    low, high : float
        The range of all of them; holds 0. Each end is shrunk by itself, one after the other.

    Returns
    -------
    (float, float)
    """

    def error(low: float, high: float) -> float:
        step = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        grid = np.clip(np.rint(values / step), np.rint(low / step), np.rint(high / step))
        return float(np.square(grid * step - values, dtype=np.float64).mean())

    for _ in range(2):
        high = min((high * share for share in _SHARES), key=lambda end: error(low, end))
        low = min((low * share for share in _SHARES), key=lambda end: error(end, high))
    return float(low), float(high)


def _check(method: str) -> None:
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected 'error' or 'minmax'")


def _session_with(model: onnx.ModelProto, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """Open a graph with these results as further outputs."""
    graph = Graph(model)
    given = {output.name for output in graph.outputs}
    graph.outputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in given
    ]
    return open_session(graph.to_model(opset=OPSET).SerializeToString())
