"""The parts of the chapter's experiments that need no server of ours."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.deployment.caching.certificate import TRAFFIC, Trial
from companion.deployment.experiments import (
    clients,
    overload,
    planted,
    remembering,
    resembling,
    trying,
    variants,
)
from companion.deployment.experiments.clients import SteadyClients
from companion.deployment.experiments.grouping import first_come, one_by_one
from companion.deployment.experiments.planted import HangingModel
from companion.deployment.experiments.processes import ask
from companion.deployment.rollout.guarding import Tolerance
from companion.inference.throughput.cost import BatchCost


@contextmanager
def answering(
    status: int = 200, body: bytes = b'{"label": "a", "model_version": "v"}'
) -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that says one thing; yield its address and what it was asked."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_count_is_asked_to_its_end_each_text_in_turn() -> None:
    with answering() as (url, asked), SteadyClients(url, ["one", "two"], count=7, connections=3) as steady:
        pass
    assert len(asked) == len(steady.told) == 7
    assert sorted(one.text for one in steady.told) == [0, 0, 0, 0, 1, 1, 1]
    assert {(one.status, one.label, one.version) for one in steady.told} == {(200, "a", "v")}


def test_a_timetable_says_when_a_request_was_due() -> None:
    with answering() as (url, _), SteadyClients(url, ["one"], rate=200, count=20) as steady:
        pass
    assert [one.due for one in steady.told] == pytest.approx([number / 200 for number in range(20)])
    assert all(one.seconds >= 0 for one in steady.told)


def test_refusals_and_silence_are_kept_with_their_status() -> None:
    with answering(503, b"not json") as (url, _), SteadyClients(url, ["one"], count=3) as steady:
        pass
    assert {(one.status, one.label) for one in steady.told} == {(503, None)}
    with SteadyClients(url, ["one"], count=2) as steady:  # nobody is there any more
        pass
    assert [one.status for one in steady.told] == [0, 0]


def test_stopped_clients_send_nothing_more() -> None:
    with answering() as (url, asked), SteadyClients(url, ["one"], rate=1, count=1_000) as steady:
        steady.stop()
    assert len(asked) <= 1


@pytest.mark.parametrize(("texts", "rate"), [([], 1.0), (["one"], 0.0), (["one"], math.nan)])
def test_clients_without_texts_or_a_rate_are_refused(texts: list[str], rate: float) -> None:
    with pytest.raises(ValueError, match="expected some and above 0"):
        SteadyClients("http://127.0.0.1:1", texts, rate=rate)


def test_ask_returns_refusals_too() -> None:
    with answering(422, b'{"code": "invalid-input"}') as (url, asked):
        reply = ask(f"{url}/predict", {"text": ""}, headers={"X-Mine": "1"})
    assert (reply.status, reply.body) == (422, {"code": "invalid-input"})
    assert asked == [b'{"text": ""}'] and reply.headers["content-length"] == "25"


class Tokens:
    def __init__(self, text: str) -> None:
        self.ids = [ord(letter) for letter in text]


def test_a_model_hangs_for_those_who_ask_for_it_and_for_nobody_else() -> None:
    slept: list[float] = []
    inner = SimpleNamespace(
        encode=lambda texts, pairs=None: [Tokens(text) for text in texts], run=len, labels=("a",)
    )
    model = HangingModel(inner, 3.0, slept.append)
    good, bad = model.encode(["fine"]), model.encode(["hang, please", "fine, too"])
    assert model.run(good) == 1 and slept == []
    assert model.run(bad) == 2 and slept == [3.0]
    assert model.run(bad[1:]) == 1 and slept == [3.0]
    assert model.labels == ("a",)


@pytest.mark.parametrize("plant", planted.PLANTS)
def test_each_plant_is_the_servers_own_but_for_its_fault(plant: str, monkeypatch, tmp_path) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(planted, "serve", lambda folder, settings, **rest: seen.update(rest))
    planted.main([str(tmp_path), plant, "--timeout", "0.5", "--stuck-after", "2"])
    limits = seen["batching"]
    assert ("load" in seen) == (plant == planted.HANG)
    assert (limits.timeout_s == 0.5) == (plant == planted.BOUNDED)
    assert (limits.requests > 10**6) == (plant == planted.NO_ADMISSION)
    assert plant != planted.HANG or limits.stuck_after_s == 2


def test_the_choices_that_are_compared_with_ours() -> None:
    rest = {"cost": BatchCost(1e-3, 1e-5), "padded_tokens": 100, "batch_size": 3}
    assert first_come([9, 1, 50, 2], **rest) == [0, 1, 2]
    assert first_come([9, 1], **rest) == [0, 1]
    assert one_by_one([9, 1], **rest) == [0]


@given(count=st.integers(1, 60), share=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_traffic_repeats_as_much_as_it_is_told_to(count: int, share: float, seed: int) -> None:
    repeats = round(share * count)
    if repeats == count:
        return
    found = remembering.repeating([f"text {n}" for n in range(count)], share, count, seed=seed)
    assert len(found) == count and len(set(found)) == count - repeats


def test_traffic_needs_texts_enough() -> None:
    with pytest.raises(ValueError, match="found 2 different texts, expected at least 7"):
        remembering.repeating(["a", "b", "a"], 0.3, 10)


def test_a_looser_threshold_lets_more_through_of_everything() -> None:
    trials = [Trial(n / 100, right=n % 7 != 0, kind=TRAFFIC) for n in range(100)]
    trials += [Trial(n / 50, right=n == 49, kind="opposites") for n in range(50)]
    curve = resembling._curve(trials)
    for name in ("hits", "opposites"):
        assert [point[name] for point in curve] == sorted(point[name] for point in curve)
    assert [point["threshold"] for point in curve] == sorted((p["threshold"] for p in curve), reverse=True)
    assert all(0 <= point["false"] <= 1 for point in curve) and curve[-1]["hits"] == pytest.approx(0.7)
    # The opposite whose stored answer is right is none.
    assert curve[0]["opposites"] == pytest.approx(
        sum(n / 50 >= curve[0]["threshold"] for n in range(49)) / 49
    )


def test_a_worse_version_is_taken_back_sooner() -> None:
    found = trying.answers_to_alarm(Tolerance(0.1, 0.35, 0.001), (0.02, 0.4, 0.9), most=400, runs=9)
    never, slow, fast = found
    assert never == [400] * 9
    assert sorted(slow) == slow and slow[4] > fast[4] >= 3 and slow[-1] < 400


class Report(SimpleNamespace):
    """As much of a load test's report as the experiments read."""


