"""Training with rounding: the same grids as the export's, gradients that pass, and a model left as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from companion import inference, models, training
from companion.inference.quantization import rounding
from companion.inference.quantization.grids import quantize_blocks, quantize_columns
from companion.inference.quantization.rounding import ranges_of, round_blocks, round_columns, rounded


@pytest.fixture
def classifier(model_folder: Any) -> models.Classifier:
    return models.load(model_folder)


def drawn(inputs: int, outputs: int) -> np.ndarray:
    weight = np.random.default_rng(inputs).normal(size=(inputs, outputs)).astype(np.float32)
    weight[:, 0] = 0
    return weight


@pytest.mark.parametrize("inputs", [8, 9, 1])
def test_columns_are_rounded_as_by_the_export(inputs):
    weight = drawn(inputs, 5)
    narrow, scale = quantize_columns(weight)
    np.testing.assert_array_equal(round_columns(torch.tensor(weight)).numpy(), narrow * scale)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("inputs", [64, 40])
def test_blocks_are_rounded_as_by_the_export(bits, inputs):
    weight = drawn(inputs, 5)
    narrow, scale = quantize_blocks(weight, bits=bits, block=32)
    codes = np.stack([narrow >> low & (2**bits - 1) for low in range(0, 8, bits)], axis=-1)
    wide = (codes.reshape(5, -1, 32).astype(np.float32) - 2 ** (bits - 1)) * scale[..., None]
    expected = wide.reshape(5, -1)[:, :inputs].T
    found = round_blocks(torch.tensor(weight), bits=bits).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_gradient_passes_the_rounding():
    weight = torch.tensor(drawn(8, 5), requires_grad=True)
    factor = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    (round_columns(weight) * factor).sum().backward()
    torch.testing.assert_close(weight.grad, factor)


NEAR = {"int8-fixed": 0.3, "int4-weights": 0.4, "int2-weights": 0.1}
"""How much of an export's distance may be left. Of 8-bit weights, the activations' rounding is most of it."""


@pytest.mark.parametrize("precision", NEAR)
def test_the_rounded_model_answers_like_its_export(precision, classifier, model_folder, toy, tmp_path):
    calibration = toy[:32] if precision == "int8-fixed" else ()
    inference.export(model_folder, tmp_path / "out", precision=precision, calibration=calibration)
    texts = [example.text for example in toy[:40]]
    exported = inference.OnnxPredictor(tmp_path / "out", threads=1).logits(texts)
    plain = training.predict_logits(classifier.model, classifier.tokenizer, toy[:40], max_length=48)
    with rounded(classifier, precision, calibration=calibration):
        inside = training.predict_logits(classifier.model, classifier.tokenizer, toy[:40], max_length=48)
    away, near = np.abs(exported - plain).mean(), np.abs(exported - inside).mean()
    assert near < NEAR[precision] * away
    after = training.predict_logits(classifier.model, classifier.tokenizer, toy[:40], max_length=48)
    np.testing.assert_array_equal(after, plain)


def test_training_goes_on_behind_the_rounding_and_leaves_a_plain_model(classifier, toy):
    before = copy.deepcopy(classifier.model.state_dict())
    config = training.TrainingConfig(epochs=1, batch_size=16, max_steps=4, precision="fp32", seed=0)
    with rounded(classifier, "int4-weights"):
        training.fit(classifier.model, classifier.tokenizer, toy[:64], config=config)
    after = classifier.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.isfinite(value).all() for value in after.values())
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(after[name], before[name])
    assert len(torch.unique(after[name])) > 1000  # the weights behind the rounding, not the rounded ones


def test_ranges_are_those_of_the_graph(classifier, toy):
    from companion.inference.exporting import feeds_of, to_onnx
    from companion.inference.quantization.sensitivity import layer_of

    found = ranges_of(classifier, toy[:8])
    graph = to_onnx(classifier, precision="fp32")
    expected = inference.calibrate(graph, feeds_of(classifier, toy[:8]))
    inputs = {
        layer_of(node.input[1]): node.input[0] for node in graph.graph.node if node.input[0] in expected
    }
    assert len(inputs) > 10
    for layer, activation in inputs.items():
        np.testing.assert_allclose(found[layer], expected[activation], rtol=0.05, atol=1e-3)


def test_an_error_inside_leaves_the_model_as_it_was(classifier):
    before = list(classifier.model.state_dict())

    def fail() -> None:
        with rounded(classifier, "int8-weights"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert list(classifier.model.state_dict()) == before


def test_what_cannot_be_rounded_is_refused(classifier, toy):
    def enter(precision: str) -> None:
        with rounded(classifier, precision):  # type: ignore[arg-type]
            pass

    with pytest.raises(ValueError, match="precision is 'int8', expected one of int8-fixed"):
        enter("int8")
    with pytest.raises(ValueError, match="nothing to calibrate with"):
        enter("int8-fixed")
    with (
        pytest.raises(ValueError, match="method is 'max', expected"),
        rounded(classifier, "int8-fixed", calibration=toy[:2], method="max"),
    ):
        pass


def test_ranges_and_blocks_are_those_asked_for(classifier, toy, monkeypatch):
    """The method finds the ranges, and larger blocks are coarser grids: each gives other answers."""

    def inside(precision: str, **how: Any) -> np.ndarray:
        with rounded(classifier, precision, calibration=toy[:16], **how):
            return training.predict_logits(classifier.model, classifier.tokenizer, toy[:16], max_length=48)

    wide, tight = ranges_of(classifier, toy[:16], method="minmax"), ranges_of(classifier, toy[:16])
    assert all(wide[name][0] <= low <= high <= wide[name][1] for name, (low, high) in tight.items())
    assert not np.array_equal(inside("int4-weights", block=64), inside("int4-weights"))

    # Whether the two methods differ on these texts depends on the model: here they do.
    quarter = {name: (low / 4, high / 4) for name, (low, high) in tight.items()}
    monkeypatch.setattr(
        rounding,
        "ranges_of",
        lambda *_args, method="error", **_how: {"error": quarter, "minmax": wide}[method],
    )
    assert not np.array_equal(inside("int8-fixed", method="minmax"), inside("int8-fixed"))
