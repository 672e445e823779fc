"""The batcher as a whole: threads, an event loop, a model that waits at a gate."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from companion.deployment.answering import Answer, Question
from companion.deployment.batching import BatchingLimits
from companion.deployment.batching.batcher import Batcher
from companion.deployment.batching.calibrating import WARM_UP, warm_up
from companion.deployment.problems import ProblemError
from companion.inference.throughput.cost import BatchCost

COMPANY_PAYS = BatchCost(per_batch=1e-2, per_token=1e-6)


class Recorder:
    """An observer that writes everything down."""

    def __init__(self):
        self.lengths, self.waits, self.batches, self.events = [], [], [], []

    def queue(self, length, oldest_age_s):
        self.lengths.append(length)

    def waited(self, seconds):
        self.waits.append(seconds)

    def batch(self, **what):
        self.batches.append(what)

    def event(self, name):
        self.events.append(name)


class Clock:
    """The real one, moved forward by hand."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


def in_loop(test):
    """Run a coroutine test with a batcher around `model`; nothing may be left behind."""

    def run(model, **fixtures):
        async def main():
            made = []

            def make(**keywords):
                limits = dataclasses.replace(BatchingLimits(), **keywords.pop("limits", {}))
                batcher = Batcher(model, limits=limits, **{"start": COMPANY_PAYS, **keywords})
                batcher.start()
                made.append(batcher)
                return batcher

            try:
                await asyncio.wait_for(test(model, make, **fixtures), 60)
            finally:
                model.gate.set()
                for batcher in made:
                    await batcher.aclose()
                    assert (batcher.backlog.waiting, batcher.backlog.accepted) == (0, 0)
                    assert batcher._threads.ended == batcher._heartbeat.workers

        asyncio.run(main())

    signature = inspect.signature(test)
    asked = [parameter for name, parameter in signature.parameters.items() if name != "make"]
    run.__signature__ = signature.replace(parameters=asked)
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def ask(batcher, text, *, within=math.inf, pair=None):
    return asyncio.create_task(batcher.answer(Question(text, pair), deadline=batcher._clock() + within))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def code(task):
    error = task.exception()
    assert isinstance(error, ProblemError), error
    return error.problem.code


@in_loop
async def test_answers_have_values_labels_and_version(model, make):
    answer = await ask(make(), "a fine film")
    expected = tuple(float(value) for value in model.probabilities(["a fine film"])[0])
    assert answer == Answer(expected, ("negative", "positive"), "v-test")
    assert all(type(value) is float for value in answer.values)


@in_loop
async def test_regression_has_no_labels(model, make):
    model.is_regression, model.labels = True, ()
    answer = await ask(make(), "one", pair="two")
    assert answer == Answer((float(model.logits(["one"])[0, 0]),), (), "v-test")
    assert model.seen[0] == ("one", "two")


@in_loop
async def test_what_waits_rides_together_and_everyone_gets_the_own_answer(model, make):
    observer = Recorder()
    batcher = make(observer=observer, limits={"batch_size": 4})
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    tasks = {n: ask(batcher, "x" * n) for n in range(1, 9)}
    await until(lambda: batcher.backlog.waiting == 8)
    await until(lambda: observer.lengths[-1:] == [8])
    model.gate.set()
    for n, task in tasks.items():
        assert (await task).values[1] == float(model.probabilities(["x" * n])[0, 1])
    await first
    together = [sorted(map(len, batch)) for batch in model.batches if len(batch) > 1]
    assert together == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [batch["texts"] for batch in observer.batches] == [1, 4, 4]
    assert observer.batches[1] | {"seconds": 0} == {
        "texts": 4,
        "tokens": 10,
        "padded_tokens": 32,
        "seconds": 0,
    }
    assert len(observer.waits) == 9
    assert observer.lengths[-1] == 0


