"""Small models of other families, exported once for all workers; lets the tests here import their helpers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 42,
}


def random_model(family: str) -> Any:
    """Make a classifier whose every parameter is random, biases too, so that its answers differ widely."""
    import torch
    import transformers

    config = {
        "bert": lambda: transformers.BertConfig(vocab_size=800, **SIZES),
        "roberta": lambda: transformers.RobertaConfig(
            vocab_size=800, pad_token_id=0, **{**SIZES, "max_position_embeddings": 43}
        ),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=800, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=42
        ),
        "decoder": lambda: transformers.BertConfig(vocab_size=800, is_decoder=True, **SIZES),
    }[family]()
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def family_folders(home: Path, encoder_folder: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that gives a random model of a family, and its INT8 export."""
    from companion.artifacts import make

    def folders(family: str) -> tuple[Path, Path]:
        def build(folder: Path) -> None:
            from tokenizers import Tokenizer
            from transformers import PreTrainedTokenizerFast

            from companion.inference import export

            random_model(family).save_pretrained(folder / "model")
            pieces = Tokenizer.from_file(str(encoder_folder / "tokenizer.json"))
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=pieces,
                pad_token="[PAD]",
                model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * (family == "bert"),
            )
            tokenizer.save_pretrained(folder / "model")
            export(folder / "model", folder / "onnx")

        folder = make("test-family", build, version=1, inputs={"family": family}, home=home)
        return folder / "model", folder / "onnx"

    return folders


@pytest.fixture(scope="module")
def torch_one(model_folder: Path) -> Any:
    """Return the toy model in torch: what is right by definition."""
    from companion.inference import TorchPredictor

    return TorchPredictor(model_folder)


@pytest.fixture
def onnx_copy(onnx_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of `onnx_folder` to be broken."""
    return Path(shutil.copytree(onnx_folder, tmp_path / "onnx"))


@pytest.fixture(scope="session")
def texts(toy: list[Any]) -> list[str]:
    """Return texts from one letter to far too long, some of them strange."""
    strange = [
        "a",
        "?!",
        "",
        "  spaces\tand\nlines  ",
        "ÀÉÎ õü ß ﬁ",
        "日本語のレビュー",
        "\U0001f600 \u200b \u202e",
        "word " * 3000,
        "x" * 5000,
        "[SEP] [PAD] [CLS]",
    ]
    return strange + [example.text for example in toy[:30]]
