"""Which bugs of the zoo can be dealt: those with which the exercise's own run is what its page says.

The page and the task say that the model trains, that its loss falls, and that its answers are better than a
guess and worse than they should be. `benchmarks/dealt_bugs.py` trains the classifier once with each bug alone
and stores what came of it in ``trained.json``; a bug is dealt when that holds, and no other is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from companion import artifacts
from companion.debugging.zoo.bug import Bug

__all__ = ["TABLE", "Trained", "combine", "suits", "trained", "written_as"]

TABLE = Path(__file__).with_name("trained.json")
_FALLS, _KNOWS, _COSTS = 0.75, 0.15, 0.01


@dataclass(frozen=True)
class Trained:
    """A run of the exercise's classifier.

    Attributes
    ----------
    edits : str
        The digest of the bug's edits, as they were when it ran.
    differs : bool
        Whether a loss or the accuracy is not that of the run without a bug.
    first, last : float
        Mean loss of the first and the last 20 steps.
    accuracy : float
        Held out, as ``train.py`` prints it.
    """

    edits: str
    differs: bool
    first: float
    last: float
    accuracy: float


@lru_cache(maxsize=1)
def trained() -> tuple[float, float, Mapping[str, Trained]]:
    """Return a guess's accuracy, the accuracy without a bug, and the run of each bug by its name."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return table["guess"], table["right"], {name: Trained(**row) for name, row in table["bugs"].items()}


def written_as(bug: Bug) -> str:
    """Return the digest of a bug's edits."""
    return artifacts.digest([[edit.file, edit.before, edit.after] for edit in bug.edits])


def suits(bug: Bug) -> bool:
    """Tell whether a bug can be dealt.

    With it alone the run must differ from the right one, the loss must fall by a quarter at least, and the
    accuracy must stay 15 points above a guess, so that there is room for two more bugs. A bug that was not
    measured as it is now is not dealt.
    """
    guess, _, runs = trained()
    run = runs.get(bug.name)
    if run is None or run.edits != written_as(bug) or not run.differs:
        return False
    return run.last < _FALLS * run.first and run.accuracy > guess + _KNOWS


def combine(bugs: Sequence[Bug]) -> bool:
    """Tell whether bugs can be dealt together, by what each costs alone.

    One must cost a point of accuracy, so that the deal is worse than right code; and what all of them cost
    together must leave the accuracy above a guess.
    """
    guess, right, runs = trained()
    costs = [max(0.0, right - runs[bug.name].accuracy) for bug in bugs]
    return max(costs) > _COSTS and right - sum(costs) > guess + _KNOWS
