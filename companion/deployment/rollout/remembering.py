"""What a rollout looks like on disk, so that a restart goes on where the process ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from companion.artifacts import staged_file
from companion.deployment.rollout.inspecting import VersionFacts
from companion.deployment.rollout.routing import Traffic

__all__ = ["KeptTraffic", "KeptVersion", "RolloutState", "read_state", "write_state"]

_LONGEST = 1 << 20
"""Bytes: a file that is larger was not written here."""

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KeptVersion(_Strict):
    """A folder, and what was in it."""

    folder: Annotated[str, Field(min_length=1)]
    version: Annotated[str, Field(min_length=1)]
    labels: tuple[str, ...] = Field(strict=False)
    is_regression: bool
    tokenizer: str

    @classmethod
    def of(cls, folder: Path, facts: VersionFacts) -> KeptVersion:
        """Describe a version."""
        return cls(
            folder=str(folder),
            version=facts.version,
            labels=facts.labels,
            is_regression=facts.is_regression,
            tokenizer=facts.tokenizer,
        )

    @property
    def facts(self) -> VersionFacts:
        """What the folder must still hold."""
        return VersionFacts(self.version, self.labels, self.is_regression, self.tokenizer)


class KeptTraffic(_Strict):
    """What the candidate is asked."""

    canary: _Share
    by_header: bool
    shadow: _Share

    @classmethod
    def of(cls, traffic: Traffic) -> KeptTraffic:
        """Describe the traffic."""
        return cls(canary=traffic.canary, by_header=traffic.by_header, shadow=traffic.shadow)

    @property
    def traffic(self) -> Traffic:
        """As the routing takes it."""
        return Traffic(self.canary, self.by_header, self.shadow)


class RolloutState(_Strict):
    """The whole file.

    Attributes
    ----------
    layout : int
        Version of the file's own layout.
    origin : KeptVersion
        The folder that the server was started with: another one is another deployment, and the file is
        not about that.
    live, candidate, previous : KeptVersion
        As in `companion.deployment.rollout.stages.Stage`.
    traffic : KeptTraffic
    """

    layout: Literal[1] = 1
    origin: KeptVersion
    live: KeptVersion
    candidate: KeptVersion | None
    previous: KeptVersion | None
    traffic: KeptTraffic

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RolloutState:
        if self.candidate is not None and self.previous is not None:
            raise ValueError("it has a candidate and a previous version, expected one of the two at most")
        for name in ("candidate", "previous"):
            kept: KeptVersion | None = getattr(self, name)
            if kept is not None and kept.version == self.live.version:
                raise ValueError(f"its {name} version is the live one, {self.live.version}")
        if self.candidate is None and self.traffic != KeptTraffic(canary=0, by_header=False, shadow=0):
            raise ValueError("it has traffic for a candidate, but no candidate")
        return self


def read_state(file: Path) -> RolloutState | None:
    """Read the file.

    Parameters
    ----------
    file : Path

    Returns
    -------
    RolloutState or None
        None when there is no such file.

    Raises
    ------
    ValueError
        When it is damaged, of another layout, or contradicts itself.
    OSError
        When it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_LONGEST + 1)
    except FileNotFoundError:
        return None
    if len(data) > _LONGEST:
        raise ValueError(f"{file} is larger than {_LONGEST:,} bytes: it is no state of a rollout")
    try:
        return RolloutState.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} is damaged: {f'{where}: ' if where else ''}{first['msg']}") from None


def write_state(state: RolloutState, file: Path) -> None:
    """Write the file, whole or not at all. Blocks until it is on the disk: call it in a thread.

    Parameters
    ----------
    state : RolloutState
    file : Path
        Its folder is made when it is missing.

    Raises
    ------
    OSError
        When it cannot be written, or the disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(file) as staging:
        staging.write_text(state.model_dump_json(indent=1) + "\n", encoding="utf-8")
