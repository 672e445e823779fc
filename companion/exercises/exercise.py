"""An exercise: named steps, each with a check and three hints, and how far a learner is."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from companion.exercises.probing import Failed, NotDone, Probe
from companion.exercises.records import Hint, Progress, Status, StepResult

__all__ = ["Exercise", "Step"]

Work = TypeVar("Work", bound=Callable[..., Any])


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes
    ----------
    name : str
        What `Exercise.check` and `Exercise.hint` take.
    title : str
    task : str
        The statement: what is given, what has to come back.
    hints : tuple of three str
        The first asks a question, the second names the means, the third nearly is the answer.
    examine : callable
        Takes the learner's work (a function, a value, a folder) and a `Probe`. Returns what is to be said
        when the work is right; raises `companion.exercises.probing.Failed` when it is not.
    seconds : float
        Time for all calls of the learner's functions in one check.
    """

    name: str
    title: str
    task: str
    hints: tuple[str, str, str]
    examine: Callable[[Any, Probe], str]
    seconds: float = 30.0


class Exercise:
    """Steps to check, in any order and as often as one likes.

    Parameters
    ----------
    name, title : str
    steps : sequence of Step

    Raises
    ------
    ValueError
        When two steps have the same name.
    """

    def __init__(self, name: str, title: str, steps: Sequence[Step]) -> None:
        self.name, self.title = name, title
        self.steps = {step.name: step for step in steps}
        if len(self.steps) < len(steps):
            raise ValueError(
                f"the steps of {name} are {[step.name for step in steps]}, expected all different"
            )
        self._hints = dict.fromkeys(self.steps, 0)
        self._checks = dict.fromkeys(self.steps, 0)
        self._status: dict[str, Status] = dict.fromkeys(self.steps, "not done yet")

    def check(self, step: str, work: Any, *, seed: int | None = None) -> StepResult:
        """Look at what a learner made for a step.

        Parameters
        ----------
        step : str
        work : object
            A function, a value or a folder: what the step's task asks for.
        seed : int, optional
            Draws the inputs. Default: another one each time, so that no answer can be learnt by heart.

        Returns
        -------
        StepResult
            Whatever the work does: an exception in it is a finding, not an error.

        Raises
        ------
        ValueError
            When there is no such step.
        """
        chosen = self._step(step)
        probe = Probe(secrets.randbits(32) if seed is None else seed, chosen.seconds)
        status: Status
        try:
            status, says = "passed", chosen.examine(work, probe)
        except NotDone as reason:
            status, says = "not done yet", f"{reason}."
        except Failed as reason:
            status, says = "failed", str(reason)
        except Exception as error:  # what was returned can raise too, when it is looked at
            status, says = "failed", f"what it returned stopped the check: {type(error).__name__}: {error}"
        self._status[step] = status
        self._checks[step] += status != "not done yet"
        return StepResult(
            step=step,
            title=chosen.title,
            status=status,
            says=says[:1].upper() + says[1:],
            tried=tuple(probe.tried),
            evidence=tuple(probe.evidence),
            remarks=tuple(probe.remarks),
            printed=probe.printed,
            seed=probe.seed,
            next_hint="" if status == "passed" else self._next_hint(chosen),
        )

    def hint(self, step: str) -> Hint:
        """Give the next hint for a step; after the last one, the last one again.

        Raises
        ------
        ValueError
            When there is no such step.
        """
        chosen = self._step(step)
        number = self._hints[step] = min(self._hints[step] + 1, len(chosen.hints))
        return Hint(step, number, len(chosen.hints), chosen.hints[number - 1])

    def progress(self) -> Progress:
        """Return what is done: a table."""
        rows = tuple(
            (name, step.title, self._status[name], self._checks[name], self._hints[name])
            for name, step in self.steps.items()
        )
        return Progress(self.name, rows)

    def choose(self, step: str, work: Work, otherwise: Work) -> Work:
        """Return the learner's work if its last check passed, and something that works if not.

        Lets a page go on before everything on it is solved.

        Parameters
        ----------
        step : str
        work : callable
            What was checked.
        otherwise : callable
            The package's own.

        Raises
        ------
        ValueError
            When there is no such step.
        """
        passed = self._status[self._step(step).name] == "passed"
        print(f"{step}: {'yours' if passed else 'the package’s, until yours passes its check'}")
        return work if passed else otherwise

    def _step(self, name: str) -> Step:
        if name not in self.steps:
            close = difflib.get_close_matches(str(name), self.steps, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"{self.name} has no step {name!r}, expected one of: {', '.join(self.steps)}.{meant}"
            )
        return self.steps[name]

    def _next_hint(self, step: Step) -> str:
        given = self._hints[step.name]
        if given == len(step.hints):
            return "All hints are given; the solution is the next page."
        return f'Stuck? exercise.hint("{step.name}") gives hint {given + 1} of {len(step.hints)}.'
