"""How a rollout begins, and how it goes on after a restart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from companion.deployment.rollout.journal import RolloutJournal
from companion.deployment.rollout.remembering import KeptTraffic, KeptVersion, RolloutState
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.stages import Stage, Trial
from companion.deployment.rollout.versions import Loader, RefusedVersionError, ServedVersion

__all__ = ["Beginning", "begin", "resume", "state_of"]


@dataclass(frozen=True)
class Beginning:
    """The first live version of a process.

    Attributes
    ----------
    origin : KeptVersion
        What the server was started with.
    live : ServedVersion
        That, or what was promoted before the restart.
    state : RolloutState or None
        With a candidate or a previous version that is to be loaded beside it; None when there is none.
    """

    origin: KeptVersion
    live: ServedVersion
    state: RolloutState | None


async def begin(folder: Path, loader: Loader, journal: RolloutJournal) -> Beginning:
    """Load the version that is to be live.

    Parameters
    ----------
    folder : Path
        What the server was started with. It is live when the journal's state is of no use.
    loader : Loader
    journal : RolloutJournal

    Returns
    -------
    Beginning

    Raises
    ------
    RefusedVersionError
        When `folder` cannot be used.
    """
    anywhere = replace(loader, root=None)  # who starts the server says where its model is
    place, facts = await anywhere.facts(folder)
    origin = KeptVersion.of(place, facts)
    state, live = await journal.recall(origin), None
    if state is not None and state.live != origin:
        try:
            live = await loader.load(Path(state.live.folder), expected=state.live.facts)
        except RefusedVersionError as error:
            journal.warn(f"version {facts.version} is live alone, not the promoted one: {error}")
            state = None
    live = live or await anywhere.load(place)
    journal.note("live", live.name, detail=str(live.folder))
    if state is not None and state.candidate is None and state.previous is None:
        state = None
    return Beginning(origin, live, state)


async def resume(
    state: RolloutState,
    live: ServedVersion,
    loader: Loader,
    journal: RolloutJournal,
    settings: RolloutSettings,
) -> Stage | None:
    """Load what was there beside the live version before the restart.

    Parameters
    ----------
    state : RolloutState
    live : ServedVersion
    loader : Loader
    journal : RolloutJournal
    settings : RolloutSettings

    Returns
    -------
    Stage or None
        None when that version cannot be used; the journal then has a warning.
    """
    kept = state.candidate or state.previous
    if kept is None:
        return None
    # The version before may be what the server was started with, which may lie anywhere.
    loader = replace(loader, root=None) if kept == state.origin else loader
    try:
        other = await loader.load(
            Path(kept.folder), live=live.facts, expected=kept.facts, other_tokenizer=True
        )
    except RefusedVersionError as error:
        journal.warn(f"version {live.name} is live alone after this restart: {error}")
        journal.note("not resumed", kept.version, automatic=True)
        return None
    if state.candidate is not None:
        journal.note("loaded", other.name, detail="the candidate of before the restart")
        return Stage(live, other, traffic=state.traffic.traffic, trial=Trial(other, settings))
    journal.note("loaded", other.name, detail="the previous version of before the restart")
    return Stage(live, previous=other, trial=Trial(live, settings))


def state_of(stage: Stage, origin: KeptVersion) -> RolloutState:
    """Describe a stage, to be kept.

    Parameters
    ----------
    stage : Stage
    origin : KeptVersion
        What the server was started with.

    Returns
    -------
    RolloutState
    """
    candidate, previous = (
        None if version is None else KeptVersion.of(version.folder, version.facts)
        for version in (stage.candidate, stage.previous)
    )
    return RolloutState(
        origin=origin,
        live=KeptVersion.of(stage.live.folder, stage.live.facts),
        candidate=candidate,
        previous=previous,
        traffic=KeptTraffic.of(stage.traffic),
    )
