"""Broken folders and texts: each is refused with the reason, or answered as it should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strangers import config, tokenizer, write
from transformers import GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, T5ForSequenceClassification

from companion.artifacts import digest
from companion.inference import OnnxPredictor, TorchPredictor, export, load_predictor

T5 = {"vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}


def rewrite(folder: Path, **values: Any) -> None:
    """Change the manifest, and let it list the files as they are now: nothing but the lie is wrong."""
    data = json.loads((folder / "manifest.json").read_text()) | values
    data["files"] = {name: digest(folder / name) for name in data["files"]}
    (folder / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_graph_that_is_cut_off(onnx_copy, share, listed):
    content = (onnx_copy / "model.onnx").read_bytes()
    (onnx_copy / "model.onnx").write_bytes(content[: int(share * len(content))])
    words = r"is not the file that manifest\.json describes"
    if listed:
        rewrite(onnx_copy)
        words = r"model\.onnx is no whole ONNX graph"
    with pytest.raises(ValueError, match=rf"{words}.*Export the model again"):
        OnnxPredictor(onnx_copy)


def test_a_graph_that_onnxruntime_refuses(onnx_copy):
    """Whole, with the operators that are told of; but one of them has lost its inputs."""
    import onnx

    model = onnx.load(str(onnx_copy / "model.onnx"))
    del model.graph.node[5].input[:]
    onnx.save(model, str(onnx_copy / "model.onnx"))
    rewrite(onnx_copy)
    with pytest.raises(ValueError, match=r"onnxruntime cannot open .*model\.onnx: .*Export the model again"):
        OnnxPredictor(onnx_copy)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (
            {"inputs": ["input_ids"]},
            "has the inputs input_ids, but the graph takes input_ids, attention_mask",
        ),
        ({"inputs": []}, "has the inputs , but the graph takes"),
        ({"operators": {}}, r"tells of 0 \w+ in the graph, but it has"),
        ({"operators": ["Gather"]}, r"operators is \['Gather'\], expected counts by name"),
        ({"operators": {"MatMul": 3}}, r"tells of 0 \w+ in the graph"),
        ({"max_length": 65}, "max_length is 65, expected at least 1 and at most the 64 positions"),
        ({"max_length": 0}, "max_length is 0"),
        ({"is_regression": True}, "has 1 label .*but its graph gives 2 numbers a text"),
    ],
)
def test_a_manifest_that_lies(onnx_copy, lie, words):
    rewrite(onnx_copy, **lie)
    with pytest.raises(ValueError, match=rf"{words}.*Export the model again"):
        OnnxPredictor(onnx_copy)


def test_an_operator_count_that_lies(onnx_copy):
    operators = json.loads((onnx_copy / "manifest.json").read_text())["operators"]
    rewrite(onnx_copy, operators=operators | {"MatMulIntegerToFloat": 15})
    with pytest.raises(ValueError, match="tells of 15 MatMulIntegerToFloat in the graph, but it has 14"):
        OnnxPredictor(onnx_copy)


def test_labels_that_the_graph_does_not_score(onnx_copy):
    """Manifest and configuration lie alike."""
    data = json.loads((onnx_copy / "config.json").read_text())
    names = ["bad", "fair", "good"]
    (onnx_copy / "config.json").write_text(json.dumps(data | {"id2label": dict(enumerate(names))}))
    rewrite(onnx_copy, labels=names)
    with pytest.raises(ValueError, match=r"has 3 labels \(bad, fair, good\), but its graph gives 2 numbers"):
        OnnxPredictor(onnx_copy)


def test_the_tokenizer_of_another_model(onnx_copy, tmp_path):
    """Its words have numbers for which the model has no row, or another meaning."""
    large = json.loads((onnx_copy / "tokenizer.json").read_text())
    words = {f"word{i}": i + len(large["model"]["vocab"]) for i in range(900)}
    large["model"]["vocab"] |= words
    (onnx_copy / "tokenizer.json").write_text(json.dumps(large))
    rewrite(onnx_copy)
    with pytest.raises(ValueError, match=r"has a tokenizer of 1,\d+ tokens, but its model knows 800"):
        OnnxPredictor(onnx_copy)
    folder = write(tmp_path / "model", "bert")
    tokenizer("gpt2").save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"has the number 399, but its model knows 300 tokens.*another model"
    ):
        TorchPredictor(folder)


@pytest.mark.parametrize("kind", ["onnx_folder", "model_folder"])
def test_texts_of_no_and_of_a_hundred_thousand_characters(kind, request):
    predictor = load_predictor(request.getfixturevalue(kind), threads=1)
    texts = ["", "x" * 100_000, "superb " * 14_285, "\u0000\ufffd\U0001f600" * 30_000]
    together = predictor.logits(texts)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[:1], predictor.logits([""]), atol=1e-5)
    np.testing.assert_allclose(together[2:3], predictor.logits(["superb " * 60]), atol=1e-5)


def test_a_language_model_is_no_classifier(tmp_path):
    GPT2LMHeadModel(config("gpt2")).save_pretrained(tmp_path / "gpt2")
    tokenizer("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"not fine-tuned for classification: it lacks score\.weight"):
        export(tmp_path / "gpt2", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (T5ForConditionalGeneration, "not fine-tuned for classification: it lacks classification_head"),
        (T5ForSequenceClassification, "is a T5ForSequenceClassification: an encoder with a decoder"),
    ],
)
def test_an_encoder_with_a_decoder(kind, words, tmp_path):
    kind(T5Config(**T5, decoder_start_token_id=0)).save_pretrained(tmp_path / "t5")
    tokenizer("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=words):
        export(tmp_path / "t5", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


@pytest.mark.parametrize(
    ("gone", "words"),
    [("config.json", r"holds no config\.json"), ("tokenizer.json", r"holds no tokenizer.*save_pretrained")],
)
def test_a_folder_that_lacks_a_part(gone, words, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / gone).unlink()
    with pytest.raises(ValueError, match=words):
        TorchPredictor(tmp_path / "model")


def test_labels_that_the_configuration_does_not_name(tmp_path):
    folder = write(tmp_path / "model", "bert")
    data = json.loads((folder / "config.json").read_text())
    bare = {name: value for name, value in data.items() if name not in ("id2label", "label2id")}
    (folder / "config.json").write_text(json.dumps(bare))
    with pytest.raises(ValueError, match=r"its weights are not of the sizes that config\.json.*id2label"):
        TorchPredictor(folder)
    (folder / "config.json").write_text(json.dumps(bare | {"num_labels": 4}))
    assert TorchPredictor(folder).labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
