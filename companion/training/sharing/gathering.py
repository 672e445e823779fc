"""Gathers the report of a training run from its records, its model and this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from companion import __version__
from companion.artifacts import machine
from companion.models.embedded import EMBEDDED_SHA256
from companion.training.sharing.reports import Measured, Setting, TrainingReport

if TYPE_CHECKING:
    from companion.data import Task
    from companion.models import Classifier
    from companion.training.config import TrainingConfig
    from companion.training.records import TrainingRun

__all__ = ["is_place", "report"]

_HUB_NAMES = {EMBEDDED_SHA256: "sentence-transformers/all-MiniLM-L6-v2"}
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")


def report(
    run: TrainingRun,
    classifier: Classifier,
    task: Task,
    *,
    train_examples: int,
    dev_examples: int | None = None,
    weights_step: int | None = None,
    name: str | None = None,
    config: TrainingConfig | None = None,
    seeds: Sequence[int] = (),
    ece: float | None = None,
    ece_bins: int | None = None,
) -> TrainingReport:
    """Gather what a run's records say.

    Parameters
    ----------
    run : TrainingRun
        Of `companion.training.fit`.
    classifier : Classifier
        The one that was trained, whole (not sharded over processes).
    task : Task
    train_examples, dev_examples : int
        How many were trained and evaluated on.
    weights_step : int, optional
        The step whose weights are kept, when they are not the last ones.
    name : str, optional
        Of the model. Default: base model and task.
    config : TrainingConfig, optional
        Default: the run's own.
    seeds : sequence of int, optional
        Default: the configuration's.
    ece, ece_bins : float and int, optional
        Expected calibration error of the kept weights on the development examples, and its bins.

    Returns
    -------
    TrainingReport

    Raises
    ------
    ValueError
        When the model's labels are not the task's, or a number is not finite.
    """
    labels = () if classifier.is_regression else classifier.labels
    if labels != task.labels:
        raise ValueError(
            f"the model has the labels {labels}, the task {task.name!r} has {task.labels}: "
            "expected the task that the model was trained for"
        )
    config = config or getattr(run, "config", None)
    base, on_hub = _public_name(classifier)
    # A run that was resumed at its end has no steps of its own.
    steps = run.steps[-1].step if run.steps else getattr(run, "resumed_from", 0)
    if not seeds and config is not None:
        seeds = (config.seed,)
    length = int(classifier.tokenizer.model_max_length)
    return TrainingReport(
        name=name or f"{base.rpartition('/')[2]}-{task.name}",
        task=task.name,
        metric=task.metric,
        labels=labels,
        paired=task.paired,
        architecture=type(classifier.model).__name__,
        parameters=sum(parameter.numel() for parameter in classifier.model.parameters()),
        base_model=base,
        base_on_hub=on_hub,
        base_sha256=classifier.sha256,
        train_examples=train_examples,
        dev_examples=dev_examples,
        evaluations=tuple(Measured(done.step, dict(done.metrics)) for done in run.evaluations),
        weights_step=steps if weights_step is None else weights_step,
        weights_sha256=None,
        steps=steps,
        resumed_from=getattr(run, "resumed_from", 0),
        final_loss=run.steps[-1].loss if run.steps else None,
        seconds=run.seconds,
        examples_per_second=run.examples_per_second if run.steps else None,
        ece=ece,
        ece_bins=ece_bins,
        max_length=length if config is None else min(config.max_length, length),
        config=_settings(config),
        seeds=tuple(seeds),
        precision=run.precision,
        device=run.device,
        processes=getattr(run, "processes", None),
        machine=machine(),
        packages={"companion": __version__} | {name: metadata.version(name) for name in _PACKAGES},
        date=datetime.now(UTC).date().isoformat(),
    )


def _public_name(classifier: Classifier) -> tuple[str, bool]:
    """Name the base model without telling where it lies on the author's disk."""
    source = classifier.source
    if source == "embedded" or classifier.sha256 in _HUB_NAMES:
        return _HUB_NAMES[EMBEDDED_SHA256], True
    if classifier.sha256 is not None or Path(source).exists():  # a name on the hub comes without a hash
        return Path(source).expanduser().absolute().name, False
    return source, True


def _settings(config: TrainingConfig | None) -> dict[str, Setting]:
    """Return the hyper-parameters that were set, without paths."""
    if config is None or not is_dataclass(config):
        return {}
    found: dict[str, Setting] = {}
    for field in fields(config):
        value: Any = getattr(config, field.name)
        value = list(value) if isinstance(value, tuple) else value
        if value is None or isinstance(value, Path) or is_place(value):
            continue
        found[field.name] = value
    return found


def is_place(value: object) -> bool:
    """Say whether a value is the text of an absolute path, on this kind of system or another."""
    kinds = (PurePosixPath, PureWindowsPath)
    return isinstance(value, str) and any(kind(value).is_absolute() for kind in kinds)
