"""A rollout over versions that fail, lie, hang and leave."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from itertools import pairwise

import pytest

from companion.deployment.answering import Answer, Question
from companion.deployment.problems import INTERNAL_ERROR, INVALID_INPUT, NOT_READY, ProblemError, ProblemType
from companion.deployment.rollout import (
    Caller,
    CopyRules,
    RefusedVersionError,
    RolloutConflictError,
    RolloutSettings,
    calling,
)
from companion.deployment.rollout.versions import Loader

FULL = ProblemType("overloaded", 503, "full")
STUCK = ProblemType("stuck", 503, "stuck")
QUICK = RolloutSettings(candidate_s=0.05, least_s=0.01)


def with_rollout(world, body, **keywords):
    """Run a test's body around a rollout that has begun; everything must be closed in the end."""

    async def main():
        rollout = world.rollout(**keywords)
        await rollout.start()
        try:
            await body(rollout)
        finally:
            for version in world.made.values():
                if version.gate is not None:
                    version.gate.set()
            await rollout.aclose()
        assert all(version.closed for version in world.made.values())

    asyncio.run(main())


def flipped(world):
    """Make m2 say the opposite of what is right."""
    world.shape["m2"] = {"opinion": lambda text: 1.1 - 1.0 * (0.9 if len(text) % 2 == 0 else 0.2)}


# --- loading


def test_before_it_starts_nothing_is_answered(world, tools):
    async def main():
        rollout = world.rollout()
        assert rollout.live is None
        assert rollout.status().stage == "loading"
        with pytest.raises(ProblemError) as told:
            await tools.ask(rollout, "text")
        assert (told.value.problem, told.value.retry_after_s) == (NOT_READY, 1)
        with pytest.raises(RolloutConflictError, match="no version is live yet"):
            await rollout.load(world.folder / "m2")

    asyncio.run(main())


def test_a_start_folder_that_cannot_be_used_is_told(world):
    world.facts["m1"] = ValueError("manifest.json is damaged")
    with pytest.raises(RefusedVersionError, match=r"m1 was refused: manifest\.json is damaged"):
        asyncio.run(world.rollout().start())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w.facts.update(m2=ValueError("it is rubbish")), "m2 was refused: it is rubbish"),
        (lambda w: (w.folder / "m2").rmdir(), "is not a folder"),
        (lambda w: w.put("m2", version="v1"), "live already"),
        (lambda w: w.put("m2", version="v2", labels=("no", "yes")), "it has the labels no, yes"),
        (lambda w: w.put("m2", version="v2", labels=(), is_regression=True), "it is a regression"),
        (lambda w: w.put("m2", version="v2", tokenizer="others"), "its tokenizer is not the one"),
        (lambda w: setattr(w, "open_error", RuntimeError("no session")), "m2 was refused: no session"),
        (lambda w: w.shape.update(m2={"opinion": lambda text: math.nan}), "expected finite numbers"),
        (lambda w: w.shape.update(m2={"opinion": lambda text: 1.5}), "probabilities that sum to 1"),
        (lambda w: w.shape.update(m2={"fails": lambda text: IndexError("ids")}), "m2 was refused: ids"),
        (lambda w: w.shape.update(m2={"fails": lambda text: ProblemError(FULL, "no room")}), "no room"),
    ],
)
def test_what_cannot_be_used_is_refused_and_the_live_version_untouched(world, tools, spoil, words):
    async def body(rollout):
        spoil(world)
        with pytest.raises(RefusedVersionError, match=words):
            await rollout.load(world.folder / "m2")
        assert "m2" not in world.made or world.made["m2"].closed
        assert rollout.status().stage == "live"
        assert rollout.status().loading is None
        assert await tools.ask(rollout, "text") == "v1"
        world.open_error = None
        await rollout.load(world.folder / "m3")
        assert rollout.status().candidate.version == "v3"

    with_rollout(world, body)


def test_another_tokenizer_can_be_meant(world):
    async def body(rollout):
        world.put("m2", version="v2", tokenizer="others")
        await rollout.load(world.folder / "m2", other_tokenizer=True)
        assert rollout.status().candidate.version == "v2"

    with_rollout(world, body)


