"""Single flight: who asks the same at the same time waits for the same run, and depends on nobody else."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.answering import Answer, Question
from companion.deployment.caching import CacheTally, ExactCache, MemoryStore, SingleFlight
from companion.deployment.problems import DEADLINE_EXCEEDED, INVALID_INPUT, NOT_READY, ProblemError

FOREVER = math.inf
ONE = Question("one")


class Gated:
    """A model that answers when it is told to; what it is told may be an error."""

    def __init__(self) -> None:
        self.runs: list[tuple[Question, float]] = []
        self.cancelled = 0
        self.results: asyncio.Queue[Answer | Exception] = asyncio.Queue()

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        self.runs.append((question, deadline))
        try:
            result = await self.results.get()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(result, Exception):
            raise result
        return result

    def give(self, result: Exception | None = None) -> None:
        self.results.put_nowait(result or Answer((float(len(self.runs)),), (), "v"))


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def start(flight: SingleFlight, *deadlines: float, question: Question = ONE) -> list[asyncio.Task[Answer]]:
    return [asyncio.create_task(flight.answer(question, deadline=deadline)) for deadline in deadlines]


def test_equal_questions_share_one_run_and_one_answer():
    async def run() -> None:
        model, tally = Gated(), CacheTally()
        flight = SingleFlight(model, counter=tally)
        waiting = start(flight, *[FOREVER] * 5)
        other = start(flight, FOREVER, question=Question("one", "pair"))
        await settle()
        assert [question for question, _ in model.runs] == [ONE, Question("one", "pair")]
        assert flight.under_way == 2
        model.give()
        model.give()
        answers = await asyncio.gather(*waiting)
        assert all(answer is answers[0] for answer in answers)
        await asyncio.gather(*other)
        assert flight.under_way == 0
        assert tally.to_dict() == {"flight": {"led": 2, "joined": 4}}

    asyncio.run(run())


def test_what_ran_is_not_remembered():
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model)
        for runs in (1, 2):
            model.give()
            await flight.answer(ONE, deadline=FOREVER)
            assert len(model.runs) == runs

    asyncio.run(run())


def test_a_follower_whose_deadline_passes_leaves_alone():
    async def run() -> None:
        model, tally = Gated(), CacheTally()
        flight = SingleFlight(model, counter=tally)
        [leader] = start(flight, FOREVER)
        await settle()
        with pytest.raises(ProblemError) as caught:
            await flight.answer(ONE, deadline=time.monotonic() + 0.01)
        assert caught.value.problem is DEADLINE_EXCEEDED
        assert not leader.done()
        model.give()
        assert (await leader).values == (1.0,)
        assert len(model.runs) == 1
        assert tally.of("flight", "left") == 1

    asyncio.run(run())


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_leader_that_leaves_does_not_take_its_followers_along(how):
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model)
        [leader] = start(flight, FOREVER if how == "cancelled" else time.monotonic() + 0.01)
        await settle()
        followers = start(flight, FOREVER, FOREVER)
        await settle()
        if how == "cancelled":
            leader.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else ProblemError):
            await leader
        model.give()
        assert [answer.values for answer in await asyncio.gather(*followers)] == [(1.0,), (1.0,)]
        assert (len(model.runs), model.cancelled) == (1, 0)

    asyncio.run(run())


def test_when_all_have_left_the_run_is_cancelled_and_nobody_joins_it():
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model)
        waiting = start(flight, FOREVER, FOREVER)
        await settle()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        [late] = start(flight, FOREVER)  # before the cancelled run has ended
        await settle()
        assert (len(model.runs), model.cancelled) == (2, 1)
        model.give()
        assert (await late).values == (2.0,)
        assert flight.under_way == 0

    asyncio.run(run())


def test_a_deadline_that_has_passed_runs_nothing():
    async def run() -> None:
        model = Gated()
        with pytest.raises(ProblemError) as caught:
            await SingleFlight(model, clock=lambda: 100.0).answer(ONE, deadline=100.0)
        assert caught.value.problem is DEADLINE_EXCEEDED
        await settle()
        assert model.runs == []

    asyncio.run(run())


def test_an_error_reaches_all_who_wait_and_is_not_stored():
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(ExactCache(model, MemoryStore(), version=lambda: "v"))
        waiting = start(flight, FOREVER, FOREVER, FOREVER)
        await settle()
        model.give(ProblemError(INVALID_INPUT, "bad"))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [error.problem for error in found] == [INVALID_INPUT] * 3
        assert len(model.runs) == 1
        model.give()
        await flight.answer(ONE, deadline=FOREVER)
        assert len(model.runs) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    "refusal", [ProblemError(DEADLINE_EXCEEDED, "late"), ProblemError(NOT_READY, "queue"), TimeoutError()]
)
def test_a_follower_with_more_time_flies_on_where_the_leader_had_too_little(refusal):
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model, clock=lambda: 0.0)
        soon, later, latest = start(flight, 100.0, 300.0, 500.0)
        await settle()
        assert [deadline for _, deadline in model.runs] == [500.0]
        model.give(refusal)
        found = await asyncio.gather(soon, later, latest, return_exceptions=True)
        assert found == [refusal] * 3  # the latest of all was known when it began: nothing to gain

        [soon] = start(flight, 100.0)
        await settle()
        later, latest = start(flight, 300.0, 500.0)
        await settle()
        model.give(refusal)
        await settle()
        assert [deadline for _, deadline in model.runs[1:]] == [100.0, 500.0]
        model.give()
        answers = await asyncio.gather(soon, later, latest)
        assert all(answer is answers[0] for answer in answers)

    asyncio.run(run())


def test_an_error_that_time_cannot_heal_is_final():
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model, clock=lambda: 0.0)
        [soon] = start(flight, 100.0)
        await settle()
        [later] = start(flight, 200.0)
        await settle()
        model.give(RuntimeError("broken"))
        found = await asyncio.gather(soon, later, return_exceptions=True)
        assert [str(error) for error in found] == ["broken", "broken"]
        assert len(model.runs) == 1

    asyncio.run(run())


def test_a_run_that_is_cancelled_from_inside_does_not_look_like_a_cancelled_caller():
    class Stops:
        async def answer(self, question: Question, *, deadline: float) -> Answer:
            raise asyncio.CancelledError

    async def run() -> None:
        with pytest.raises(RuntimeError, match="was cancelled"):
            await SingleFlight(Stops()).answer(ONE, deadline=FOREVER)

    asyncio.run(run())


def test_closing_ends_what_runs():
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model)
        waiting = start(flight, FOREVER, FOREVER)
        await settle()
        await flight.aclose()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in found] == [RuntimeError] * 2
        assert (model.cancelled, flight.under_way) == (1, 0)
        await flight.aclose()

    asyncio.run(run())


def test_a_lost_error_is_not_reported_as_never_retrieved(caplog):
    async def run() -> None:
        model = Gated()
        flight = SingleFlight(model)
        [task] = start(flight, FOREVER)
        await settle()
        model.give(RuntimeError("broken"))
        task.cancel()  # in the very moment in which the run fails
        await asyncio.wait({task})
        await settle()

    asyncio.run(run())
    import gc

    gc.collect()
    assert "never retrieved" not in caplog.text


# --- whatever happens, in whatever order

STEP = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 2)),
    st.tuples(st.just("leave"), st.integers(0, 30)),
    st.tuples(st.just("give"), st.integers(0, 3)),
)


@given(st.lists(STEP, max_size=30))
@settings(deadline=None, max_examples=200)
def test_nobody_is_lost_and_no_two_equal_questions_run_at_once(steps):
    """Every caller that stays gets an answer to its own question, or an error that was given meanwhile."""

    class Model:
        def __init__(self) -> None:
            self.pending: list[tuple[Question, asyncio.Future[Answer]]] = []
            self.doubled = False

        async def answer(self, question: Question, *, deadline: float) -> Answer:
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self.doubled |= question in [other for other, _ in self.pending]
            entry = (question, future)
            self.pending.append(entry)
            try:
                return await future
            finally:
                self.pending.remove(entry)

        def give(self, number: int) -> None:
            for question, future in self.pending:
                if not future.done():
                    if number == 0:
                        future.set_exception(ProblemError(INVALID_INPUT, question.text))
                    else:
                        future.set_result(Answer((0.0,), (), question.text))
                    return

    async def run() -> None:
        model = Model()
        flight = SingleFlight(model)
        callers: list[tuple[Question, asyncio.Task[Answer]]] = []
        for what, number in steps:
            if what == "ask":
                question = Question(str(number))
                callers += [(question, task) for task in start(flight, FOREVER, question=question)]
            elif what == "leave" and callers:
                callers.pop(number % len(callers))[1].cancel()
            elif what == "give":
                model.give(number)
            await settle()
            waiting = {question for question, task in callers if not task.done()}
            assert {question for question, _ in model.pending} == waiting
        while model.pending:
            model.give(1)
            await settle()
        assert not model.doubled
        assert flight.under_way == 0
        for question, task in callers:
            error = task.exception()
            assert question.text == (error.detail if error else task.result().model_version)

    asyncio.run(run())
