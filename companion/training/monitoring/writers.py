"""Where observations and alarms go: a JSONL file and TensorBoard's event files."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from companion.artifacts.staging import FULL, RIGHTS, readable, staged_file
from companion.training.monitoring.observations import FILE, Alarm, Log, Observation, read_log, to_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["EVENTS", "JsonlWriter", "TensorBoardWriter", "Writer"]

EVENTS = "tensorboard"
_log = getLogger("companion.training")


class Writer(Protocol):
    """Keeps what a monitor sees."""

    def write(self, item: Observation | Alarm) -> None:
        """Add an observation or an alarm, so that it is there even if the process is killed next."""

    def close(self) -> None:
        """Finish."""


class JsonlWriter:
    """Appends lines to ``monitor.jsonl``.

    Parameters
    ----------
    folder : Path
        Made if it is not there. Lines in its file that are from beyond `step` are dropped: a killed run got
        further than its last checkpoint, and a resumed one writes them again.
    step : int
        Steps that the run has behind it; 0 empties the file.

    Attributes
    ----------
    earlier : Log
        What the file holds from before.

    Raises
    ------
    ValueError
        When `folder` is a file, or the file in it is not a monitor's.
    OSError
        When it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder = made(folder)
        self.path = folder / FILE
        self.earlier = Log()
        if not self.path.exists():
            return
        log = read_log(self.path)
        observations = tuple(seen for seen in log.observations if seen.step <= step)
        alarms = tuple(alarm for alarm in log.alarms if alarm.step <= step)
        if dropped := len(log.observations) - len(observations):
            _log.warning("%s: %d observations from beyond step %d are dropped", self.path, dropped, step)
        self.earlier = Log(observations, alarms)
        both: list[Observation | Alarm] = [*observations, *alarms]
        # Sorting is stable: an alarm stays behind the observation of its step.
        lines = "".join(map(to_line, sorted(both, key=lambda item: item.step)))
        with staged_file(self.path) as staging:
            staging.write_text(lines, encoding="utf-8")

    def write(self, item: Observation | Alarm) -> None:
        """Append one line."""
        advice = "free some space; what is in the file stays readable"
        with (
            readable(f"{self.path} cannot be written", advice, FULL | RIGHTS),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(to_line(item))

    def close(self) -> None:
        """Nothing is open between two lines."""


class TensorBoardWriter:
    """Writes scalars, and alarms as texts, for ``tensorboard --logdir``.

    Parameters
    ----------
    folder : Path
        Event files go into ``tensorboard`` in it.
    step : int
        Steps that the run has behind it: TensorBoard hides what earlier event files say of later ones.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events: SummaryWriter = SummaryWriter(str(made(folder / EVENTS)), purge_step=step + 1)

    def write(self, item: Observation | Alarm) -> None:
        """Add the values of an observation, or the text of an alarm."""
        if isinstance(item, Alarm):
            self._events.add_text(f"alarm/{_tag(item.kind)}", str(item), item.step)
        else:
            for name, value in _scalars(item).items():
                self._events.add_scalar(name, value, item.step)
        self._events.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._events.close()


def made(folder: Path) -> Path:
    """Make a folder that may exist; say clearly why it cannot be."""
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder for the monitor; give another name")
    with readable(f"{folder} cannot be written", "give another folder", RIGHTS | FULL):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _scalars(seen: Observation) -> dict[str, float]:
    by_layer = {
        "gradient_norm": seen.grad_norm_by_layer,
        "update_ratio": seen.update_ratio_by_layer,
        "attention_entropy": seen.attention_entropy_by_layer,
    }
    return {
        "run/loss": seen.loss,
        "run/learning_rate": seen.learning_rate,
        "run/gradient_norm": seen.grad_norm,
        "run/examples_per_second": seen.examples_per_second,
        "run/memory_bytes": float(seen.memory),
        "run/seconds_of_monitoring": seen.seconds_of_monitoring,
        **{f"{kind}/{_tag(layer)}": v for kind, layers in by_layer.items() for layer, v in layers.items()},
    }


def _tag(name: str) -> str:
    return name.replace(" ", "_")
