"""Load on servers whose faults are planted: the report must find each of them, and count it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from companion.deployment.loadtest import LoadPlan, LoadReport, Ramp, loadtest, timetable

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["one", "zwei ü", "three"]
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def faulty(planted: Start) -> tuple[Any, LoadReport]:
    """A closed loop on a server that refuses, sends half a document, and hangs up."""
    server = planted(delay_s=0.005, refuse_every=5, broken_every=7, reset_every=11)
    plan = LoadPlan(users=4, seconds=1, warmup=0, api_key="secret-key", deadline_ms=900)
    return server, loadtest(server.url, plan, TEXTS)


def test_every_planted_fault_is_counted(faulty: tuple[Any, LoadReport]) -> None:
    server, report = faulty
    counts = report.counts
    assert min(server.counts[kind] for kind in ("ok", "refused", "broken", "reset")) > 0
    assert (counts.ok, counts.refused) == (server.counts["ok"], server.counts["refused"])
    assert counts.failed == server.counts["broken"] + server.counts["reset"]
    assert counts.due == server.number
    assert report.statuses == {
        503: server.counts["refused"],
        200: server.counts["broken"],
        0: server.counts["reset"],
    }


def test_every_kind_of_trouble_is_named_once(faulty: tuple[Any, LoadReport]) -> None:
    _, report = faulty
    assert {(one.outcome, one.status, one.title) for one in report.troubles} == {
        ("refused", 503, "The server is too busy"),
        ("failed", 200, "the body is not JSON"),
        ("failed", 0, "the connection broke without an answer"),
    }
    assert len(report.troubles) == 3


def test_what_refusals_ask_for_is_told(faulty: tuple[Any, LoadReport]) -> None:
    server, report = faulty
    patience = report.patience
    assert (patience.honoured, patience.named) == (False, server.counts["refused"])
    assert patience.shortest == patience.longest == 7
    assert "did not heed it" in report.text()


def test_a_latency_is_never_below_what_was_planted(faulty: tuple[Any, LoadReport]) -> None:
    _, report = faulty
    assert len(report.latencies) == report.counts.ok
    assert min(report.latencies) >= 0.005
    median = report.percentile(50).estimate
    assert median is not None
    assert 0.005 <= median.low <= median.value <= median.high


def test_requests_carry_texts_and_headers(faulty: tuple[Any, LoadReport]) -> None:
    server, report = faulty
    assert set(server.paths) == {"/predict"}
    assert {json.loads(body)["text"] for body in server.bodies} == set(TEXTS)
    for headers in server.headers:
        assert headers["x-api-key"] == "secret-key"
        assert headers["x-request-timeout-ms"] == "900"
        assert headers["content-type"] == "application/json"
    assert "secret-key" not in json.dumps(report.to_dict()) + repr(report)


def test_the_generator_measures_itself(faulty: tuple[Any, LoadReport]) -> None:
    _, report = faulty
    generator = report.total.generator
    assert 0 < generator.cpu <= generator.busiest < 1.5
    assert 0 <= generator.lag_p50 <= generator.lag_p99


def test_nothing_of_gevent_reaches_the_caller(faulty: tuple[Any, LoadReport]) -> None:
    assert "locust" not in sys.modules
    assert "companion.deployment.loadtest.worker" not in sys.modules
    assert not hasattr(time.sleep, "__code__")  # gevent's is written in Python
    assert socket.create_connection.__module__ == "socket"


def test_seconds_add_up(faulty: tuple[Any, LoadReport]) -> None:
    _, report = faulty
    assert [second.second for second in report.seconds] == list(range(len(report.seconds)))
    assert sum(second.due for second in report.seconds) == report.counts.due


def test_a_stall_shows_in_the_latency_counted_from_when_requests_were_due(planted: Start) -> None:
    server = planted(stall_at=100)
    plan = LoadPlan(rate=150, arrivals="even", seconds=2, warmup=0.5, connections=2, timeout=30)
    report = loadtest(server.url, plan, TEXTS)
    due = timetable(150, 2.5, kind="even")
    assert server.number == len(due)
    assert report.counts.due == report.counts.ok == sum(time >= 0.5 for time in due)
    assert report.warmup_requests == sum(time < 0.5 for time in due)
    assert report.counts.late > 50
    # About a third of the requests were due during the stall, but only two were on their way.
    assert report.omission["p90"] > 0.2
    assert max(report.latencies) > 0.9
    assert "too low: p50 by" in report.text()


def test_texts_come_in_batches(planted: Start) -> None:
    server = planted()
    plan = LoadPlan(rate=40, seconds=0.5, warmup=0, arrivals="even", endpoint="batch", per_request=2)
    report = loadtest(server.url + "/prefix/", plan, TEXTS)
    assert set(server.paths) == {"/prefix/predict/batch"}
    sent = [[item["text"] for item in json.loads(body)["items"]] for body in server.bodies]
    assert sent[:2] == [["one", "zwei ü"], ["three", "one"]]
    assert report.counts.failed == report.counts.due == 20  # it answers without a list
    assert [one.title for one in report.troubles] == ["the body has no list of items"]


def test_patient_clients_wait_and_try_again(planted: Start) -> None:
    server = planted(refuse_every=2, retry_after="0")
    plan = LoadPlan(rate=60, seconds=1, warmup=0, arrivals="even", honour_retry_after=True)
    report = loadtest(server.url, plan, TEXTS)
    counts = report.counts
    assert counts.due == 60
    assert counts.refused == server.counts["refused"] > 0
    assert server.number == counts.due + sum(sample == "again" for sample in _retries(counts))
    slow = planted(refuse_every=2, retry_after="1")
    loadtest(slow.url, LoadPlan(users=1, seconds=1.4, warmup=0, honour_retry_after=True), TEXTS)
    assert slow.number <= 4  # hundreds, had it not waited


def _retries(counts: Any) -> list[str]:
    """Name each request that was sent again: one that ended refused at the very end was not."""
    return ["again"] * (counts.ok + counts.refused - counts.due)


def test_a_server_that_never_answers_is_given_up(planted: Start) -> None:
    server = planted(hang_every=1)
    report = loadtest(server.url, LoadPlan(users=2, seconds=0.5, warmup=0, timeout=0.3), TEXTS)
    assert report.counts.failed == server.number == report.counts.due >= 2
    assert [one.title for one in report.troubles] == ["no answer within 0.3 s"]
    assert report.latencies == ()
    assert report.percentile(50).reason is not None


def test_requests_that_are_never_sent_count_as_waiting(planted: Start) -> None:
    server = planted(hang_every=1)
    plan = LoadPlan(rate=50, seconds=0.6, warmup=0, arrivals="even", connections=1, timeout=0.4)
    report = loadtest(server.url, plan, TEXTS)
    counts = report.counts
    assert counts.due == 30
    assert counts.unsent + counts.failed == 30
    assert counts.unsent >= 20
    assert "lower bounds" in report.text()


def test_a_ramp_ends_where_refusals_begin(planted: Start) -> None:
    server = planted(refuse_from=100, refusal=429)
    plan = LoadPlan(ramp=Ramp(start=20, refine=1), seconds=1, warmup=0, arrivals="even")
    report = loadtest(server.url, plan, TEXTS)
    knee = report.knee
    assert knee is not None
    assert [step.rate for step in report.steps[:2]] == [20, 40] or report.steps[0].broke
    assert knee.high is not None
    assert knee.high <= 80
    assert knee.low is None or knee.low < knee.high
    assert sum(step.counts.refused for step in report.steps) <= server.counts["refused"]
    assert [step.broke is None for step in report.steps].count(False) >= 1
    assert "Knee: " in report.text()


# --- stopped halfway


def command(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "companion.cli", "loadtest", *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ctrl_c_gives_the_report_so_far(planted: Start) -> None:
    server = planted(delay_s=0.01)
    with command(server.url, "--users", 2, "--seconds", 100, "--warmup", 0) as process:
        wait_until(lambda: server.number > 80)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.startswith("INTERRUPTED. ")
    assert "answers/s" in out
    assert "Traceback" not in err
    wait_until(lambda: server.connected == 0)


def test_a_killed_command_leaves_nobody_behind(planted: Start) -> None:
    server = planted(delay_s=0.01)
    with command(server.url, "--users", 2, "--seconds", 100) as process:
        wait_until(lambda: server.number > 20)
        process.kill()
    wait_until(lambda: server.connected == 0)
