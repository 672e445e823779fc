"""Loads a text classifier: the model, its tokenizer, and where both came from."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from companion.artifacts import digest
from companion.models.embedded import EMBEDDED_SHA256, embedded_folder
from companion.settings import get_settings

__all__ = ["Classifier", "declared", "load", "resolve"]

_EMBEDDED = "embedded"
_EMBEDDED_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
)
"""Files that a tokenizer is read from. Without any, transformers makes one that knows no word."""


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with its tokenizer.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, float32, on the CPU.
    tokenizer : PreTrainedTokenizerBase
        The fast tokenizer that belongs to the model.
    source : str
        The folder or hub name it was loaded from.
    sha256 : str or None
        The hash of ``model.safetensors`` where the source is a folder that has one.
    fresh : tuple of str
        Parameters that the source did not have and that were drawn from the seed: the classification head of
        a pre-trained encoder. Empty for a model that was fine-tuned for classification.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    sha256: str | None
    fresh: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of the logits."""
        return _label_names(self.model.config)

    @property
    def is_regression(self) -> bool:
        """Whether the model predicts one number instead of a label."""
        return self.model.config.problem_type == "regression"


def resolve(name: str | Path) -> str | Path:
    """Turn a name or a folder into something that transformers can open.

    Parameters
    ----------
    name : str or Path
        ``"embedded"``, a folder in Hugging Face layout, or (profile ``full`` only) a name on the hub.

    Returns
    -------
    str or Path
        A checked folder, or the name on the hub.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When the folder holds no model, or the name would need the hub in the ``quick`` profile.
    """
    profile = get_settings().profile
    if name == _EMBEDDED:
        try:
            return embedded_folder()
        except FileNotFoundError:
            if profile == "full":
                return _EMBEDDED_ON_HUB
            raise
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, expected a model folder (config.json, model.safetensors, tokenizer)"
        )
    text = str(name)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise FileNotFoundError(f"{folder} does not exist, expected a model folder. Check the path.")
    if profile != "full":
        raise FileNotFoundError(
            f"there is no folder {text!r}, and the profile 'quick' never asks the hub for a model. "
            "Give a folder or 'embedded', or set COMPANION_PROFILE=full."
        )
    return text


def load(
    name: str | Path, *, labels: Sequence[str] = (), regression: bool = False, seed: int = 0
) -> Classifier:
    """Load a classifier, or an encoder with a fresh classification head.

    Parameters
    ----------
    name : str or Path
        See `resolve`.
    labels : sequence of str
        The label names of the task, in the order of the logits. Leave empty to keep the source's own.
    regression : bool
        One output that predicts a number, instead of labels.
    seed : int
        Draws the parameters that the source does not have. Equal seeds give equal parameters.

    Returns
    -------
    Classifier

    Raises
    ------
    FileNotFoundError, ValueError
        As in `resolve`, and when the files cannot be read or the source is a classifier for other labels.
    """
    source = resolve(name)
    _check_tokenizer(source)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            _set_task(config, labels, regression, source)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, KeyError, RuntimeError, ImportError) as error:
            raise ValueError(_unreadable(source, error)) from error
        except Exception as error:  # safetensors and tokenizers raise classes of their own
            if isinstance(error, ValueError) and str(error).startswith(str(source)):
                raise
            raise ValueError(_unreadable(source, error)) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{source} has no fast tokenizer (tokenizer.json), which the ONNX folder needs")
    _check_vocabulary(model, tokenizer, source)
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(config))
    # A tokenizer trained by hand makes token_type_ids for every model; DistilBERT does not take them.
    takes = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in takes]
    weights = Path(source) / "model.safetensors"
    return Classifier(
        model=model.eval(),
        tokenizer=tokenizer,
        source=str(name),
        sha256=_hash(name, weights),
        fresh=tuple(sorted(info["missing_keys"])),
    )


