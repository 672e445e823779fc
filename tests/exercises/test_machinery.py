"""Exercises: results, hints and progress; and a learner's function that does its worst."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn

import pytest
import torch

from companion import exercises
from companion.exercises import Exercise, Probe, Step, StepResult
from companion.exercises.probing import Failed
from companion.exercises.values import number


def double(work: Any, probe: Probe) -> str:
    """Check a function that doubles the tensor it is given."""
    given = torch.rand(3, generator=torch.Generator().manual_seed(probe.seed))
    found = number(probe.call(work, given, what="three numbers", watched={"the tensor": given}))
    wanted = 2 * given.sum().item()
    probe.require(abs(found - wanted) < 1e-5, "sum", f"{wanted:.3f}", f"{found:.3f}", "it is not the double.")
    return "it is the double."


def make(seconds: float = 20.0) -> Exercise:
    step = Step("double", "Twice the sum", "Return it.", ("one", "two", "three"), double, seconds)
    other = Step("other", "Another", "Return it.", ("one", "two", "three"), double, seconds)
    return Exercise("test", "A test", (step, other))


def right(x: torch.Tensor) -> torch.Tensor:
    return 2 * x.sum()


# --- what comes back


def test_a_right_answer_passes_with_its_evidence() -> None:
    result = make().check("double", right)
    assert result and result.passed and result.status == "passed"
    assert [item.what for item in result.evidence] == ["sum"] and result.evidence[0].passed
    assert result.tried == ("three numbers",) and result.next_hint == ""


def test_a_wrong_answer_fails_and_says_what_was_expected_and_found() -> None:
    result = make().check("double", lambda x: 3 * x.sum(), seed=5)
    given = torch.rand(3, generator=torch.Generator().manual_seed(5)).sum().item()
    assert not result and result.status == "failed"
    assert (result.evidence[0].expected, result.evidence[0].found) == (f"{2 * given:.3f}", f"{3 * given:.3f}")
    for text in (str(result), result._repr_html_(), repr(result)):
        assert f"{2 * given:.3f}" in text and "not the double" in text and "hint 1 of 3" in text


def test_html_escapes_what_a_learner_wrote_and_names_the_state_in_words() -> None:
    def shouts(x: torch.Tensor) -> NoReturn:
        print("<b>printed</b>")
        raise ValueError("<script>")

    html = make().check("double", shouts)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "&lt;b&gt;printed" in html
    assert 'role="note"' in html and 'aria-label="double: failed"' in html and "✗ wrong" in html
    bundle = make().check("double", right)._repr_mimebundle_()
    assert "passed" in bundle["text/plain"] and 'class="claim-box claim-holds"' in bundle["text/html"]


def test_hints_come_in_order_and_the_last_one_stays() -> None:
    exercise = make()
    hints = [exercise.hint("double") for _ in range(4)]
    assert [hint.text for hint in hints] == ["one", "two", "three", "three"]
    assert [hint.number for hint in hints] == [1, 2, 3, 3]
    assert str(exercise.hint("other")).startswith("Hint 1 of 3 for other")
    assert "All hints" in exercise.check("double", lambda x: 0.0).next_hint


def test_progress_counts_checks_and_hints_and_knows_when_all_is_done() -> None:
    exercise = make()
    exercise.hint("double")
    exercise.check("double", lambda x: 0.0)
    exercise.check("double", right)
    assert exercise.progress().rows[0][2:] == ("passed", 2, 1)
    assert not exercise.progress().done
    exercise.check("other", right)
    assert exercise.progress().done
    assert "<table>" in exercise.progress()._repr_html_() and "double" in str(exercise.progress())
    exercise.check("other", lambda x: 0.0)  # broken again: progress is what is true now
    assert not exercise.progress().done


def test_a_learners_work_is_used_only_when_it_passed() -> None:
    exercise = make()
    assert exercise.choose("double", abs, right) is right
    exercise.check("double", right)
    assert exercise.choose("double", right, abs) is right


def test_inputs_change_from_check_to_check_and_a_seed_brings_them_back() -> None:
    exercise = make()
    seeds = {exercise.check("double", right).seed for _ in range(5)}
    assert len(seeds) == 5
    first, again = (exercise.check("double", lambda x: 0.0, seed=7) for _ in range(2))
    assert first == again


def test_names_are_looked_up() -> None:
    with pytest.raises(ValueError, match="no exercise 'x', expected one of: distilbert"):
        exercises.load("x")
    with pytest.raises(ValueError, match=r"no step 'doubel'.*Did you mean 'double'"):
        make().check("doubel", right)
    with pytest.raises(ValueError, match="all different"):
        Exercise("x", "X", [*make().steps.values()] * 2)
    assert [exercises.load(name).name for name in exercises.NAMES] == list(exercises.NAMES)


def test_every_step_of_every_exercise_has_a_task_and_three_hints_that_say_more_each() -> None:
    for name in exercises.NAMES:
        for step in exercises.load(name).steps.values():
            assert len(set(step.hints)) == 3 and step.task and step.title
            assert "?" in step.hints[0]  # the first asks


# --- not done yet


def starter(x: torch.Tensor) -> NoReturn:
    raise NotImplementedError("your turn")


@pytest.mark.parametrize("work", [None, ..., starter, lambda x: None, lambda x: ...])
def test_a_starter_is_not_done_yet_and_not_wrong(work: Any) -> None:
    exercise = make()
    result = exercise.check("double", work)
    assert result.status == "not done yet" and not result
    assert exercise.progress().rows[0][2:] == ("not done yet", 0, 0)


# --- a learner's function that does its worst


class Flatterer:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __float__(self) -> float:
        return math.nan


class Agreeing(torch.Tensor):
    """A tensor that answers every question with itself."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if args else True

    def __eq__(self, other: object) -> Any:
        return True


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message for you")


