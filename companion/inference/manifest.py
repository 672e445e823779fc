"""The manifest of an ONNX folder: what is in it, where it came from, how far it is from its source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from companion.artifacts import digest, staged_file
from companion.inference.outline import outline
from companion.inference.quality.reading import quality_from
from companion.inference.quality.record import Quality

__all__ = ["MANIFEST", "MODEL", "Check", "Manifest", "read_manifest", "state_quality", "write_manifest"]

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
        Instruction sets without which the answers would be wrong, by Linux's names; ``a|b`` where one of two
        is enough. Empty: none.
    check : Check
    files : dict of str to str
        SHA-256 of every other file in the folder.
    companion : str
        Version of this package.
    format : int
        Version of the manifest's own layout.
    quality : Quality or None
        What `state_quality` wrote: the model compared with its source on held-out examples.
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
    quality: Quality | None = None

    @cached_property
    def model_version(self) -> str:
        """Short name of what gives exactly these answers: 12 digits of a hash of all that decides one.

        The graph alone is not enough: the same one with its labels exchanged says the opposite.
        """
        decides = {"files": self.files, "labels": self.labels, "is_regression": self.is_regression}
        return digest(decides | {"max_length": self.max_length})[:12]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json``, whole or not at all.

    Parameters
    ----------
    manifest : Manifest
    folder : Path
        Holds the other files already.
    """
    data = asdict(manifest)
    if manifest.quality is None:
        del data["quality"]  # as it was before there was such a record
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    with staged_file(folder / MANIFEST) as staging:
        staging.write_text(text + "\n", encoding="utf-8")


def state_quality(folder: Path, quality: Quality) -> Manifest:
    """Write into a folder's manifest how good its answers are.

    Parameters
    ----------
    folder : Path
        An ONNX folder. Nothing else in it changes.
    quality : Quality
        Found with `companion.inference.assess`, for this very folder. Takes the place of an earlier record.

    Returns
    -------
    Manifest

    Raises
    ------
    FileNotFoundError
        When the folder or a file in it is missing.
    ValueError
        When the folder is damaged, or the record is about other labels.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    quality_from(quality.to_dict(), labels=manifest.labels, is_regression=manifest.is_regression)
    manifest = replace(manifest, quality=quality)
    write_manifest(manifest, folder)
    return manifest


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
        When the manifest is damaged or of another version, contradicts itself, ``config.json`` or the graph,
        or a file is not the one it lists.
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
    _agree_on_labels(manifest, folder)
    _agree_on_graph(manifest, folder)
    return manifest


def _parse(path: Path) -> Manifest:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest: {error}. Export the model again.") from None
    if version != _FORMAT:
        raise ValueError(f"{path} has format {version!r}, expected {_FORMAT}. Export the model again.")
    known = {field.name for field in fields(Manifest)}
    if unknown := sorted(data.keys() - known):
        raise ValueError(
            f"{path} is damaged: it has the unknown {', '.join(unknown)}. Export the model again."
        )
    try:
        files, quality = data.pop("files"), data.pop("quality", None)
        data["check"] = Check(**data["check"])
        for name in ("labels", "inputs", "cpu_features"):
            data[name] = _names(data[name], name)
        manifest = Manifest(**data, files={str(name): str(found) for name, found in files.items()})
        _plausible(manifest)
        if quality is not None:
            record = quality_from(quality, labels=manifest.labels, is_regression=manifest.is_regression)
            manifest = replace(manifest, quality=record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}. Export the model again.") from None
    if MODEL not in manifest.files:
        raise ValueError(f"{path} is damaged: it does not list {MODEL}. Export the model again.")
    return manifest


def _names(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {value!r}, expected a list of names")
    return tuple(value)


def _plausible(manifest: Manifest) -> None:
    """Refuse numbers that cannot be."""
    check = manifest.check
    counts = {"max_length": manifest.max_length, "positions": manifest.positions} | {
        f"check.{name}": getattr(check, name) for name in ("examples", "label_flips", "moved_by_batch")
    }
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{name} is {count!r}, expected a whole number of at least 0")
    for name in ("label_flips", "moved_by_batch"):
        if getattr(check, name) > check.examples:
            raise ValueError(f"check.{name} is {getattr(check, name)} of {check.examples} examples")
    for name in ("max_logit_difference", "mean_logit_difference"):
        if not getattr(check, name) >= 0:
            raise ValueError(f"check.{name} is {getattr(check, name)!r}, expected a number of at least 0")
    if not 0 < manifest.max_length <= manifest.positions:
        raise ValueError(
            f"max_length is {manifest.max_length}, expected at least 1 and at most the {manifest.positions} "
            "positions of the model"
        )
    if not isinstance(manifest.operators, dict):
        raise ValueError(f"operators is {manifest.operators!r}, expected counts by name")
    if not isinstance(manifest.is_regression, bool):
        raise ValueError(f"is_regression is {manifest.is_regression!r}, expected true or false")


def _agree_on_labels(manifest: Manifest, folder: Path) -> None:
    """Refuse labels that are not those of ``config.json``, which the manifest lists and the hash covers."""
    if manifest.is_regression or "config.json" not in manifest.files:
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("id2label")
        labels = None if named is None else tuple(named[str(index)] for index in range(len(named)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}. Export the model again.") from None
    if labels is not None and labels != manifest.labels:
        raise ValueError(
            f"{folder / MANIFEST} has the labels {', '.join(manifest.labels)}, but config.json has "
            f"{', '.join(map(str, labels))}. Export the model again."
        )


def _agree_on_graph(manifest: Manifest, folder: Path) -> None:
    """Refuse inputs or operators that are not those of the graph."""
    try:
        found = outline(folder / MODEL)
    except ValueError as error:
        raise ValueError(f"{error}. Export the model again.") from None
    if found.inputs != manifest.inputs:
        raise ValueError(
            f"{folder / MANIFEST} has the inputs {', '.join(manifest.inputs)}, but the graph takes "
            f"{', '.join(found.inputs)}. Export the model again."
        )
    for name in sorted(found.operators.keys() | manifest.operators.keys()):
        told, counted = manifest.operators.get(name, 0), found.operators.get(name, 0)
        if told != counted:
            raise ValueError(
                f"{folder / MANIFEST} tells of {told} {name} in the graph, but it has {counted}. "
                "Export the model again."
            )
