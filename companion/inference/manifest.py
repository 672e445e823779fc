"""The manifest of an ONNX folder: what is in it, where it came from, how far it is from its source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from companion.artifacts import digest

__all__ = ["MANIFEST", "MODEL", "Check", "Manifest", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
MODEL = "model.onnx"
_FORMAT = 1


@dataclass(frozen=True)
class Check:
    """An export compared with its source on a fixed sample of generated texts.

    Attributes
    ----------
    examples : int
        Size of the sample.
    max_logit_difference, mean_logit_difference : float
        Of the absolute differences, over all logits.
    label_flips : int
        Texts whose most likely label changed. Always 0 for a regression.
    moved_by_batch : int
        Texts whose logits are not bit-identical alone and in a batch of 32.
    """

    examples: int
    max_logit_difference: float
    mean_logit_difference: float
    label_flips: int
    moved_by_batch: int


@dataclass(frozen=True)
class Manifest:
    """What an ONNX folder says about itself.

    Attributes
    ----------
    precision : {"int8", "fp32"}
    labels : tuple of str
        In the order of the logits.
    is_regression : bool
    max_length : int
        Longer texts are cut to this many tokens.
    positions : int
        The most tokens that the model can take, padding included.
    inputs : tuple of str
        Names of the graph's inputs.
    source : str
        Where the model was loaded from: a name, or the last part of a folder's path.
    source_sha256 : str or None
        Hash of the source's ``model.safetensors``.
    operators : dict of str to int
        How often each operator occurs in the graph.
    cpu_features : tuple of str
        Instruction sets without which the answers would be wrong. Empty: none.
    check : Check
    files : dict of str to str
        SHA-256 of every other file in the folder.
    companion : str
        Version of this package.
    format : int
        Version of the manifest's own layout.
    """

    precision: str
    labels: tuple[str, ...]
    is_regression: bool
    max_length: int
    positions: int
    inputs: tuple[str, ...]
    source: str
    source_sha256: str | None
    operators: dict[str, int]
    cpu_features: tuple[str, ...]
    check: Check
    files: dict[str, str]
    companion: str
    format: int = _FORMAT

    @property
    def model_version(self) -> str:
        """Short name of exactly this model: the first 12 digits of the graph's hash."""
        return self.files[MODEL][:12]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json``.

    Parameters
    ----------
    manifest : Manifest
    folder : Path
        Holds the other files already.
    """
    text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json`` and compare every file of the folder with it.

    Parameters
    ----------
    folder : Path
        An ONNX folder.

    Returns
    -------
    Manifest

    Raises
    ------
    FileNotFoundError
        When the folder, the manifest or a file that it lists is missing.
    ValueError
        When the manifest is damaged or of another version, or a file is not the one it lists.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder, expected an ONNX folder. Make one: companion export"
        )
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}, expected an ONNX folder. "
            f"Make one: companion export MODEL_FOLDER {folder}"
        )
    manifest = _parse(path)
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {path} lists it. Export the model again.")
        found = digest(file)
        if found != expected:
            raise ValueError(
                f"{file} is not the file that {MANIFEST} describes: SHA-256 {found[:12]}…, "
                f"expected {expected[:12]}…. Export the model again."
            )
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest: {error}. Export the model again.") from None
    if version != _FORMAT:
        raise ValueError(f"{path} has format {version!r}, expected {_FORMAT}. Export the model again.")
    try:
        files = data.pop("files")
        data["check"] = Check(**data["check"])
        for name in ("labels", "inputs", "cpu_features"):
            data[name] = tuple(data[name])
        manifest = Manifest(**data, files={str(name): str(found) for name, found in files.items()})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Export the model again.") from None
    if MODEL not in manifest.files:
        raise ValueError(f"{path} is damaged: it does not list {MODEL}. Export the model again.")
    return manifest
