"""An ONNX folder is complete, says what it is, and is refused once it is not that any more."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import companion
import companion.inference.comparison as comparison
import companion.inference.exporting as exporting
from companion.artifacts import digest
from companion.inference import Manifest, OnnxPredictor, TorchPredictor, export, read_manifest
from companion.inference.graph import Graph
from companion.models import load

FILES = {"config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(onnx_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_folder, tmp_path / "onnx"))


@pytest.fixture
def quick(onnx_folder: Path, monkeypatch) -> None:
    """Take the traced graph from `onnx_folder`: tracing takes seconds."""
    model = onnx.load(str(onnx_folder / "model.onnx"))
    monkeypatch.setattr(exporting, "to_onnx", lambda *_, **__: model)


def test_fp32_is_the_model_in_standard_operators(fp32_folder, model_folder, toy):
    model = onnx.load(str(fp32_folder / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.domain for entry in model.opset_import] == [""]
    manifest = read_manifest(fp32_folder)
    assert manifest.precision == "fp32"
    assert manifest.check.max_logit_difference < 1e-4
    assert manifest.check.label_flips == 0
    texts = [example.text for example in toy[:20]]
    expected = TorchPredictor(model_folder).logits(texts)
    np.testing.assert_allclose(OnnxPredictor(fp32_folder, threads=1).logits(texts), expected, atol=1e-4)


def test_int8_has_nothing_left_in_float(onnx_folder, fp32_folder):
    model = onnx.load(str(onnx_folder / "model.onnx"))
    manifest = read_manifest(onnx_folder)
    operators = manifest.operators
    assert operators == dict(sorted(operators.items(), key=lambda item: -item[1]))
    assert sum(operators.values()) == len(model.graph.node)
    assert operators["MatMulIntegerToFloat"] == 2 * 6 + 2, "six a layer, the pooler and the head"
    assert operators["MultiHeadAttention"] == 2, "one a layer"
    assert not {"MatMul", "Gemm", "Softmax"} & operators.keys()
    # Q, K and V share one. In the last layer Q has fewer rows than K and V, and one of its own.
    assert operators["QuantizeLinear"] == 2 * 4 + 1 + 2
    floats = [item for item in model.graph.initializer if item.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(item.dims) for item in floats) <= 800, "no matrix and no table, only scales and biases"
    ours, theirs = ((folder / "model.onnx").stat().st_size for folder in (onnx_folder, fp32_folder))
    assert ours < 0.5 * theirs


def test_one_model_always_gives_one_file(onnx_folder, model_folder):
    again = exporting.to_onnx(load(model_folder), precision="int8")
    assert again.SerializeToString() == onnx.load(str(onnx_folder / "model.onnx")).SerializeToString()


def test_a_causal_model_is_exported_as_what_it_is(family_folders, texts):
    """Its mask hides the later tokens too, which the fused attention would not."""
    model, onnx_folder = family_folders("decoder")
    predictor = OnnxPredictor(onnx_folder, threads=1)
    assert "MultiHeadAttention" not in predictor.manifest.operators
    assert predictor.manifest.operators["Softmax"] == 2
    expected = TorchPredictor(model).logits(texts)
    assert np.abs(predictor.logits(texts) - expected).max() < 0.1 * np.ptp(expected)


def test_the_manifest_says_it_all(onnx_folder, model_folder):
    manifest = read_manifest(onnx_folder)
    assert manifest == Manifest(
        precision="int8",
        labels=("negative", "positive"),
        is_regression=False,
        max_length=48,
        positions=64,
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        source=model_folder.name,
        source_sha256=digest(model_folder / "model.safetensors"),
        operators=manifest.operators,
        cpu_features=(),
        check=manifest.check,
        files={name: digest(onnx_folder / name) for name in FILES},
        companion=companion.__version__,
        format=1,
    )
    others = [
        replace(manifest, labels=manifest.labels[::-1]),
        replace(manifest, files=manifest.files | {"tokenizer.json": "0" * 64}),
        replace(manifest, files=manifest.files | {"model.onnx": "0" * 64}),
        replace(manifest, max_length=32),
    ]
    versions = {one.model_version for one in (manifest, *others)}
    assert len(versions) == 5, "whatever decides an answer decides the version"
    assert replace(manifest, companion="another").model_version == manifest.model_version
    assert all(re.fullmatch("[0-9a-f]{12}", version) for version in versions)
    assert {path.name for path in onnx_folder.iterdir()} == FILES | {"manifest.json"}
    check = manifest.check
    assert (check.examples, check.moved_by_batch) == (128, 0)
    # One text at the edge between labels may move by anything: training noise is each processor's own.
    assert 0 < check.mean_logit_difference < 0.1, "of logits from -3 to 3"
    assert check.mean_logit_difference < check.max_logit_difference
    assert check.label_flips <= 6


def test_nothing_tells_where_it_was_made(onnx_folder, fp32_folder, home):
    here = [str(home), str(Path.home()), str(Path(companion.__file__).parent), sys.prefix, ".building"]
    for folder in (onnx_folder, fp32_folder):
        for name, content in tree(folder).items():
            for place in here:
                assert place.encode() not in content, (name, place)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_file_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is not the file that manifest\.json describes.*Export"):
        OnnxPredictor(copy)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing.*Export"):
        OnnxPredictor(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data | {"format": 2}, "has format 2, expected 1"),
        (lambda data: data | {"surprise": 1}, "is damaged.*surprise"),
        (lambda data: {k: v for k, v in data.items() if k != "labels"}, "is damaged.*labels"),
        (lambda data: {k: v for k, v in data.items() if k != "files"}, "is damaged.*files"),
        (lambda data: {k: v for k, v in data.items() if k != "max_length"}, "is damaged.*max_length"),
        (lambda data: data | {"check": {}}, "is damaged"),
        (lambda data: data | {"check": None}, "is damaged"),
        (lambda data: data | {"labels": 3}, "is damaged"),
        (lambda data: data | {"files": None}, "is damaged"),
        (lambda data: data | {"files": []}, "is damaged"),
        (lambda data: data | {"labels": ["positive", "negative"]}, "config.json has negative, positive"),
        (lambda data: data | {"labels": ["a", "b", "c"]}, "has the labels a, b, c, but config.json"),
        (lambda data: data | {"labels": ["a", 3]}, "expected a list of names"),
        (lambda data: data | {"cpu_features": "avx2"}, "cpu_features is 'avx2', expected a list of names"),
        (lambda data: data | {"max_length": -1}, "max_length is -1, expected a whole number"),
        (lambda data: data | {"positions": "64"}, "positions is '64', expected a whole number"),
        (lambda data: data | {"is_regression": "no"}, "expected true or false"),
        (lambda data: data | {"check": data["check"] | {"label_flips": -1}}, "label_flips is -1"),
        (lambda data: data | {"check": data["check"] | {"label_flips": 129}}, "label_flips is 129 of 128"),
        (lambda data: data | {"check": data["check"] | {"mean_logit_difference": -0.1}}, "is -0.1"),
        (lambda data: data | {"files": {"config.json": "0"}}, r"does not list model\.onnx"),
        (lambda data: data | {"files": {"model.onnx": 0}}, "is not the file"),
        (lambda data: [], "is not a manifest"),
        (lambda data: None, "is not a manifest"),
    ],
)
def test_a_changed_manifest_is_refused(copy, change, words):
    data = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(change(data)))
    with pytest.raises(ValueError, match=words):
        OnnxPredictor(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_manifest_that_is_no_json_is_refused(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a manifest.*Export the model again"):
        OnnxPredictor(copy)


def test_a_foreign_folder_is_refused(tmp_path, model_folder):
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json.*companion export"):
        OnnxPredictor(model_folder)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        OnnxPredictor(tmp_path / "nowhere")


def test_what_cannot_be_exported(encoder_folder, model_folder, onnx_folder, tmp_path):
    with pytest.raises(ValueError, match="not fine-tuned"):
        export(encoder_folder, tmp_path / "out")
    with pytest.raises(ValueError, match=r"precision is 'int4', expected"):
        export(model_folder, tmp_path / "out", precision="int4")
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        export(onnx_folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_not_overwritten(model_folder, tmp_path, quick):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"not empty and has no manifest\.json"):
        export(model_folder, tmp_path / "thesis")
    assert tree(tmp_path) == {"thesis/chapter.txt": b"do not lose me"}


def test_an_earlier_export_is_replaced_whole(model_folder, copy, onnx_folder, quick):
    (copy / "leftover").write_text("old")
    export(model_folder, copy)
    assert tree(copy) == tree(onnx_folder)
    assert [path.name for path in copy.parent.iterdir()] == ["onnx"]


def test_an_export_that_breaks_leaves_the_old_one(model_folder, copy, quick, monkeypatch):
    before = tree(copy.parent)

    def breaks(*arguments):
        raise RuntimeError("half way")

    monkeypatch.setattr(comparison, "compare", breaks)
    with pytest.raises(RuntimeError, match="half way"):
        export(model_folder, copy)
    with pytest.raises(RuntimeError, match="half way"):
        export(model_folder, copy.parent / "fresh")
    assert tree(copy.parent) == before
    assert [path.name for path in copy.parent.iterdir()] == ["onnx"]


def test_a_killed_export_leaves_the_old_one(model_folder, copy):
    code = (
        "import os, signal, onnx; from pathlib import Path; import companion.inference.comparison as c\n"
        "import companion.inference.exporting as e\n"
        f"model = onnx.load({str(copy / 'model.onnx')!r})\n"
        "e.to_onnx = lambda *_, **__: model\n"
        "c.compare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"e.export(Path({str(model_folder)!r}), Path({str(copy)!r}))"
    )
    before = tree(copy)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert tree(copy) == before
    assert OnnxPredictor(copy).probabilities(["a"]).shape == (1, 2)


@pytest.mark.weights
def test_the_embedded_encoder_is_fused_and_a_quarter_of_its_size():
    classifier = load("embedded", labels=("negative", "positive"))
    model = exporting.to_onnx(classifier, precision="int8")
    operators = Graph(model).operators()
    assert operators["MultiHeadAttention"] == 6
    assert operators["MatMulIntegerToFloat"] == 6 * 6 + 2
    assert operators["QuantizeLinear"] == 6 * 4 + 1 + 2
    assert not {"MatMul", "Gemm", "Softmax"} & operators.keys()
    parameters = sum(parameter.numel() for parameter in classifier.model.parameters())
    assert model.ByteSize() < 0.27 * 4 * parameters