@in_loop
async def test_single_and_paired_texts_share_a_batch(model, make):
    batcher = make()
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    tasks = [ask(batcher, "one"), ask(batcher, "one", pair="two"), ask(batcher, "three")]
    await until(lambda: batcher.backlog.waiting == 3)
    model.gate.set()
    await asyncio.gather(first, *tasks)
    assert set(model.seen[1:]) == {("one", None), ("one", "two"), ("three", None)}
    assert [len(batch) for batch in model.batches] == [1, 3]


@in_loop
async def test_several_workers_run_at_once_and_never_more(model, make):
    batcher = make(workers=3, limits={"batch_size": 1})
    model.gate.clear()
    tasks = [ask(batcher, f"text {n}") for n in range(12)]
    await until(lambda: model.running == 3)
    assert batcher.backlog.idle == 0
    model.gate.set()
    await asyncio.gather(*tasks)
    assert model.most_running == 3
    assert sorted(text for text, _ in model.seen) == sorted(f"text {n}" for n in range(12))
    await until(lambda: batcher.backlog.idle == 3)


@pytest.mark.parametrize("bad", ["boom", "nan"])
def test_one_bad_request_fails_alone(model, bad):
    @in_loop
    async def check(model, make):
        observer = Recorder()
        batcher = make(observer=observer)
        model.gate.clear()
        first = ask(batcher, "holds the only worker")
        await until(lambda: model.running)
        tasks = [ask(batcher, text) for text in ("good", bad, "fine")]
        await until(lambda: batcher.backlog.waiting == 3)
        model.gate.set()
        await asyncio.wait([first, *tasks])
        assert isinstance(tasks[1].exception(), RuntimeError)
        for task, text in ((tasks[0], "good"), (tasks[2], "fine")):
            assert task.result().values[1] == float(model.probabilities([text])[0, 1])
        # A batch that failed is run again one by one; numbers that are none need no second run.
        sizes = [len(batch) for batch in model.batches[:5]]
        assert sizes == ([1, 3, 1, 1, 1] if bad == "boom" else [1, 3, 1, 1])
        assert observer.events.count("batch-retried") == (bad == "boom")

    check(model)


@in_loop
async def test_a_text_that_cannot_be_encoded_fails_alone(model, make):
    batcher = make()
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    tasks = [ask(batcher, text) for text in ("good", "untokenizable", "fine")]
    await until(lambda: batcher.backlog.waiting == 3)
    model.gate.set()
    await asyncio.wait([first, *tasks])
    assert isinstance(tasks[1].exception(), ValueError)
    assert tasks[0].result()
    assert tasks[2].result()
    assert "untokenizable" not in [text for text, _ in model.seen]


@in_loop
async def test_a_panic_is_an_error_of_one_request_and_the_worker_lives(model, make):
    class Panic(BaseException):
        pass

    def run(encodings):
        raise Panic("index out of bounds")

    batcher = make()
    real, model.run = model.run, run
    with pytest.raises(RuntimeError, match="failed with Panic: index out of bounds") as caught:
        await ask(batcher, "one")
    assert isinstance(caught.value.__cause__, Panic)
    model.run = real
    assert await ask(batcher, "two")


@in_loop
async def test_a_wrong_number_of_rows_is_an_error_not_a_mixup(model, make):
    batcher = make()
    real = model.run
    model.run = lambda encodings: real([*encodings, encodings[0]])
    with pytest.raises(RuntimeError, match="gave 2 rows, expected 1"):
        await ask(batcher, "one")


@in_loop
async def test_a_mistake_in_a_worker_fails_its_requests_and_not_the_worker(model, make, caplog):
    batcher = make()
    real = batcher._line.encoded
    batcher._line.encoded = lambda waiters: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await ask(batcher, "one")
    assert "a worker failed" in caplog.text
    batcher._line.encoded = real
    assert await ask(batcher, "two")


# --- deadlines and cancellation


