"""The SQLite file of a search: one Optuna study a phase, safe against a kill at any moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from companion.artifacts import JSON, staged_file
from companion.training.tuning.records import PHASES, PhaseName, TrialRecord

__all__ = ["Given", "finished", "load_studies", "opened", "records"]

PLAN, CANDIDATE, OUTCOME = "plan", "candidate", "outcome"


class Given(optuna.samplers.BaseSampler):
    """An Optuna sampler that suggests given values.

    Parameters
    ----------
    values : mapping of str to value
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Leave every parameter to `sample_independent`."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest nothing."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the given value."""
        return self.values[param_name]


@contextmanager
def opened(
    storage: Path, plan: dict[str, JSON], *, higher_is_better: bool
) -> Iterator[dict[PhaseName, optuna.Study]]:
    """Open the studies of a search, or create them, for this process alone.

    A trial that is running belongs to a process that died, since no other can be at work: it is marked as
    failed, and its slot is free again.

    Parameters
    ----------
    storage : Path
        The SQLite file. ``.lock`` beside it is held meanwhile.
    plan : dict
        What must be the same for the search to be the same one.
    higher_is_better : bool

    Yields
    ------
    dict of str to Study
        By phase.

    Raises
    ------
    ValueError
        When the file belongs to another search, or another process is at it.
    FileNotFoundError
        When the folder is missing.
    """
    storage = storage.expanduser().resolve()
    if not storage.parent.is_dir():
        raise FileNotFoundError(f"{storage.parent} does not exist, expected a folder: make it first")
    lock = FileLock(storage.with_name(storage.name + ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is searching with {storage}: wait for it, or end it") from error
    database = None
    try:
        with quiet():
            if not storage.exists():
                _create(storage, plan, higher_is_better)
            database = _database(storage)
            studies = _load(database, storage)
            _check(studies["coarse"].user_attrs[PLAN], plan, storage)
            for study in studies.values():
                for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    study.tell(trial.number, state=TrialState.FAIL)
            yield studies
    finally:
        if database is not None:
            _close(database)
        lock.release()


def load_studies(storage: Path) -> dict[PhaseName, optuna.Study]:
    """Load the studies of a search to look at them; also while it is under way.

    Parameters
    ----------
    storage : Path
        The SQLite file that `tune` wrote.

    Returns
    -------
    dict of str to Study
        ``"coarse"``, ``"fine"`` and ``"validate"``.

    Raises
    ------
    FileNotFoundError, ValueError
        When there is no such file, or it holds no search of `tune`.
    """
    storage = storage.expanduser().resolve()
    if not storage.is_file():
        raise FileNotFoundError(f"{storage} does not exist, expected the file that tune was given as storage")
    with quiet():
        return _load(_database(storage), storage)


def finished(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Return the trials of a study that need not be run again, by their slot."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return {trial.user_attrs[CANDIDATE]["slot"]: trial for trial in done}


def records(study: optuna.Study, phase: PhaseName) -> tuple[TrialRecord, ...]:
    """Return the finished trials of a study in the order of their slots."""
    found = []
    for slot, trial in sorted(finished(study).items()):
        candidate, outcome = trial.user_attrs[CANDIDATE], trial.user_attrs[OUTCOME]
        state: Literal["complete", "pruned", "diverged"] = outcome["state"]
        reports = {step: value for step, value in sorted(trial.intermediate_values.items())}
        value = trial.value if state == "complete" else None
        if state == "pruned":
            value = reports[max(reports)]
        found.append(
            TrialRecord(
                phase,
                slot,
                candidate["candidate"],
                candidate["values"],
                candidate["config"],
                state,
                value,
                outcome["seconds"],
                {step: value for step, value in reports.items() if math.isfinite(value)},
            )
        )
    return tuple(found)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log to warnings, and give its level back as it was."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _create(storage: Path, plan: dict[str, JSON], higher_is_better: bool) -> None:
    """Write the file with its empty studies in one piece: half a schema could not be opened again."""
    with staged_file(storage) as building:
        database = _database(building)
        for phase in PHASES:
            study = optuna.create_study(
                storage=database,
                study_name=phase,
                direction="maximize" if higher_is_better else "minimize",
            )
            study.set_user_attr(PLAN, plan)
        _close(database)


def _database(storage: Path) -> RDBStorage:
    # A reader may hold the file for a moment while the search wants to write.
    return RDBStorage(f"sqlite:///{storage}", engine_kwargs={"connect_args": {"timeout": 60}})


def _close(database: RDBStorage) -> None:
    database.remove_session()
    database.engine.dispose()


def _load(database: RDBStorage, storage: Path) -> dict[PhaseName, optuna.Study]:
    try:
        return {
            phase: optuna.load_study(study_name=phase, storage=database, sampler=Given({}))
            for phase in PHASES
        }
    except KeyError as error:
        raise ValueError(f"{storage} holds no study {error}: expected a file that tune wrote") from error


def _check(found: dict[str, Any], plan: dict[str, Any], storage: Path) -> None:
    """Refuse to go on with a search of other choices."""
    different = [name for name in {**found, **plan} if found.get(name) != plan.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{storage} belongs to another search: {name} was {found.get(name)!r} and is {plan.get(name)!r}. "
            "Give the same arguments, or another file."
        )
