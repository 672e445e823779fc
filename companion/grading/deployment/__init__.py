"""Grades exercise 3: the submitted server is started in a small world of its own, and asked.

All that decides is computed on our side of the wall, from what came over the wire: texts that were written a
moment ago, the submitted model's own answers to them, and the naive server's speed on the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from companion.data.tasks import Example
from companion.exercises.deployment import Material, Requirements, ServerInspection, draw, read_submission
from companion.grading.deployment.marks import ServerGrade, inspection_from

__all__ = ["ServerGrade", "grade", "nothing"]

_ROOT = Path(__file__).parents[3]
_START = (
    "import sys; sys.path.insert(0, {root!r}); from companion.grading.deployment.world import main; main()"
)
_SECONDS, _MOST_BYTES, _MOST_FILES = 900.0, 2 << 30, 5_000


def nothing(error: str) -> ServerGrade:
    """Return a grading of nothing, with the reason."""
    return ServerGrade(ServerInspection(()), errors=(error,))


def grade(
    folder: str | Path,
    *,
    seed: int | None = None,
    requirements: Requirements | None = None,
    examples: Sequence[Example] | None = None,
    seconds: float = _SECONDS,
) -> ServerGrade:
    """Grade one submission.

    Parameters
    ----------
    folder : str or Path
        Holds ``serve.toml``, the server and the exported model. A copy of it is started.
    seed : int, optional
        Draws the texts. Default: new ones.
    requirements : Requirements, optional
    examples : sequence of Example, optional
        Ask these texts instead of drawn ones: see `draw`.
    seconds : float
        Wall time for all of it.

    Returns
    -------
    ServerGrade
        Whatever is in the folder, and whatever the server does.
    """
    begun = time.monotonic()
    drawn = draw(secrets.randbits(31) if seed is None else seed, examples=examples, requirements=requirements)
    try:
        _check_size(Path(folder))
        read_submission(folder)
    except (OSError, ValueError) as error:
        return nothing(str(error))
    with tempfile.TemporaryDirectory(prefix="companion-grade-") as place:
        Path(place).chmod(0o711)  # who is nobody has to pass through it
        copy, scratch = Path(place) / "submission", Path(place) / "scratch"
        shutil.copytree(folder, copy, symlinks=False)
        _open_to_all(copy)
        scratch.mkdir()
        said = _in_its_world(copy, scratch, drawn, seconds)
    if isinstance(said, str):
        return nothing(said)
    if "error" in said:
        return nothing(f"the grading itself failed, look at this one by hand: {said['error']}")
    errors = ("it took more memory than allowed, and was ended",) if said["memory"] else ()
    took = time.monotonic() - begun
    return ServerGrade(inspection_from(said["inspection"]), tuple(said["isolation"]), errors, took)


def _in_its_world(folder: Path, scratch: Path, material: Material, seconds: float) -> dict[str, Any] | str:
    """Start the world, and wait for what it says; in the end nothing of it runs."""
    job = {"folder": str(folder), "scratch": str(scratch), "material": asdict(material)}
    world = subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", _START.format(root=str(_ROOT))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = world.communicate(json.dumps(job).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"grading was not over after {seconds:.0f} s, and was stopped"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(world.pid, signal.SIGKILL)
        world.wait()
    try:
        said: dict[str, Any] = json.loads(out)
    except ValueError:
        last = (err.decode(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]
        return f"the grading itself failed, look at this one by hand: {last[:200]}"
    return said


def _check_size(folder: Path) -> None:
    """Refuse what cannot be copied: links, which may lead anywhere, devices, and very much.

    Raises
    ------
    ValueError
    """
    count = size = 0
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            one = (Path(path) / name).lstat()
            if not stat.S_ISREG(one.st_mode) and not stat.S_ISDIR(one.st_mode):
                raise ValueError(f"{name} is a link or a device, expected plain files and folders")
            count, size = count + 1, size + one.st_size
        if count > _MOST_FILES or size > _MOST_BYTES:
            raise ValueError(
                f"there are more than {_MOST_FILES} files or {_MOST_BYTES >> 30} GiB in it: hand in the "
                "server and the exported model, without environments and checkpoints"
            )


def _open_to_all(folder: Path) -> None:
    """Let everybody read a copy, and run what could be run."""
    for path, _, files in os.walk(folder):
        Path(path).chmod(0o755)
        for name in files:
            one = Path(path) / name
            one.chmod(0o755 if one.stat().st_mode & 0o100 else 0o644)
