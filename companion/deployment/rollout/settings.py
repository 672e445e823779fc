"""How a rollout behaves: one frozen record, with defaults for a server of short texts."""

from __future__ import annotations

from dataclasses import dataclass, field

from companion.deployment.rollout.copying import CopyRules
from companion.deployment.rollout.guarding import Tolerances

__all__ = ["RolloutSettings"]


@dataclass(frozen=True)
class RolloutSettings:
    """How a rollout behaves.

    Parameters
    ----------
    tolerances : Tolerances
        When a version is taken back by itself.
    copies : CopyRules
        What questions that are asked twice may cost.
    difference : float
        Two answers with the same label disagree all the same when two probabilities of one label, or two
        scores, differ by more.
    compare : float
        Share of the candidate's answers that is compared with the live version's. Each costs the live version
        one answer. With 1, every wrong answer counts towards the rollback.
    unwatched : int
        Answers of the candidate that may wait for their comparison. When so many do, the live version
        answers further questions: a candidate that nobody watches is not used.
    candidate_s : float
        Longest time, in seconds, for the candidate's answer, and never more than half of what is left until
        the deadline; afterwards the live version is asked.
    least_s : float
        A question with less time than this for the candidate, in seconds, goes to the live version.
    grace_s : float
        Longest time, in seconds, that a version which leaves may take for what it was asked.

    Raises
    ------
    ValueError
        When one of them is out of range.
    """

    tolerances: Tolerances = field(default_factory=Tolerances)
    copies: CopyRules = field(default_factory=CopyRules)
    difference: float = 0.5
    compare: float = 1.0
    unwatched: int = 16
    candidate_s: float = 1.0
    least_s: float = 0.05
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what would leave a candidate unwatched or without time."""
        for name in ("difference", "candidate_s", "grace_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"RolloutSettings: {name} is {getattr(self, name)}, expected above 0.")
        if not 0 <= self.compare <= 1:
            raise ValueError(f"RolloutSettings: compare is {self.compare}, expected a share from 0 to 1.")
        if self.unwatched < 1:
            raise ValueError(f"RolloutSettings: unwatched is {self.unwatched}, expected at least 1.")
        if not 0 <= self.least_s <= self.candidate_s:
            raise ValueError(
                f"RolloutSettings: least_s is {self.least_s}, expected 0 to candidate_s, {self.candidate_s}."
            )
