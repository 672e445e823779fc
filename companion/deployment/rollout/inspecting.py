"""Whether a folder can take the place of the live version, judged before it is opened."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from companion.inference.manifest import read_manifest

__all__ = ["VersionFacts", "inspect_folder", "why_unfit"]

_TOKENIZER = "tokenizer.json"
_HOW_LONG = ("truncation", "padding")
"""Parts of ``tokenizer.json`` that the predictor sets itself."""


@dataclass(frozen=True)
class VersionFacts:
    """What a version must have in common with the one whose place it takes.

    Attributes
    ----------
    version : str
        Its name in answers.
    labels : tuple of str
        Empty for a regression.
    is_regression : bool
    tokenizer : str
        The same for two folders that cut every text into the same tokens.
    """

    version: str
    labels: tuple[str, ...]
    is_regression: bool
    tokenizer: str


def inspect_folder(folder: Path) -> VersionFacts:
    """Read an ONNX folder's description of itself; compare its files with it. Blocks: call it in a thread.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    VersionFacts

    Raises
    ------
    FileNotFoundError, ValueError
        When it is no exported model, or damaged.
    """
    manifest = read_manifest(folder)
    return VersionFacts(
        version=manifest.model_version,
        labels=() if manifest.is_regression else manifest.labels,
        is_regression=manifest.is_regression,
        tokenizer=_tokenizer_digest(folder / _TOKENIZER),
    )


def _tokenizer_digest(file: Path) -> str:
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        for name in _HOW_LONG:
            parts.pop(name, None)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no tokenizer: {error}. Export the model again.") from None
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def why_unfit(found: VersionFacts, live: VersionFacts, *, other_tokenizer: bool = False) -> str | None:
    """Say why a version cannot take the place of the live one.

    Parameters
    ----------
    found, live : VersionFacts
    other_tokenizer : bool
        Whether another tokenizer is meant.

    Returns
    -------
    str or None
        None: it can.
    """
    if found.version == live.version:
        return f"it is version {found.version}, which is live already: export another model"
    if found.is_regression != live.is_regression:
        kinds = {True: "a regression", False: "a classifier"}
        return (
            f"it is {kinds[found.is_regression]}, the live version is {kinds[live.is_regression]}: clients "
            "could not read its answers"
        )
    if set(found.labels) != set(live.labels):
        return (
            f"it has the labels {', '.join(found.labels)}, the live version has {', '.join(live.labels)}: "
            "clients know only these"
        )
    if found.tokenizer != live.tokenizer and not other_tokenizer:
        return (
            "its tokenizer is not the one of the live version: a folder of another model, or, when it was "
            "trained from another base model on purpose, say so with other_tokenizer"
        )
    return None