@in_loop
async def test_a_deadline_that_passes_in_the_line_is_504_and_never_runs(model, make):
    clock, observer = Clock(), Recorder()
    batcher = make(clock=clock, observer=observer)
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    late, fine = ask(batcher, "late", within=1000), ask(batcher, "fine", within=3000)
    await until(lambda: batcher.backlog.waiting == 2)
    clock.ahead = 2000
    model.gate.set()
    await asyncio.wait([first, late, fine])
    assert code(late) == "deadline-exceeded"
    assert fine.result()
    assert [text for text, _ in model.seen] == ["holds the only worker", "fine"]
    assert observer.events == ["deadline-passed"]


@in_loop
async def test_a_deadline_is_kept_while_the_model_hangs(model, make):
    batcher = make()
    model.gate.clear()
    running = ask(batcher, "hangs", within=0.2)
    await until(lambda: model.running)
    waiting = ask(batcher, "behind it", within=0.2)
    await asyncio.wait([running, waiting])
    assert (code(running), code(waiting)) == ("deadline-exceeded", "deadline-exceeded")
    assert batcher.backlog.waiting == 0, "who is told so leaves the line at once"


@in_loop
async def test_in_a_retry_a_passed_deadline_is_not_run(model, make):
    clock = Clock()
    batcher = make(clock=clock)
    real = model.run

    def run(encodings):
        if len(encodings) > 1:
            clock.ahead = 2000
            raise RuntimeError("the batch fails, and takes long about it")
        return real(encodings)

    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    model.run = run
    late, fine = ask(batcher, "late", within=1000), ask(batcher, "fine", within=3000)
    await until(lambda: batcher.backlog.waiting == 2)
    model.gate.set()
    await asyncio.wait([first, late, fine])
    assert code(late) == "deadline-exceeded"
    assert fine.result()
    assert "late" not in [text for text, _ in model.seen]


@in_loop
async def test_thousands_of_cancelled_requests_leave_nothing(model, make):
    observer = Recorder()
    batcher = make(observer=observer, workers=2, limits={"requests": 10_000, "characters": 10**9})
    batcher._line.wait_s = lambda: 0.0  # all are let in
    model.gate.clear()
    blockers = [ask(batcher, f"holds worker {n}") for n in range(2)]
    await until(lambda: model.running == 2)
    tasks = [ask(batcher, f"text {n}", within=50.0) for n in range(5000)]
    await until(lambda: batcher.backlog.waiting == 5000)
    for number, task in enumerate(tasks):
        if number != 2500:
            task.cancel()
    await until(lambda: batcher.backlog.waiting == 1)
    assert batcher.backlog.accepted == 3
    model.gate.set()
    assert await tasks[2500]
    await asyncio.gather(*blockers)
    ran = {text for text, _ in model.seen}
    assert ran == {"text 2500", "holds worker 0", "holds worker 1"}
    assert observer.events == ["cancelled"] * 4999
    assert batcher._line._characters == 0
    assert batcher._line._alone_s == 0
    assert await ask(batcher, "as before")


@in_loop
async def test_cancelled_in_a_batch_its_mates_are_answered(model, make):
    batcher = make()
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    tasks = [ask(batcher, f"text {n}") for n in range(3)]
    await until(lambda: batcher.backlog.waiting == 3)
    started, go_on, real = threading.Event(), threading.Event(), model.run

    def run(encodings):
        started.set()
        assert go_on.wait(30)
        return real(encodings)

    model.run = run
    model.gate.set()
    await until(started.is_set)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert batcher.backlog.accepted == 2
    go_on.set()
    await asyncio.gather(first, tasks[0], tasks[2])
    assert model.batches[1:] == [["text 0", "text 1", "text 2"]], "one batch, and none again"


@in_loop
async def test_cancelled_while_a_failed_batch_is_run_again_it_is_left_out(model, make):
    batcher = make()
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    tasks = [ask(batcher, text) for text in ("boom", "left", "stays")]
    await until(lambda: batcher.backlog.waiting == 3)
    started, go_on, real = threading.Event(), threading.Event(), model.run

    def run(encodings):
        if len(encodings) == 1:
            started.set()
            assert go_on.wait(30)
        return real(encodings)

    model.run = run
    model.gate.set()
    await until(started.is_set)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    go_on.set()
    await asyncio.wait([first, tasks[0], tasks[2]])
    assert model.batches[2:] == [["boom"], ["stays"]]