class Sly(float):
    def __float__(self) -> float:
        raise RuntimeError("no")

    def __abs__(self) -> float:
        return 0.0


def raises(x: torch.Tensor) -> NoReturn:
    raise KeyError("nothing here")


def rude(x: torch.Tensor) -> NoReturn:
    raise Rude


def changes(x: torch.Tensor) -> torch.Tensor:
    answer = 2 * x.sum()
    x.zero_()
    return answer


def leaves(x: torch.Tensor) -> NoReturn:
    sys.exit("bye")


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (raises, "raised KeyError: 'nothing here', in line"),
        (rude, "its message cannot be read"),
        (leaves, "raised SystemExit: bye"),
        (lambda: 1.0, "raised TypeError"),
        (changes, "changes what it is given: the tensor"),
        (lambda x: float("nan"), "returned nan"),
        (lambda x: x.sum() / 0, "returned inf"),
        (lambda x: Flatterer(), "returned a Flatterer"),
        (lambda x: Sly(1.0), "returned a Sly"),
        (lambda x: torch.zeros(()).as_subclass(Agreeing), "not the double"),
        (lambda x: 2 * x, r"shape \(3,\), expected one number"),
        (lambda x: True, "returned a bool"),
        (lambda x: "3.0", "returned a str"),
        (lambda x: {"loss": 1}, "returned a dict"),
        (lambda x: 1.2345, "not the double"),
        ("a string", "a str was given, expected a function"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30],
)
def test_whatever_it_does_the_check_ends_with_a_clear_failure(work: Any, says: str) -> None:
    result = make().check("double", work)
    assert result.status == "failed"
    assert re_search(says, result.says), result.says


def re_search(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text, flags=re.IGNORECASE) is not None


def spins(x: torch.Tensor) -> NoReturn:
    while True:
        pass


def spins_and_catches(x: torch.Tensor) -> NoReturn:
    while True:
        with suppress(Exception):
            time.sleep(0.001)


def spins_and_prints(x: torch.Tensor) -> NoReturn:
    while True:
        print("and on" * 100)


@pytest.mark.parametrize("work", [spins, spins_and_catches, spins_and_prints])
def test_what_never_returns_is_stopped(work: Any) -> None:
    started = time.monotonic()
    result = make(seconds=0.2).check("double", work)
    assert time.monotonic() - started < 20  # far below forever
    assert result.status == "failed" and "time limit, and was stopped." in result.says
    assert "restart the kernel" not in result.says


def test_what_cannot_be_stopped_is_left_behind_and_said() -> None:
    result = make(seconds=0.1).check("double", lambda x: time.sleep(5))
    assert result.status == "failed" and "restart the kernel" in result.says


def test_prints_do_not_flood_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(x: torch.Tensor) -> torch.Tensor:
        for line in range(10_000):
            print(f"line {line}")
        return right(x)

    result = make().check("double", chatty)
    assert result.passed and result.printed.startswith("line 0") and len(result.printed) < 3_000
    assert "more characters" in result.printed
    assert capsys.readouterr().out == ""


def test_a_check_that_stumbles_over_what_was_returned_fails_and_does_not_raise() -> None:
    def examine(work: Any, probe: Probe) -> str:
        return str(len(probe.call(work, what="a call")))

    exercise = Exercise("x", "X", [Step("s", "S", "", ("1", "2", "3"), examine)])
    result: StepResult = exercise.check("s", lambda: 3)
    assert result.status == "failed" and "TypeError" in result.says


@pytest.fixture(autouse=True)
def unchanged_streams() -> Iterator[None]:
    """See that no check leaves the streams redirected."""
    before = sys.stdout, sys.stderr
    yield
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("value", [2, 2.0, torch.tensor(2), torch.tensor([2.0], dtype=torch.float64)])
def test_a_number_may_come_as_int_float_or_tensor(value: Any) -> None:
    assert number(value) == 2.0


def test_numpy_numbers_are_numbers() -> None:
    import numpy as np

    assert number(np.float32(2)) == number(np.array([2])) == 2.0
    with pytest.raises(Failed, match="expected one number"):
        number(np.array([1, 2]))
