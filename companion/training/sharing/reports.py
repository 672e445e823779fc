"""The report of a training run: what was measured, in one file beside the weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeAlias

from companion.artifacts import digest, staged_file

__all__ = ["REPORT", "WEIGHTS", "Measured", "Setting", "TrainingReport", "read_report", "write_report"]

REPORT, WEIGHTS = "training.json", "model.safetensors"
Setting: TypeAlias = bool | int | float | str | list[bool | int | float | str]
_FORMAT = 1
_STRICT: dict[str, object] = {"extra": "forbid", "strict": True}  # how pydantic reads the dataclasses back


@dataclass(frozen=True)
class Measured:
    """One evaluation on the development examples.

    Attributes
    ----------
    step : int
        The last optimizer step before it.
    metrics : dict of str to float
        As returned by `companion.data.score`.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingReport:
    """What a training run leaves behind for people who get the weights. None and empty mean: not known.

    Attributes
    ----------
    name : str
        Of the model, for titles.
    task, metric : str
        Name of the task, and the metric it is scored by.
    labels : tuple of str
        In the order of the logits; empty for a regression.
    paired : bool
        Whether the model reads two texts at a time.
    architecture : str
        Class of the model in transformers.
    parameters : int
        Numbers that were trained or kept; a shared one counts once.
    base_model : str
        What training started from: a name on the hub, or the last part of a folder's path.
    base_on_hub : bool
        Whether `base_model` is a name on the hub.
    base_sha256 : str or None
        Hash of its ``model.safetensors``.
    train_examples : int
    dev_examples : int or None
    evaluations : tuple of Measured
    weights_step : int or None
        The step that the weights beside this report are of.
    weights_sha256 : str or None
        Hash of the ``model.safetensors`` beside this report.
    steps : int
        Optimizer steps.
    resumed_from : int
        Step from which `seconds` and `examples_per_second` count.
    final_loss : float or None
        Of the last recorded batch.
    seconds : float
        Wall-clock time, evaluations included.
    examples_per_second : float or None
        Of training, without the evaluations.
    ece, ece_bins : float and int, or None
        Expected calibration error on the development examples, from 0 to 1, and the bins it was counted in.
    max_length : int or None
        Longer texts are cut to this many tokens.
    config : dict
        Hyper-parameters by name; what was not set is not there.
    seeds : tuple of int
        Of the runs that the values come from.
    precision, device : str
        What it was computed in and on.
    processes : int or None
    machine : dict
        As returned by `companion.artifacts.machine`.
    packages : dict of str to str
        Versions.
    date : str
        Of the report, ISO 8601, in UTC.
    language : tuple of str
        ISO 639 codes, where the author states them.
    license : str or None
        The hub's identifier, where the author states one.
    format : int
        Version of this layout.

    Raises
    ------
    ValueError
        When a number is not finite or cannot be what it is said to be.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = _STRICT
    name: str
    task: str
    metric: str
    labels: tuple[str, ...]
    paired: bool
    architecture: str
    parameters: int
    base_model: str
    base_on_hub: bool
    base_sha256: str | None
    train_examples: int
    dev_examples: int | None
    evaluations: tuple[Measured, ...]
    weights_step: int | None
    weights_sha256: str | None
    steps: int
    resumed_from: int
    final_loss: float | None
    seconds: float
    examples_per_second: float | None
    ece: float | None
    ece_bins: int | None
    max_length: int | None
    config: dict[str, Setting]
    seeds: tuple[int, ...]
    precision: str
    device: str
    processes: int | None
    machine: dict[str, str | int]
    packages: dict[str, str]
    date: str
    language: tuple[str, ...] = ()
    license: str | None = None
    format: int = _FORMAT

    def __post_init__(self) -> None:
        """Refuse numbers that would make a card lie."""
        for name in ("parameters", "train_examples", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.dev_examples is not None and self.dev_examples < 1:
            raise ValueError(f"dev_examples is {self.dev_examples}, expected at least 1, or None")
        values = {
            name: getattr(self, name) for name in ("final_loss", "seconds", "examples_per_second", "ece")
        }
        for measured in self.evaluations:
            values |= {f"{name} after step {measured.step}": v for name, v in measured.metrics.items()}
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}, expected a finite number")
        if self.ece is not None and not 0 <= self.ece <= 1:
            raise ValueError(f"ece is {self.ece}, expected a share from 0 to 1")

    @property
    def measured(self) -> Measured | None:
        """The evaluation of the weights beside this report, or None when they were not evaluated."""
        found = [measured for measured in self.evaluations if measured.step == self.weights_step]
        return found[-1] if found else None


def write_report(report: TrainingReport, folder: Path) -> TrainingReport:
    """Write ``training.json`` into a model folder.

    Parameters
    ----------
    report : TrainingReport
        When it has no hash of the weights yet, it gets the hash of those in the folder.
    folder : Path
        Holds ``model.safetensors`` already.

    Returns
    -------
    TrainingReport
        The report with the hash.

    Raises
    ------
    FileNotFoundError
        When there are no weights to report on.
    ValueError
        When the report is about other weights than those in the folder.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {WEIGHTS}, expected a model folder: save the model before its report"
        )
    found = digest(weights)
    if report.weights_sha256 not in (None, found):
        raise ValueError(
            f"the report is about weights with SHA-256 {str(report.weights_sha256)[:12]}…, {weights} has "
            f"{found[:12]}…: write the report of the run that made these weights"
        )
    report = replace(report, weights_sha256=found)
    text = json.dumps(asdict(report), indent=1, ensure_ascii=False, allow_nan=False)
    with staged_file(folder / REPORT) as file:
        file.write_text(text + "\n", encoding="utf-8")
    return report


def read_report(folder: Path) -> TrainingReport:
    """Read ``training.json``.

    Parameters
    ----------
    folder : Path
        A model folder.

    Returns
    -------
    TrainingReport

    Raises
    ------
    FileNotFoundError
        When the folder or the file is missing.
    ValueError
        When it is damaged, or of another version.
    """
    from pydantic import TypeAdapter, ValidationError

    path = folder / REPORT
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {REPORT}, expected the report of a training run. Train the model with "
            "companion train, which writes one beside the weights."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Train the model again.") from None
    version = data.get("format") if isinstance(data, dict) else None
    if version != _FORMAT:
        raise ValueError(f"{path} has format {version!r}, expected {_FORMAT}. Train the model again.")
    try:
        return TypeAdapter(TrainingReport).validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{path} is damaged: {where}: {first['msg']}. Train the model again.") from None