@in_loop
async def test_refused_questions_are_counted_and_do_not_wait(model, make):
    observer = Recorder()
    batcher = make(observer=observer, limits={"requests": 1})
    model.gate.clear()
    first = ask(batcher, "holds the only worker")
    await until(lambda: model.running)
    second = ask(batcher, "waits")
    await until(lambda: batcher.backlog.waiting == 1)
    assert batcher.refusal().problem.code == "overloaded"
    with pytest.raises(ProblemError) as caught:
        await ask(batcher, "one too many")
    assert caught.value.problem.code == "overloaded"
    assert observer.events == ["refused-overloaded"]
    model.gate.set()
    await asyncio.gather(first, second)
    assert batcher.refusal() is None


# --- heartbeat


@in_loop
async def test_stuck_is_noticed_and_over_when_the_worker_comes_back(model, make):
    clock = Clock()
    batcher = make(clock=clock, workers=2, limits={"stuck_after_s": 5.0, "wait_s": 1.0})
    assert batcher.stuck() is None
    model.gate.clear()
    tasks = [ask(batcher, "hangs")]
    await until(lambda: model.running == 1)
    clock.ahead += 5.5
    assert "1 of 2 workers have been in one batch for 5." in batcher.stuck()
    assert batcher.refusal() is None, "the other worker works"
    tasks.append(ask(batcher, "hangs as well"))
    await until(lambda: model.running == 2)
    clock.ahead += 5.5
    assert "2 of 2 workers" in batcher.stuck()
    assert batcher.refusal().problem.code == "stuck"
    with pytest.raises(ProblemError) as caught:
        await ask(batcher, "refused at once")
    assert (caught.value.problem.code, caught.value.headers["Retry-After"]) == ("stuck", "1")
    model.gate.set()
    await asyncio.gather(*tasks)
    await until(lambda: batcher.stuck() is None)
    assert await ask(batcher, "and all is well")


@in_loop
async def test_an_old_line_is_noticed_although_every_batch_is_short(model, make):
    clock = Clock()
    batcher = make(clock=clock, limits={"stuck_after_s": 5.0, "wait_s": 1.0})
    model.gate.clear()
    first = ask(batcher, "runs")
    await until(lambda: model.running)
    second = ask(batcher, "waits")
    await until(lambda: batcher.backlog.waiting == 1)
    clock.ahead += 5.5
    batcher._heartbeat.begin(0, 0.1)  # the worker says that it goes on
    assert batcher.stuck().startswith("The oldest request has waited for 5.")
    model.gate.set()
    await asyncio.gather(first, second)
    assert batcher.stuck() is None


@in_loop
async def test_a_worker_that_ended_is_noticed(model, make):
    batcher = make()
    batcher._line.close()
    await until(lambda: batcher.stuck() is not None)
    assert "1 of 1 workers have ended" in batcher.stuck()


# --- the end


@in_loop
async def test_drain_answers_what_was_accepted_and_nothing_else(model, make):
    batcher = make()
    model.gate.clear()
    tasks = [ask(batcher, f"text {n}") for n in range(5)]
    await until(lambda: batcher.backlog.accepted == 5)
    batcher.drain()
    drained = asyncio.create_task(batcher.drained())
    with pytest.raises(ProblemError) as caught:
        await ask(batcher, "too late")
    assert caught.value.problem.code == "draining"
    await asyncio.sleep(0.01)
    assert not drained.done()
    model.gate.set()
    await drained
    assert all(task.done() and task.result() for task in tasks)


@in_loop
async def test_closing_answers_what_was_accepted(model, make):
    batcher = make(workers=2)
    tasks = [ask(batcher, f"text {n}") for n in range(20)]
    await until(lambda: batcher.backlog.accepted == 20 or all(task.done() for task in tasks))
    await batcher.aclose()
    assert all(await asyncio.gather(*tasks))


