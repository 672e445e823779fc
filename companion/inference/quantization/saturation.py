"""Which processors multiply a graph's bytes exactly: all, or those with instructions made for it.

Without them an x86 processor multiplies bytes with ``vpmaddubsw``, which adds neighbouring products in 16
bits and cuts off what does not fit: the same file then gives other answers (onnxruntime's issue 14642).
Weights can be such that no pair can overflow; those of `companion.inference.quantize` are. Here a graph is
looked through for others.
"""

from __future__ import annotations

import numpy as np
import onnx

from companion.inference.graph import Graph
from companion.inference.quantization.grids import pair_sums

__all__ = ["EXACT", "needed_features"]

EXACT = "avx512_vnni|avx_vnni|asimd"
"""Instruction sets of which one is enough: VNNI by either name, or ARM's, which multiply signed bytes."""

_WEIGHT = {
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QAttention": 1,
    "QGemm": 3,
    "QLinearMatMul": 3,
}
"""The operators that multiply bytes, and the place of the weight among their inputs."""

_MOST = np.iinfo(np.int16).max // 255
"""The largest sum of two weights: activations are unsigned, up to 255."""


def needed_features(graph: Graph) -> tuple[str, ...]:
    """Name what a processor needs for a graph's integer products to be exact.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    tuple of str
        For `Manifest.cpu_features`. Empty where no sum of two products can leave 16 bits, whatever the
        activations.
    """
    return (EXACT,) if any(_can_overflow(graph, node) for node in graph.nodes) else ()


def _can_overflow(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether a pair of the node's products can leave 16 bits."""
    if node.op_type not in _WEIGHT:
        return False
    weight = graph.constants.get(node.input[_WEIGHT[node.op_type]])
    if weight is None or weight.ndim != 2:
        return True  # any bytes may come
    if weight.dtype != np.int8:
        return False  # products of two unsigned bytes are computed in 32 bits everywhere
    return bool(pair_sums(weight.astype(np.int32)).max() > _MOST)
