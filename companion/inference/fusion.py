"""Rewrites that leave the answers as they are: one node per attention, and no work that nobody reads."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper

from companion.inference.graph import CONTRIB, Graph, attribute
from companion.inference.quantization.schemes import OPSET
from companion.inference.sessions import open_session

__all__ = ["fuse_attention", "fuse_projections", "keep_first_token"]

_ROW_WISE = {"MatMul", "Gemm", "Add", "Mul", "Gelu", "Relu", "Tanh", "LayerNormalization", "Erf", "Div"}
"""Operators whose output row `t` depends on row `t` of the inputs alone (the right operand is constant)."""


def fuse_attention(graph: Graph, *, heads: int) -> int:
    """Replace each attention by onnxruntime's ``MultiHeadAttention``.

    About twenty nodes become one: projections' biases, split into heads, scores, scale, mask, softmax, sum,
    merge of the heads. The projections themselves stay outside, where they can be quantized.

    Parameters
    ----------
    graph : Graph
        With an input ``attention_mask`` (batch, seq); changed in place.
    heads : int
        Attention heads per layer.

    Returns
    -------
    int
        How many attentions were found. An unknown pattern is left as it is, and so is an attention that
        hides more than the padding (the later tokens, or the distant ones).
    """
    masks: dict[str, bool] = {}
    matches = [
        match
        for softmax in graph.nodes
        if softmax.op_type == "Softmax" and (match := _match(graph, softmax, masks)) is not None
    ]
    if not matches:
        return 0
    mask = "attention_mask_int32"
    graph.nodes.insert(0, helper.make_node("Cast", ["attention_mask"], [mask], to=TensorProto.INT32))
    for query, key, value, biases, scale, merged in matches:
        bias = graph.constant(
            f"{merged.output[0]}_bias", np.concatenate([graph.constants[name] for name in biases])
        )
        fused = helper.make_node(
            "MultiHeadAttention",
            [query, key, value, bias, mask],
            list(merged.output),
            domain=CONTRIB,
            num_heads=heads,
            scale=scale,
            mask_filter_value=float(np.finfo(np.float32).min),
        )
        graph.replace(merged, [fused])
    graph.prune()
    return len(matches)


_LONG = 512
"""Tokens in the texts that masks are tried with: more than the windows of local attention."""

_Match = tuple[str, str, str, list[str], float, onnx.NodeProto]


def _match(graph: Graph, softmax: onnx.NodeProto, masks: dict[str, bool]) -> _Match | None:
    """Walk from a softmax back to its three projections and forward to the merged heads.

    `masks` remembers which masks hide the padding alone: the layers of a model share them.
    """
    masked = graph.producer(softmax.input[0])
    scaled = graph.producer(masked.input[0]) if masked is not None and masked.op_type == "Add" else None
    if scaled is None or scaled.op_type != "Mul" or scaled.input[1] not in graph.constants:
        return None
    scores = graph.producer(scaled.input[0])
    weighted = graph.consumers(softmax.output[0])
    if scores is None or scores.op_type != "MatMul" or [node.op_type for node in weighted] != ["MatMul"]:
        return None
    merged = _only(graph, _only(graph, weighted[0], "Transpose"), "Reshape")
    projections = [_projection(graph, name) for name in (*scores.input, weighted[0].input[1])]
    if merged is None or any(projection is None for projection in projections):
        return None
    assert masked is not None
    mask = masked.input[1]
    if mask not in masks:
        masks[mask] = _hides_padding_alone(graph, mask)
    if not masks[mask]:
        return None
    (query, query_bias), (key, key_bias), (value, value_bias) = (p for p in projections if p is not None)
    scale = float(graph.constants[scaled.input[1]])
    return query, key, value, [query_bias, key_bias, value_bias], scale, merged


def _hides_padding_alone(graph: Graph, mask: str) -> bool:
    """Compute a mask for a full and a half padded text; tell whether it is that of ``attention_mask``."""
    part = copy.copy(graph)
    part.outputs = [helper.make_tensor_value_info(mask, TensorProto.FLOAT, None)]
    model = part.to_model(opset=OPSET)
    feed = {item.name: np.ones((2, _LONG), dtype=np.int64) for item in graph.inputs}
    feed["attention_mask"][1, _LONG // 2 :] = 0
    visible = feed["attention_mask"][:, None, None, :] == 1
    try:
        found = open_session(model.SerializeToString(), quiet=True).run(None, feed)[0]
    except Exception:  # onnxruntime raises classes of its own, here for a mask of a fixed size
        return False
    return bool(np.where(visible, found == 0, found < -1e4).all())


def _only(graph: Graph, node: onnx.NodeProto | None, operator: str) -> onnx.NodeProto | None:
    """Return the one consumer of a node, if it is the operator expected."""
    if node is None:
        return None
    consumers = graph.consumers(node.output[0])
    return consumers[0] if [item.op_type for item in consumers] == [operator] else None


def _projection(graph: Graph, name: str) -> tuple[str, str] | None:
    """Follow ``Transpose``, ``Reshape``, ``Add(MatMul, bias)`` upwards; return the product and the bias."""
    node = graph.producer(name)
    while node is not None and node.op_type in ("Transpose", "Reshape"):
        node = graph.producer(node.input[0])
    if node is None or node.op_type != "Add":
        return None
    for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
        source = graph.producer(product)
        if bias in graph.constants and source is not None and source.op_type == "MatMul":
            return product, bias
    return None


def fuse_projections(graph: Graph) -> int:
    """Take the projections into the attention as well: onnxruntime's ``Attention``.

    This is how far onnxruntime's own optimizer goes. `companion.inference.export` does not: see
    `companion.inference.compare_fusions` for what it costs in INT8.

    Parameters
    ----------
    graph : Graph
        After `fuse_attention`; changed in place.

    Returns
    -------
    int
        How many attentions took their projections in: those whose queries, keys and values are products of
        one activation with constant matrices.
    """
    fused = 0
    for node in [node for node in graph.nodes if node.op_type == "MultiHeadAttention"]:
        products = [graph.producer(name) for name in node.input[:3]]
        if any(product is None or product.op_type != "MatMul" for product in products):
            continue
        hidden = {product.input[0] for product in products if product is not None}
        weights = [product.input[1] for product in products if product is not None]
        if len(hidden) > 1 or not all(name in graph.constants for name in weights):
            continue
        matrix = np.concatenate([graph.constants[name] for name in weights], axis=1)
        names = [hidden.pop(), graph.constant(f"{node.output[0]}_weights", matrix), *node.input[3:5]]
        new = helper.make_node("Attention", names, list(node.output), domain=CONTRIB)
        new.attribute.extend(node.attribute)
        graph.replace(node, [new])
        fused += 1
    graph.prune()
    return fused


def keep_first_token(graph: Graph) -> bool:
    """Compute the last layer for the first token only, where only that token is read.

    A BERT classifier reads the last layer's ``[CLS]`` row. Keys and values are needed for all tokens, but
    queries, the output projection and the feed-forward part of the other rows are work that nobody reads.

    Parameters
    ----------
    graph : Graph
        After `fuse_attention`; changed in place.

    Returns
    -------
    bool
        Whether the graph was of this kind.
    """
    attentions = [node for node in graph.nodes if node.op_type == "MultiHeadAttention"]
    if not attentions or not _only_first_row_is_read(graph, attentions[-1].output[0]):
        return False
    query = graph.producer(attentions[-1].input[0])
    if query is None or query.op_type != "MatMul":
        return False
    hidden = query.input[0]
    residuals = [node for node in graph.consumers(hidden) if node.op_type == "Add"]
    first = f"{hidden}_first"
    index = graph.constant("first_token", np.array([0], dtype=np.int64))
    graph.replace(query, [helper.make_node("Gather", [hidden, index], [first], axis=1), query])
    for node in (query, *residuals):
        node.input[:] = [first if name == hidden else name for name in node.input]
    return True


def _only_first_row_is_read(graph: Graph, name: str) -> bool:
    """Tell whether all paths from a result lead through row-wise operators to a ``Gather`` of token 0."""
    frontier, seen = [name], set()
    while frontier:
        name = frontier.pop()
        if name in seen:
            continue
        seen.add(name)
        consumers = graph.consumers(name)
        if not consumers or any(output.name == name for output in graph.outputs):
            return False
        for node in consumers:
            if node.op_type == "Gather":
                index = graph.constants.get(node.input[1])
                first = index is not None and index.size == 1 and int(index.reshape(-1)[0]) == 0
                if not first or attribute(node, "axis", 0) != 1:
                    return False
            elif node.op_type in _ROW_WISE:
                frontier.append(node.output[0])
            else:
                return False
    return True
