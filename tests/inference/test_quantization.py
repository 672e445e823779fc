"""The arithmetic of INT8: exact where it says exact, close where it says close."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from companion.inference import quantize, quantize_columns, quantize_rows
from companion.inference.graph import Graph

FLOAT_MAX = float(np.finfo(np.float32).max)
matrices = st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e6, 1e30, FLOAT_MAX]).flatmap(
    lambda largest: hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.floats(-np.float32(largest).item(), np.float32(largest).item(), width=32)
        | st.sampled_from([0.0, np.float32(largest).item(), -np.float32(largest).item()]),
    )
)


def pair_sums(quantized: np.ndarray) -> np.ndarray:
    """Return the largest sum of neighbouring weights of one sign, rows 2i and 2i + 1."""
    even = np.pad(quantized.astype(np.int32), ((0, len(quantized) % 2), (0, 0)))
    up, down = np.maximum(even, 0), np.maximum(-even, 0)
    return np.maximum(up[0::2] + up[1::2], down[0::2] + down[1::2])


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(matrices)
def test_columns_are_close_and_never_overflow_16_bits(weight):
    quantized, scale = quantize_columns(weight)
    assert (quantized.dtype, scale.dtype) == (np.int8, np.float32)
    assert (quantized.shape, scale.shape) == (weight.shape, weight.shape[1:])
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    error = np.abs(weight.astype(np.float64) - quantized.astype(np.float64) * scale)
    assert (error <= scale.astype(np.float64) / 2 * (1 + 1e-4)).all()
    sums = pair_sums(quantized)
    assert sums.max() <= 128
    assert 255 * sums.max() <= np.iinfo(np.int16).max


def test_the_grid_is_used_to_its_end():
    quantized, scale = quantize_columns(np.array([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]], dtype=np.float32))
    assert quantized[:, 0].tolist() in ([64, 64, -127], [63, 63, -127], [64, 64, -128])
    assert scale[0] == pytest.approx(2 / 127)
    assert quantized[:, 1].tolist() == [0, 0, 0]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(matrices)
def test_rows_are_close(table):
    quantized, scale = quantize_rows(table)
    assert (quantized.dtype, scale.shape) == (np.int8, (len(table), 1))
    assert np.abs(quantized.astype(int)).max() <= 127
    error = np.abs(table.astype(np.float64) - quantized.astype(np.float64) * scale)
    assert (error <= scale.astype(np.float64) / 2 * (1 + 1e-4)).all()


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize("inputs", [2, 7, 64, 385])
@pytest.mark.parametrize("activation", [0, 1, 255])
def test_onnxruntime_multiplies_exactly_at_the_extremes(inputs, activation):
    """Neighbours of 64 and 64, all activations at an end: the largest sums that can occur."""
    rng = np.random.default_rng(inputs)
    weight = np.stack(
        [np.ones(inputs), -np.ones(inputs), rng.choice([-1, 1], inputs), rng.standard_normal(inputs)], axis=1
    ).astype(np.float32)
    int8, scale = quantize_columns(weight)
    names = {
        "b": int8,
        "a_scale": np.float32(1),
        "b_scale": scale,
        "a_zero": np.uint8(128),
        "b_zero": np.int8(0),
    }
    order = ["a", "b", "a_scale", "b_scale", "a_zero", "b_zero"]
    graph = helper.make_graph(
        [helper.make_node("MatMulIntegerToFloat", order, ["y"], domain="com.microsoft")],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in names.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    run = session(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    a = np.full((3, inputs), activation, dtype=np.uint8)
    exact = (a.astype(np.int64) - 128) @ int8.astype(np.int64)
    assert np.abs(exact).max() < 2**24, "exact in float32"
    assert np.array_equal(run.run(None, {"a": a})[0], exact.astype(np.float32) * scale)


def model_of(nodes, constants, *, inputs=None) -> onnx.ModelProto:
    inputs = inputs or [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    graph = helper.make_graph(
        nodes,
        "test",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def both(model: onnx.ModelProto, **feed: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    quantized = quantize(model)
    answers = [session(each).run(None, feed)[0] for each in (model, quantized)]
    assert np.isfinite(answers[1]).all()
    return answers[0], answers[1], Graph(quantized).operators()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


def test_a_product_and_a_biased_product():
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(6, 8)), "v": rng.normal(size=(3, 8)), "b": rng.normal(size=3)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], transB=1),
    ]
    model = model_of(nodes, constants)
    before = model.SerializeToString()
    x = rng.normal(size=(20, 6)).astype(np.float32)
    expected, found, operators = both(model, x=x)
    assert_close(found, expected)
    assert not np.array_equal(found, expected)
    assert operators["MatMulIntegerToFloat"] == 2
    assert not {"MatMul", "Gemm"} & operators.keys()
    assert model.SerializeToString() == before, "the model given is not changed"
    rows = session(quantize(model))
    alone = np.concatenate([rows.run(None, {"x": x[i : i + 1]})[0] for i in range(20)])
    assert np.array_equal(alone, found), "row by row to the bit"
    assert np.array_equal(rows.run(None, {"x": x[::-1].copy()})[0], found[::-1])


def test_an_outlier_in_one_row_does_not_touch_the_others():
    rng = np.random.default_rng(1)
    run = session(
        quantize(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": rng.normal(size=(6, 8))}))
    )
    x = rng.normal(size=(4, 6)).astype(np.float32)
    wild = x.copy()
    wild[2] *= 1e6
    assert np.array_equal(run.run(None, {"x": x})[0][[0, 1, 3]], run.run(None, {"x": wild})[0][[0, 1, 3]])


@pytest.mark.parametrize("factor", [0.0, 1e-42, 1e-30, 1e30])
def test_zero_and_extreme_rows_and_columns_give_numbers(factor):
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(6, 8))
    weight[:, 3] = 0
    x = rng.normal(size=(4, 6)).astype(np.float32)
    x[1] *= np.float32(factor)
    expected, found, _ = both(model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}), x=x)
    limit = 0.03 * np.abs(x).max(axis=1, keepdims=True) * np.abs(weight).sum(axis=0) + 1e-30
    assert (np.abs(found - expected) <= limit).all()
    assert not found[:, 3].any()


def test_a_gemm_may_lack_its_bias_and_other_gemms_stay():
    rng = np.random.default_rng(3)
    constants = {"w": rng.normal(size=(6, 8)), "v": rng.normal(size=(8, 8)), "b": rng.normal(size=8)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], alpha=0.5),
    ]
    expected, found, operators = both(
        model_of(nodes, constants), x=rng.normal(size=(5, 6)).astype(np.float32)
    )
    assert_close(found, expected)
    assert (operators["MatMulIntegerToFloat"], operators["Gemm"]) == (1, 1)


def test_an_activation_that_is_also_multiplied_with_another():
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("MatMul", ["s", "x"], ["m"]),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["m", "p"], ["y"]),
    ]
    x = rng.normal(size=(5, 6)).astype(np.float32)
    expected, found, operators = both(model_of(nodes, {"w": rng.normal(size=(6, 6))}), x=x)
    assert_close(found, expected)
    assert (operators["MatMulIntegerToFloat"], operators["MatMul"]) == (1, 2)


def test_products_that_share_an_activation_quantize_it_once():
    rng = np.random.default_rng(5)
    constants = {name: rng.normal(size=(6, 4)) for name in "qkv"}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"]) for name in "qkv"]
    nodes.append(helper.make_node("Sum", ["q_out", "k_out", "v_out"], ["y"]))
    expected, found, operators = both(
        model_of(nodes, constants), x=rng.normal(size=(5, 6)).astype(np.float32)
    )
    assert_close(found, expected)
    assert (operators["QuantizeLinear"], operators["MatMulIntegerToFloat"]) == (1, 3)


def test_a_table_that_is_also_a_matrix():
    """Tied embeddings: rows of the table are looked up, and are the columns of the last product."""
    rng = np.random.default_rng(6)
    table = rng.normal(size=(100, 6))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h"]),
        helper.make_node("Gemm", ["h", "table"], ["y"], transB=1),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    model = model_of(nodes, {"table": table}, inputs=[ids])
    expected, found, _ = both(model, ids=np.arange(100))
    assert_close(found, expected)
    tensors = {item.name: item for item in quantize(model).graph.initializer}
    large = [item for item in tensors.values() if np.prod(item.dims) == 600]
    assert len(large) == 2
    assert all(item.data_type == TensorProto.INT8 for item in large)


def test_small_tables_stay_as_they_are():
    rng = np.random.default_rng(7)
    nodes = [
        helper.make_node("Gather", ["few", "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    constants = {"few": rng.normal(size=(63, 6)), "w": rng.normal(size=(6, 4))}
    _, _, operators = both(model_of(nodes, constants, inputs=[ids]), ids=np.arange(63))
    assert (operators["Gather"], operators.get("Cast", 0)) == (1, 0)


def test_a_graph_without_a_constant_matrix_is_refused():
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ValueError, match="there is nothing to quantize"):
        quantize(model_of(nodes, {}))
