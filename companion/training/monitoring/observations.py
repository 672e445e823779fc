"""What a monitor sees, and the file that it is kept in: one JSON object per line.

Reading such a file imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

__all__ = [
    "FILE",
    "HEALTHY_LAYER",
    "HEALTHY_TOTAL",
    "Alarm",
    "AlarmKind",
    "Log",
    "Observation",
    "read_alarms",
    "read_log",
    "read_observations",
    "to_line",
]

AlarmKind = Literal[
    "loss spike",
    "gradient norm",
    "non-finite gradients",
    "dead layer",
    "attention collapse",
    "learning rate zero",
]
FILE = "monitor.jsonl"
HEALTHY_TOTAL = (0.1, 10.0)
"""A rule of thumb for the norm of the whole gradient."""
HEALTHY_LAYER = (1e-4, 10.0)
"""The same for one layer's part of it."""
Item = TypeVar("Item")
_log = getLogger("companion.training")


@dataclass(frozen=True)
class Observation:
    """One optimizer step, looked at closely.

    Attributes
    ----------
    step : int
        Counts from 1.
    loss : float
        Mean loss of the batch, in nats for a classifier or a language model.
    learning_rate : float
        The rate this step was taken with.
    grad_norm : float
        L2 norm of the whole gradient before clipping.
    grad_norm_by_layer : dict of str to float
        The same for each layer: ``embeddings``, ``layer 0`` and so on, ``head``. Frozen layers are left out.
        Their squares add up to the square of `grad_norm`.
    update_ratio_by_layer : dict of str to float
        Norm of the change of the weights in this step, divided by their norm before it. Of an embedding table
        the rows that occur in the training texts count.
    attention_entropy_by_layer : dict of str to float
        Mean over texts, heads and tokens of the entropy of a token's attention, after the step, divided by
        the logarithm of the number of tokens that it can attend to: 1 is uniform, 0 is all on one token.
        Empty where the model gives no attention weights.
    examples_per_second : float
        As in `StepRecord`.
    memory : int
        Bytes: on CUDA the most that were allocated so far, elsewhere those of the process now.
    seconds_of_monitoring : float
        What the monitor took since the observation before, this one included.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    grad_norm_by_layer: dict[str, float]
    update_ratio_by_layer: dict[str, float]
    attention_entropy_by_layer: dict[str, float]
    examples_per_second: float
    memory: int
    seconds_of_monitoring: float

    @property
    def band(self) -> Literal["low", "healthy", "high"]:
        """Where the total gradient norm lies: below, in or above `HEALTHY_TOTAL`. NaN counts as high."""
        low, high = HEALTHY_TOTAL
        if self.grad_norm < low:
            return "low"
        return "healthy" if self.grad_norm <= high else "high"


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at.

    Attributes
    ----------
    step : int
        Where it was first seen.
    kind : str
        One of `AlarmKind`.
    where : str
        The layer, or ``"loss"`` or ``"learning rate"``.
    value : float
        What was measured.
    threshold : float
        What it was compared with.
    advice : str
        What it may mean and what to try.
    """

    step: int
    kind: AlarmKind
    where: str
    value: float
    threshold: float
    advice: str

    def __str__(self) -> str:
        """Return one line for a log."""
        measured = f"{self.value:.3g} against {self.threshold:.3g}"
        return f"step {self.step}: {self.kind} at {self.where} ({measured}): {self.advice}"


@dataclass(frozen=True)
class Log:
    """The content of a monitor's file.

    Attributes
    ----------
    observations : tuple of Observation
    alarms : tuple of Alarm
    truncated : bool
        Whether the last line was cut off and left out.
    """

    observations: tuple[Observation, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    truncated: bool = False


def to_line(item: Observation | Alarm) -> str:
    """Write an observation or an alarm as one line of strict JSON; NaN and infinity become strings."""
    kind = "observation" if isinstance(item, Observation) else "alarm"
    return json.dumps({kind: _strict(asdict(item))}, allow_nan=False) + "\n"


def read_observations(path: Path) -> tuple[Observation, ...]:
    """Read the observations of a run.

    Parameters
    ----------
    path : Path
        The file, or the monitor's folder.

    Returns
    -------
    tuple of Observation
        In the order in which they were made. A last line that a kill cut off is left out, with a warning.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When another line is no observation and no alarm.
    """
    return read_log(path).observations


def read_alarms(path: Path) -> tuple[Alarm, ...]:
    """Read the alarms of a run; parameters and errors as in `read_observations`."""
    return read_log(path).alarms


def read_log(path: Path) -> Log:
    """Read all of a monitor's file; parameters and errors as in `read_observations`."""
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the {FILE} of a monitored run")
    lines = path.read_bytes().split(b"\n")
    found: list[Observation | Alarm] = []
    truncated = False
    for number, line in enumerate(lines, start=1):
        if not line and number == len(lines):
            break
        try:
            found.append(_parsed(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines):  # a kill cuts off the last line, which then has no end
                raise ValueError(
                    f"{path}, line {number} is no observation and no alarm ({error}): expected a file that a "
                    "monitor wrote; remove the line to read the others"
                ) from error
            truncated = True
            _log.warning("%s: line %d was cut off and is left out", path, number)
    return Log(_only(Observation, found), _only(Alarm, found), truncated)


def _only(kind: type[Item], items: Iterable[object]) -> tuple[Item, ...]:
    return tuple(item for item in items if isinstance(item, kind))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _parsed(line: bytes) -> Observation | Alarm:
    [(kind, content)] = json.loads(line).items()
    if kind not in ("observation", "alarm"):
        raise ValueError(f"it holds {kind!r}")
    home = Observation if kind == "observation" else Alarm
    expected = {field.name: field.type for field in fields(home)}
    if odd := sorted(expected.keys() ^ content.keys()):
        raise ValueError(f"missing or unknown: {', '.join(odd)}")
    values = {name: _typed(str(expected[name]), value) for name, value in content.items()}
    if home is Alarm and values["kind"] not in get_args(AlarmKind):
        raise ValueError(f"unknown kind of alarm {values['kind']!r}")
    return home(**values)


def _typed(kind: str, value: Any) -> Any:
    if kind == "float":
        return float(value)
    if kind == "int":
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): float(item) for key, item in value.items()}
    return str(value)
