"""The two rewrites leave the answers as they are, and keep away from graphs that they do not fit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from companion.inference.fusion import fuse_attention, keep_first_token
from companion.inference.graph import Graph
from companion.inference.quantization.schemes import OPSET


@pytest.fixture
def graph(fp32_folder) -> Graph:
    return Graph(onnx.load(str(fp32_folder / "model.onnx")))


def run(graph: Graph, seed: int = 0, lengths=(24, 9, 1)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    types = rng.integers(0, 2, mask.shape) * mask
    feed = {
        "input_ids": rng.integers(5, 800, mask.shape) * mask,
        "attention_mask": mask,
        "token_type_ids": types,
    }
    model = graph.to_model(opset=OPSET)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


def test_one_node_per_attention_and_the_same_answers(graph):
    expected = run(graph)
    assert np.ptp(expected) > 0.1
    assert fuse_attention(graph, heads=2) == 2
    operators = graph.operators()
    assert operators["MultiHeadAttention"] == 2
    assert not {"Softmax", "Transpose", "Reshape", "GatherND"} & operators.keys(), "what it replaces is gone"
    np.testing.assert_allclose(run(graph), expected, atol=1e-5)


def test_the_last_layer_for_the_first_token_and_the_same_answers(graph):
    expected = run(graph)
    fuse_attention(graph, heads=2)
    assert keep_first_token(graph)
    np.testing.assert_allclose(run(graph), expected, atol=1e-5)
    part = graph.to_model(opset=OPSET)
    last = next(node for node in reversed(part.graph.node) if node.op_type == "LayerNormalization")
    part.graph.output.append(helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, None))
    ones = np.ones((2, 16), dtype=np.int64)
    session = onnxruntime.InferenceSession(part.SerializeToString())
    _, hidden = session.run(None, {name.name: ones for name in part.graph.input})
    assert hidden.shape == (2, 1, 32), "one row a text, not sixteen"


def pooled(graph: Graph, new: onnx.NodeProto) -> None:
    """Put another pooling in the place of the lookup of the first token."""
    last = next(node for node in reversed(graph.nodes) if node.op_type == "LayerNormalization")
    first = next(node for node in graph.consumers(last.output[0]) if node.op_type == "Gather")
    new.input.insert(0, last.output[0])
    new.output.append(first.output[0])
    graph.replace(first, [new])


def test_a_model_that_reads_all_tokens_keeps_them(graph):
    axis = graph.constant("pool_axis", np.array([1], dtype=np.int64))
    pooled(graph, helper.make_node("ReduceMean", [axis], [], keepdims=0))
    expected = run(graph)
    assert fuse_attention(graph, heads=2) == 2
    nodes = [node.SerializeToString() for node in graph.nodes]
    assert not keep_first_token(graph)
    assert [node.SerializeToString() for node in graph.nodes] == nodes
    np.testing.assert_allclose(run(graph), expected, atol=1e-5)


def test_a_model_that_reads_the_last_token_keeps_it(graph):
    index = graph.constant("pool_index", np.array(-1, dtype=np.int64))
    pooled(graph, helper.make_node("Gather", [index], [], axis=1))
    fuse_attention(graph, heads=2)
    assert not keep_first_token(graph)


def test_a_graph_that_also_gives_the_hidden_states_keeps_them(graph):
    last = next(node for node in reversed(graph.nodes) if node.op_type == "LayerNormalization")
    graph.outputs.append(helper.make_tensor_value_info(last.output[0], TensorProto.FLOAT, None))
    fuse_attention(graph, heads=2)
    fused = [node for node in graph.nodes if node.op_type == "MultiHeadAttention"]
    assert len(fused) == 2
    assert not keep_first_token(graph), "the other tokens are an output"


def test_without_a_fused_attention_nothing_is_cut(graph):
    assert not keep_first_token(graph)


def test_a_mask_that_hides_more_than_the_padding_is_not_replaced(graph):
    layers = graph.operators()["Softmax"]
    softmax = next(node for node in graph.nodes if node.op_type == "Softmax")
    masked = graph.producer(softmax.input[0])
    bias = graph.constant("bias", np.array(-3.0, dtype=np.float32))
    column = graph.constant("first_column", np.eye(1, 24, dtype=np.float32)[None, None])
    graph.replace(
        masked,
        [
            helper.make_node("Mul", [column, bias], ["on_first"]),
            helper.make_node("Add", [masked.input[1], "on_first"], ["biased"]),
            helper.make_node("Add", [masked.input[0], "biased"], list(masked.output)),
        ],
    )
    expected = run(graph)
    assert fuse_attention(graph, heads=2) == layers - 1, "only the other layer"
    np.testing.assert_allclose(run(graph), expected, atol=1e-5)
