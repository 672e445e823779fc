"""INT8 whose answers do not depend on the batch, nor on the processor's instruction set.

Three decisions, each against a fault of the usual dynamic quantization:

1. **Activations are scaled row by row.** One scale for the whole batch makes a text's answer depend on its
   neighbours. Here every token has its own scale, and sums of 8-bit products are exact, so the order and
   number of rows cannot matter.
2. **No sum of two products can overflow 16 bits.** Without VNNI a processor uses ``vpmaddubsw``, which
   adds neighbouring products in 16 bits and saturates. The scale of a column of weights is chosen such that
   the largest possible sum just fits. The grid gets a little coarser, far less than by halving the range.
3. **Embedding tables are quantized too**, row by row. They are half of the file.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from companion.inference.graph import CONTRIB, Graph, attribute, scalar

__all__ = ["OPSET", "quantize", "quantize_columns", "quantize_rows"]

OPSET = 21
"""The first version of the standard operators whose ``QuantizeLinear`` takes a scale per block."""

_TINY = float(np.finfo(np.float32).tiny)
_SMALLEST_TABLE = 64  # rows; below, a table is not worth two more nodes


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a matrix column by column, safe for 16-bit sums of neighbouring products.

    Activations are unsigned, at most 255. ``vpmaddubsw`` computes ``a0 * w0 + a1 * w1`` for neighbouring rows
    of the matrix, rows 0 and 1, 2 and 3, and so on. The sum fits 16 bits if neighbouring weights of one sign
    add up to at most 128. Scaling a column's largest such sum to 127 leaves room for rounding both up.

    Parameters
    ----------
    weight : ndarray of float32, shape (inputs, outputs)

    Returns
    -------
    quantized : ndarray of int8, shape (inputs, outputs)
    scale : ndarray of float32, shape (outputs,)
        ``quantized * scale`` is close to `weight`.
    """
    # Divided before they are added: a sum of two large weights could be infinite.
    even = np.pad(weight, ((0, weight.shape[0] % 2), (0, 0))) / 127
    positive, negative = np.maximum(even, 0), np.maximum(-even, 0)
    sums = np.maximum(positive[0::2] + positive[1::2], negative[0::2] + negative[1::2])
    scale = np.maximum(sums.max(axis=0), _TINY).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a table of embeddings row by row.

    Parameters
    ----------
    table : ndarray of float32, shape (rows, width)

    Returns
    -------
    quantized : ndarray of int8, shape (rows, width)
    scale : ndarray of float32, shape (rows, 1)
    """
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, _TINY).astype(np.float32)
    return np.rint(table / scale).astype(np.int8), scale


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize every product with a constant matrix, and every embedding table, to INT8.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32. Is not changed.

    Returns
    -------
    onnx.ModelProto
        For onnxruntime: it multiplies with ``MatMulIntegerToFloat``.

    Raises
    ------
    ValueError
        When the model has no product with a constant matrix.
    """
    graph = Graph(model)
    rows: dict[str, tuple[str, str]] = {}
    products = 0
    for node in list(graph.nodes):
        if _is_product(graph, node):
            graph.replace(node, _product(graph, node, rows))
            products += 1
        elif node.op_type == "Gather" and _is_table(graph, node):
            graph.replace(node, _lookup(graph, node))
    if not products:
        raise ValueError("the graph multiplies with no constant matrix: there is nothing to quantize")
    return graph.to_model(opset=OPSET)


def _is_product(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether a node multiplies an activation with a constant matrix, and at most adds a bias."""
    if node.op_type not in ("MatMul", "Gemm") or not _is_matrix(graph, node.input[1]):
        return False
    return attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(
        node, "transA", 0
    )


def _is_matrix(graph: Graph, name: str) -> bool:
    constant = graph.constants.get(name)
    return constant is not None and constant.ndim == 2 and constant.dtype == np.float32


def _is_table(graph: Graph, node: onnx.NodeProto) -> bool:
    name = node.input[0]
    return (
        _is_matrix(graph, name)
        and len(graph.constants[name]) >= _SMALLEST_TABLE
        and attribute(node, "axis", 0) == 0
    )


def _row_scales(graph: Graph, name: str, width: int) -> tuple[list[onnx.NodeProto], tuple[str, str]]:
    """Quantize an activation to unsigned 8 bits around 128, with one scale per row of `width` numbers.

    Returns the nodes, and the names of the 8-bit activation and of its scales (..., 1).
    """
    last = graph.constant("last_axis", np.array([-1], dtype=np.int64))
    step = graph.constant("int8_step", scalar(1 / 127))
    tiny = graph.constant("tiny", scalar(_TINY))
    magnitude, largest, grid, scale, shape, centre, quantized = (
        f"{name}_{suffix}" for suffix in ("abs", "max", "grid", "scale", "shape", "centre", "int8")
    )
    nodes = [
        helper.make_node("Abs", [name], [magnitude]),
        helper.make_node("ReduceMax", [magnitude, last], [largest], keepdims=1),
        helper.make_node("Mul", [largest, step], [grid]),
        helper.make_node("Max", [grid, tiny], [scale]),
        helper.make_node("Shape", [scale], [shape]),
        helper.make_node(
            "ConstantOfShape", [shape], [centre], value=helper.make_tensor("v", TensorProto.UINT8, [1], [128])
        ),
        helper.make_node("QuantizeLinear", [name, scale, centre], [quantized], axis=-1, block_size=width),
    ]
    return nodes, (quantized, scale)


def _product(graph: Graph, node: onnx.NodeProto, rows: dict[str, tuple[str, str]]) -> list[onnx.NodeProto]:
    """Write a product in integers. Products that share an input share its quantization (`rows`)."""
    activation, name, output = node.input[0], node.input[1], node.output[0]
    weight = graph.constants[name]
    if attribute(node, "transB", 0):
        weight, name = weight.T, f"{name}_transposed"
    nodes: list[onnx.NodeProto] = []
    if activation not in rows:
        nodes, rows[activation] = _row_scales(graph, activation, len(weight))
    quantized, row_scale = rows[activation]
    int8, column_scale = quantize_columns(weight)
    integer_inputs = [
        quantized,
        graph.constant(f"{name}_columns_int8", np.ascontiguousarray(int8)),
        graph.constant("one", scalar(1)),
        graph.constant(f"{name}_columns_scale", column_scale),
        graph.constant("centre", scalar(128, np.uint8)),
        graph.constant("zero", scalar(0, np.int8)),
    ]
    product, scaled = f"{output}_product", f"{output}_scaled"
    nodes.append(helper.make_node("MatMulIntegerToFloat", integer_inputs, [product], domain=CONTRIB))
    if len(node.input) > 2 and node.input[2]:
        nodes.append(helper.make_node("Mul", [product, row_scale], [scaled]))
        nodes.append(helper.make_node("Add", [scaled, node.input[2]], [output]))
    else:
        nodes.append(helper.make_node("Mul", [product, row_scale], [output]))
    return nodes


def _lookup(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Look rows up in 8 bits, then scale them back."""
    (table, index), output = node.input, node.output[0]
    int8, scale = quantize_rows(graph.constants[table])
    narrow, wide, factor = f"{output}_narrow", f"{output}_wide", f"{output}_factor"
    return [
        helper.make_node("Gather", [graph.constant(f"{table}_rows_int8", int8), index], [narrow]),
        helper.make_node("Gather", [graph.constant(f"{table}_rows_scale", scale), index], [factor]),
        helper.make_node("Cast", [narrow], [wide], to=TensorProto.FLOAT),
        helper.make_node("Mul", [wide, factor], [output]),
    ]