def test_a_version_that_answers_under_another_name_is_refused(world):
    async def body(rollout):
        loader = Loader(world.open, lambda folder: world.put("m3", version="v9") and world.facts["m3"])
        world.facts["m2"] = world.facts["m1"]
        with pytest.raises(RefusedVersionError, match="version v9 answered as version v1"):
            await loader.load(world.folder / "m2")
        assert world.made["m2"].closed

    with_rollout(world, body)


def test_a_version_that_hangs_at_its_trial_is_refused(world):
    async def main():
        world.shape["m2"] = {"gate": asyncio.Event()}
        loader = Loader(world.open, world.inspect, trial_s=0.01)
        with pytest.raises(RefusedVersionError, match="did not answer a trial question in time"):
            await loader.load(world.folder / "m2")
        assert world.made["m2"].closed

    asyncio.run(main())


def test_only_folders_below_the_root_are_loaded(world):
    async def body(rollout):
        for place in (world.folder / "m2", world.folder / "root" / ".." / "m2"):
            with pytest.raises(RefusedVersionError, match="not below"):
                await rollout.load(place)
        (world.folder / "root" / "m2").mkdir(parents=True)
        await rollout.load(world.folder / "root" / "m2")

    with_rollout(world, body, root=world.folder / "root")


def test_a_load_that_is_broken_off_leaves_nothing(world):
    async def body(rollout):
        world.shape["m2"] = {"gate": asyncio.Event()}
        loading = asyncio.create_task(rollout.load(world.folder / "m2"))
        while "m2" not in world.made or not world.made["m2"].asked:
            await asyncio.sleep(0.001)
        assert rollout.status().loading.endswith("m2")
        with pytest.raises(RolloutConflictError, match="is being loaded: wait"):
            await rollout.load(world.folder / "m3")
        with pytest.raises(RolloutConflictError, match=r"no candidate.*still being loaded"):
            await rollout.canary(0.5)
        loading.cancel()
        await asyncio.wait([loading])
        assert world.made["m2"].closed
        assert rollout.status().loading is None

    with_rollout(world, body)


def test_what_the_stage_does_not_allow_is_a_conflict(world):
    async def body(rollout):
        for change in (rollout.promote(), rollout.canary(0.1), rollout.shadow(0.1)):
            with pytest.raises(RolloutConflictError, match="there is no candidate"):
                await change
        for change in (rollout.rollback(), rollout.unload()):
            with pytest.raises(RolloutConflictError, match="nothing to"):
                await change
        await rollout.load(world.folder / "m2")
        with pytest.raises(RolloutConflictError, match="v2 is the candidate"):
            await rollout.load(world.folder / "m3")
        with pytest.raises(ValueError, match="the share for canary is 2"):
            await rollout.canary(2)
        await rollout.promote()
        with pytest.raises(RolloutConflictError, match="v1 is kept for a rollback"):
            await rollout.load(world.folder / "m3")

    with_rollout(world, body)


# --- canary


def test_a_candidate_is_asked_nothing_before_it_is_told(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        before = len(world.made["m2"].asked)
        assert {await tools.ask(rollout, f"text {n}", f"user {n}", wish="candidate") for n in range(50)} == {
            "v1"
        }
        assert len(world.made["m2"].asked) == before

    with_rollout(world, body)


def test_a_canary_keeps_its_callers_when_it_grows(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        inside: list[set[int]] = []
        for share in (0.05, 0.2, 1.0, 0.2):
            await rollout.canary(share)
            found = set()
            for user in range(200):
                if await tools.ask(rollout, f"text {user % 7}", f"user {user}") == "v2":
                    found.add(user)
                await tools.until(lambda: not tools.waiting(rollout))
            inside.append(found)
        small, middle, everyone, again = inside
        assert 0 < len(small) < len(middle) < 100
        assert small < middle < everyone == set(range(200))
        assert again == middle
        status = rollout.status()
        assert status.trial.agreement.share == 1
        assert status.trial.answered == sum(map(len, inside))
        assert status.candidate.latency.count == status.trial.answered
        await rollout.canary(0)
        assert await tools.ask(rollout, "text", "user 1") == "v1"

    with_rollout(world, body)


def test_a_header_names_the_version(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(0, by_header=True)
        assert await tools.ask(rollout, "text", wish="candidate") == "v2"
        assert await tools.ask(rollout, "text") == "v1"
        await rollout.canary(1)
        assert await tools.ask(rollout, "text", wish="live") == "v1"

    with_rollout(world, body)


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), ProblemError(INVALID_INPUT, "no"), ProblemError(STUCK, "")]
)
def test_a_client_never_sees_an_error_of_the_candidate(world, tools, error, caplog):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m2"].fails = lambda text: error
        world.busy = True
        assert await tools.ask(rollout, "text") == "v1"
        trial = rollout.status().trial
        assert (trial.replaced, trial.excused, trial.errors.bad, trial.answered) == (1, 0, 1, 0)
        await tools.ask(rollout, "text")
        assert caplog.text.count("candidate v2 failed") == 1, "one story is told once"

    with_rollout(world, body)


