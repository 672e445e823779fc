"""Every scheme on real graphs: close, proved by operators, and refused where something is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from companion import inference, models
from companion.inference.exporting import export, feeds_of, to_onnx
from companion.inference.quantization.grids import quantize_blocks
from companion.inference.quantization.schemes import (
    Fixed,
    Rows,
    WeightsOnly,
    activations_of,
    quantize,
    weights_of,
)
from companion.inference.quantization.sensitivity import divergence, fewest_kept, layer_of, sensitivities
from companion.inference.sessions import run_all

SCHEMES = {
    "int8": Rows(),
    "int8-weights": WeightsOnly(8),
    "int4-weights": WeightsOnly(4),
    "int2-weights": WeightsOnly(2),
}
OPERATOR = {
    "int8": "MatMulIntegerToFloat",
    "int8-fixed": "MatMulIntegerToFloat",
    "int8-weights": "MatMulNBits",
    "int4-weights": "MatMulNBits",
    "int2-weights": "MatMulNBits",
}
FURTHEST = {"int8": 0.01, "int8-fixed": 0.05, "int8-weights": 0.01, "int4-weights": 0.5, "int2-weights": 2.0}
"""Of the logits, as a share of their spread, on the toy task."""


@pytest.fixture(scope="module")
def classifier(model_folder: Any) -> models.Classifier:
    return models.load(model_folder)


@pytest.fixture(scope="module")
def graph(classifier: models.Classifier) -> onnx.ModelProto:
    return to_onnx(classifier, precision="fp32")


@pytest.fixture(scope="module")
def feeds(classifier: models.Classifier, toy: list[Any]) -> list[dict[str, np.ndarray]]:
    return list(feeds_of(classifier, toy[:48]))


@pytest.mark.parametrize("precision", OPERATOR)
def test_every_precision_is_close_and_says_what_runs(precision, model_folder, toy, torch_one, tmp_path):
    calibration = toy[:64] if precision == "int8-fixed" else ()
    manifest = export(model_folder, tmp_path / "out", precision=precision, calibration=calibration)
    assert manifest.precision == precision
    assert manifest.operators[OPERATOR[precision]] > 0
    assert not {"MatMul", "Gemm"} & set(manifest.operators)
    texts = [example.text for example in toy]
    expected = torch_one.logits(texts)
    found = inference.OnnxPredictor(tmp_path / "out", threads=1).logits(texts)
    assert 0 < np.abs(found - expected).mean() < FURTHEST[precision] * np.ptp(expected)
    if OPERATOR[precision] == "MatMulIntegerToFloat":  # sums of integers are exact in any order
        assert manifest.check.moved_by_batch == 0


def test_fewer_bits_make_a_smaller_folder(model_folder, onnx_folder, tmp_path):
    sizes = [(onnx_folder / "model.onnx").stat().st_size]
    for precision in ("int4-weights", "int2-weights"):
        export(model_folder, tmp_path / precision, precision=precision)
        sizes.append((tmp_path / precision / "model.onnx").stat().st_size)
    assert sizes == sorted(set(sizes), reverse=True)


def test_weights_are_called_by_their_layers(graph):
    layers = {layer_of(weight) for weight in weights_of(graph)}
    assert "bert.encoder.layer.0.attention.self.query" in layers
    assert "bert.embeddings.word_embeddings" in layers
    assert "classifier" in layers
    assert not [layer for layer in layers if layer.startswith("val_")]


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_kept_stays_as_it_is(name, graph, feeds):
    whole = run_all(graph.SerializeToString(), feeds)
    weights = weights_of(graph)
    kept = quantize(graph, SCHEMES[name], keep=weights)
    np.testing.assert_array_equal(run_all(kept.SerializeToString(), feeds), whole)
    one = quantize(graph, SCHEMES[name], keep=weights[1:])
    left = {item.name for item in one.graph.initializer}
    assert set(weights[1:]) <= left
    assert weights[0] not in left


def test_keeping_what_is_not_there_is_refused(graph):
    with pytest.raises(ValueError, match="keep names 'nonsense', which is no weight"):
        quantize(graph, keep=["nonsense"])


def test_a_missing_range_is_refused(graph):
    with pytest.raises(ValueError, match="there is no range for"):
        quantize(graph, Fixed({}))


def test_fixed_scales_need_texts(model_folder, tmp_path):
    with pytest.raises(ValueError, match="no text to find its scales with"):
        export(model_folder, tmp_path / "out", precision="int8-fixed")
    with pytest.raises(ValueError, match="precision is 'int3', expected one of int8, "):
        export(model_folder, tmp_path / "out", precision="int3")
    with pytest.raises(ValueError, match="leave it out"):
        export(model_folder, tmp_path / "out", precision="fp32", keep=["x"])
    assert not (tmp_path / "out").exists()


def test_fixed_scales_do_not_look_at_the_neighbours(model_folder, toy, tmp_path):
    export(model_folder, tmp_path / "out", precision="int8-fixed", calibration=toy[:32])
    predictor = inference.OnnxPredictor(tmp_path / "out", threads=1)
    texts = [example.text for example in toy[32:72]]
    alone, together = (predictor.logits(texts, batch_size=size) for size in (1, 16))
    np.testing.assert_array_equal(alone, together)


def test_what_lies_beyond_a_fixed_range_is_cut_off(graph, feeds):
    wide = inference.calibrate(graph, feeds, method="minmax")
    narrow = {name: (low / 4, high / 4) for name, (low, high) in wide.items()}
    whole = run_all(graph.SerializeToString(), feeds)
    near, far = (
        np.abs(run_all(quantize(graph, Fixed(ranges)).SerializeToString(), feeds) - whole).mean()
        for ranges in (wide, narrow)
    )
    assert far > 3 * near


def test_ranges_hold_what_was_seen_and_the_least_error_lies_inside(graph, feeds):
    wide = inference.calibrate(graph, feeds, method="minmax")
    tight = inference.calibrate(graph, feeds)
    assert set(wide) == set(tight) == set(activations_of(graph))
    for name, (low, high) in wide.items():
        assert low <= tight[name][0] <= 0 <= tight[name][1] <= high
    assert wide != tight
    more = inference.calibrate(graph, feeds[:4], method="minmax")
    assert all(low <= more[name][0] and more[name][1] <= high for name, (low, high) in wide.items())


def test_calibration_refuses_nothing_and_nonsense(graph, feeds):
    with pytest.raises(ValueError, match="nothing to calibrate with"):
        inference.calibrate(graph, [])
    with pytest.raises(ValueError, match="method is 'max', expected"):
        inference.calibrate(graph, feeds, method="max")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 40, 7])
def test_blocks_are_those_that_onnxruntime_reads(bits, inputs):
    from onnx import TensorProto, helper

    generator = np.random.default_rng(bits)
    weight = generator.normal(size=(inputs, 6)).astype(np.float32)
    weight[:, 3] = 0
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["n", inputs])],
        [info("y", TensorProto.FLOAT, ["n", 6])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    narrow = quantize(model, WeightsOnly(bits))
    found = run_all(narrow.SerializeToString(), [{"x": np.eye(inputs, dtype=np.float32)}])
    quantized, scale = quantize_blocks(weight, bits=bits, block=32)
    half = 2 ** (bits - 1)
    codes = quantized if bits == 8 else np.stack([quantized & 15, quantized >> 4], axis=-1)
    wide = (codes.reshape(6, -1, 32).astype(np.float32) - half) * scale[..., None]
    np.testing.assert_allclose(found, wide.reshape(6, -1)[:, :inputs].T, atol=1e-6)
    step = np.abs(weight).max() / half
    assert np.abs(found - weight).max() <= step * 1.001  # the far end of the grid lacks its last step


def test_blocks_are_at_least_as_close_as_the_library():
    from onnxruntime.quantization import matmul_nbits_quantizer as library

    weight = np.random.default_rng(0).normal(size=(256, 48)).astype(np.float32)
    config = library.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4)
    packed, scales, _ = library.DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight)
    ours, our_scales = quantize_blocks(weight, bits=4, block=32)

    def error(quantized: np.ndarray, scale: np.ndarray) -> float:
        codes = np.stack([quantized & 15, quantized >> 4], axis=-1).reshape(48, 8, 32).astype(np.float32)
        wide = (codes - 8) * scale.reshape(48, 8, 1)
        return float(np.square(wide.reshape(48, 256).T - weight).mean())

    theirs = error(np.asarray(packed).reshape(ours.shape), np.asarray(scales))
    assert error(ours, our_scales) <= 1.001 * theirs


def test_only_what_the_kernel_knows():
    with pytest.raises(ValueError, match="bits is 3, expected 2, 4 or 8"):
        quantize_blocks(np.ones((4, 4), dtype=np.float32), bits=3, block=2)


def test_the_sensitive_layer_is_found(graph, feeds):
    """One matrix gets a few huge weights: its grid is coarse, and narrowing it costs most."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(graph)
    victim = next(weight for weight in weights_of(graph) if layer_of(weight).endswith("1.intermediate.dense"))
    item = next(item for item in spoiled.graph.initializer if item.name == victim)
    values = onnx.numpy_helper.to_array(item).copy()
    values[:2] += 300 * np.abs(values).max()
    item.CopyFrom(onnx.numpy_helper.from_array(values, victim))
    found = sensitivities(spoiled, feeds[:12], Rows())
    assert found[0].weight == victim
    assert found[0].divergence > 3 * found[1].divergence >= 0
    assert {one.weight for one in found} == set(weights_of(spoiled))
    assert found[0].parameters == values.size


def test_the_divergence_is_zero_only_for_equal_answers():
    logits = np.array([[2.0, -1.0], [0.0, 3.0]], dtype=np.float32)
    assert divergence(logits, logits + 5) == pytest.approx(0, abs=1e-9)  # the same probabilities
    assert divergence(logits, -logits) > 1
    numbers = np.array([[1.0], [2.0]], dtype=np.float32)
    assert divergence(numbers, numbers + 2) == pytest.approx(4)


@pytest.mark.parametrize("needed", [0, 1, 5, 9, 10])
def test_the_fewest_are_kept(needed):
    order, asked = [str(number) for number in range(10)], []

    def acceptable(kept: tuple[str, ...]) -> bool:
        asked.append(kept)
        return len(kept) >= needed

    assert fewest_kept(order, acceptable) == tuple(order[:needed])
    assert len(asked) == len(set(asked)) <= 6
    assert fewest_kept(order, lambda kept: False) is None
