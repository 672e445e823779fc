"""Reads the records of a run: a monitor's, those of transformers' Trainer, or lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from companion.training.monitoring.observations import FILE, read_observations
from companion.training.records import Evaluation, StepRecord

__all__ = ["read_records"]

_TRAINER = "trainer_state.json"
_NEEDED = ("step", "loss", "learning_rate", "grad_norm")


def read_records(path: Path) -> tuple[tuple[StepRecord, ...], tuple[Evaluation, ...]]:
    """Read what a run wrote down.

    Parameters
    ----------
    path : Path
        A monitor's folder or file; a ``trainer_state.json`` of transformers, or the folder with it; or a file
        with one JSON object per line, each with ``step``, ``loss``, ``learning_rate`` and ``grad_norm``, or
        with ``step`` and ``eval_...`` numbers.

    Returns
    -------
    tuple of StepRecord
    tuple of Evaluation

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it holds something else.
    """
    if path.is_dir():
        path = next((path / name for name in (FILE, _TRAINER) if (path / name).is_file()), path / FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a run's {FILE} or {_TRAINER}")
    if path.name == FILE:
        return tuple(
            StepRecord(seen.step, seen.loss, seen.learning_rate, seen.grad_norm, seen.examples_per_second)
            for seen in read_observations(path)
        ), ()
    if path.suffix == ".jsonl":
        return _read(path, _lines(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no records of a run ({error}): expected {FILE}, {_TRAINER} or a .jsonl file"
        ) from None
    # The last entry of a Trainer sums the run up.
    return _read(path, [entry for entry in entries if "train_runtime" not in entry])


def _lines(path: Path) -> list[Any]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error})") from None
    return entries


def _read(path: Path, entries: Iterable[Any]) -> tuple[tuple[StepRecord, ...], tuple[Evaluation, ...]]:
    steps, evaluations = [], []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or "step" not in entry:
            raise ValueError(f"{path}, record {number} has no step: expected an object with a step")
        metrics = _metrics(entry)
        try:
            if metrics:
                epoch = max(1, -(-float(entry.get("epoch", 1)) // 1))
                evaluations.append(Evaluation(int(epoch), int(entry["step"]), metrics))
                continue
            missing = [name for name in _NEEDED if name not in entry]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            speed = float(entry.get("examples_per_second", 0.0))
            loss, rate, norm = (float(entry[name]) for name in _NEEDED[1:])
            steps.append(StepRecord(int(entry["step"]), loss, rate, norm, speed))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, record {number}: {error}; expected numbers for {', '.join(_NEEDED)}"
            ) from None
    if not steps and not evaluations:
        raise ValueError(f"{path} holds no records: expected those of at least one step")
    return tuple(steps), tuple(evaluations)


def _metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return an evaluation's numbers without the speed of it."""
    left_out = ("_runtime", "_per_second", "_compilation_time")
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(left_out)
    }
