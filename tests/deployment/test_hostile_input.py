"""Ten thousand bad requests: each refused as the description says, none of them hurts, and nothing leaks."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

import companion
from companion.deployment.problems import PROBLEMS

TOTAL = 10_000
BETWEEN = 250  # requests between two looks whether the server still answers
LEAKS = (
    "Traceback",
    "site-packages",
    'File "',
    "Error(",
    "Exception",
    "0x7f",
    str(Path(companion.__file__).parent),
)
BODIES: dict[str, Any] = {
    "predict": {"text": "a fine film", "pair": "or not"},
    "predict_batch": {"items": [{"text": "one"}, {"text": "two", "pair": "three"}]},
    "kserve_infer": {
        "id": "7",
        "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "bb"]}],
        "outputs": [{"name": "probabilities"}],
    },
    "rollout_load": {"folder": "somewhere", "other_tokenizer": False},
    "rollout_canary": {"share": 0.5, "by_header": True},
    "rollout_shadow": {"share": 0.5},
}
READING = ("kserve_model", "kserve_model_ready")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**70, -(10**400), float("nan"), float("inf"), [], {}, "", " \t\n", "\0"),
    *("\ud800", "x" * 41, "x" * 3000, [[[[]]]], ["a", None], {"text": {"text": "x"}}, "%s%n{0}", "'; --"),
    *("BYTES", [2], [-1], [2**63], [0, 0], ["x"] * 6, "../../etc/passwd", "\u202e\u0007", {"\ud800": 1}),
)
NAMES = ("__proto__", "text ", "Text", "", "a/b~c", "\ud800", "n" * 500, "$ref", "constructor", "0")
JUNK = (
    *(b"", b"null", b"[" * 3000, b'{"a":' * 600, b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"1e99999", b"9" * 3999),
    *(b'{"text": "\\ud800"}', b'{"text": "x"', b"NaN", b'"text"', b"\x00", b"a=b&c=d", b"x" * 5000),
)
TYPES = (
    b"",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
    b"application/jso",
    b"*",
)
WRONG_HEADERS = (
    *((b"x-request-timeout-ms", value) for value in (b"0", b"-1", b"1e3", b"soon", b"", b"\xb2", b"9" * 99)),
    *((b"x-api-key", value) for value in (b"", b"ck_wrong", b"\xff\xfe", b"k" * 5000)),
    (b"authorization", b"Bearer wrong"),
    (b"authorization", b"Bearer"),
    (b"x-admin-key", b"not-the-admin-key"),
    (b"x-rollout", b"latest"),
)

_HALF = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}|[\ud800-\udfff]")


@dataclass
class Sent:
    """One request, as the server's own process would hand it to the application."""

    path: str
    headers: list[tuple[bytes, bytes]]
    method: str = "POST"
    body: bytes = b""
    cuts: tuple[int, ...] = ()

    def chunks(self) -> list[bytes]:
        places = [0, *sorted(self.cuts), len(self.body)]
        return [self.body[begin:end] for begin, end in pairwise(places)]


@dataclass
class Got:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()


async def ask(app: Any, sent: Sent) -> Got:
    """Call the application: neither a client nor a task of its own for each request."""
    chunks, got = sent.chunks(), Got()

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.Event().wait()  # the client waits for its answer
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert got.status == 0
            got.status = message["status"]
            got.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            got.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": sent.path,
        "raw_path": sent.path.encode("utf-8", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": sent.headers,
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        "state": {},
    }
    await app(scope, receive, send)
    return got


# --- what is sent


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give each member of each container of a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def spoil(rng: random.Random, good: Any) -> bytes:
    """Spoil a document in one to three places, or its bytes."""
    document = copy.deepcopy(good)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        container, key = rng.choice([*places(document)] or [({"": 0}, "")])
        how = rng.random()
        if how < 0.55:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif how < 0.7:
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(NAMES)] = container[key] if how < 0.85 else rng.choice(VALUES)
        else:
            container *= rng.choice((0, 2, 400))
    whole = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.25 and whole:
        at = rng.randrange(len(whole))
        cut = whole[at + rng.randrange(3) :] if rng.random() < 0.7 else b""
        whole = whole[:at] + rng.randbytes(rng.randrange(4)) + cut
    return whole