def test_closing_leaves_a_worker_behind_that_hangs(model):
    async def main():
        batcher = Batcher(model)
        batcher.start()
        model.gate.clear()
        task = ask(batcher, "hangs")
        await until(lambda: model.running)
        await batcher.aclose(timeout_s=0.05)
        assert not task.done()
        model.gate.set()
        assert await task, "and is answered when it comes back"

    asyncio.run(main())


def test_a_loop_that_is_gone_does_no_harm(model):
    """The answer of a loop that was closed meanwhile goes nowhere, and the next loop is served."""
    batcher = Batcher(model)
    batcher.start()
    model.gate.clear()
    loop = asyncio.new_event_loop()
    task = loop.create_task(batcher.answer(Question("lost"), deadline=math.inf))
    while not model.running:
        loop.run_until_complete(asyncio.sleep(0.001))
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    model.gate.set()
    assert asyncio.run(batcher.answer(Question("served"), deadline=math.inf))
    batcher._line.close()
    assert batcher._threads.join(30)


def test_without_a_worker_there_is_no_batcher(model):
    with pytest.raises(ValueError, match="workers is 0"):
        Batcher(model, workers=0)


@pytest.mark.parametrize(("moved", "largest"), [(0, 3), (1, 1)])
def test_a_model_whose_answers_depend_on_company_rides_alone(model, moved, largest):
    model.manifest = SimpleNamespace(model_version="v", check=SimpleNamespace(moved_by_batch=moved))

    @in_loop
    async def check(model, make):
        batcher = make()
        model.gate.clear()
        first = ask(batcher, "holds the only worker")
        await until(lambda: model.running)
        tasks = [ask(batcher, "text") for _ in range(3)]
        await until(lambda: batcher.backlog.waiting == 3)
        model.gate.set()
        await asyncio.gather(first, *tasks)
        assert max(map(len, model.batches)) == largest

    check(model)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_niceness_is_that_of_the_workers_alone(model):
    found = []
    real = model.run
    model.run = lambda encodings: (
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) or real(encodings)
    )
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    @in_loop
    async def check(model, make):
        await ask(make(niceness=1), "one")
        await ask(make(), "two")

    check(model)
    assert found == [min(own + 1, 19), own]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


# --- the first runs


def test_warm_up_measures_and_checks(model):
    cost = warm_up(model, padded_tokens=1024)
    assert cost.per_batch >= 0
    assert cost.seconds(1, 128) > 0
    assert model.seen == [(WARM_UP, None)]
    model.labels = ("one", "two", "three")
    with pytest.raises(ValueError, match="gives 2 numbers a text, expected 3"):
        warm_up(model, padded_tokens=1024)


def test_warm_up_finds_the_cost_of_a_model(model):
    """The stopwatch goes forward by what a batch costs."""
    truth, now, shapes = BatchCost(per_batch=3e-3, per_token=5e-5), [0.0], []
    real = model.run

    def run(encodings):
        length = max(len(encoding.ids) for encoding in encodings)
        shapes.append((len(encodings), length))
        now[0] += float(truth.seconds(len(encodings), -(-length // 8) * 8))
        return real(encodings)

    model.run = run
    cost = warm_up(model, padded_tokens=300, limit_s=10, stopwatch=lambda: now[0])
    assert cost.per_batch == pytest.approx(truth.per_batch, rel=0.01)
    assert cost.per_token == pytest.approx(truth.per_token, rel=0.01)
    assert all(rows * length <= 300 for rows, length in shapes)


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_warm_up_is_short_for_a_slow_model_and_guesses_for_a_coarse_clock(model, seconds):
    now = [0.0]
    real = model.run

    def run(encodings):
        now[0] += seconds
        return real(encodings)

    model.run = run
    cost = warm_up(model, padded_tokens=1024, stopwatch=lambda: now[0])
    assert now[0] <= 3 * seconds, "one run to see whether it works, two of the first shape"
    if seconds:
        assert float(cost.seconds(1, 16)) == pytest.approx(seconds)
    assert np.isfinite(float(cost.seconds(8, 128)))
