"""The same integers on every processor: exact here, exact where 16 bits saturate, refused elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from companion import inference, models
from companion.inference import OnnxPredictor, features, processor, standard_int8
from companion.inference.exporting import to_onnx
from companion.inference.graph import CONTRIB, Graph
from companion.inference.quantization.grids import pair_sums
from companion.inference.quantization.saturation import EXACT, needed_features
from companion.inference.quantization.schemes import WeightsOnly, quantize

SWITCH = "session.x64quantprecision"
"""onnxruntime's own: without VNNI, unsigned weights and exact sums instead of fast ones that saturate."""

Product = tuple[onnx.NodeProto, np.ndarray, np.ndarray]
"""A node, its weight, and the zero point of its activation."""


@pytest.fixture(scope="module")
def exports(home: Path, model_folder: Path, fp32_folder: Path, toy: list[Any]) -> Path:
    """Return a folder with one export of the toy model for each precision, and the standard INT8."""
    from companion.artifacts import make

    def build(folder: Path) -> None:
        for name in ("int8", "int8-fixed", "int8-weights", "int4-weights"):
            texts = toy[:32] if name == "int8-fixed" else ()
            inference.export(model_folder, folder / name, precision=name, calibration=texts)
        standard_int8(fp32_folder, folder / "standard")

    return make("test-exports", build, version=1, inputs={}, home=home)


def products(model: onnx.ModelProto) -> Iterator[Product]:
    """Yield the products of bytes of a graph. (A dynamic activation may have any zero point: 3 is one.)"""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type in ("MatMulIntegerToFloat", "MatMulInteger"):
            zero = node.input[4] if node.op_type == "MatMulIntegerToFloat" else node.input[2]
            yield node, graph.constants[node.input[1]], graph.constants.get(zero, np.array(3, np.uint8))


