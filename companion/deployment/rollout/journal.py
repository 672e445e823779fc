"""What happened, what an operator must know, and the state on disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread

from companion.deployment.rollout.remembering import KeptVersion, RolloutState, read_state, write_state
from companion.deployment.rollout.reporting import RolloutEvent, What

__all__ = ["RolloutJournal"]

logger = logging.getLogger("companion.deployment.rollout")

_EVENTS = 50
_WARNINGS = 20


class RolloutJournal:
    """Keeps the latest events and warnings, and the state file.

    Parameters
    ----------
    file : Path, optional
        The state file; without one nothing survives a restart.
    now : callable
        As `time.time`.
    event : callable
        Told the name of each event, such as ``rollout-promoted`` or ``rollout-rolled-back-automatically``.
    """

    def __init__(
        self,
        file: Path | None,
        now: Callable[[], float],
        event: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.events: deque[RolloutEvent] = deque(maxlen=_EVENTS)
        self.warnings: deque[str] = deque(maxlen=_WARNINGS)
        self._file, self._now, self._event = file, now, event
        self._writing = asyncio.Lock()

    def note(self, what: What, version: str, *, automatic: bool = False, detail: str = "") -> None:
        """Keep an event and log it; what nobody asked for as an error."""
        at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        self.events.append(
            RolloutEvent(at=at, what=what, version=version, automatic=automatic, detail=detail)
        )
        self._event(f"rollout-{what.replace(' ', '-')}{'-automatically' if automatic else ''}")
        level = logging.ERROR if automatic else logging.INFO
        logger.log(level, "version %s: %s%s", version, what, f" ({detail})" if detail else "")

    def warn(self, text: str) -> None:
        """Keep a warning and log it as an error."""
        self.warnings.append(text)
        logger.error("%s", text)

    async def recall(self, origin: KeptVersion) -> RolloutState | None:
        """Read the state that the process before left; warn when it cannot be used.

        Parameters
        ----------
        origin : KeptVersion
            What this server was started with.

        Returns
        -------
        RolloutState or None
        """
        if self._file is None:
            return None
        try:
            state = await anyio.to_thread.run_sync(read_state, self._file)
        except (OSError, ValueError) as error:
            self.warn(f"the state of the rollout is lost, version {origin.version} is live alone: {error}")
            return None
        if state is not None and state.origin != origin:
            self.warn(
                f"{self._file} is about a server that was started with {state.origin.folder} (version "
                f"{state.origin.version}), this one was started with {origin.folder} (version "
                f"{origin.version}): it is not used, and version {origin.version} is live alone"
            )
            return None
        return state

    async def write(self, state: Callable[[], RolloutState | None]) -> None:
        """Write the state as it is when its turn comes; the last one written is the latest.

        A disk that is full does not undo a rollback: it is a warning.

        Parameters
        ----------
        state : callable
            Gives the state, or None when there is none to write.
        """
        if self._file is None:
            return
        async with self._writing:
            found = state()
            if found is None:
                return
            try:
                await anyio.to_thread.run_sync(write_state, found, self._file)
            except (OSError, ValueError) as error:
                self.warn(f"the state of the rollout is not on disk, a restart would not know it: {error}")
