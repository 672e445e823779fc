"""A decoder reads the last real token: one answer under padding on either side, or the reason why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from strangers import news, write

from companion.inference import OnnxPredictor, TorchPredictor
from companion.inference.exporting import Traced, write_folder
from companion.inference.padding import settle_padding
from companion.models import load

TEXTS = [text for text, _ in news(40, seed=3)] + ["a", "", "x" * 100_000, "coach " * 20_000, "<|endoftext|>"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gpt2") / "model", "gpt2")


@pytest.fixture(scope="module")
def alone(gpt2) -> np.ndarray:
    """Return what transformers itself answers to each text without any padding."""
    classifier = load(gpt2)
    rows = []
    for text in TEXTS:
        ids = classifier.tokenizer(text, truncation=True, max_length=48)["input_ids"] or [0]
        with torch.inference_mode():
            rows.append(classifier.model(input_ids=torch.tensor([ids])).logits.numpy())
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> Traced:
    """Trace the model once, out of a folder whose tokenizer pads in front."""
    source = write(tmp_path_factory.mktemp("left") / "model", "gpt2", padding_side="left")
    return Traced(TorchPredictor(source).classifier)


@pytest.mark.parametrize("side", ["left", "right"])
def test_torch_answers_as_without_padding(side, alone, tmp_path):
    source = write(tmp_path / "model", "gpt2", padding_side=side)
    assert json.loads((source / "tokenizer_config.json").read_text())["padding_side"] == side
    predictor = TorchPredictor(source)
    for size in (1, 32):
        np.testing.assert_allclose(predictor.logits(TEXTS, batch_size=size), alone, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "operator", "furthest"),
    [("fp32", "Gemm", 1e-5), ("int8", "MatMulIntegerToFloat", 0.03), ("int4-weights", "MatMulNBits", 0.3)],
)
def test_an_onnx_folder_answers_as_without_padding(precision, operator, furthest, traced, alone, tmp_path):
    reference = TorchPredictor(traced.classifier)
    model = traced.to_onnx(precision)
    manifest = write_folder(tmp_path, model, traced.classifier, precision=precision, reference=reference)
    assert "MultiHeadAttention" not in manifest.operators, "the mask hides later tokens too"
    assert manifest.operators[operator] >= 2 * 4, "four products a layer"
    found = OnnxPredictor(tmp_path, threads=1)
    together = found.logits(TEXTS)
    if precision != "int4-weights":
        assert np.array_equal(together, found.logits(TEXTS, batch_size=1))
    assert np.abs(together - alone).mean() < furthest * np.ptp(alone)


def test_a_model_that_reads_the_last_place_is_not_padded_behind(tmp_path):
    """The control: a mask does not hide padding from it, and it says so."""
    source = write(tmp_path / "model", "gpt2", padding_side="left")
    classifier = load(source)
    forward = classifier.model.forward

    def last(input_ids, attention_mask, **rest):
        found = forward(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask), **rest)
        found.logits = found.logits + input_ids[:, -1:].float()
        return found

    classifier.model.forward = last
    settle_padding(classifier)
    assert classifier.tokenizer.padding_side == "left"
    with pytest.raises(
        ValueError, match=r"is a GPT2ForSequenceClassification, whose answers change when padding"
    ):
        _ = Traced(classifier).plain


def test_the_two_agree_on_the_token(tmp_path):
    """The model looks for its own padding token; a tokenizer with another one would make it read padding."""
    classifier = load(write(tmp_path / "a", "gpt2", pad_token_id=7))
    settle_padding(classifier)
    assert classifier.tokenizer.pad_token_id == 7
    for missing in ("pad_token_id", "pad_token"):
        classifier = load(write(tmp_path / missing, "gpt2", **{missing: None}))
        settle_padding(classifier)
        assert classifier.tokenizer.pad_token_id == classifier.model.config.pad_token_id == 0


def test_without_any_padding_token_it_says_what_to_do(tmp_path):
    source = write(tmp_path / "model", "gpt2", pad_token=None, pad_token_id=None)
    with pytest.raises(
        ValueError, match=r"has no padding token.*tokenizer\.pad_token = tokenizer\.eos_token"
    ):
        TorchPredictor(source)