def activations(weight: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return rows of bytes that are hard for pairs: ends, alternations, and the worst of single columns."""
    inputs = len(weight)
    generator = np.random.default_rng(seed)
    worst = np.argsort(-pair_sums(weight.astype(np.int32)))[:4]
    rows = [
        np.full(inputs, 255),
        np.zeros(inputs),
        np.tile([255, 0], inputs)[:inputs],
        np.tile([0, 255], inputs)[:inputs],
        np.tile([255, 255, 0, 0], inputs)[:inputs],
        *(np.where(weight[:, column] > 0, 255, 0) for column in worst),
        *(np.where(weight[:, column] < 0, 255, 0) for column in worst),
        *generator.choice([0, 255], size=(4, inputs)),
        *generator.integers(0, 256, size=(4, inputs)),
    ]
    return np.stack(rows).astype(np.uint8)


def exact(a: np.ndarray, weight: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return (a.astype(np.int64) - int(zero)) @ weight.astype(np.int64)


def saturating(a: np.ndarray, weight: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Multiply like a processor without VNNI: the products of neighbours are added in 16 bits, cut off.

    The zero point is subtracted afterwards, in 32 bits, times the sum of each column.
    """
    odd = len(weight) % 2
    a, wide = (
        np.pad(a, ((0, 0), (0, odd))).astype(np.int64),
        np.pad(weight, ((0, odd), (0, 0))).astype(np.int64),
    )
    total = -int(zero) * wide.sum(axis=0, keepdims=True)
    for row in range(0, len(wide), 2):
        pair = a[:, row, None] * wide[row] + a[:, row + 1, None] * wide[row + 1]
        total = total + np.clip(pair, -(2**15), 2**15 - 1)
    return np.asarray(total)


def onnxruntimes(a: np.ndarray, weight: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Multiply with onnxruntime on this processor: all rows at once, and each alone."""
    node = helper.make_node("MatMulInteger", ["a", "b", "a_zero"], ["y"])
    run = session(graph_of(node, {"b": weight, "a_zero": zero}, "y", TensorProto.INT32))
    together = run.run(None, {"a": a})[0]
    alone = np.concatenate([run.run(None, {"a": row[None]})[0] for row in a])
    np.testing.assert_array_equal(together, alone)
    return np.asarray(together, dtype=np.int64)


def graph_of(node: onnx.NodeProto, constants: dict[str, np.ndarray], out: str, kind: int) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "product",
        [info("a", TensorProto.UINT8, ["rows", None])],
        [info(out, kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto | Path, *, switch: bool = False, out: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if switch:
        options.add_session_config_entry(SWITCH, "1")
    if out is not None:
        options.optimized_model_filepath = str(out)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def adds_in_32_bits() -> bool:
    return not processor.missing([EXACT], features())


# --- (a) and (b): exact, and exact without VNNI


@pytest.mark.parametrize("kind", ["int8", "int8-fixed"])
def test_every_product_is_exact_on_this_processor_and_without_vnni(kind, exports):
    found = list(products(onnx.load(str(exports / kind / "model.onnx"))))
    assert len(found) == 14  # 6 in each of two layers, the pooler, the classifier
    for _, weight, zero in found:
        a = activations(weight)
        expected = exact(a, weight, zero)
        np.testing.assert_array_equal(onnxruntimes(a, weight, zero), expected)
        np.testing.assert_array_equal(saturating(a, weight, zero), expected)


@pytest.mark.weights
def test_the_products_of_the_embedded_encoder_are_exact_too():
    classifier = models.load("embedded", labels=("negative", "positive"))
    narrow = quantize(to_onnx(classifier, precision="fp32"))
    found = list(products(narrow))
    assert {weight.shape for _, weight, _ in found} >= {(384, 384), (384, 1536), (1536, 384)}
    for _, weight, zero in found:
        a = activations(weight)
        expected = exact(a, weight, zero)
        np.testing.assert_array_equal(onnxruntimes(a, weight, zero), expected)
        np.testing.assert_array_equal(saturating(a, weight, zero), expected)
    assert needed_features(Graph(narrow)) == ()


def test_the_nodes_of_the_export_scale_exact_sums(exports):
    """The very nodes of the file: sums that are exact in float32, times the scale of the column."""
    graph = Graph(onnx.load(str(exports / "int8" / "model.onnx")))
    for node, weight, zero in products(onnx.load(str(exports / "int8" / "model.onnx"))):
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.input[0] = "a"
        constants = {name: graph.constants[name] for name in node.input[1:] if name}
        a = activations(weight)
        found = session(graph_of(alone, constants, node.output[0], TensorProto.FLOAT)).run(None, {"a": a})[0]
        expected = exact(a, weight, zero).astype(np.float32) * graph.constants[node.input[3]]
        np.testing.assert_array_equal(found, expected)


def test_the_standard_grid_is_not_exact_without_vnni(exports):
    """The control. On a processor without VNNI, onnxruntime computes what the emulation does."""
    found, differ = list(products(onnx.load(str(exports / "standard" / "model.onnx")))), 0
    for _, weight, zero in found:
        a = activations(weight)
        expected, cut = exact(a, weight, zero), saturating(a, weight, zero)
        differ += not np.array_equal(cut, expected)
        np.testing.assert_array_equal(onnxruntimes(a, weight, zero), expected if adds_in_32_bits() else cut)
    assert differ > len(found) / 2


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 5])
def test_blocks_do_not_saturate_on_this_processor(bits, rows):
    """Weights at the ends of their grid, activations of one magnitude: what pairs would cut off first."""
    generator, inputs, outputs = np.random.default_rng(bits), 96, 16
    for codes in (np.ones((inputs, outputs)), generator.choice([-1, 1], size=(inputs, outputs))):
        for signs in (np.ones((rows, inputs)), generator.choice([-1, 1], size=(rows, inputs))):
            weight, x = codes.astype(np.float32), signs.astype(np.float32)
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
            graph = helper.make_graph(
                [node],
                "product",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                [numpy_helper.from_array(weight, "w")],
            )
            wide = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
            narrow = quantize(wide, WeightsOnly(bits))
            assert needed_features(Graph(narrow)) == ()
            step = 1 / 2 ** (bits - 1)  # the far end of a grid lacks its last step
            found = session(narrow).run(None, {"x": x})[0]
            assert np.abs(found - x @ weight).max() <= 1.01 * step * inputs


# --- onnxruntime's own switch


@pytest.mark.parametrize("kind", ["int8", "int8-fixed", "standard"])
def test_the_switch_of_onnxruntime_changes_no_answer_of_ours(kind, exports, toy, tmp_path):
    model = exports / kind / "model.onnx"
    plain, switched = session(model), session(model, switch=True, out=tmp_path / "optimized.onnx")
    predictor, answers = OnnxPredictor(exports / kind, threads=1, anyway=True), []
    for run in (plain, switched):
        predictor._session = run
        answers.append(predictor.logits([example.text for example in toy[:64]]))
    weights = [item for item in onnx.load(str(tmp_path / "optimized.onnx")).graph.initializer if item.dims]
    unsigned = [item for item in weights if item.data_type == TensorProto.UINT8 and len(item.dims) == 2]
    saturates = kind == "standard" and bool(unsigned)
    assert np.array_equal(*answers) == (not saturates)
    if not adds_in_32_bits() and "avx2" in features():
        assert len(unsigned) >= 10  # so the switch did something


# --- (c): what needs VNNI says so, and is refused


def test_only_the_standard_grid_needs_instructions(exports, fp32_folder):
    needs = {path.name: inference.read_manifest(path).cpu_features for path in exports.glob("*/")}
    assert needs.pop("standard") == (EXACT,)
    assert needs == dict.fromkeys(("int8", "int8-fixed", "int8-weights", "int4-weights"), ())
    assert inference.read_manifest(fp32_folder).cpu_features == ()


def test_what_needs_vnni_is_refused_without(exports, monkeypatch):
    folder = exports / "standard"
    for enough in ({"avx2", "avx512_vnni"}, {"avx_vnni"}, {"asimd"}):
        OnnxPredictor(folder, threads=1, processor=enough)
    message = (
        r"standard needs a processor with avx512_vnni or avx_vnni or asimd, or its answers would be wrong; "
        r"this processor has avx2, avx512f.*companion export --precision int8"
    )
    with pytest.raises(ValueError, match=message):
        OnnxPredictor(folder, threads=1, processor={"avx2", "avx512f", "fpu"})
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx2", "avx512f"}))
    with pytest.raises(ValueError, match=message):
        inference.load_predictor(folder, threads=1)
    inference.load_predictor(exports / "int8", threads=1)
    assert OnnxPredictor(folder, threads=1, anyway=True).logits(["fine"]).shape == (1, 2)


def node_with(weight: np.ndarray, operator: str = "MatMulInteger", place: int = 1) -> Graph:
    names = ["a", *(f"i{index}" for index in range(1, 5))]
    names[place] = "w"
    return Graph(graph_of(helper.make_node(operator, names, ["y"]), {"w": weight}, "y", TensorProto.INT32))


@pytest.mark.parametrize(
    ("column", "safe"),
    [
        ([64, 64], True),
        ([64, 65], False),
        ([-64, -64], True),
        ([-64, -65], False),
        ([127, -128], True),
        ([-128, 127, -1], True),
        ([1, 127, 127, 1], True),
        ([127, 1, 1, 127], True),
        ([1, 1, 127, 2], False),
        ([127], True),
    ],
)
def test_a_pair_of_weights_fits_up_to_128(column, safe):
    weight = np.array(column, dtype=np.int8)[:, None]
    assert needed_features(node_with(weight)) == (() if safe else (EXACT,))
    a = activations(weight)
    zero = np.array(128, np.uint8)
    assert np.array_equal(saturating(a, weight, zero), exact(a, weight, zero)) == safe


def test_other_operators_and_other_weights():
    large = np.full((4, 4), 127, dtype=np.int8)
    for operator, place in {"QGemm": 3, "QLinearMatMul": 3, "MatMulIntegerToFloat": 1}.items():
        assert needed_features(node_with(large, operator, place)) == (EXACT,)
    assert needed_features(node_with(large, "MatMul")) == ()
    assert needed_features(node_with(large.astype(np.uint8))) == ()
    unknown = node_with(large)
    unknown.constants.clear()
    assert needed_features(unknown) == (EXACT,)
