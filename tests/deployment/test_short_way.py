"""The short way and the ordinary road answer alike: whatever is sent, by whichever of them."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.deployment import Limits
from companion.deployment.short_way import ShortWay

SHORT = {"Content-Type": "application/json", "X-Request-ID": "same"}
LONG = {"Content-Type": "application/json; charset=utf-8", "X-Request-ID": "same"}

texts = st.one_of(st.text(max_size=20), st.sampled_from(["boom", "nan", "untokenizable", "x" * 40]))
values = st.one_of(texts, st.none(), st.integers(), st.lists(texts, max_size=2))
documents = st.dictionaries(st.sampled_from(["text", "text", "pair", "other"]), values, max_size=3)
bodies = st.one_of(
    documents.map(lambda document: json.dumps(document).encode()),
    documents.map(lambda document: json.dumps(document, ensure_ascii=False).encode("utf-16")),
    st.binary(max_size=20),
    st.sampled_from(
        [
            b'{"text": "a", "text": "b"}',
            b'{"text": "\xff"}',
            b'{"text": "\\ud800"}',
            b'\xef\xbb\xbf{"text": "a"}',
            b'{"text": "a"} x',
            b'{"text": NaN}',
            b"[" * 100_000,
            b"",
        ]
    ),
)


@pytest.fixture
def took(monkeypatch):
    """Which way each request went."""
    seen = []
    own = ShortWay.__call__

    async def call(self, scope, receive, send):
        app, road = self.app, []

        async def noted(*arguments):
            road.append(True)
            await app(*arguments)

        self.app = noted
        try:
            await own(self, scope, receive, send)
        finally:
            self.app = app
            seen.append("long" if road else "short")

    monkeypatch.setattr(ShortWay, "__call__", call)
    return seen


def both(client, body):
    return [client.request("POST", "/predict", content=body, headers=way) for way in (SHORT, LONG)]


def test_only_the_ordinary_request_goes_the_short_way(serving, took):
    client = serving()
    both(client, b'{"text": "a film"}')
    both(client, b'{"text": 3}')
    client.request("GET", "/predict", headers=SHORT)
    client.request("POST", "/predict/batch", json={"items": [{"text": "a"}]})
    assert took == ["short", "long", "long", "long", "long", "long"]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
def test_both_say_the_same_to_everything(serving, body):
    client = _client(serving)
    short, long = both(client, body)
    assert short.status_code == long.status_code
    assert short.content == long.content
    assert dict(short.headers) == dict(long.headers)


def _client(serving):
    if not hasattr(serving, "client"):
        serving.client = serving(limits=Limits(characters=30))
    return serving.client


def test_both_count_the_same(serving):
    client = serving(limits=Limits(characters=30))
    for body in (b'{"text": "fine"}', b'{"text": "boom"}', b'{"text": "%s"}' % (b"x" * 31)):
        both(client, body)
    lines = client.request("GET", "/metrics").text.splitlines()
    counts = [
        line
        for line in lines
        if line.startswith(("companion_requests_total", "companion_texts_total")) and "/metrics" not in line
    ]
    assert len(counts) == 6
    assert all(line.endswith(" 2.0") for line in counts), counts


def test_a_body_that_grows_too_large_is_refused_on_the_short_way(serving):
    client = serving(limits=Limits(body_bytes=20))

    async def parts():
        for _ in range(3):
            yield b'{"text": "aa"}'

    answer = client.request("POST", "/predict", content=parts(), headers=SHORT)
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


def test_a_body_in_parts_is_read_whole_and_given_on_whole(serving, took):
    client = serving()

    async def parts(*these):
        for part in these:
            yield part
            await asyncio.sleep(0)

    good = client.request("POST", "/predict", content=parts(b'{"text":', b' "a film"}'), headers=SHORT)
    bad = client.request("POST", "/predict", content=parts(b'{"text":', b' "a film"'), headers=SHORT)
    assert (good.status_code, bad.json()["code"]) == (200, "malformed-json")
    assert took == ["short", "long"]


def test_a_server_below_another_address_answers(serving):
    client = serving()
    client.http._transport.root_path = "/models"
    assert client.request("POST", "/models/predict", json={"text": "a film"}).status_code == 200
