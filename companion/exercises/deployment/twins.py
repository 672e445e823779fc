"""Makes the twin of a graph in whole numbers: the same weights, and activations that nobody rounded.

What the twin says differs from what the graph says as another precision of one model does. So texts on which
the two differ tell whose answers a server gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__all__ = ["in_floats"]

_WHOLE = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")


def in_floats(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy of a graph that computes each of its integer products with weights in 32 bits.

    Parameters
    ----------
    model : onnx.ModelProto
        With all its weights.

    Returns
    -------
    onnx.ModelProto or None
        None when it has no integer product with weights, or one whose input is rounded in a way that is not
        known here.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    nodes: list[Any] = []
    products = 0
    for node in graph.node:
        if node.op_type not in _WHOLE:
            nodes.append(node)
            continue
        read = _read(node, weights, makers)
        if read is None:
            return None
        products += 1
        nodes += _product(graph, node.output[0], *read)
    if not products:
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    return twin


def _read(node: Any, weights: dict[str, Any], makers: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return what a product reads: its input, what that is divided by, its matrix, a factor, a bias."""
    from onnx import numpy_helper

    given = [*node.input, *[""] * 6]
    if node.op_type == "MatMulInteger":
        scale, zero, factor, bias = "", given[3], "", ""
    elif node.op_type == "MatMulIntegerToFloat":
        scale, zero, factor, bias = given[3], given[5], given[2], given[6]
    else:
        scale, zero, factor, bias = given[2], given[3], "", given[4]
    if any(name and name not in weights for name in (given[1], scale, zero)):
        return None
    matrix = numpy_helper.to_array(weights[given[1]]).astype(np.float32)
    if zero:
        matrix = matrix - numpy_helper.to_array(weights[zero]).astype(np.float32)
    if scale:
        matrix = matrix * numpy_helper.to_array(weights[scale])
    if node.op_type == "DynamicQuantizeMatMul":
        return given[0], "", matrix, factor, bias
    maker = makers.get(given[0])
    if maker is None or maker.op_type not in _ROUNDING:
        return None
    step = maker.input[1] if maker.op_type == "QuantizeLinear" else maker.output[1]
    return maker.input[0], step, matrix, factor, bias


def _product(
    graph: Any, output: str, source: str, step: str, matrix: Any, factor: str, bias: str
) -> Sequence[Any]:
    """Return the nodes of a product in 32 bits; its matrix goes into the graph."""
    from onnx import helper, numpy_helper

    prefix = f"{output}_floats"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix), f"{prefix}_matrix"))
    steps = [
        ("Div", step, "divided") if step else None,
        ("MatMul", f"{prefix}_matrix", "product"),
        ("Mul", factor, "scaled") if factor else None,
        ("Add", bias, "biased") if bias else None,
    ]
    wanted = [one for one in steps if one]
    nodes, current = [], source
    for number, (kind, other, name) in enumerate(wanted):
        made = output if number == len(wanted) - 1 else f"{prefix}_{name}"
        nodes.append(helper.make_node(kind, [current, other], [made], name=f"{prefix}_{name}"))
        current = made
    return nodes