def test_a_bad_answer_of_the_candidate_is_an_error(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m2"].opinion = lambda text: math.nan
        assert await tools.ask(rollout, "text") == "v1"
        assert rollout.status().trial.errors.bad == 1

    with_rollout(world, body)


def test_a_question_that_nobody_can_answer_is_not_held_against_the_candidate(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        for version in world.made.values():
            version.fails = lambda text: ProblemError(INVALID_INPUT, "too odd")
        for _ in range(50):
            with pytest.raises(ProblemError, match="too odd"):
                await tools.ask(rollout, "text")
        trial = rollout.status().trial
        assert (trial.replaced, trial.errors.answers, trial.errors.bad) == (0, 0, 0)

    with_rollout(world, body)


def test_a_full_candidate_is_excused_while_the_live_version_is_busy(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m2"].fails = lambda text: ProblemError(FULL, "", retry_after_s=1)
        world.busy = True
        for _ in range(50):
            assert await tools.ask(rollout, "text") == "v1"
        trial = rollout.status().trial
        assert (trial.replaced, trial.excused, trial.errors.bad) == (50, 50, 0)
        world.busy = False
        for _ in range(10):
            assert await tools.ask(rollout, "text") == "v1"
        assert (await tools.until_stage(rollout, "live")).events[-1].what == "rolled back"

    with_rollout(world, body)


def test_a_candidate_that_hangs_is_replaced_and_taken_back(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m2"].gate = asyncio.Event()
        answered = await asyncio.gather(*(tools.ask(rollout, f"text {n}") for n in range(40)))
        assert set(answered) == {"v1"}
        status = await tools.until_stage(rollout, "live")
        assert status.events[-1].automatic
        assert "errors: " in status.events[-1].detail
        assert world.made["m2"].closed

    with_rollout(world, body, settings=QUICK)


def test_a_question_in_a_hurry_goes_to_the_live_version(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        assert await tools.ask(rollout, "text", within=0.05) == "v1"
        trial = rollout.status().trial
        assert (trial.held_back, trial.errors.answers) == (1, 0)

    with_rollout(world, body)


def test_a_client_that_goes_away_is_nobodys_fault(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m2"].gate = asyncio.Event()
        for _ in range(3):
            questions = [asyncio.create_task(tools.ask(rollout, f"text {n}")) for n in range(16)]
            await tools.until(lambda: tools.trial(rollout).version.running == 16)
            for question in questions:
                question.cancel()
            await asyncio.wait(questions)
        trial = rollout.status().trial
        assert (trial.errors.answers, trial.held_back) == (0, 0), "and their places are free again"

    with_rollout(world, body)


# --- automatic rollback: at most a hundred bad answers reach anyone


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(("share", "good"), [(1.0, 0), (1.0, 600), (0.5, 300)])
def test_a_canary_that_lies_is_taken_back_within_a_hundred_bad_answers(world, tools, busy, share, good):
    rng = random.Random(good)

    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.busy = busy
        wrong = {f"text {n}": rng.random() < share for n in range(3000)}
        for n in range(0, good, 10):
            await asyncio.gather(*(tools.ask(rollout, f"good {n + m}") for m in range(10)))
            await tools.until(lambda: not tools.waiting(rollout))
        candidate = world.made["m2"]
        candidate.opinion = lambda text: (
            1.1 - tools.probability(text) if wrong.get(text) else tools.probability(text)
        )
        bad = 0
        for n in range(0, 3000, 32):
            texts = [f"text {m}" for m in range(n, min(n + 32, 3000))]
            answered = await asyncio.gather(*(tools.ask(rollout, text) for text in texts))
            bad += sum(version == "v2" and wrong[text] for version, text in zip(answered, texts, strict=True))
            if rollout.status().stage == "live":
                break
            for _ in range(20):
                await asyncio.sleep(0)
        assert 0 < bad <= 100
        status = await tools.until_stage(rollout, "live")
        assert status.live.version == "v1"
        last = status.events[-1]
        assert (last.what, last.version, last.automatic) == ("rolled back", "v2", True)
        assert last.detail.startswith("disagreement: ")
        assert candidate.closed
        assert await tools.ask(rollout, "text 1") == "v1"

    with_rollout(world, body)


def test_errors_in_a_canary_take_it_back_and_no_client_sees_one(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        for n in range(300):
            await tools.ask(rollout, f"good {n}")
            await tools.until(lambda: not tools.waiting(rollout))
        failed = []
        world.made["m2"].fails = lambda text: failed.append(text) or RuntimeError("broken")
        answered = await asyncio.gather(*(tools.ask(rollout, f"text {n}") for n in range(64)))
        assert set(answered) == {"v1"}
        assert len(failed) <= 100
        assert "errors: " in (await tools.until_stage(rollout, "live")).events[-1].detail

    with_rollout(world, body)


def test_a_candidate_that_nobody_can_watch_is_not_used(world, tools):
    """The live version answers no copies: comparisons wait, and the candidate gets no more questions."""

    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        world.made["m1"].gate = asyncio.Event()
        answered = [await tools.ask(rollout, f"text {n}") for n in range(16)]
        assert set(answered) == {"v2"}
        further = [asyncio.create_task(tools.ask(rollout, f"text {n}")) for n in range(5)]
        await tools.until(lambda: rollout.live.running >= 5)
        assert rollout.status().trial.held_back == 5
        world.made["m1"].gate.set()
        assert set(await asyncio.gather(*further)) == {"v1"}
        await tools.until(lambda: tools.trial(rollout).agreement.compared == 16)
        assert await tools.ask(rollout, "text") == "v2"

    with_rollout(world, body)


def test_with_a_share_of_comparisons_only_those_need_a_place(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        for n in range(200):
            assert await tools.ask(rollout, f"text {n}") == "v2"
            await tools.until(lambda: not tools.waiting(rollout))
        await tools.until(lambda: rollout.live.running == 0)
        assert 20 < rollout.status().trial.agreement.compared < 90

    with_rollout(world, body, settings=RolloutSettings(compare=0.25))


def test_a_candidate_within_what_is_tolerated_stays(world, tools):
    """Four of a hundred labels differ, in a shadow and in a canary."""

    async def body(rollout):
        await rollout.load(world.folder / "m2")
        world.made["m2"].opinion = lambda text: abs(
            tools.probability(text) - (text.startswith("text") and int(text[5:]) % 25 == 0)
        )
        for change in (rollout.canary, rollout.shadow):
            await rollout.canary(0)
            await change(1)
            for n in range(500):
                await tools.ask(rollout, f"text {n}")
                await tools.until(lambda: not tools.waiting(rollout))
        await tools.until(lambda: tools.trial(rollout).agreement.compared == 1000)
        status = rollout.status()
        assert status.stage == "candidate"
        assert status.trial.agreement.share == 0.96
        assert status.trial.agreement.low < 0.96 < status.trial.agreement.high
        assert status.trial.agreement.largest_difference > 0.5

    with_rollout(world, body, settings=RolloutSettings(copies=CopyRules(budget=1)))


# --- shadow


def test_a_shadow_gets_copies_and_no_client_notices(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.shadow(1)
        asked = len(world.made["m2"].asked)
        for n in range(20):
            assert await tools.ask(rollout, f"text {n}") == "v1"
        await tools.until(lambda: tools.trial(rollout).shadowed == 20)
        assert world.made["m2"].asked[asked:] == [f"text {n}" for n in range(20)]
        trial = rollout.status().trial
        assert (trial.agreement.compared, trial.agreement.share, trial.answered) == (20, 1, 0)
        assert trial.shadow_latency.count == 20
        await rollout.shadow(0)
        await tools.ask(rollout, "text")
        await rollout.settled()
        assert rollout.status().trial.waiting == 0

    with_rollout(world, body)


def test_copies_wait_while_the_live_version_is_busy_and_too_many_are_dropped(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.shadow(1)
        world.busy = True
        asked = len(world.made["m2"].asked)
        for n in range(10):
            assert await tools.ask(rollout, f"text {n}") == "v1"
        for _ in range(50):
            await asyncio.sleep(0)
        trial = rollout.status().trial
        assert (trial.waiting, trial.dropped, trial.shadowed) == (3, 7, 0)
        assert len(world.made["m2"].asked) == asked
        world.seconds += 2 * 1e6
        await tools.until(lambda: tools.dropped(rollout) == 10)  # too old to say anything
        world.busy = False
        await tools.ask(rollout, "text")
        await tools.until(lambda: tools.trial(rollout).shadowed == 1)

    with_rollout(world, body, settings=RolloutSettings(copies=CopyRules(shadows=3, max_age_s=1e6)))


def test_copies_run_one_at_a_time_and_within_their_budget(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.shadow(1)
        candidate, running, began = world.made["m2"], 0, []

        async def slow(question, *, deadline):
            nonlocal running
            running += 1
            assert running == 1
            began.append(world.seconds)
            await asyncio.sleep(0)
            world.seconds += 1.0
            running -= 1
            return Answer((0.1, 0.9), ("negative", "positive"), "v2")

        candidate.answer = slow
        for n in range(5):
            await tools.ask(rollout, f"text {n}")
        await tools.until(lambda: tools.trial(rollout).shadowed == 5)
        gaps = [after - before for before, after in pairwise(began)]
        assert all(4.0 <= gap < 4.1 for gap in gaps), "one second of work, three of rest"
        assert rollout.status().trial.shadow_latency.count == 5

    settings = RolloutSettings(copies=CopyRules(budget=0.25, max_age_s=1e6, poll_s=0.05))
    with_rollout(world, body, settings=settings)


def test_by_default_copies_wait_while_the_live_version_answers(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.shadow(1)
        await tools.ask(rollout, "one")
        await tools.until(lambda: tools.trial(rollout).shadowed == 1)
        world.made["m1"].gate = asyncio.Event()
        live = [asyncio.create_task(tools.ask(rollout, text)) for text in ("two", "three")]
        await tools.until(lambda: rollout.live.running == 2)
        world.made["m1"].gate.set()
        world.made["m1"].gate = None
        await live[0]
        await asyncio.gather(*live)
        await tools.until(lambda: tools.trial(rollout).shadowed == 3)

    with_rollout(world, body, busy=None)


def test_a_copy_is_answered_in_the_background_by_a_version_that_can(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        candidate, quiet = world.made["m2"], []

        async def answer_in_background(question, *, deadline):
            quiet.append(question.text)
            return await candidate.answer(question, deadline=deadline)

        candidate.answer_in_background = answer_in_background
        await rollout.shadow(1)
        await tools.ask(rollout, "copied")
        await tools.until(lambda: tools.trial(rollout).shadowed == 1)
        await rollout.shadow(0)
        await rollout.canary(1)
        assert await tools.ask(rollout, "for a client") == "v2"
        assert quiet == ["copied"]

    with_rollout(world, body)


@pytest.mark.parametrize("how", ["errors", "disagreement"])
def test_a_shadow_that_is_no_good_is_taken_back(world, tools, how):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.shadow(1)
        if how == "errors":
            world.made["m2"].fails = lambda text: RuntimeError("broken")
        else:
            world.made["m2"].opinion = lambda text: 1.1 - tools.probability(text)
        for n in range(100):
            assert await tools.ask(rollout, f"text {n}") == "v1"
            await tools.until(lambda: not tools.waiting(rollout))
        status = await tools.until_stage(rollout, "live")
        assert status.events[-1].detail.startswith(how)
        assert world.made["m2"].closed

    with_rollout(world, body)


# --- promotion and the ways back


def test_promote_and_roll_back(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(0.3)
        await rollout.promote()
        status = rollout.status()
        assert (status.stage, status.live.version, status.previous.version) == ("promoted", "v2", "v1")
        assert (status.candidate, status.canary) == (None, 0)
        assert rollout.live.name == "v2"
        assert await tools.ask(rollout, "text") == "v2"
        assert not world.made["m1"].closed
        await rollout.rollback()
        assert await tools.ask(rollout, "text") == "v1"
        assert (await tools.until_stage(rollout, "live")).previous is None
        assert world.made["m2"].closed
        await rollout.load(world.folder / "m2")
        await rollout.promote()
        await rollout.unload()
        assert (await tools.until_stage(rollout, "live")).live.version == "v2"
        assert world.made["m1"].closed
        told = [(event.what, event.version) for event in rollout.status().events if event.what != "traffic"]
        assert told[-3:] == [("loaded", "v2"), ("promoted", "v2"), ("unloaded", "v1")]

    with_rollout(world, body)


def test_the_version_before_answers_what_the_promoted_one_fails_at_and_comes_back(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.promote()
        for n in range(50):
            assert await tools.ask(rollout, f"text {n}") == "v2"
        world.made["m2"].fails = lambda text: ProblemError(FULL, "")
        for _ in range(50):
            with pytest.raises(ProblemError):
                await tools.ask(rollout, "text")
        assert rollout.status().trial.errors.bad == 0, "a full server is no fault of the model"
        world.made["m2"].fails = lambda text: RuntimeError("broken")
        assert {await tools.ask(rollout, f"text {n}") for n in range(40)} == {"v1"}
        status = await tools.until_stage(rollout, "live")
        assert (status.live.version, status.events[-1].automatic) == ("v1", True)
        assert world.made["m2"].closed

    with_rollout(world, body)


def test_without_a_version_before_the_error_is_told(world, tools):
    async def body(rollout):
        world.made["m1"].fails = lambda text: RuntimeError("broken")
        with pytest.raises(RuntimeError, match="broken"):
            await tools.ask(rollout, "text")
        world.made["m1"].fails = lambda text: ProblemError(INTERNAL_ERROR, "told")
        with pytest.raises(ProblemError, match="told"):
            await tools.ask(rollout, "text")

    with_rollout(world, body)


def test_an_answer_that_comes_after_the_rollback_is_thrown_away(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        candidate = world.made["m2"]
        candidate.gate = asyncio.Event()
        question = asyncio.create_task(tools.ask(rollout, "text"))
        await tools.until(lambda: tools.trial(rollout).version.running == 1)
        await rollout.rollback()
        assert rollout.status().stage == "live"
        await asyncio.sleep(0)
        assert not candidate.closed, "it is let go when it has finished"
        candidate.gate.set()
        assert await question == "v1"
        await rollout.settled()
        assert candidate.closed

    with_rollout(world, body)


def test_a_question_that_was_accepted_is_answered_while_the_server_closes(world, tools):
    async def main():
        rollout = world.rollout()
        await rollout.start()
        await rollout.load(world.folder / "m2")
        for traffic, name in ((rollout.shadow, "m1"), (rollout.canary, "m2")):
            await traffic(1)
            world.made[name].gate = asyncio.Event()
        questions = [
            asyncio.create_task(tools.ask(rollout, "text", wish=wish)) for wish in ("live", "candidate")
        ]
        await tools.until(lambda: rollout.live.running and tools.trial(rollout).version.running)
        closing = asyncio.create_task(rollout.aclose())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(version.closed for version in world.made.values())
        for version in world.made.values():
            version.gate.set()
        assert await asyncio.gather(*questions) == ["v1", "v2"]
        await closing
        assert all(version.closed for version in world.made.values())

    asyncio.run(main())


def test_an_answer_that_comes_after_the_promotion_counts(world, tools):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        candidate = world.made["m2"]
        candidate.gate = asyncio.Event()
        question = asyncio.create_task(tools.ask(rollout, "text"))
        await tools.until(lambda: tools.trial(rollout).version.running == 1)
        await rollout.promote()
        live = len(world.made["m1"].asked)
        candidate.gate.set()
        assert await question == "v2"
        assert len(world.made["m1"].asked) == live

    with_rollout(world, body)


def test_no_question_is_lost_however_often_versions_are_exchanged(world, tools):
    """Sixteen clients ask all the time while versions come, rise, fall and go."""
    rng = random.Random(5)

    async def body(rollout):
        stop, answered = False, 0

        async def client(number):
            nonlocal answered
            while not stop:
                text = f"text {rng.randrange(1000)}"
                with calling(Caller(f"user {number}")):
                    answer = await rollout.answer(Question(text), deadline=time.monotonic() + 60)
                assert answer.values[1] == tools.probability(text)
                answered += 1

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        for _ in range(60):
            live = rollout.status().live.folder
            other = world.folder / ("m2" if live.endswith("m1") else "m1")
            await rollout.load(other)
            await rollout.canary(rng.random())
            await rollout.shadow(rng.random())
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                await rollout.promote()
            await (rollout.rollback() if rng.random() < 0.5 else rollout.unload())
        stop = True
        await asyncio.gather(*clients)
        assert answered > 500

    with_rollout(world, body)


# --- what survives a restart


def restart(world, body, start="m1", **keywords):
    """Begin another process' rollout with the same state file."""

    async def settled(rollout):
        await rollout.settled()
        await body(rollout)

    world.made.clear()
    with_rollout(world, settled, start=start, state_file=world.folder / "state.json", **keywords)


def prepare(world, *steps):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        for step in steps:
            await step(rollout)

    restart(world, body)


def test_a_canary_goes_on_after_a_restart(world, tools):
    async def traffic(rollout):
        await rollout.canary(0.25, by_header=True)
        await rollout.shadow(0.5)
        callers.update({u: await tools.ask(rollout, "text", f"user {u}") for u in range(100)})

    async def body(rollout):
        status = rollout.status()
        assert (status.stage, status.live.version, status.candidate.version) == ("candidate", "v1", "v2")
        assert (status.canary, status.by_header, status.shadow) == (0.25, True, 0.5)
        for user, version in callers.items():
            await tools.until(lambda: not tools.waiting(rollout))
            if version == "v2":
                assert await tools.ask(rollout, "text", f"user {user}") == "v2"
        assert rollout.status().warnings == []

    callers: dict[int, str] = {}
    prepare(world, traffic)
    assert "v2" in callers.values()
    restart(world, body)
    state = json.loads((world.folder / "state.json").read_text())
    assert (state["layout"], state["candidate"]["version"]) == (1, "v2")


def test_a_promotion_holds_after_a_restart_and_can_still_be_taken_back(world, tools):
    async def body(rollout):
        status = rollout.status()
        assert (status.stage, status.live.version, status.previous.version) == ("promoted", "v2", "v1")
        assert await tools.ask(rollout, "text") == "v2"
        await rollout.rollback()
        assert await tools.ask(rollout, "text") == "v1"

    async def rolled_back(rollout):
        assert (rollout.status().stage, rollout.status().live.version) == ("live", "v1")

    prepare(world, lambda rollout: rollout.promote())
    restart(world, body)
    restart(world, rolled_back)


def test_a_promotion_without_the_version_before_holds_as_well(world):
    async def body(rollout):
        assert (rollout.status().stage, rollout.status().live.version) == ("live", "v2")
        assert set(world.made) == {"m2"}, "the folder of the start is not opened for nothing"

    prepare(world, lambda rollout: rollout.promote(), lambda rollout: rollout.unload())
    restart(world, body)


def test_a_candidate_that_was_taken_back_does_not_come_back(world, tools):
    async def fall(rollout):
        await rollout.shadow(1)
        world.made["m2"].fails = lambda text: RuntimeError("broken")
        for n in range(50):
            await tools.ask(rollout, f"text {n}")
        await tools.until_stage(rollout, "live")

    async def body(rollout):
        assert (rollout.status().stage, rollout.status().warnings) == ("live", [])

    prepare(world, fall)
    restart(world, body)


@pytest.mark.parametrize("promoted", [False, True])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: (w.folder / "m2").rmdir(), "is not a folder"),
        (lambda w: w.put("m2", version="v7"), "holds version v7, expected version v2"),
        (lambda w: w.put("m2", version="v2", tokenizer="others"), "another model was written there"),
        (lambda w: w.shape.update(m2={"opinion": lambda text: math.nan}), "finite numbers"),
    ],
)
def test_a_version_that_cannot_be_resumed_leaves_the_live_one_alone(
    world, tools, spoil, words, promoted, caplog
):
    async def body(rollout):
        status = rollout.status()
        assert (status.stage, status.live.version) == ("live", "v1")
        [warning] = status.warnings
        assert "v1 is live alone" in warning
        assert words in warning
        assert words in caplog.text
        assert await tools.ask(rollout, "text") == "v1"

    prepare(world, *([lambda rollout: rollout.promote()] if promoted else []))
    before = (world.folder / "state.json").read_bytes()
    spoil(world)
    caplog.clear()
    restart(world, body)
    assert (world.folder / "state.json").read_bytes() == before, "a folder may come back"


@pytest.mark.parametrize("kind", ["canary", "another start", "rewritten start"])
def test_a_state_of_another_deployment_is_not_used(world, kind):
    prepare(world, lambda rollout: rollout.canary(0.5))
    if kind == "rewritten start":
        world.put("m1", version="v4")

    async def body(rollout):
        found = (rollout.status().stage, rollout.status().live.version, len(rollout.status().warnings))
        expected = {"canary": ("candidate", "v1", 0), "another start": ("live", "v3", 1)}
        assert found == expected.get(kind, ("live", "v4", 1))
        if found[2]:
            assert "is about a server that was started with" in rollout.status().warnings[0]

    restart(world, body, start="m3" if kind == "another start" else "m1")


def test_every_damage_of_the_file_starts_the_live_version_alone(world, caplog):
    prepare(world, lambda rollout: rollout.canary(0.5))
    file = world.folder / "state.json"
    good = json.loads(file.read_text())
    damages = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b" " * (1 << 21),
        json.dumps({**good, "layout": 2}).encode(),
        json.dumps({**good, "extra": 1}).encode(),
        json.dumps({key: value for key, value in good.items() if key != "traffic"}).encode(),
        json.dumps({**good, "traffic": {**good["traffic"], "canary": 1.5}}).encode(),
        json.dumps({**good, "candidate": None}).encode(),
        json.dumps({**good, "candidate": good["live"]}).encode(),
        json.dumps({**good, "previous": good["candidate"]}).encode(),
        json.dumps({**good, "live": {**good["live"], "labels": "no"}}).encode(),
    ]

    async def body(rollout):
        assert (rollout.status().stage, rollout.status().live.version) == ("live", "v1")
        [warning] = rollout.status().warnings
        assert "the state of the rollout is lost, version v1 is live alone" in warning
        assert "state.json" in warning
        assert warning in caplog.text

    for damage in damages:
        caplog.clear()
        file.write_bytes(damage)
        restart(world, body)


def test_a_state_that_cannot_be_written_is_a_warning_and_the_change_stands(world, tools):
    (world.folder / "in the way").write_text("")

    async def body(rollout):
        await rollout.load(world.folder / "m2")
        await rollout.canary(1)
        assert await tools.ask(rollout, "text") == "v2"
        assert "is not on disk, a restart would not know it" in rollout.status().warnings[-1]

    with_rollout(world, body, state_file=world.folder / "in the way" / "state.json")


def test_the_events_and_warnings_stay_few(world):
    async def body(rollout):
        await rollout.load(world.folder / "m2")
        for n in range(100):
            await rollout.canary(n / 100)
        assert len(rollout.status().events) == 50
        assert rollout.status().events[-1].detail.startswith("canary 0.99")
        assert rollout.status().events[-1].at == "1970-01-01T00:00:00.000+00:00"

    with_rollout(world, body)
