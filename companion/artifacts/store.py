"""The store's four verbs: make, record, list, clear."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from companion.artifacts.digests import JSON, canonical, digest, plain
from companion.artifacts.folders import build_folder, damage, locked, read_meta, sweep
from companion.artifacts.hardware import machine
from companion.artifacts.staging import remove

__all__ = ["Entry", "clear", "entries", "make", "record"]

_RECORD = "record.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_log = getLogger("companion.artifacts")
_measured: set[Path] = set()  # the records that this process has asked for: COMPANION_REMEASURE counts once


@dataclass(frozen=True)
class Entry:
    """One stored artifact.

    Attributes
    ----------
    name : str
        What it was made as.
    key : str
        SHA-256 of name, version and inputs, in hex.
    path : Path
        Its folder.
    bytes : int
        Size of its files, ``meta.json`` included.
    made_at : str
        When it was made, ISO 8601 in UTC; empty when ``meta.json`` cannot be read.
    seconds : float
        How long it took to make; 0 when ``meta.json`` cannot be read.
    """

    name: str
    key: str
    path: Path
    bytes: int
    made_at: str
    seconds: float


def make(
    name: str,
    build: Callable[[Path], None],
    *,
    version: int,
    inputs: Mapping[str, Any],
    home: Path | None = None,
) -> Path:
    """Return the folder of an artifact, making it first if it is not there.

    When several processes ask for the same one, one makes it and the others wait. A stored folder that does
    not match its ``meta.json`` is reported through `logging` and made again.

    Parameters
    ----------
    name : str
        Letters, digits, dot, dash, underscore.
    build : callable
        Writes the files into the empty folder it is given. When it raises, nothing is stored.
    version : int
        The recipe's own version: raise it when `build` would give something else for the same inputs.
    inputs : mapping
        All that decides the result; see `digest`. A `Path` counts with its content.
    home : Path, optional
        Default: the settings' home.

    Returns
    -------
    Path
        The folder. Do not write into it: an extra file counts as damage.

    Raises
    ------
    ValueError
        When the name or the inputs cannot be stored, or `build` writes links or a ``meta.json``.
    FileNotFoundError
        When an input path does not exist.
    OSError
        When the home cannot be written, or the disk is full.
    """
    return _obtain(_store(home), _checked(name), build, version, plain(inputs, "inputs"), anew=False)


def record(
    name: str,
    measure: Callable[[], JSON],
    *,
    version: int,
    inputs: Mapping[str, Any],
    home: Path | None = None,
) -> JSON:
    """Return the result of an experiment, measuring it first if this machine has not done so.

    An artifact like others, with `machine` in its key. With ``COMPANION_REMEASURE=1`` it is measured anew,
    once in each process.

    Parameters
    ----------
    name : str
        As for `make`.
    measure : callable
        Returns the result.
    version : int
        As for `make`.
    inputs : mapping
        As for `make`.
    home : Path, optional
        As for `make`.

    Returns
    -------
    JSON
        The result as it was written, so that the first call and later ones give equal values: tuples have
        become lists.

    Raises
    ------
    ValueError
        As for `make`, and when the result is not JSON; NaN and infinity are not.
    FileNotFoundError, OSError
        As for `make`.
    """
    from companion.settings import get_settings

    def build(folder: Path) -> None:
        (folder / _RECORD).write_text(canonical(plain(measure(), "the result")), encoding="utf-8")

    store, told = _store(home), plain({**inputs, "machine": machine()}, "inputs")
    folder = store / _checked(name) / digest([name, version, told])
    anew = get_settings().remeasure and folder not in _measured
    _obtain(store, name, build, version, told, anew=anew)
    _measured.add(folder)
    return json.loads((folder / _RECORD).read_text(encoding="utf-8"))


def entries(home: Path | None = None) -> list[Entry]:
    """List what is stored, by name and then by age.

    Reads sizes and ``meta.json``, not the files: whether they are intact is seen when they are opened.

    Parameters
    ----------
    home : Path, optional
        Default: the settings' home.

    Returns
    -------
    list of Entry
    """
    found = [_entry(folder) for folder in _store(home).glob("[!.]*/[!.]*")]
    return sorted(found, key=lambda entry: (entry.name, entry.made_at, entry.key))


def clear(name: str | None = None, home: Path | None = None) -> int:
    """Delete the artifacts of one name, or all of them, and what dead builds left behind.

    Waits for builds that are under way.

    Parameters
    ----------
    name : str, optional
        Default: every name.
    home : Path, optional
        Default: the settings' home.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    ValueError
        When nothing was ever stored under this name, or it cannot be one.
    """
    store = _store(home)
    names = sorted(folder.name for folder in store.glob("[!.]*"))
    if name is not None and _checked(name) not in names:
        known = ", ".join(names) or "none yet"
        raise ValueError(f"no artifact is named {name!r} in {store}: expected one of those stored ({known})")
    freed = 0
    for folder in [path for one in names if name in (None, one) for path in (store / one).iterdir()]:
        key = folder.name.strip(".").partition(".")[0]
        with locked(store, folder.parent.name, key):
            freed += _size(folder)
            remove(folder)
    return freed


def _obtain(
    store: Path, name: str, build: Callable[[Path], None], version: int, inputs: JSON, *, anew: bool
) -> Path:
    """Do the work of `make`; with `anew`, build even when a good folder is there."""
    key = digest([name, version, inputs])
    folder = store / name / key
    if not anew and folder.exists() and damage(folder) is None:
        return folder  # without the lock: a complete folder needs none, and the store may be read-only
    with locked(store, name, key):
        if folder.exists():  # looked at again: another process may have made it while this one waited
            problem = damage(folder)
            if problem:
                _log.warning("artifact %s/%s is damaged (%s) and is made again", name, key[:12], problem)
            elif not anew:
                return folder
        sweep(store, name, but=key)
        build_folder(folder, build, {"name": name, "version": version, "inputs": inputs})
    return folder


def _entry(folder: Path) -> Entry:
    meta = read_meta(folder) or {}
    return Entry(
        name=folder.parent.name,
        key=folder.name,
        path=folder,
        bytes=_size(folder),
        made_at=str(meta.get("made_at", "")),
        seconds=float(meta.get("seconds", 0.0)),
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _store(home: Path | None) -> Path:
    if home is None:
        from companion.settings import get_settings

        home = get_settings().home
    return home.absolute() / "artifacts"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        expected = "letters, digits, '.', '-' and '_', and no path separator"
        raise ValueError(f"the artifact name is {name!r}: expected {expected}")
    return name
