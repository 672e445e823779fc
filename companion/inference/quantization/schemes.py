"""Writes the products of a graph in narrow numbers, by one of three schemes.

`Rows` is the default: INT8 whose answers do not depend on the batch, nor on the processor's instruction set.
Three decisions, each against a fault of the usual dynamic quantization:

1. **Activations are scaled row by row.** One scale for the whole batch makes a text's answer depend on its
   neighbours. Here every token has its own scale, and sums of 8-bit products are exact, so the order and
   number of rows cannot matter.
2. **No sum of two products can overflow 16 bits.** Without VNNI a processor uses ``vpmaddubsw``, which
   adds neighbouring products in 16 bits and saturates. The scale of a column of weights is chosen such that
   the largest possible sum just fits. The grid gets a little coarser, far less than by halving the range.
3. **Embedding tables are quantized too**, row by row. They are half of the file.

`Fixed` knows the scale of each activation beforehand, from texts run through the model: no search for the
largest number in each row, and no room for a number that those texts did not have. `WeightsOnly` narrows what
is stored, in blocks of 32, and leaves the rest to onnxruntime's kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from companion.inference.graph import CONTRIB, Graph, attribute, scalar
from companion.inference.quantization.grids import (
    TINY,
    affine_scale,
    quantize_blocks,
    quantize_columns,
    quantize_rows,
)

__all__ = ["OPSET", "Fixed", "Rows", "Scheme", "WeightsOnly", "activations_of", "quantize", "weights_of"]

OPSET = 21
"""The first version of the standard operators whose ``QuantizeLinear`` takes a scale per block."""

_SMALLEST_TABLE = 64  # rows; below, a table is not worth two more nodes


@dataclass(frozen=True)
class Rows:
    """8-bit products; the scale of an activation is found for each of its rows, at run time."""


@dataclass(frozen=True)
class Fixed:
    """8-bit products; the scale of an activation is a constant.

    Attributes
    ----------
    ranges : mapping of str to (float, float)
        The least and the greatest number of each activation that is multiplied, by its name in the graph.
        What lies beyond is cut off. From `companion.inference.calibrate`.
    """

    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class WeightsOnly:
    """Narrow weights; activations come and go in float32.

    Attributes
    ----------
    bits : {8, 4, 2}
    block : int
        Weights of a column that share a scale.
    """

    bits: int = 8
    block: int = 32


Scheme = Rows | Fixed | WeightsOnly


def quantize(
    model: onnx.ModelProto, scheme: Scheme | None = None, *, keep: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantize every product with a constant matrix, and every embedding table.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32. Is not changed.
    scheme : Rows, Fixed or WeightsOnly, optional
        Default: `Rows`. Embedding tables are in 8 bits by all of them.
    keep : collection of str
        Matrices and tables that stay in float32: some of `weights_of`.

    Returns
    -------
    onnx.ModelProto
        For onnxruntime: it multiplies with ``MatMulIntegerToFloat`` or ``MatMulNBits``.

    Raises
    ------
    ValueError
        When the model has no product with a constant matrix, `keep` names one that is not there, or a range
        is missing.
    """
    graph = Graph(model)
    writer = _Writer(graph, scheme or Rows())
    nodes = _products(graph)
    if not nodes:
        raise ValueError("the graph multiplies with no constant matrix: there is nothing to quantize")
    unknown = sorted(set(keep) - set(weights_of(model)))
    if unknown:
        raise ValueError(f"keep names {unknown[0]!r}, which is no weight of this graph: see weights_of")
    for node in nodes:
        if node.input[1] not in keep:
            graph.replace(node, writer.product(node))
    for node in _lookups(graph):
        if node.input[0] not in keep:
            graph.replace(node, _lookup(graph, node))
    return graph.to_model(opset=OPSET)


def weights_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the tables and matrices that `quantize` would narrow, in the order of their use."""
    graph = Graph(model)
    tables = [node.input[0] for node in _lookups(graph)]
    matrices = [node.input[1] for node in _products(graph)]
    return tuple(dict.fromkeys(tables + matrices))


def activations_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the activations that are multiplied with these matrices."""
    return tuple(dict.fromkeys(node.input[0] for node in _products(Graph(model))))


def _products(graph: Graph) -> list[onnx.NodeProto]:
    """Return the nodes that multiply an activation with a constant matrix, and at most add a bias."""
    found = []
    for node in graph.nodes:
        if node.op_type in ("MatMul", "Gemm") and _is_matrix(graph, node.input[1]):
            plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
            if plain and not attribute(node, "transA", 0):
                found.append(node)
    return found


def _is_matrix(graph: Graph, name: str) -> bool:
    constant = graph.constants.get(name)
    return constant is not None and constant.ndim == 2 and constant.dtype == np.float32


def _lookups(graph: Graph) -> list[onnx.NodeProto]:
    """Return the nodes that look up rows of a table."""
    return [
        node
        for node in graph.nodes
        if node.op_type == "Gather"
        and _is_matrix(graph, node.input[0])
        and len(graph.constants[node.input[0]]) >= _SMALLEST_TABLE
        and attribute(node, "axis", 0) == 0
    ]


