"""Caches and a rollout in a served application: chosen by a setting, absent without it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from companion.deployment import ServerSettings, create_app
from companion.deployment.batching.calibrating import WARM_UP
from companion.deployment.caching import Certificate, HitBudget
from companion.deployment.rollout import RolloutSettings, VersionFacts

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
        self.opinion: dict[str, Callable[[Any], Any]] = {}
        for name in ("v1", "v2", "v3"):
            (folder / name).mkdir()
            self.facts[name] = VersionFacts(name, LABELS, False, "tokens")

    def load(self, folder: Path, threads: int) -> Any:
        manifest = SimpleNamespace(model_version=folder.name)
        shape = {"labels": self.facts[folder.name].labels, **self.shape.get(folder.name, {})}
        model = self.models[folder.name] = self.make(manifest=manifest, **shape)
        if folder.name in self.opinion:
            run, opinion = model.run, self.opinion[folder.name]
            model.run = lambda encodings: opinion(run(encodings))
        return model

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


def failing(logits: Any) -> Any:
    raise RuntimeError("secret: it broke")


def not_numbers(logits: Any) -> Any:
    return np.full_like(logits, np.nan)


@pytest.mark.parametrize("cache", [None, "memory"])
@pytest.mark.parametrize("opinion", [np.negative, failing, not_numbers])
def test_a_canary_that_goes_wrong_is_taken_back_within_a_hundred_answers(rolling, versions, opinion, cache):
    client = rolling(cache=cache, log_requests=False)
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    admin(client, "/canary", {"share": 1})
    for number in range(30):
        assert client.predict({"text": "good " * (number % 7 + 1)}).headers["x-model-version"] == "v2"
    versions.opinion["v2"] = opinion
    model = versions.models["v2"]
    run = model.run
    model.run = lambda encodings: opinion(run(encodings))
    bad = 0
    for number in range(400):
        answer = client.predict({"text": f"{number} " + "word " * (number % 60)})
        assert answer.status_code == 200, answer.text
        bad += answer.headers["x-model-version"] == "v2"
        if admin(client)["stage"] == "live":
            break
    status = admin(client)
    assert (status["stage"], status["live"]["version"]) == ("live", "v1")
    assert number < 100 and bad <= 100
    (event,) = [event for event in status["events"] if event["what"] == "rolled back"]
    assert event["automatic"]
    assert client.predict({"text": "after"}).headers["x-model-version"] == "v1"
    until(lambda: json.loads((versions.folder / "state.json").read_text())["candidate"] is None)


def test_a_promoted_version_that_fails_is_taken_back_and_no_client_notices(rolling, versions):
    client = rolling()
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    admin(client, "/promote")
    versions.models["v2"].run = failing
    for number in range(100):
        assert client.predict({"text": f"text {number}"}).json()["model_version"] == "v1"
        if admin(client)["stage"] == "live":
            break
    assert admin(client)["live"]["version"] == "v1"
    assert client.request("GET", "/health/ready").json()["model_version"] == "v1"


def test_a_shadow_is_asked_in_the_background_and_changes_no_answer(rolling, versions):
    client = rolling(cache="memory")
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    admin(client, "/shadow", {"share": 1})
    for number in range(20):
        assert client.predict({"text": f"text {number}"}).headers["x-model-version"] == "v1"
    until(lambda: admin(client)["trial"]["shadowed"] > 0)
    trial = admin(client)["trial"]
    assert trial["answered"] == 0
    assert trial["agreement"]["share"] == 1


def test_labels_in_another_order_do_not_change_what_is_read_by_place(rolling, versions):
    versions.facts["v2"] = replace(versions.facts["v2"], labels=LABELS[::-1])
    versions.opinion["v2"] = lambda logits: logits[:, ::-1]
    client = rolling()
    body = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "bb" * 9]}]}

    def outputs() -> Any:
        return client.request("POST", "/v2/models/companion/infer", json=body).json()

    before = outputs()
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    for path, share in (("/canary", {"share": 1}), ("/promote", None)):
        admin(client, path, share)
        after = outputs()
        assert (before["model_version"], after["model_version"]) == ("v1", "v2")
        assert after["outputs"] == before["outputs"]


def test_a_folder_that_is_no_version_is_refused_and_the_live_one_goes_on(rolling, versions):
    client = rolling(rollout_root=versions.folder)
    versions.opinion["v3"] = failing
    refusals = []
    for folder in (versions.folder / "v3", versions.folder / "nowhere", Path("/etc")):
        answer = client.request("POST", "/admin/rollout/load", json={"folder": str(folder)}, headers=ADMIN)
        assert (answer.status_code, answer.json()["code"]) == (422, "version-refused")
        refusals.append(answer.json()["detail"])
        assert client.predict({"text": "x"}).headers["x-model-version"] == "v1"
    assert "is not below" in refusals[2]
    assert admin(client)["stage"] == "live"


def test_the_gate_leaves_the_admin_to_the_admin_key_and_limits_the_body(rolling, tmp_path):
    from companion.deployment import Limits
    from companion.deployment.keys import add_key

    token, _ = add_key(tmp_path / "keys", "somebody")
    limits = Limits(characters=40, body_bytes=4000, batch_texts=5, batch_characters=100)
    client = rolling(api_keys=tmp_path / "keys", limits=limits, rate="2/hour")
    assert client.predict({"text": "x"}).json()["code"] == "unauthorized"
    refused = client.request("GET", "/admin/rollout", headers={"X-API-Key": token})
    assert (refused.status_code, refused.json()["code"]) == (401, "admin-key-required")
    assert refused.headers["www-authenticate"].startswith("AdminKey")
    for _ in range(3):
        assert client.request("GET", "/admin/rollout", headers=ADMIN).status_code == 200
    large = client.request("POST", "/admin/rollout/load", content=b"x" * 5000, headers=ADMIN)
    assert large.json()["code"] == "body-too-large"


def test_the_end_waits_for_every_version(rolling, versions):
    client = rolling(threads=2)
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    admin(client, "/canary", {"share": 0, "by_header": True})
    candidate, service = versions.models["v2"], client.app.state.service
    candidate.gate.clear()
    waiting = client.start("POST", "/predict", json={"text": "x"}, headers={"X-Rollout": "candidate"})
    until(lambda: candidate.running)
    client.portal.call(service.drain)
    assert client.predict({"text": "x"}).json()["code"] == "draining"
    assert client.request("GET", "/health/ready").json()["code"] == "draining"
    drained = client.portal.start_task_soon(service.drained)
    time.sleep(0.05)
    assert not drained.done()
    candidate.gate.set()
    assert waiting.result(60).status_code == 200
    drained.result(60)


def test_two_lines_are_shown_as_one(rolling, versions):
    client = rolling(threads=1, workers=1)
    admin(client, "/load", {"folder": str(versions.folder / "v2")})
    admin(client, "/canary", {"share": 0, "by_header": True})
    for name in ("v1", "v2"):
        versions.models[name].gate.clear()

    def waiting() -> float:
        text = client.request("GET", "/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("companion_queue_length ")]
        return float(line.split()[1])

    asked = [
        client.start("POST", "/predict", json={"text": f"{n}"}, headers={"X-Rollout": wish})
        for n in range(3)
        for wish in ("live", "candidate")
    ]
    until(lambda: waiting() == 4)
    for name in ("v1", "v2"):
        versions.models[name].gate.set()
    assert {future.result(60).status_code for future in asked} == {200}
    until(lambda: waiting() == 0)


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_ttl_s": 5.0}, "--cache-ttl is given but no cache"),
        ({"semantic_cache": Path("x")}, "--semantic-cache is given but no cache"),
        ({"cache": "redis"}, "the cache is neither 'memory' nor"),
        ({"cache": "redis://127.0.0.1:1/0", "cache_entries": 5}, "its own maxmemory"),
        ({"cache": "memory", "cache_entries": 0}, "expected at least 1"),
        ({"cache": "memory", "cache_ttl_s": 0.0}, "expected seconds"),
        ({"cache": "memory", "cache_ttl_s": float("nan")}, "expected seconds"),
        ({"admin_key": Path("x")}, "--admin-key is given but no rollout"),
        ({"rollout_root": Path("x")}, "--rollout-root is given but no rollout"),
        ({"rollout_settings": RolloutSettings()}, "rollout_settings is given but no rollout"),
        ({"rollout": Path("/")}, "is a folder, expected a file"),
        ({"rollout": Path("s"), "rollout_root": Path("nowhere")}, "is no folder"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**changes)


def test_no_rollout_without_an_admin_key(tmp_path, monkeypatch):
    def created(**settings: Any) -> Any:
        return create_app(tmp_path, rollout=tmp_path / "state.json", **settings)

    with pytest.raises(ValueError, match="COMPANION_ADMIN_KEY"):
        created()
    for content in ("", " \n", "short", "two words of enough characters"):
        (tmp_path / "key").write_text(content)
        with pytest.raises(ValueError, match="expected at least 16"):
            created(admin_key=tmp_path / "key")
    (tmp_path / "key").write_text("schlüssel" * 5, encoding="utf-8")
    with pytest.raises(ValueError, match="is not text"):
        created(admin_key=tmp_path / "key")
    with pytest.raises(FileNotFoundError):
        created(admin_key=tmp_path / "none")
    monkeypatch.setenv("COMPANION_ADMIN_KEY", KEY)
    assert created().state.service.rollout.status().stage == "loading"


def certificate(threshold: float | None, **changes: Any) -> dict[str, Any]:
    found = Certificate(
        threshold, "" if threshold else "too few", HitBudget(), 900, None, None, "hashed-words/64", "v-test"
    )
    return replace(found, **changes).to_dict()


def test_a_certificate_lets_similar_texts_hit(serving, model, tmp_path):
    (tmp_path / "certificate.json").write_text(json.dumps(certificate(0.8)))
    client = serving(cache="memory", semantic_cache=tmp_path / "certificate.json")
    first = client.predict({"text": "the film was a very lovely one"}).json()
    second = client.predict({"text": "the film was a very lovely one!"}).json()
    assert first["probabilities"] == second["probabilities"]
    found = events(client)
    assert found["semantic-hit"] == 1 and found["semantic-stored"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no certificate"),
        ("{", "is no certificate"),
        (json.dumps(certificate(None)), "allows no hit"),
        (json.dumps(certificate(0.8, embedder="v-test/mean/2")), "expected hashed-words/"),
    ],
)
def test_a_certificate_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "certificate.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        create_app(tmp_path, cache="memory", semantic_cache=tmp_path / "certificate.json")
