"""The key of the execution cache: a page runs again exactly when something it may depend on has changed.

Jupyter Book's own cache looks at the cells alone, so a page would keep the numbers of an older package.
Standard library only: build tools import this file without an environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

# Where results are kept, and how loudly, changes no result.
_WITHOUT_EFFECT = {"COMPANION_HOME", "COMPANION_PROGRESS"}


def cache_key(root: Path) -> str:
    """Return the key for the checkout at `root`, as 16 hexadecimal digits.

    Parameters
    ----------
    root : Path
        The folder that holds `companion/`, `constraints.txt` and the benchmarks' results.

    Returns
    -------
    str
        A digest over every `.py` and `.toml` of the package, the pinned versions, the stored results of the
        benchmarks, and the settings that the environment gives.
    """
    package = root / "companion"
    files = [path for suffix in ("py", "toml") for path in package.rglob(f"*.{suffix}")]
    digest = hashlib.sha256()
    files += (root / "benchmarks" / "results").glob("*.json")  # pages cite them
    for path in sorted([*files, root / "constraints.txt"]):
        if path.is_file():
            _add(digest, path.relative_to(root).as_posix(), path.read_bytes())
    for name in sorted(os.environ):
        if name.startswith("COMPANION_") and name not in _WITHOUT_EFFECT:
            _add(digest, name, os.environ[name].encode())
    return digest.hexdigest()[:16]


def prune(caches: Path, *, keep: int = 2) -> list[Path]:
    """Delete all but the newest caches, and return what was deleted.

    Parameters
    ----------
    caches : Path
        The folder with one folder for each key.
    keep : int
        How many stay. Two let a change be tried and taken back without running everything twice.
    """
    if not caches.is_dir():
        return []
    folders = [path for path in caches.iterdir() if path.is_dir()]
    old = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]
    for folder in old:
        shutil.rmtree(folder)
    return old


def _add(digest: hashlib._Hash, name: str, content: bytes) -> None:
    """Add one named part, with lengths so that no two sets of parts give the same bytes."""
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
