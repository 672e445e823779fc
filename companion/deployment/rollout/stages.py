"""Who is live and who else is there: one immutable record, exchanged in one assignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from companion.deployment.rollout.comparing import Agreement
from companion.deployment.rollout.guarding import Guard
from companion.deployment.rollout.routing import Traffic
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.timing import LatencyWindow
from companion.deployment.rollout.versions import ServedVersion

__all__ = ["Stage", "Trial"]


class Trial:
    """What was seen of a version on trial: a candidate, or a promoted one that can still be taken back.

    Parameters
    ----------
    version : ServedVersion
    settings : RolloutSettings
    """

    def __init__(self, version: ServedVersion, settings: RolloutSettings) -> None:
        self.version = version
        self.guard = Guard(settings.tolerances)
        self.agreement = Agreement(settings.difference)
        self.shadow_latency = LatencyWindow()
        self.answered = 0
        """Questions that a client got its answer to."""
        self.replaced = 0
        """Questions that another version answered instead, because this one failed."""
        self.excused = 0
        """How many of these it refused while the live version was busy too: not counted as errors."""
        self.held_back = 0
        """Questions that the live version answered, because too many comparisons waited or time was short."""
        self.shadowed = 0
        """Copies of live questions that it was asked."""
        self.uncompared = 0
        """Answers that could not be compared, because the live version did not answer the copy."""
        self.unwatched = 0
        """Answers being made, or waiting for their comparison."""
        self._kinds: set[type[Exception]] = set()

    def is_new(self, error: Exception) -> bool:
        """Say whether this is the first error of its kind, so that a log is not filled with one story."""
        new = type(error) not in self._kinds
        self._kinds.add(type(error))
        return new


@dataclass(frozen=True)
class Stage:
    """Which versions there are.

    Attributes
    ----------
    live : ServedVersion
    candidate : ServedVersion or None
        Loaded, and asked what `traffic` says.
    previous : ServedVersion or None
        What was live before, kept for a rollback. There is never a candidate at the same time.
    traffic : Traffic
    trial : Trial or None
        Of the candidate, or, with a previous version, of the live one.
    """

    live: ServedVersion
    candidate: ServedVersion | None = None
    previous: ServedVersion | None = None
    traffic: Traffic = field(default_factory=Traffic)
    trial: Trial | None = None

    @property
    def versions(self) -> list[ServedVersion]:
        """All that are loaded."""
        return [version for version in (self.live, self.candidate, self.previous) if version is not None]