def _check_tokenizer(source: str | Path) -> None:
    """Refuse a folder without a tokenizer."""
    if isinstance(source, Path) and not any((source / name).is_file() for name in _VOCABULARIES):
        raise ValueError(
            f"{source} holds no tokenizer (tokenizer.json or a vocabulary). Save it beside the model: "
            "tokenizer.save_pretrained(folder)"
        )


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Refuse a tokenizer that knows tokens for which the model has no row."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    rows = len(table)
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if last >= rows:
        raise ValueError(
            f"{source} has a tokenizer whose token {token!r} has the number {last:,}, but its model knows "
            f"{rows:,} tokens. Either it belongs to another model, or tokens were added to it: then call "
            "model.resize_token_embeddings(len(tokenizer)) and train."
        )


def declared(folder: str | Path) -> tuple[tuple[str, ...], bool]:
    """Return what a folder's configuration says that its classifier answers, without loading the weights.

    Returns
    -------
    labels : tuple of str
        As `Classifier.labels`.
    is_regression : bool
        As `Classifier.is_regression`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load`.
    """
    source = resolve(folder)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(_unreadable(source, error)) from error
    _set_task(config, (), False, source)
    return _label_names(config), config.problem_type == "regression"


def _hash(name: str | Path, weights: Path) -> str | None:
    """Hash the weights, unless that was done just now."""
    if name == _EMBEDDED:
        return EMBEDDED_SHA256
    return digest(weights) if weights.is_file() else None


def _positions(config: PreTrainedConfig) -> int:
    """Return how many tokens the position table allows."""
    positions = int(getattr(config, "max_position_embeddings", 512) or 512)
    # RoBERTa's tables keep pad_token_id + 1 rows that no token uses.
    roberta = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return positions - (int(config.pad_token_id or 0) + 1 if roberta else 0)


def _set_task(config: PreTrainedConfig, labels: Sequence[str], regression: bool, source: str | Path) -> None:
    """Write the task into the configuration; refuse a classifier that was made for other labels."""
    architectures = config.architectures or []
    trained = any("ForSequenceClassification" in name for name in architectures)
    own = _label_names(config)
    if trained and config.problem_type == "multi_label_classification":
        raise ValueError(
            f"{source} scores each of its labels on its own, expected a classifier with one label a text"
        )
    if trained and len(own) == 1 and config.problem_type is None:
        config.problem_type = "regression"  # what transformers takes one output for
    if trained and labels and own != tuple(labels):
        raise ValueError(
            f"{source} was trained for the labels {', '.join(own)}; the task has {', '.join(labels)}. "
            "Choose the matching task, or start from a pre-trained encoder."
        )
    if trained and regression and config.problem_type != "regression":
        raise ValueError(f"{source} predicts labels ({', '.join(own)}); the task wants a number")
    if regression:
        config.num_labels, config.problem_type = 1, "regression"
        config.id2label, config.label2id = {0: "score"}, {"score": 0}
    elif labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"


def _label_names(config: PreTrainedConfig) -> tuple[str, ...]:
    names = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def _checked(folder: Path) -> Path:
    """Refuse a folder that is not a model before transformers turns it into a riddle."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{folder} holds no config.json: not a model folder. Expected Hugging Face layout: "
            "config.json, model.safetensors, tokenizer.json."
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "model_type" not in found:
            raise ValueError(f"{config} names no model_type: not the configuration of a transformers model")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid JSON ({error}). Save the model again.") from None
    if not list(folder.glob("*.safetensors")):
        other = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none"
        raise ValueError(
            f"{folder} holds no *.safetensors weights (pickled weights found: {other}). "
            "Save it again with model.save_pretrained(folder)."
        )
    return folder


def _unreadable(source: str | Path, error: BaseException) -> str:
    """Say in one line what transformers said in many."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "ignore_mismatched_sizes" in first:  # the report that it points to is not shown
        first = (
            "its weights are not of the sizes that config.json describes. Does id2label name every label "
            "there (without it transformers expects two)?"
        )
    return f"{source} cannot be loaded as a text classifier: {first}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loading report: what it would say is in `Classifier.fresh`."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
