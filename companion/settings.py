"""What a reader may choose, read from environment variables that start with ``COMPANION_``.

There is one object, `Settings`, and one door, `get_settings`. Nothing is cached: a changed variable counts
from the next call on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["PROFILES", "ProfileNames", "Settings", "get_settings", "usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ProfileNames:
    """The model and the data that a profile stands for.

    Attributes
    ----------
    encoder : str
        A name for `companion.models.load`: ``"embedded"``, a hub name, or a folder.
    task : str
        A name for `companion.data.load`.
    """

    encoder: str
    task: str


PROFILES: Mapping[str, ProfileNames] = MappingProxyType(
    {
        "quick": ProfileNames(encoder="embedded", task="sentiment"),
        "full": ProfileNames(encoder="bert-base-uncased", task="sst2"),
    }
)
"""Every model and data name that depends on the profile."""


def usable_cores(cgroups: Path = _CGROUPS) -> int:
    """Count the cores this process may use.

    Takes the scheduler's affinity mask and, in a container with a processor quota, the quota rounded down:
    more threads than that are only put to sleep in turns.

    Parameters
    ----------
    cgroups : Path
        Where the control groups are mounted.

    Returns
    -------
    int
        At least 1.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cpu_quota(cgroups)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(cgroups: Path) -> float | None:
    """Read the container's processor quota in cores, from version 2 or version 1 of the control groups."""
    try:
        if (cgroups / "cpu.max").exists():
            limit, period = (cgroups / "cpu.max").read_text().split()
        else:
            limit = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text().strip()
        if limit in ("max", "-1"):
            return None
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _default_home() -> Path:
    """Return the folder for artifacts: ``companion`` in the XDG cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    root = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return root / "companion"


class Settings(BaseSettings):
    """The reader's choices.

    Every field is read from the environment variable of the same name, in capitals and with ``COMPANION_`` in
    front. An empty variable counts as not set.

    Attributes
    ----------
    profile : {"quick", "full"}
        ``quick``: the embedded encoder and generated data, minutes on a CPU, no network. ``full``: model and
        data from the hub, sized for one GPU.
    home : Path
        Where artifacts are stored. Default: ``companion`` in the user's cache folder.
    seed : int
        The seed that notebooks and commands pass on. At least 0.
    threads : int
        Threads for computing. Default: the cores this process may use.
    data_dir : Path or None
        A folder in GLUE's layout (``SST-2/train.tsv`` and so on).
    device : {"auto", "cpu", "cuda", "mps"}
        Where torch computes.
    progress : bool
        Whether long work shows a progress bar.
    remeasure : bool
        Whether `companion.artifacts.record` measures again what it has stored.
    encoder : str or None
        Takes the place of the profile's encoder: a name or a folder.
    task : str or None
        Takes the place of the profile's task.
    """

    model_config = SettingsConfigDict(
        env_prefix="COMPANION_", env_ignore_empty=True, frozen=True, extra="ignore", validate_default=True
    )

    profile: Literal["quick", "full"] = "quick"
    home: Path = Field(default_factory=_default_home)
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default_factory=usable_cores, ge=1)
    data_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    progress: bool = True
    remeasure: bool = False
    encoder: str | None = None
    task: str | None = None

    @field_validator("home", "data_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Resolve ``~`` and relative paths now: a later change of directory must not move them."""
        return None if path is None else path.expanduser().absolute()

    @property
    def names(self) -> ProfileNames:
        """The profile's model and data names, after the two overrides."""
        table = PROFILES[self.profile]
        return ProfileNames(encoder=self.encoder or table.encoder, task=self.task or table.task)


def get_settings() -> Settings:
    """Read the settings from the environment.

    Returns
    -------
    Settings

    Raises
    ------
    ValueError
        When a variable holds something else than it should; one line that names each such variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(_explain(item["loc"], item["input"], item["msg"]) for item in error.errors())
        raise ValueError(f"{problems}. Correct or unset it.") from None


def _explain(location: tuple[int | str, ...], value: object, message: str) -> str:
    """Say which variable is wrong, what it holds and what it should hold."""
    variable = "COMPANION_" + "_".join(str(part) for part in location).upper()
    return f"{variable} is {str(value)!r}: {message[0].lower()}{message[1:]}"
