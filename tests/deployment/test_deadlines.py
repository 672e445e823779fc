"""The middleware of deadlines: by hand, one application and one client at a time."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.deployment.batching import TIMEOUT_HEADER, BatchingLimits, RequestDeadline
from companion.deployment.batching.deadlines import timeout_of
from companion.deployment.middleware import RequestContext
from companion.deployment.notes import RouteNames
from companion.deployment.problems import OVERLOADED, ProblemError

WHOLE = {"type": "http.request", "body": b"{}", "more_body": False}
LONG = 1000.0


class Exchange:
    """A client that sends some messages and then nothing, until it leaves."""

    def __init__(self, *messages, headers=(), path="/predict"):
        self.messages = list(messages)
        self.left = asyncio.Event()
        self.sent = []
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}

    async def receive(self):
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def through(self, app, *, timeout_s=LONG, **keywords):
        middleware = RequestDeadline(app, timeout_s=timeout_s, longest_timeout_s=LONG, **keywords)
        await asyncio.wait_for(
            RequestContext(middleware, RouteNames(()))(self.scope, self.receive, self.send), 30
        )

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def code(self):
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))["code"]


def in_loop(test):
    def run():
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def respond(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 10), ("1", 0.001), ("250", 0.25), ("00250", 0.25), ("59999", 59.999), ("9" * 18, 60)],
)
def test_timeouts_that_are_read(header, seconds):
    assert timeout_of(header, default_s=10, longest_s=60) == pytest.approx(seconds)


@pytest.mark.parametrize("header", ["", "0", "000", "-1", "1.5", "1e3", "abc", " 1", "٣", "9" * 5000, "\xe9"])
def test_timeouts_that_are_refused(header):
    with pytest.raises(ProblemError) as caught:
        timeout_of(header, default_s=10, longest_s=60)
    assert caught.value.problem.code == "invalid-input"
    assert TIMEOUT_HEADER in caught.value.detail
    assert caught.value.detail.isascii()
    assert len(caught.value.detail) < 250


@given(st.text(max_size=30))
def test_any_header_gives_a_time_or_a_problem(header):
    try:
        seconds = timeout_of(header, default_s=10, longest_s=60)
    except ProblemError:
        return
    assert 0 < seconds <= 60


@in_loop
async def test_a_header_that_is_no_number_is_422():
    client = Exchange(WHOLE, headers=[(b"x-request-timeout-ms", b"soon")])
    await client.through(None)
    assert (client.status, client.code) == (422, "invalid-input")


@pytest.mark.parametrize(("header", "expected"), [(None, 7.0), (b"2500", 2.5), (b"99999999", LONG)])
def test_the_deadline_is_in_the_state(header, expected):
    async def main():
        found = []

        async def app(scope, receive, send):
            found.append(scope["state"]["deadline"])
            await respond(send)

        headers = [] if header is None else [(TIMEOUT_HEADER.lower().encode(), header)]
        client = Exchange(WHOLE, headers=headers)
        await client.through(app, timeout_s=7.0, clock=lambda: 100.0)
        assert found == [100.0 + expected]
        assert client.status == 200

    asyncio.run(main())


@in_loop
async def test_when_the_time_is_over_the_application_is_cancelled_and_the_client_told():
    ended = []

    async def app(scope, receive, send):
        await receive()
        try:
            await asyncio.sleep(LONG)
        finally:
            ended.append(True)

    client = Exchange(WHOLE)
    await client.through(app, timeout_s=0.02)
    assert (client.status, client.code, ended) == (504, "deadline-exceeded", [True])
    assert "connection" not in client.headers
    assert asyncio.current_task().cancelling() == 0
    assert len(asyncio.all_tasks()) == 1, "nobody watches any more"


@in_loop
async def test_a_body_that_does_not_come_is_504_and_the_connection_closed():
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            continue
        raise AssertionError("never complete")

    client = Exchange({"type": "http.request", "body": b"{", "more_body": True})
    await client.through(app, timeout_s=0.02)
    assert (client.status, client.code) == (504, "deadline-exceeded")
    assert client.headers["connection"] == "close"


@in_loop
async def test_when_the_client_leaves_the_application_is_cancelled_and_nothing_is_sent():
    client, ended = Exchange(WHOLE), []

    async def app(scope, receive, send):
        await receive()
        client.left.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    await client.through(app)
    assert (client.sent, ended) == ([], [True])
    assert asyncio.current_task().cancelling() == 0


@in_loop
async def test_a_server_that_says_disconnect_after_the_response_cancels_nothing():
    client, ended = Exchange(WHOLE), []

    async def app(scope, receive, send):
        await receive()
        await respond(send)
        client.left.set()
        await asyncio.sleep(0.02)  # what an application does in the background
        ended.append(True)

    await client.through(app, timeout_s=0.01)
    assert (client.status, ended) == (200, [True])


@in_loop
async def test_a_response_that_has_begun_is_cut_and_not_begun_again():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(LONG)

    client = Exchange(WHOLE)
    await client.through(app, timeout_s=0.02)
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]


@in_loop
async def test_who_asks_whether_the_client_left_is_told():
    client, found = Exchange(WHOLE), []

    async def app(scope, receive, send):
        await receive()
        client.left.set()
        try:
            found.append(await receive())
        except asyncio.CancelledError:
            found.append("cancelled")

    await client.through(app)
    assert found in ([{"type": "http.disconnect"}], ["cancelled"])


@in_loop
async def test_cancelled_from_outside_it_stays_cancelled():
    started = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        started.set()
        await asyncio.sleep(LONG)

    client = Exchange(WHOLE)
    task = asyncio.create_task(client.through(app))
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert client.sent == []


@in_loop
async def test_a_busy_server_refuses_before_the_body_is_read():
    error = ProblemError(OVERLOADED, "Much to do.", retry_after_s=2)

    async def app(scope, receive, send):
        await respond(send)

    client = Exchange(WHOLE)
    await client.through(app, refuse=lambda: error, guarded=("/predict",))
    assert (client.status, client.code, client.headers["retry-after"]) == (503, "overloaded", "2")
    assert client.messages == [WHOLE], "unread"
    client = Exchange(WHOLE, path="/health/ready")
    await client.through(app, refuse=lambda: error, guarded=("/predict",))
    assert client.status == 200


@in_loop
async def test_what_is_not_http_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    middleware = RequestDeadline(app, timeout_s=1, longest_timeout_s=1)
    await middleware({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


# --- through the application


def ask_by_hand(client, text, left):
    """Send a request whose client leaves when the event is set; give what was sent to it."""

    async def talk():
        exchange = Exchange({**WHOLE, "body": json.dumps({"text": text}).encode()})
        exchange.left = left
        exchange.scope |= {"raw_path": b"/predict", "root_path": "", "query_string": b"", "scheme": "http"}
        exchange.scope["headers"] = [(b"content-type", b"application/json")]
        await client.app(exchange.scope, exchange.receive, exchange.send)
        return exchange.sent

    return client.portal.start_task_soon(talk)


def wait_until(client, condition):
    async def wait():
        while not condition():
            await asyncio.sleep(0.001)

    client.portal.call(lambda: asyncio.wait_for(wait(), 30))


def test_what_a_client_asked_that_left_never_runs(serving, model):
    client = serving(workers=1)
    batcher = client.app.state.service.batcher
    left = client.portal.call(_event)
    model.gate.clear()
    first = client.start("POST", "/predict", json={"text": "holds the only worker"})
    wait_until(client, lambda: model.running)
    gone = ask_by_hand(client, "of a client that left", left)
    wait_until(client, lambda: batcher.backlog.waiting == 1)
    client.portal.call(left.set)
    assert gone.result(30) == []
    assert batcher.backlog.waiting == 0
    model.gate.set()
    assert first.result(30).status_code == 200
    assert client.predict({"text": "the next"}).status_code == 200
    assert "of a client that left" not in [text for text, _ in model.seen]


async def _event():
    return asyncio.Event()


def test_the_header_reaches_the_line(serving, model):
    client = serving(workers=1)
    model.gate.clear()
    answer = client.predict({"text": "hangs"}, **{TIMEOUT_HEADER: "50"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
    assert client.app.state.service.batcher.backlog.accepted == 0
    model.gate.set()
    assert client.predict({"text": "fine"}, **{TIMEOUT_HEADER: "50000"}).status_code == 200


def test_the_servers_own_deadline_holds_without_a_header(serving, model):
    client = serving(workers=1, batching=BatchingLimits(timeout_s=0.05))
    model.gate.clear()
    assert client.predict({"text": "hangs"}).json()["code"] == "deadline-exceeded"


def test_a_full_server_answers_503_with_retry_after(serving, model):
    client = serving(workers=1, batching=BatchingLimits(requests=2))
    batcher = client.app.state.service.batcher
    model.gate.clear()
    first = client.start("POST", "/predict", json={"text": "holds the only worker"})
    wait_until(client, lambda: model.running)
    waiting = [client.start("POST", "/predict", json={"text": "waits"}) for _ in range(2)]
    wait_until(client, lambda: batcher.backlog.waiting == 2)
    answer = client.predict({"text": "one too many"})
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["retry_after_ms"] == 1000 * int(answer.headers["retry-after"])
    assert client.request("GET", "/health/ready").status_code == 200, "busy is not stuck"
    model.gate.set()
    assert all(future.result(30).status_code == 200 for future in (first, *waiting))


def test_readiness_notices_a_stuck_model_and_its_return(serving, model):
    client = serving(workers=1, batching=BatchingLimits(wait_s=0.01, stuck_after_s=0.02))
    model.gate.clear()
    hanging = client.start("POST", "/predict", json={"text": "hangs"})
    wait_until(client, lambda: client.app.state.service.batcher.stuck() is not None)
    ready = client.request("GET", "/health/ready")
    assert (ready.status_code, ready.json()["code"], ready.headers["retry-after"]) == (503, "stuck", "1")
    assert "1 of 1 workers" in ready.json()["detail"]
    assert client.request("GET", "/health/live").status_code == 200
    assert client.predict({"text": "meanwhile"}).json()["code"] == "stuck"
    model.gate.set()
    assert hanging.result(30).status_code == 200
    wait_until(client, lambda: client.app.state.service.batcher.stuck() is None)
    assert client.request("GET", "/health/ready").status_code == 200


def test_a_draining_application_refuses_and_is_not_ready(serving, model):
    client = serving(workers=1)
    model.gate.clear()
    accepted = client.start("POST", "/predict", json={"text": "accepted"})
    wait_until(client, lambda: model.running)
    client.portal.call(client.app.state.service.drain)
    for answer in (client.predict({"text": "new"}), client.request("GET", "/health/ready")):
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
    assert client.request("GET", "/health/live").status_code == 200
    model.gate.set()
    assert accepted.result(30).status_code == 200


def test_an_infinite_time_is_not_one_of_the_limits():
    with pytest.raises(ValueError, match="longest_timeout_s"):
        BatchingLimits(longest_timeout_s=math.inf)