class _Writer:
    """Writes products by a scheme. Products that share an activation share its quantization."""

    def __init__(self, graph: Graph, scheme: Scheme) -> None:
        self.graph, self.scheme = graph, scheme
        self.narrow: dict[str, tuple[str, str]] = {}

    def product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that take the place of a product."""
        weight, name = self.graph.constants[node.input[1]], node.input[1]
        if attribute(node, "transB", 0):
            weight, name = weight.T, f"{name}_transposed"
        bias = node.input[2] if len(node.input) > 2 else ""
        activation, output = node.input[0], node.output[0]
        if isinstance(self.scheme, WeightsOnly):
            return self._blocks(self.scheme, activation, name, weight, bias, output)
        int8, column_scale = quantize_columns(weight)
        matrix = self.graph.constant(f"{name}_columns_int8", np.ascontiguousarray(int8))
        scales = self.graph.constant(f"{name}_columns_scale", column_scale)
        if isinstance(self.scheme, Fixed):
            return self._fixed(self.scheme, activation, matrix, scales, bias, output)
        return self._rows(activation, len(weight), matrix, scales, bias, output)

    def _rows(
        self, activation: str, width: int, matrix: str, scales: str, bias: str, output: str
    ) -> list[onnx.NodeProto]:
        graph, nodes = self.graph, list[onnx.NodeProto]()
        if activation not in self.narrow:
            nodes, self.narrow[activation] = _row_scales(graph, activation, width)
        quantized, row_scale = self.narrow[activation]
        inputs = [
            quantized,
            matrix,
            graph.constant("one", scalar(1)),
            scales,
            graph.constant("centre", scalar(128, np.uint8)),
            self._zero(matrix),
        ]
        product, scaled = f"{output}_product", f"{output}_scaled" if bias else output
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [product], domain=CONTRIB))
        nodes.append(helper.make_node("Mul", [product, row_scale], [scaled]))
        return nodes + [helper.make_node("Add", [scaled, bias], [output])] * bool(bias)

    def _fixed(
        self, scheme: Fixed, activation: str, matrix: str, scales: str, bias: str, output: str
    ) -> list[onnx.NodeProto]:
        graph, nodes = self.graph, list[onnx.NodeProto]()
        if activation not in scheme.ranges:
            raise ValueError(
                f"there is no range for {activation!r}, expected one for each of activations_of(model): "
                "calibrate the model that is quantized"
            )
        scale, zero_point = affine_scale(*scheme.ranges[activation])
        step = graph.constant(f"{activation}_step", np.array(scale))
        offset = graph.constant(f"{activation}_zero", np.array(zero_point))
        quantized = f"{activation}_int8"
        if activation not in self.narrow:
            nodes = [helper.make_node("QuantizeLinear", [activation, step, offset], [quantized])]
            self.narrow[activation] = quantized, step
        inputs = [quantized, matrix, step, scales, offset, self._zero(matrix), *[bias] * bool(bias)]
        return [*nodes, helper.make_node("MatMulIntegerToFloat", inputs, [output], domain=CONTRIB)]

    def _zero(self, matrix: str) -> str:
        """Name the zero point of a matrix: with one for all, onnxruntime's ``x64quantprecision`` fails."""
        return self.graph.constant(f"{matrix}_zero", scalar(0, np.int8))

    def _blocks(
        self,
        scheme: WeightsOnly,
        activation: str,
        name: str,
        weight: NDArray[np.float32],
        bias: str,
        output: str,
    ) -> list[onnx.NodeProto]:
        narrow, scale = quantize_blocks(weight, bits=scheme.bits, block=scheme.block)
        product = f"{output}_product" if bias else output
        node = helper.make_node(
            "MatMulNBits",
            [
                activation,
                self.graph.constant(f"{name}_blocks_int{scheme.bits}", narrow),
                self.graph.constant(f"{name}_blocks_scale", scale.reshape(-1)),
            ],
            [product],
            domain=CONTRIB,
            K=weight.shape[0],
            N=weight.shape[1],
            bits=scheme.bits,
            block_size=scheme.block,
            accuracy_level=_NARROW_INSIDE,
        )
        return [node] + [helper.make_node("Add", [product, bias], [output])] * bool(bias)


_NARROW_INSIDE = 4
"""Tells ``MatMulNBits`` to quantize the activations as well, block by block, for the length of a product."""


def _row_scales(graph: Graph, name: str, width: int) -> tuple[list[onnx.NodeProto], tuple[str, str]]:
    """Quantize an activation to unsigned 8 bits around 128, with one scale per row of `width` numbers.

    Returns the nodes, and the names of the 8-bit activation and of its scales (..., 1).
    """
    last = graph.constant("last_axis", np.array([-1], dtype=np.int64))
    step = graph.constant("int8_step", scalar(1 / 127))
    tiny = graph.constant("tiny", scalar(TINY))
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
