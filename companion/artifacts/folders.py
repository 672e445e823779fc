"""How one artifact's folder is written, locked and checked."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import companion
from companion.artifacts.digests import digest, inventory
from companion.artifacts.staging import FULL, RIGHTS, put_in_place, readable, remove

__all__ = ["META", "build_folder", "damage", "locked", "read_meta", "sweep"]

META = "meta.json"
_log = getLogger("companion.artifacts")


def build_folder(folder: Path, build: Callable[[Path], None], meta: dict[str, Any]) -> None:
    """Run a recipe in a folder beside `folder`, then put it in place. The caller holds the key's lock.

    Parameters
    ----------
    folder : Path
        ``HOME/artifacts/NAME/KEY``. When it exists, it is replaced.
    build : callable
        Writes the files.
    meta : dict
        ``name``, ``version``, ``inputs``; the rest of ``meta.json`` is added here.

    Raises
    ------
    ValueError
        When the recipe wrote links, or a file of the name ``meta.json``.
    OSError
        When the disk is full.
    """
    # Fixed names: whoever left something there is dead, for we have the lock.
    building = folder.with_name(f".{folder.name}.building")
    replaced = folder.with_name(f".{folder.name}.replaced")
    what = f"{meta['name']!r} cannot be made in {folder.parent}"
    try:
        with readable(what, "free some space, or set COMPANION_HOME to another folder", FULL):
            remove(building, replaced)
            building.mkdir(parents=True)
            started = time.perf_counter()
            build(building)
            meta = meta | _describe(building, time.perf_counter() - started)
            if META in meta["files"]:
                raise ValueError(f"{what}: the recipe wrote a {META}, and the store writes that one itself")
            text = json.dumps(meta, indent=1, ensure_ascii=False)
            (building / META).write_text(text, encoding="utf-8")
            put_in_place(building, folder, replaced)
    finally:
        remove(building, replaced)


def _describe(folder: Path, seconds: float) -> dict[str, Any]:
    """Return what ``meta.json`` says about how a folder was made."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
        "python": platform.python_version(),
        "companion": companion.__version__,
        "files": inventory(folder),
    }


def damage(folder: Path) -> str | None:
    """Compare an artifact's folder with its ``meta.json`` and its own name.

    Parameters
    ----------
    folder : Path
        ``HOME/artifacts/NAME/KEY``.

    Returns
    -------
    str or None
        What is wrong with it, or None.
    """
    meta = read_meta(folder)
    if meta is None:
        return f"{META} is missing or not JSON"
    if digest([meta.get("name"), meta.get("version"), meta.get("inputs")]) != folder.name:
        return f"{META} does not belong to this key"
    expected = meta.get("files")
    if not isinstance(expected, dict):
        return f"{META} lists no files"
    try:
        found = inventory(folder)
    except (OSError, ValueError) as error:
        return str(error)
    del found[META]
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            return f"{path} is missing"
        if path not in expected:
            return f"{path} is not in {META}"
        if found[path] != expected[path]:
            return f"{path} was changed"
    return None


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what ``meta.json`` says, or None when it cannot be read."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


@contextmanager
def locked(store: Path, name: str, key: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of one key. The system releases it when the process dies, however it dies.

    Parameters
    ----------
    store : Path
        ``HOME/artifacts``.
    name, key : str
        The artifact.
    wait : bool
        Whether to wait while another process holds it.

    Raises
    ------
    filelock.Timeout
        When another process holds it and `wait` is false.
    OSError
        When the store cannot be written.
    """
    from filelock import FileLock, Timeout

    # Beside the artifacts, and never deleted: once a lock file is deleted, two processes can hold "the" lock.
    lock = FileLock(store / ".locks" / name / f"{key}.lock")
    with readable(
        f"artifacts cannot be stored in {store}", "set COMPANION_HOME to another folder", RIGHTS | FULL
    ):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            _log.info("another process is making %s/%s: waiting for it", name, key[:12])
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep(store: Path, name: str, *, but: str) -> None:
    """Remove what dead builds of other keys left behind: whatever is unfinished and not locked.

    Parameters
    ----------
    store : Path
        ``HOME/artifacts``.
    name : str
        The artifacts to look at.
    but : str
        The key whose lock the caller holds.
    """
    from filelock import Timeout

    for leftover in (store / name).glob(".*.*"):
        key = leftover.name.split(".")[1]
        if key == but:
            continue
        try:
            with locked(store, name, key, wait=False):
                remove(leftover)
        except Timeout:
            pass  # a build that is alive
