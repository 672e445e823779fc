"""Caches and a rollout in a served application: chosen by a setting, absent without it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from companion.deployment import create_app
from companion.deployment.batching.calibrating import WARM_UP
from companion.deployment.rollout import VersionFacts

KEY = "an-admin-key-of-enough-characters"
ADMIN = {"X-Admin-Key": KEY}
LABELS = ("negative", "positive")


@pytest.fixture
def admin_key(tmp_path: Path) -> Path:
    (tmp_path / "admin.key").write_text(KEY + "\n")
    return tmp_path / "admin.key"


class Versions:
    """Folders whose names are versions; each gets a model that a test can spoil."""

    def __init__(self, folder: Path, make: Callable[..., Any]) -> None:
        self.folder, self.make = folder, make
        self.models: dict[str, Any] = {}
        self.facts: dict[str, VersionFacts] = {}
        self.shape: dict[str, dict[str, Any]] = {}
        for name in ("v1", "v2", "v3"):
            (folder / name).mkdir()
            self.facts[name] = VersionFacts(name, LABELS, False, "tokens")

    def load(self, folder: Path, threads: int) -> Any:
        manifest = SimpleNamespace(model_version=folder.name)
        shape = {"labels": self.facts[folder.name].labels, **self.shape.get(folder.name, {})}
        self.models[folder.name] = self.make(manifest=manifest, **shape)
        return self.models[folder.name]

    def inspect(self, folder: Path) -> VersionFacts:
        return self.facts[folder.name]


@pytest.fixture
def versions(tmp_path: Path, model: Any) -> Versions:
    return Versions(tmp_path, type(model))


@pytest.fixture
def rolling(versions: Versions, admin_key: Path, running_client: Any) -> Iterator[Callable[..., Any]]:
    """Start an application with a rollout over `versions`."""
    with ExitStack() as stack:

        def start(folder: str = "v1", **settings: Any) -> Any:
            settings = {"rollout": versions.folder / "state.json", "admin_key": admin_key, **settings}
            app = create_app(
                versions.folder / folder, load=versions.load, inspect=versions.inspect, **settings
            )
            return running_client(app)

        yield start
        for model in versions.models.values():
            model.gate.set()
        stack.close()


def admin(client: Any, path: str = "", body: Any = None) -> dict[str, Any]:
    method = "GET" if not path else "POST"
    answer = client.request(method, f"/admin/rollout{path}", json=body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(client: Any) -> dict[str, float]:
    """Return the named events of /metrics."""
    found = {}
    for line in client.request("GET", "/metrics").text.splitlines():
        if line.startswith("companion_events_total{"):
            name, _, value = line.removeprefix('companion_events_total{event="').partition('"} ')
            found[name] = float(value)
    return found


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


# --- caches


def test_a_question_that_comes_again_is_not_run_again(serving, model, tmp_path):
    client = serving(cache="memory", prediction_log=tmp_path / "log")
    first, again = (client.predict({"text": "a fine film"}) for _ in range(2))
    batch = {"items": [{"text": "a fine film"}, {"text": "another"}]}
    both = client.request("POST", "/predict/batch", json=batch).json()["items"]
    assert [text for text, _ in model.seen].count("a fine film") == 1
    bodies = [first.json(), again.json(), both[0]["answer"]]
    assert len({json.dumps({**body, "request_id": ""}) for body in bodies}) == 1
    found = events(client)
    assert (found["exact-hit"], found["exact-miss"], found["exact-stored"]) == (2, 2, 2)
    client.portal.call(client.app.state.answerer.log.flush)
    lines = [json.loads(line) for file in (tmp_path / "log").iterdir() for line in file.open()]
    assert sorted(line.get("cached", False) for line in lines) == [False, False, True, True]
    assert len({json.dumps(line["probabilities"]) for line in lines if line["features"]["characters"] == 11})


def test_equal_questions_at_one_time_run_once(serving, model):
    client = serving(cache="memory", threads=2)
    model.gate.clear()
    waiting = [client.start("POST", "/predict", json={"text": "the same"}) for _ in range(5)]
    until(lambda: events(client).get("flight-joined") == 4)
    model.gate.set()
    assert {future.result(60).status_code for future in waiting} == {200}
    assert [text for text, _ in model.seen if text != WARM_UP] == ["the same"]
    assert client.app.state.service.batcher.backlog.accepted == 0


def test_answers_are_forgotten(serving, model):
    client = serving(cache="memory", cache_entries=1, cache_ttl_s=1000)
    for text in ("one", "two", "one"):
        client.predict({"text": text})
    assert [text for text, _ in model.seen if text != WARM_UP] == ["one", "two", "one"]


def test_problems_are_not_kept(serving, model):
    client = serving(cache="memory")
    assert [client.predict({"text": "boom"}).status_code for _ in range(2)] == [500, 500]
    assert len([text for text, _ in model.seen if text == "boom"]) == 2


def test_while_the_model_loads_a_cache_says_so(serving, model):
    model.gate.clear()
    client = serving(wait=False, cache="memory")
    assert client.predict({"text": "early"}).json()["code"] == "not-ready"
    model.gate.set()
    client.wait_until_settled()
    assert client.predict({"text": "early"}).status_code == 200


# --- rollout


def test_without_a_setting_there_is_no_rollout(client):
    answer = client.request("GET", "/admin/rollout", headers=ADMIN)
    assert answer.json()["code"] == "not-found"
    assert "admin" not in client.request("GET", "/openapi.json").text
    described = [layer.cls.__name__ for layer in client.app.user_middleware]
    assert described == ["RequestContext", "AccessGate", "RequestDeadline", "BodyLimit"]
    assert "x-model-version" not in client.predict({"text": "x"}, **{"X-Rollout": "nonsense"}).headers


def test_the_whole_way(rolling, versions):
    client = rolling()
    assert client.request("GET", "/health/ready").json()["model_version"] == "v1"
    answer = client.predict({"text": "x"})
    assert (answer.json()["model_version"], answer.headers["x-model-version"]) == ("v1", "v1")
    assert admin(client, "/load", {"folder": str(versions.folder / "v2")})["stage"] == "candidate"
    admin(client, "/canary", {"share": 0, "by_header": True})
    asked = {wish: client.predict({"text": "x"}, **{"X-Rollout": wish}) for wish in ("live", "candidate")}
    assert {wish: answer.headers["x-model-version"] for wish, answer in asked.items()} == {
        "live": "v1",
        "candidate": "v2",
    }
    assert asked["candidate"].json()["model_version"] == "v2"
    assert client.predict({"text": "x"}, **{"X-Rollout": "latest"}).json()["code"] == "invalid-input"
    assert client.request("GET", "/health/live", headers={"X-Rollout": "latest"}).status_code == 200
    admin(client, "/canary", {"share": 1})
    body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "bb"]}]}
    infer = client.request("POST", "/v2/models/companion/infer", json=body)
    assert (infer.json()["model_version"], infer.headers["x-model-version"]) == ("v2", "v2")
    admin(client, "/promote")
    assert client.request("GET", "/health/ready").json()["model_version"] == "v2"
    assert client.request("GET", "/v2/models/companion").json()["versions"] == ["v2"]
    assert client.predict({"text": "x"}).headers["x-model-version"] == "v2"
    admin(client, "/rollback")
    assert client.predict({"text": "x"}).headers["x-model-version"] == "v1"
    names = client.request("GET", "/metrics").text
    assert {f'route="/admin/rollout{path}"' in names for path in ("/promote", "/canary", "/load")} == {True}
