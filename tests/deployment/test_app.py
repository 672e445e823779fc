"""What the server answers when all goes well, and how it runs the model."""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from companion.deployment import Limits, create_app
from companion.deployment.answering import Question
from companion.deployment.batching import BatchingLimits


def test_answer_has_every_probability_at_full_precision(client, model):
    answer = client.predict({"text": "a fine film"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    expected = model.probabilities(["a fine film"])[0]
    assert body["probabilities"] == {"negative": float(expected[0]), "positive": float(expected[1])}
    assert body["probability"] == max(body["probabilities"].values())
    assert body["probabilities"][body["label"]] == body["probability"]
    assert np.float32(body["probability"]) == expected.max()
    assert body["model_version"] == "v-test"
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body) == {"label", "probability", "probabilities", "model_version", "request_id"}


def test_pair_reaches_the_model(client, model):
    assert client.predict({"text": "one", "pair": "two"}).status_code == 200
    assert client.predict({"text": "one", "pair": None}).status_code == 200
    assert model.seen[-2:] == [("one", "two"), ("one", None)]


def test_text_reaches_the_model_unchanged(client, model):
    text = "  Ärger \U0001f600 \t\n 日本 \u200b end "
    assert client.predict({"text": text}).status_code == 200
    assert model.seen[-1] == (text, None)


def test_regression_gives_a_score(serving, model):
    model.is_regression, model.labels = True, ()
    body = serving().predict({"text": "one", "pair": "two"}).json()
    assert set(body) == {"score", "model_version", "request_id"}
    assert body["score"] == float(model.logits(["one"])[0, 0])


def test_ready_only_after_a_real_inference(serving, model):
    model.gate.clear()  # the warm-up run hangs
    client = serving(wait=False)
    assert client.request("GET", "/health/live").json() == {"status": "live"}
    for answer in (client.request("GET", "/health/ready"), client.predict({"text": "early"})):
        assert answer.status_code == 503
        assert answer.json()["code"] == "not-ready"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["retry_after_ms"] == 1000
    assert model.seen == []
    model.gate.set()
    client.wait_until_settled()
    answer = client.request("GET", "/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "model_version": "v-test"})
    assert len(model.seen) == 1


@pytest.mark.parametrize("how", ["load", "warm-up"])
def test_model_that_cannot_be_loaded(serving, model, how, caplog):
    def load(folder, threads):
        if how == "load":
            raise ValueError("secret path /etc/model")
        model.labels = ()
        model.run = lambda encodings: 1 / 0
        return model

    client = serving(load=load)
    for answer in (client.request("GET", "/health/ready"), client.predict({"text": "x"})):
        assert (answer.status_code, answer.json()["code"]) == (503, "model-failed")
        assert "secret" not in answer.text
        assert "retry-after" not in answer.headers
    assert client.request("GET", "/health/live").status_code == 200
    assert isinstance(client.app.state.service.failure, ValueError | ZeroDivisionError)
    assert "could not be loaded" in caplog.text


def test_model_that_does_not_fit_its_labels_is_refused_at_the_start(serving, model):
    model.labels = ("one", "two", "three")
    client = serving()
    assert client.request("GET", "/health/ready").json()["code"] == "model-failed"
    assert "gives 2 numbers a text, expected 3" in str(client.app.state.service.failure)


@pytest.mark.parametrize(
    ("workers", "threads", "each", "count"),
    [(None, 3, 1, 3), (1, 3, 3, 1), (2, 5, 2, 2), (4, 2, 1, 4), (2, None, None, 2), (None, None, 1, None)],
)
def test_threads_are_shared_among_workers(model, workers, threads, each, count, monkeypatch):
    monkeypatch.setenv("COMPANION_THREADS", "6")
    got = []
    app = create_app(
        Path("here"),
        workers=workers,
        threads=threads,
        load=lambda *arguments: got.append(arguments) or model,
    )
    batcher = app.state.service._load_and_warm()
    assert got == [(Path("here"), each or 3)]
    assert batcher.backlog.idle == (count or 6)


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_without_workers_or_threads_there_is_no_application(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        create_app(Path("here"), **{name: 0})


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_runs_as_workers_and_the_event_loop_stays_free(serving, model, workers):
    client = serving(workers=workers)
    model.gate.clear()
    before = threading.active_count()
    waiting = [client.start("POST", "/predict", json={"text": f"text {n}"}) for n in range(12)]
    # The model is stuck, the loop is not: liveness answers meanwhile.
    assert client.request("GET", "/health/live").status_code == 200
    assert threading.active_count() == before, "requests that wait hold no thread"
    model.gate.set()
    answers = [future.result(30) for future in waiting]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert model.most_running <= workers
    texts = [text for text, _ in model.seen if text.startswith("text ")]
    assert sorted(texts) == sorted(f"text {n}" for n in range(12)), "each exactly once"


def test_the_oldest_rides_in_the_next_batch(serving, model):
    client = serving(workers=1, batching=BatchingLimits(batch_size=3))
    service = client.app.state.service
    model.gate.clear()
    # Tasks of one loop arrive in the order they are started; requests of a client need not.
    waiting = [
        client.portal.start_task_soon(partial(service.answer, Question("x" * (1 + n % 5)), deadline=math.inf))
        for n in range(12)
    ]
    left = ["x" * (1 + n % 5) for n in range(12)]
    model.gate.set()
    for future in waiting:
        future.result(30)
    for batch in model.batches:
        assert left[0] in batch
        for text in batch:
            left.remove(text)
    assert left == []


def test_every_answer_belongs_to_its_request(client, model):
    waiting = {n: client.start("POST", "/predict", json={"text": "x" * n}) for n in range(1, 40)}
    for n, future in waiting.items():
        expected = float(model.probabilities(["x" * n])[0, 1])
        assert future.result(30).json()["probabilities"]["positive"] == expected


def test_request_id_is_taken_when_it_is_harmless(client):
    answer = client.predict({"text": "x"}, **{"X-Request-ID": "abc-1.2_Z"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "abc-1.2_Z"


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, "a\tb", "ä", '"', "a;b", "<script>"])
def test_request_id_is_made_when_the_offered_one_is_not(client, offered):
    headers = {"X-Request-ID": offered.encode("latin-1")}
    made = client.request("GET", "/health/live", headers=headers).headers["x-request-id"]
    assert made != offered
    assert len(made) == 32
    assert made.isalnum()


def test_request_ids_differ(client):
    made = {client.request("GET", "/health/live").headers["x-request-id"] for _ in range(20)}
    assert len(made) == 20


def test_openapi_lists_problems_limits_and_both_answers(serving):
    schema = serving(Limits(characters=77)).request("GET", "/openapi.json").json()
    for path, statuses in {
        "/health/live": {"200", "500"},
        "/health/ready": {"200", "500", "503"},
        "/predict": {"200", "413", "415", "422", "500", "503", "504"},
    }.items():
        (operation,) = schema["paths"][path].values()
        assert set(operation["responses"]) == statuses
        for status in statuses - {"200"}:
            content = operation["responses"][status]["content"]
            reference = {"schema": {"$ref": "#/components/schemas/Problem"}}
            assert content == {"application/problem+json": reference}
    components = schema["components"]["schemas"]
    assert {"Problem", "InputError", "PredictRequest", "Classification", "Regression"} <= set(components)
    assert "HTTPValidationError" not in str(schema["paths"])
    request = components["PredictRequest"]
    assert request["additionalProperties"] is False
    assert request["properties"]["text"]["maxLength"] == 77
    assert request["properties"]["pair"]["anyOf"][0]["maxLength"] == 77


@pytest.mark.parametrize("field", ["characters", "body_bytes"])
def test_limits_must_let_something_through(field):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: 0})
