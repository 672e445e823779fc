"""An ONNX graph that can be taken apart: nodes in order, constants as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["CONTRIB", "Graph", "attribute"]

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""


class Graph:
    """The main graph of a model, for rewriting.

    Names of intermediate results stay as they are. Stack traces and other notes of the exporter are dropped:
    they hold paths of the machine that exported.

    Parameters
    ----------
    model : onnx.ModelProto
        Is not changed.

    Attributes
    ----------
    nodes : list of onnx.NodeProto
        In an order in which they can run.
    constants : dict of str to ndarray
        The initializers.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.inputs = list(model.graph.input)
        self.outputs = list(model.graph.output)
        self.nodes = [_bare(node) for node in model.graph.node]
        self.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}

    def producer(self, name: str) -> onnx.NodeProto | None:
        """Return the node that computes `name`; None for a constant or an input of the graph."""
        return next((node for node in self.nodes if name in node.output), None)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read `name`."""
        return [node for node in self.nodes if name in node.input]

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant, unless one of that name is there, and return its name."""
        self.constants.setdefault(name, value)
        return name

    def rename(self, old: str, new: str) -> None:
        """Give a constant another name, wherever it is read. The new name must be free."""
        self.constants = {new if name == old else name: value for name, value in self.constants.items()}
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]

    def replace(self, old: onnx.NodeProto, new: Iterable[onnx.NodeProto]) -> None:
        """Put nodes in the place of one."""
        at = next(index for index, node in enumerate(self.nodes) if node is old)
        self.nodes[at : at + 1] = list(new)

    def prune(self) -> None:
        """Drop the nodes and constants that nothing reads."""
        needed = {output.name for output in self.outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in needed}

    def operators(self) -> dict[str, int]:
        """Count the nodes by operator, most frequent first."""
        return dict(Counter(node.op_type for node in self.nodes).most_common())

    def to_model(self, *, opset: int) -> onnx.ModelProto:
        """Write the graph as a model again.

        Parameters
        ----------
        opset : int
            The version of the standard operators. The shapes of intermediate results are left to the runtime:
            stale ones break onnxruntime's quantizer (its issue 25890).

        Returns
        -------
        onnx.ModelProto
        """
        self.prune()
        initializers = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "model", self.inputs, self.outputs, initializers)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in sorted(domains))]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=max(self._model.ir_version, 10),
            producer_name="companion",
        )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    del copy.metadata_props[:]
    return copy


def scalar(value: float, dtype: Any = np.float32) -> NDArray[Any]:
    """Make a constant without dimensions."""
    return np.array(value, dtype=dtype)
