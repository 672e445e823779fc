"""A saved model is complete or not there, and any program can open it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from companion.models import load
from companion.training import predict_logits, save


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def classifier(model_folder: Path):
    return load(model_folder)


def test_round_trip_through_plain_transformers(classifier, toy, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert save(classifier.model, classifier.tokenizer, tmp_path / "new" / "model", max_length=24)
    folder = tmp_path / "new" / "model"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert tokenizer.model_max_length == 24
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 24
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    texts = [example.text for example in toy[:8]]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 24, "the long texts were cut"
    with torch.inference_mode():
        expected = model.eval()(**inputs).logits.numpy()
    ours = predict_logits(classifier.model, classifier.tokenizer, toy[:8], max_length=24)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_tokenizer_in_memory_keeps_its_length(classifier, tmp_path):
    length = classifier.tokenizer.model_max_length
    save(classifier.model, classifier.tokenizer, tmp_path / "model", max_length=8)
    assert classifier.tokenizer.model_max_length == length
    save(classifier.model, classifier.tokenizer, tmp_path / "model", max_length=10_000)
    assert load(tmp_path / "model").tokenizer.model_max_length == length


def test_an_earlier_model_is_replaced_whole(classifier, model_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "old.bin").write_text("old")
    save(classifier.model, classifier.tokenizer, folder)
    assert tree(folder).keys() == tree(model_folder).keys() - {"meta.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_something_else_is_left_alone(classifier, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"not empty and has no config\.json"):
        save(classifier.model, classifier.tokenizer, tmp_path / "thesis")
    (tmp_path / "file").write_text("nor me")
    with pytest.raises(ValueError, match="is a file"):
        save(classifier.model, classifier.tokenizer, tmp_path / "file")
    assert tree(tmp_path) == {"thesis/chapter.txt": b"do not lose me", "file": b"nor me"}


def test_a_save_that_breaks_leaves_the_old_model(classifier, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    save(classifier.model, classifier.tokenizer, folder)
    before = tree(tmp_path)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(classifier.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match=r"[Nn]o space left"):
        save(classifier.model, classifier.tokenizer, folder)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