def requests(name: str, path: str, headers: list[tuple[bytes, bytes]]) -> Iterator[Sent]:
    """Make requests that are bad, nearly all of them, for one operation; the same ones every time."""
    rng = random.Random(name)
    while True:
        sent = Sent(path, headers.copy())
        if name in READING:
            sent.method = "GET"
            letters = "companion.%~ \x7fé日\u202e\\:@?#;"
            wrong = "".join(rng.choices(letters, k=rng.choice((0, 1, 3, 9, 9, 300)))) or "Companion"
            sent.path = path.replace("{name}", wrong)
        else:
            sent.path = path.replace("{name}", "companion")
            kind = b"application/json"
            sent.body = rng.choice(JUNK) if rng.random() < 0.1 else spoil(rng, BODIES[name])
            if rng.random() < 0.08:
                kind, sent.body = rng.choice(TYPES), json.dumps(BODIES[name]).encode()
            sent.headers.append((b"content-type", kind))
            sent.cuts = tuple(rng.randrange(len(sent.body) + 1) for _ in range(rng.choice((0, 0, 1, 5))))
        if rng.random() < 0.06:
            wrong_name, value = rng.choice(WRONG_HEADERS)
            sent.headers = [pair for pair in sent.headers if pair[0] != wrong_name] + [(wrong_name, value)]
        yield sent


# --- what is expected


class Description:
    """What the server says of one operation of itself."""

    def __init__(self, document: dict[str, Any], name: str) -> None:
        found = [
            (path, operation)
            for path, methods in document["paths"].items()
            for operation in methods.values()
            if operation["operationId"] == name
        ]
        [(self.path, operation)] = found
        self.statuses = {int(status) for status in operation["responses"]}
        components = {"components": document["components"]}
        self.problem = jsonschema_rs.validator_for({"$ref": "#/components/schemas/Problem", **components})
        self.body = None
        if "requestBody" in operation:
            described = operation["requestBody"]["content"]["application/json"]["schema"]
            self.body = jsonschema_rs.validator_for({**described, **components})

    def allows(self, sent: Sent) -> bool:
        """Whether a request is a good one, so that 200 is right."""
        if self.body is None:
            return sent.path in ("/v2/models/companion", "/v2/models/companion/ready")
        if (b"content-type", b"application/json") not in sent.headers:
            return False
        try:
            # Half a surrogate pair is text in JSON and Python, but not in the validator.
            text = sent.body.decode(json.detect_encoding(sent.body), "surrogatepass")
            document = json.loads(_HALF.sub("?", text))
        except (ValueError, RecursionError):
            return False
        return bool(self.body.is_valid(document))

    def check(self, sent: Sent, got: Got) -> None:
        told = (sent, got)
        assert got.status in self.statuses and got.status < 500, told
        assert not [leak for leak in LEAKS if leak in got.text], told
        assert got.headers["x-request-id"], told
        if got.status == 200:
            assert self.allows(sent), told
            return
        document = json.loads(got.body)
        assert got.headers["content-type"] == "application/problem+json", told
        assert self.problem.is_valid(document), told
        assert document["status"] == got.status and len(got.body) < 8000, told
        assert document["code"] in {problem.code for problem in PROBLEMS}, told


@pytest.mark.parametrize("name", [*BODIES, *READING])
def test_ten_thousand_bad_inputs(everything, name):
    client, document, headers = everything
    described = Description(document, name)
    own = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    endless, statuses = requests(name, described.path, own), Counter[int]()
    count = TOTAL // len([*BODIES, *READING])

    async def some() -> list[tuple[Sent, Got]]:
        return [(sent, await ask(client.app, sent)) for sent in (next(endless) for _ in range(BETWEEN))]

    while sum(statuses[status] for status in statuses if status not in (200, 409)) < count:
        for sent, got in client.portal.call(some):
            described.check(sent, got)
            statuses[got.status] += 1
        assert statuses.total() < 2 * count, statuses  # else too many of them are good
        good = client.request("POST", "/predict", json={"text": "still there"}, headers=headers)
        assert good.status_code == 200, good.text
        client.request("POST", "/admin/rollout/unload", headers=headers)  # some folders were let in
    print(name, dict(sorted(statuses.items())))
    assert statuses[404] > 0 if name in READING else statuses[422] > count / 2, statuses
    assert "internal-error" not in client.request("GET", "/metrics").text
