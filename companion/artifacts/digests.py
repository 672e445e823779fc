"""Hashes of values, files and folders."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["JSON", "canonical", "digest", "inventory", "plain"]

JSON: TypeAlias = Any
"""Whatever `json` writes: None, bool, int, float, str, and lists and string-keyed mappings of them."""


def digest(value: JSON | Path) -> str:
    """Hash a value, or the content of a file or folder.

    Parameters
    ----------
    value : JSON or Path
        A `Path` stands for its content, also inside lists and mappings: a file for its bytes, a folder for
        the names and bytes of its files. Everything else is hashed as canonical JSON, in which the order of
        a mapping's keys does not count. Dataclasses count as mappings, tuples as lists.

    Returns
    -------
    str
        SHA-256 in hex, 64 characters.

    Raises
    ------
    FileNotFoundError
        When a path does not exist.
    ValueError
        When the value holds something that JSON has no form for, or a folder holds links.
    """
    if isinstance(value, Path):
        return _content(value)
    return hashlib.sha256(canonical(plain(value)).encode()).hexdigest()


def canonical(value: JSON) -> str:
    """Write plain JSON in its one canonical form: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def plain(value: Any, where: str = "the value") -> JSON:
    """Turn a value into JSON's own types, with each path replaced by its content's hash.

    Parameters
    ----------
    value : Any
        As for `digest`.
    where : str
        What to call the value in an error.

    Returns
    -------
    JSON

    Raises
    ------
    FileNotFoundError, ValueError
        As for `digest`.
    """
    if isinstance(value, Path):
        return {"sha256": _content(value)}
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where} has the key {odd[0]!r}: expected strings")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, where)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: expected a finite number; write None for what has no value")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise ValueError(
        f"{where} is of type {kind}: expected what JSON can hold; convert it (.item(), .tolist())"
    )


def inventory(folder: Path) -> dict[str, dict[str, str | int]]:
    """List the files in a folder and below.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict
        ``bytes`` and ``sha256`` of each file, by its path within the folder.

    Raises
    ------
    ValueError
        When something in it is a link: what it points at may change or go without notice.
    """
    files: dict[str, dict[str, str | int]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: expected files only; copy what it points at")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _content(path)}
    return files


def _content(path: Path) -> str:
    if path.is_dir():
        return digest(inventory(path))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "not found: expected a file or a folder to hash", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
