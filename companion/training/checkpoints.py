"""Checkpoints: complete or absent, checked before they are believed, readable on any number of processes.

A checkpoint is a folder ``step-00000120`` with the tensors as safetensors, sharded if the run is
(`torch.distributed.checkpoint`), the rest as JSON, and a manifest with the hash of each file. Nothing in it
is pickled, so reading one runs no code from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from companion.artifacts.digests import inventory
from companion.artifacts.staging import FULL, RIGHTS, put_in_place, readable, remove
from companion.training.callbacks import RunState
from companion.training.distributed import Processes
from companion.training.snapshot import progress, read_tensors, read_weights, resume_progress, write_tensors

__all__ = ["Checkpoints", "best_checkpoint", "damage", "list_checkpoints", "load_weights"]

MANIFEST, STATE = "manifest.json", "state.json"
_log = getLogger("companion.training")


class Checkpoints:
    """The checkpoints of one run in one folder.

    Parameters
    ----------
    folder : Path
        Where they are; made when the first one is written.
    identity : dict
        What must be the same for a checkpoint to belong to this run; JSON.
    keep : int
        How many of the newest are kept, besides the best.
    processes : Processes
        Those that write it together.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int, processes: Processes) -> None:
        self.folder, self.identity, self.keep = folder.expanduser().absolute(), identity, keep
        self.processes = processes

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Keep other runs out of the folder, and clear away what a killed one left half-written.

        Raises
        ------
        ValueError
            When another run has it open, it is not a folder, or it holds checkpoints and `resume` is false.
        OSError
            When it cannot be written.
        """
        with ExitStack() as stack:
            with self.processes.together():
                if self.processes.is_first:
                    stack.enter_context(self._locked(resume=resume))
            yield

    @contextmanager
    def _locked(self, *, resume: bool) -> Iterator[None]:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: expected a folder for checkpoints; give another name")
        if not resume and list_checkpoints(self.folder):
            raise ValueError(
                f"{self.folder} holds checkpoints of an earlier run: resume it, or give another folder "
                "(--resume, --checkpoints)"
            )
        with readable(f"{self.folder} cannot be written", "give another folder", RIGHTS | FULL):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.folder} is in use by another run: wait for it, or give another folder"
            ) from None
        try:
            remove(*self.folder.glob(".step-*"))
            yield
        finally:
            lock.release()

    def save(self, state: RunState) -> Path:
        """Write a checkpoint of a run; only when it is complete, older ones are pruned.

        Returns
        -------
        Path
            Its folder.

        Raises
        ------
        OSError
            When the disk is full. The earlier checkpoints are as they were.
        """
        folder = self.folder / f"step-{state.step:08d}"
        building, replaced = (
            folder.with_name(f".{folder.name}.building"),
            folder.with_name(f".{folder.name}.old"),
        )
        advice = "free some space and resume; the earlier checkpoints are intact"
        try:
            with readable(f"checkpoint {folder} cannot be written", advice, FULL | RIGHTS):
                with self.processes.together():
                    if self.processes.is_first:
                        remove(building, replaced)
                        building.mkdir()
                write_tensors(building, state, self.processes)
                with self.processes.together():
                    if self.processes.is_first:
                        (building / STATE).write_text(json.dumps(progress(state)), encoding="utf-8")
                        manifest = {"identity": self.identity, "files": inventory(building)}
                        (building / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                        put_in_place(building, folder, replaced)
                        self._prune()
        finally:
            if self.processes.is_first:
                remove(building, replaced)
        self.processes.wait()
        return folder

    def restore(self, state: RunState) -> int:
        """Bring a run to where its newest intact checkpoint was written.

        Parameters
        ----------
        state : RunState
            Fresh, with the model sharded if the run is.

        Returns
        -------
        int
            The checkpoint's step; 0 where there is none, and the state is left alone.

        Raises
        ------
        ValueError
            When it belongs to another run, or every one is damaged.
        """
        found = list_checkpoints(self.folder)
        for folder in reversed(found):
            if problem := damage(folder):
                _log.warning("checkpoint %s is damaged (%s): going back to the one before", folder, problem)
                continue
            self._check_identity(folder)
            read_tensors(folder, state, self.processes)
            resume_progress(state, json.loads((folder / STATE).read_text(encoding="utf-8")))
            return state.step
        if found:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged: nothing to resume from. "
                "Delete the folder to start afresh."
            )
        return 0

    def _check_identity(self, folder: Path) -> None:
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["identity"]
        here = json.loads(json.dumps(self.identity))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                raise ValueError(
                    f"checkpoint {folder} belongs to another run: its {key} is {there.get(key)!r}, this "
                    f"run's is {here.get(key)!r}. Give the same command again, or another checkpoint folder."
                )

    def _prune(self) -> None:
        found = list_checkpoints(self.folder)
        keep = {*found[-self.keep :], best_checkpoint(self.folder)}
        for folder in found:
            if folder not in keep:
                doomed = folder.with_name(f".{folder.name}.pruned")
                folder.rename(
                    doomed
                )  # in one step: a checkpoint without some of its files never has its name
                remove(doomed)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, whether intact or not."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def damage(folder: Path) -> str | None:
    """Compare a checkpoint's files with its manifest.

    Parameters
    ----------
    folder : Path
        One checkpoint.

    Returns
    -------
    str or None
        What is wrong with it, or None.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected, found = manifest["files"], inventory(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    del found[MANIFEST]
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            return f"{name} is {'missing' if name not in found else 'not what was written'}"
    return None


def best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with the best development metric, the earlier of equals.

    The first metric of an evaluation counts: higher is better, except for ``loss``.

    Parameters
    ----------
    folder : Path
        The folder with the checkpoints.

    Returns
    -------
    Path or None
        None when none was written right after an evaluation.
    """
    best: tuple[float, Path] | None = None
    for path in list_checkpoints(folder):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state["evaluations"] and state["evaluations"][-1]["step"] == state["step"]:
            name, value = next(iter(state["evaluations"][-1]["metrics"].items()))
            value = -value if name == "loss" else value
            if best is None or value > best[0]:
                best = (value, path)
    return best[1] if best else None


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Of the same architecture, not sharded.
    checkpoint : Path
        One checkpoint, for example `best_checkpoint`.

    Raises
    ------
    ValueError
        When the checkpoint is damaged or of another architecture.
    """
    if problem := damage(checkpoint):
        raise ValueError(f"checkpoint {checkpoint} is damaged ({problem}): choose another one")
    try:
        read_weights(checkpoint, model)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint {checkpoint} does not fit the model: {error}") from error
