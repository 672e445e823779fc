"""The parts of a load test that need no server: laws of timetables, answers, ramps, counts and words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.deployment.loadtest import GeneratorUse, LoadCounts, LoadPlan, LoadStep, Ramp, timetable
from companion.deployment.loadtest.asking import bodies, path_of, read_answer, retry_after
from companion.deployment.loadtest.measuring import generator_use, seconds_of, step_of
from companion.deployment.loadtest.ramping import judged, knee_of, next_rate
from companion.deployment.loadtest.samples import LoadSample, StageRecord
from companion.deployment.loadtest.target import target_of

# --- when requests are due


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 500), st.floats(0.1, 20), st.integers(0, 5), st.sampled_from(["poisson", "even"]))
def test_a_timetable_is_in_order_and_within_its_time(
    rate: float, seconds: float, seed: int, kind: str
) -> None:
    times = timetable(rate, seconds, kind=kind, seed=seed)  # type: ignore[arg-type]
    assert times == sorted(times)
    assert all(0 <= time < seconds for time in times)
    assert times == timetable(rate, seconds, kind=kind, seed=seed)  # type: ignore[arg-type]
    expected = rate * seconds
    if kind == "even":
        assert abs(len(times) - expected) <= 1
    else:
        assert abs(len(times) - expected) <= 6 * math.sqrt(expected) + 6


def test_poisson_gaps_are_exponential_and_depend_on_the_seed() -> None:
    times = timetable(100, 100, seed=1)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.1)  # 0 were they even
    assert times != timetable(100, 100, seed=2)


# --- what is sent, and what comes back


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=7), st.integers(1, 4))
def test_every_text_is_in_some_body(texts: list[str], per_request: int) -> None:
    pairs = [text[::-1] for text in texts]
    for written in (bodies("batch", texts, pairs, per_request=per_request),):
        items = [json.loads(body)["items"] for body in written]
        assert all(len(group) == per_request for group in items)
        flat = [item for group in items for item in group]
        assert flat[: len(texts)] == [
            {"text": text, "pair": pair} for text, pair in zip(texts, pairs, strict=True)
        ]
    [first, *_] = bodies("kserve", texts, pairs, per_request=per_request)
    assert [tensor["name"] for tensor in json.loads(first)["inputs"]] == ["text", "pair"]
    assert [json.loads(body)["text"] for body in bodies("predict", texts)] == texts
    assert all(body.isascii() for body in bodies("predict", texts))


def test_the_endpoints_are_the_servers_own() -> None:
    from companion.deployment.kserve import InferRequest
    from companion.deployment.schemas import BatchRequest, PredictRequest

    [one] = bodies("predict", ["a text"])
    PredictRequest.model_validate_json(one)
    [some] = bodies("batch", ["a text", "another"], per_request=2)
    BatchRequest.model_validate_json(some)
    [infer] = bodies("kserve", ["a text", "another"], per_request=2)
    InferRequest.model_validate_json(infer)
    assert path_of("kserve", "mine") == "/v2/models/mine/infer"


PROBLEM = {"title": "Too busy", "status": 503}


@pytest.mark.parametrize(
    ("endpoint", "status", "document", "outcome", "title"),
    [
        ("predict", 200, {"label": "x"}, "ok", ""),
        ("predict", 200, b"{", "failed", "the body is not JSON"),
        ("predict", 200, [1], "failed", "the body is no JSON object"),
        ("predict", 429, PROBLEM, "refused", "Too busy"),
        ("predict", 503, b"<h1>no", "refused", "<h1>no"),
        ("predict", 504, {"detail": "too late"}, "failed", "too late"),
        ("predict", 307, b"", "failed", "no word of why"),
        ("predict", 500, b"x" * 999, "failed", "x" * 119 + "…"),
        ("batch", 200, {"items": [{"answer": {}}]}, "ok", ""),
        (
            "batch",
            200,
            {"items": [{"answer": {}}, {"problem": PROBLEM}]},
            "refused",
            "an item of the batch: Too busy",
        ),
        (
            "batch",
            200,
            {"items": [{"problem": PROBLEM}, {"problem": {"title": "Bad", "status": 422}}]},
            "failed",
            "an item of the batch: Bad",
        ),
        ("kserve", 200, {"outputs": [{}]}, "ok", ""),
        ("kserve", 200, {}, "failed", "the body has no list of outputs"),
    ],
)
def test_answers_are_told_apart(
    endpoint: str, status: int, document: object, outcome: str, title: str
) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    reading = read_answer(endpoint, status, body)  # type: ignore[arg-type]
    assert (reading.outcome, reading.title) == (outcome, title)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["predict", "batch", "kserve"]), st.integers(100, 599), st.binary(max_size=40))
def test_no_answer_breaks_the_reader(endpoint: str, status: int, body: bytes) -> None:
    reading = read_answer(endpoint, status, body)  # type: ignore[arg-type]
    assert (reading.outcome == "refused") == (status in (429, 503))


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after("3") == 3
    assert retry_after("-3") == 0
    assert retry_after("Thu, 01 Jan 2026 12:00:05 GMT", now=now) == 5
    assert [retry_after(value) for value in (None, "soon", "", "nan", "inf")] == [None] * 5


# --- where it goes


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:8000/", "http://[::1]:80", "http://127.9.9.9"]
)
def test_this_machine_may_be_loaded(url: str) -> None:
    assert target_of(url).is_loopback


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://192.0.2.1", "attack"),
        ("http://localhost.example.org", "attack"),
        ("http://127.0.0.1.example.org", "attack"),
        ("http://0.0.0.0:8000", "attack"),
        ("ftp://127.0.0.1", "expected such as"),
        ("127.0.0.1:8000", "expected such as"),
        ("http://127.0.0.1:99999", "expected such as"),
        ("http://me:secret@127.0.0.1", "a user"),
        ("http://127.0.0.1/predict", "the server's own"),
    ],
)
def test_other_addresses_are_refused(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        target_of(url)
    assert "secret" not in str(caught.value)


def test_another_machine_can_be_allowed() -> None:
    target = target_of("https://[2001:db8::1]/reviews/", allow_remote=True)
    assert (target.url, target.port) == ("https://[2001:db8::1]:443/reviews", 443)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"users": 1, "rate": 1.0},
        {"users": 0},
        {"users": 901},
        {"rate": 0.0},
        {"rate": math.nan},
        {"users": 1, "connections": 4},
        {"users": 1, "seconds": 0},
        {"users": 1, "warmup": -1},
        {"users": 1, "timeout": math.inf},
        {"users": 1, "endpoint": "other"},
        {"users": 1, "arrivals": "other"},
        {"users": 1, "per_request": 2},
        {"users": 1, "api_key": "a\nb"},
        {"users": 1, "deadline_ms": 0},
        {"users": 1, "model_name": "a/b"},
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|exactly|header|connections|one text"):
        LoadPlan(**wrong)  # type: ignore[arg-type]


# --- counting


def record(
    samples: list[LoadSample], *, seconds: float = 10, warmup: float = 0, **more: object
) -> StageRecord:
    return StageRecord(None, warmup, seconds, users=1, samples=samples, done=True, **more)  # type: ignore[arg-type]


def test_warm_up_is_not_measured() -> None:
    slow = [LoadSample(at / 10, at / 10, at / 10 + 5, "ok") for at in range(20)]
    fast = [LoadSample(2 + at / 10, 2 + at / 10, 2 + at / 10 + 0.01, "ok") for at in range(70)]
    step = step_of(record(slow + fast, warmup=2, seconds=9))
    assert step.counts.due == 70
    assert step.latency[0].estimate is not None
    assert step.latency[0].estimate.high == pytest.approx(0.01)
    assert step.seconds == 7
    # What comes in the measured time is answered in it, whenever it was due.
    assert step.throughput == pytest.approx((70 + 20) / 7)


def test_percentiles_are_refused_where_requests_are_too_few() -> None:
    samples = [LoadSample(at / 100, at / 100, at / 100 + 0.01, "ok") for at in range(100)]
    p50, p90, p95, p99 = step_of(record(samples, seconds=1)).latency
    assert p50.estimate is not None
    assert p90.estimate is not None
    assert p95.estimate is not None
    assert p99.estimate is None
    assert "at least 368" in str(p99.reason)


def test_an_attempt_more_is_no_request_more() -> None:
    samples = [
        LoadSample(0, 0, 0.1, "refused", 503, "busy", 1.0, 0),
        LoadSample(0, 1.1, 1.2, "ok", attempt=1),
        LoadSample(1, 1, 1.1, "ok"),
    ]
    counts = step_of(record(samples)).counts
    assert (counts.due, counts.ok, counts.refused) == (2, 2, 1)


def test_each_second_has_its_own() -> None:
    samples = [LoadSample(0.5, 0.5, 1.5, "ok"), LoadSample(1.2, 1.2, 1.3, "refused", 429)]
    samples += [LoadSample(2.0, 2.0, 2.0 + at / 1000, "ok") for at in range(1, 101)]
    first, second, third = seconds_of([record(samples, seconds=2.5, warmup=1)])
    assert (first.due, first.ok, first.p50, first.p99, first.warmup) == (1, 0, 1.0, None, True)
    assert (second.due, second.ok, second.refused, second.p50, second.warmup) == (1, 1, 1, None, False)
    assert (third.due, third.ok, third.length) == (100, 100, 0.5)
    assert third.p50 == pytest.approx(0.05)
    assert third.p99 == pytest.approx(0.099)
    assert third.slowest == pytest.approx(0.1)


@pytest.mark.parametrize(("share", "limited"), [(0.3, False), (0.8, False), (0.9, True), (1.0, True)])
def test_a_generator_that_needs_its_whole_core_is_the_limit(share: float, limited: bool) -> None:
    cpu = [(at / 4, share * at / 4) for at in range(41)]
    use = generator_use(record([], cpu=cpu))
    assert use.cpu == pytest.approx(share)
    assert use.busiest == pytest.approx(share)
    assert (use.limit is not None) == limited


def test_a_generator_s_warm_up_does_not_count() -> None:
    cpu = [(at / 4, min(at / 4, 2.0)) for at in range(41)]  # busy for two seconds, then idle
    use = generator_use(record([], cpu=cpu, warmup=2))
    assert use.cpu == pytest.approx(0)
    late = generator_use(record([], cpu=cpu, lags=[(5.0, 0.02)] * 9 + [(5.0, 0.5)]))
    assert (late.lag_p50, late.lag_p99, late.starved) == (0.02, 0.5, True)


# --- the ramp


IDLE = GeneratorUse(0.1, 0.1, 0, 0, None)
FULL = replace(IDLE, cpu=1.0, limit="it used 100%")


def simulated(rate: float, capacity: float, generator: GeneratorUse = IDLE) -> LoadStep:
    """A server that answers so many requests per second, for ten seconds."""
    due = round(10 * rate)
    answers = min(due, round(10 * capacity))
    counts = LoadCounts(due=due, ok=answers, refused=0, failed=0, unsent=due - answers, late=0)
    return judged(LoadStep(rate, 10, answers / 10, counts, (), (), generator))


@settings(deadline=None, max_examples=30)
@given(
    st.floats(5, 5_000),
    st.floats(1, 100),
    st.integers(0, 6),
    st.one_of(st.none(), st.floats(5, 200)),
)
def test_a_ramp_brackets_the_capacity(capacity: float, start: float, refine: int, step: float | None) -> None:
    ramp = Ramp(start=start, refine=refine, step=step, highest=4_000)
    steps: list[LoadStep] = []
    while (rate := next_rate(ramp, steps)) is not None:
        steps.append(simulated(rate, capacity))
        assert len(steps) < 2_000
    knee = knee_of(ramp, steps)
    if knee.low is not None:
        assert knee.low <= capacity / 0.94 + 1  # followed: at least 95% were answered, but for three
    if knee.high is not None:
        assert knee.high > capacity
        assert knee.trusted
    assert knee.low is not None or knee.high == start
    broken = [step for step in steps if step.broke is not None]
    assert len(broken) <= refine + 1
    assert knee.throughput <= capacity + 0.1


def test_refining_narrows_the_knee() -> None:
    def width(refine: int) -> float:
        ramp, steps = Ramp(start=10, refine=refine), list[LoadStep]()
        while (rate := next_rate(ramp, steps)) is not None:
            steps.append(simulated(rate, 100))
        knee = knee_of(ramp, steps)
        assert knee.low is not None
        assert knee.high is not None
        return knee.high / knee.low

    widths = [width(refine) for refine in range(4)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(2)
    assert widths[3] < 1.2


def test_the_generator_s_ceiling_is_no_knee() -> None:
    ramp = Ramp(start=10)
    steps = [simulated(10, 15), simulated(20, 15, FULL)]
    assert next_rate(ramp, steps) is None
    knee = knee_of(ramp, steps)
    assert not knee.trusted
    assert "generator" in knee.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"refused": 2}, "refused"), ({"failed": 2}, "failed"), ({}, None), ({"refused": 1}, None)],
)
def test_a_step_breaks_by_refusals_and_failures_too(changes: dict[str, int], said: str | None) -> None:
    counts = replace(LoadCounts(due=100, ok=100, refused=0, failed=0, unsent=0, late=0), **changes)
    broke = judged(LoadStep(10, 10, 10, counts, (), (), IDLE)).broke
    assert broke is None if said is None else said in str(broke)