def report(throughput: float, latencies: tuple[float, ...] = (), **counts: int) -> Any:
    numbers = {"ok": len(latencies), "refused": 0, "failed": 0, "due": len(latencies)} | counts
    return Report(
        throughput=throughput,
        latencies=latencies,
        seconds=(),
        counts=SimpleNamespace(**numbers),
        statuses={503: numbers["refused"]},
        patience=SimpleNamespace(named=numbers["refused"], shortest=1.0, longest=2.0),
        total=SimpleNamespace(generator=SimpleNamespace(starved=False)),
    )


@contextmanager
def nobody(folder: Any, *arguments: object, **rest: Any) -> Iterator[Any]:
    """Stand in for a server."""
    import os

    yield SimpleNamespace(url=f"{folder}{rest.get('plant', '')}{arguments}", pid=os.getpid())


def test_an_overload_is_measured_against_one_capacity(monkeypatch) -> None:
    plans = []

    def loaded(url: str, plan: Any, texts: Any) -> Any:
        plans.append((url, plan))
        if plan.users:
            return report(10.0 if len(plans) == 1 else 20.0)
        return report(50.0, (0.1, 0.9, 1.0, 3.0), refused=6, due=10)

    monkeypatch.setattr(overload, "serving", nobody)
    monkeypatch.setattr(overload, "loadtest", loaded)
    found = overload.overloaded("f", ["a"], times=3, seconds=2, deadline_s=1.0)
    assert (found["capacity"], found["rate"]) == (50.0, 150.0)
    # The first flood was none: more was answered than the clients had seen who waited.
    assert [plan.rate for _, plan in plans] == [None, None, 60.0, 150.0, 150.0]
    assert ["no-admission" in url for url, _ in plans] == [False, False, False, False, True]
    assert found["bounded"]["in_time"] == 3 and found["bounded"]["statuses"] == {"503": 6}


def test_variants_take_turns_and_are_compared_with_the_first(monkeypatch) -> None:
    asked = []

    def loaded(url: str, plan: Any, texts: Any) -> Any:
        asked.append((url, plan.api_key))
        return report(20.0 if "--fast" in url else 10.0)

    monkeypatch.setattr(variants, "serving", nobody)
    monkeypatch.setattr(variants, "loadtest", loaded)
    found = variants.compared(
        "f", {"slow": ("--slow",), "fast": ("--fast",)}, ["a"], repeats=2, api_keys={"fast": "k" * 20}
    )
    assert ["--fast" in url for url, _ in asked] == [False, True, True, False]
    assert {key for url, key in asked if "--fast" in url} == {"k" * 20}
    assert found["slow"]["faster"] == 1 and found["fast"]["faster"] == 2 and found["fast"]["memory"] > 0


def test_the_names_of_the_modules_are_those_of_the_overview() -> None:
    import companion.deployment.experiments as package

    assert clients.__name__.rpartition(".")[0] == package.__name__
    for name in ("trying", "variants", "overload", "resembling", "remembering"):
        assert f"`{name}`" in (package.__doc__ or "")
