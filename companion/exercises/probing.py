"""What a check works with: it calls the learner's function safely and writes down what it saw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NoReturn

from companion.exercises.guarding import run
from companion.exercises.records import Evidence

__all__ = ["Failed", "NotDone", "Probe"]


class Failed(Exception):
    """A check is over: the work is wrong, and the message says how."""


class NotDone(Exception):
    """A check is over: there is no work yet."""


class Probe:
    """One examination of one piece of work.

    Parameters
    ----------
    seed : int
        Whatever the check draws, it draws from this.
    seconds : float
        Time for all calls together.

    Attributes
    ----------
    seed : int
    tried, remarks : list of str
    evidence : list of Evidence
    printed : str
        What the learner's code printed so far.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.tried: list[str] = []
        self.remarks: list[str] = []
        self.evidence: list[Evidence] = []
        self.printed = ""
        self._until = time.perf_counter() + seconds

    def call(
        self, function: Any, *arguments: Any, what: str, watched: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a learner's function.

        Parameters
        ----------
        function : object
            Should be callable.
        *arguments : object
            Passed by position.
        what : str
            What is tried, for the result.
        watched : mapping of str to Tensor, optional
            What must be the same afterwards.

        Returns
        -------
        object
            What the function returned; never None.

        Raises
        ------
        NotDone
            When there is nothing to call yet: None, ``...``, or a function that raises NotImplementedError
            or returns nothing.
        Failed
            When it is no function, raises, takes too long, or changes what it was given.
        """
        if function is None or function is ...:
            raise NotDone("nothing was given")
        if not callable(function):
            raise Failed(f"a {type(function).__name__} was given, expected a function")
        if what not in self.tried:
            self.tried.append(what)
        before = {name: tensor.detach().clone() for name, tensor in (watched or {}).items()}
        outcome = run(function, *arguments, seconds=max(0.1, self._until - time.perf_counter()))
        self.printed = self.printed or outcome.printed
        if outcome.ended == "not written":
            raise NotDone("the function still raises NotImplementedError")
        if outcome.ended == "raised":
            self.fail(what, "an answer", "an exception", f"it raised {outcome.error}.")
        if outcome.ended == "too long":
            left = " It could not be stopped: restart the kernel." if outcome.alive else ""
            self.fail(
                what,
                f"an answer within {self.seconds:g} s",
                "none",
                f"it did not return within the time limit, and was stopped.{left}",
            )
        if before:
            self._unchanged(before, watched or {}, what)
        if outcome.value is None or outcome.value is ...:
            raise NotDone("the function returns nothing yet")
        return outcome.value

    def show(self, what: str, expected: object, found: object, passed: bool) -> bool:
        """Write down one comparison; return whether it passed."""
        self.evidence.append(Evidence(what, str(expected), str(found), passed))
        return passed

    def fail(self, what: str, expected: object, found: object, why: str) -> NoReturn:
        """Write down one comparison and end the check."""
        self.show(what, expected, found, passed=False)
        raise Failed(why)

    def require(self, passed: bool, what: str, expected: object, found: object, why: str) -> None:
        """Write down one comparison, and end the check when it did not pass."""
        if not self.show(what, expected, found, passed):
            raise Failed(why)

    def _unchanged(self, before: Mapping[str, Any], watched: Mapping[str, Any], what: str) -> None:
        from companion.exercises.values import same

        changed = [name for name, old in before.items() if not same(old, watched[name])]
        if changed:
            names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            self.fail(
                what,
                "inputs as they were",
                f"{names} changed",
                f"it changes what it is given: {names}. Work on a copy; a name that ends in an underscore, "
                "and an assignment to x[...], change a tensor in place.",
            )
