"""Metrics: what is counted, under few names, by one process and by several."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from companion.deployment.metrics import SECONDS, ServerMetrics
from companion.deployment.notes import RequestNotes
from companion.deployment.observing import ServingObserver, Unobserved


def read(text: str) -> dict[tuple[str, ...], float]:
    """Return all samples by name and label values, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metrics_of(client):
    answer = client.request("GET", "/metrics")
    assert answer.status_code == 200
    return read(answer.text)


def test_requests_by_route_status_and_code(client):
    client.predict({"text": "x"})
    client.predict({"text": "y"})
    client.predict({"text": ""})
    client.predict({"text": "boom"})
    client.request("GET", "/v2/models/no-such")
    client.request("GET", "/v2/models/companion")
    found = metrics_of(client)
    assert found["companion_requests_total", "ok", "POST", "/predict", "200"] == 2
    assert found["companion_requests_total", "invalid-input", "POST", "/predict", "422"] == 1
    assert found["companion_requests_total", "internal-error", "POST", "/predict", "500"] == 1
    assert found["companion_requests_total", "model-not-found", "GET", "/v2/models/{name}", "404"] == 1
    assert found["companion_requests_total", "ok", "GET", "/v2/models/{name}", "200"] == 1
    assert found["companion_request_seconds_count", "/predict"] == 4
    assert found["companion_request_seconds_bucket", "+Inf", "/predict"] == 4
    assert found["companion_model_info", "v-test"] == 1
    assert found["companion_requests_in_flight",] == 1, "the one that asks"


def test_texts_by_what_became_of_them(client):
    items = [{"text": "a"}, {"text": "b"}, {"text": "boom"}, {"text": ""}, 5]
    client.request("POST", "/predict/batch", json={"items": items})
    client.predict({"text": "boom"})
    found = metrics_of(client)
    assert found["companion_texts_total", "ok"] == 2
    assert found["companion_texts_total", "internal-error"] == 2
    assert found["companion_texts_total", "invalid-input"] == 2
    assert found["companion_requests_total", "ok", "POST", "/predict/batch", "200"] == 1


def test_in_flight_goes_up_and_down(client, model):
    model.gate.clear()
    waiting = [client.start("POST", "/predict", json={"text": "x"}) for _ in range(3)]
    # Each of them has begun before an answer to a later request is written, in one event loop.
    while metrics_of(client)["companion_requests_in_flight",] < 4:
        assert not any(future.done() for future in waiting)
    model.gate.set()
    assert [future.result(30).status_code for future in waiting] == [200] * 3
    assert metrics_of(client)["companion_requests_in_flight",] == 1


def test_whatever_is_asked_the_series_stay_few(client):
    for n in range(30):
        client.request("GET", f"/secret-{n}?q={n}")
        client.request(f"METHOD{n}", "/predict")
        client.request("GET", f"/v2/models/name-{n}")
        client.predict({"text": "x"}, **{"X-Request-ID": f"id-{n}"})
    before = client.request("GET", "/metrics").text
    found = read(before)
    assert found["companion_requests_total", "not-found", "GET", "other", "404"] == 30
    assert found["companion_requests_total", "method-not-allowed", "other", "/predict", "405"] == 30
    assert found["companion_requests_total", "model-not-found", "GET", "/v2/models/{name}", "404"] == 30
    for secret in ("secret", "METHOD", "name-", "id-"):
        assert secret not in before
    assert len({key for key in found if key[0] == "companion_requests_total"}) == 4


def test_open_metrics_when_it_is_asked_for(client):
    client.predict({"text": "x"})
    plain = client.request("GET", "/metrics", headers={"Accept": "text/plain;version=abc, */*"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    accept = "application/openmetrics-text;version=9.9.nonsense,text/plain"
    answer = client.request("GET", "/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


def test_what_the_batcher_tells():
    metrics = ServerMetrics()
    observers: list[ServingObserver] = [metrics, Unobserved()]
    for observer in observers:
        observer.queue(7, 0.25)
        observer.waited(0.02)
        observer.batch(texts=3, tokens=50, padded_tokens=60, seconds=0.01)
        observer.batch(texts=5, tokens=10, padded_tokens=10, seconds=0.01)
        observer.event("deadline-passed")
    content, _ = metrics.render("")
    found = read(content.decode())
    assert found["companion_queue_length",] == 7
    assert found["companion_queue_age_seconds",] == 0.25
    assert found["companion_queue_wait_seconds_bucket", "0.02"] == 1
    assert found["companion_queue_wait_seconds_bucket", "0.015"] == 0
    assert found["companion_batch_texts_sum",] == 8
    assert found["companion_batch_texts_bucket", "3.0"] == 1
    assert found["companion_tokens_total",] == 60
    assert found["companion_padded_tokens_total",] == 70
    assert found["companion_events_total", "deadline-passed"] == 1
    metrics.queue(0, 0)
    assert read(metrics.render("")[0].decode())["companion_queue_length",] == 0


def test_the_version_that_answered_last():
    metrics = ServerMetrics()
    for version in ("v1", "v1", "v2"):
        notes = RequestNotes("id", model_version=version)
        metrics.begin(notes)
        metrics.end(notes, 200, 0.01)
    found = read(metrics.render("")[0].decode())
    assert (found["companion_model_info", "v1"], found["companion_model_info", "v2"]) == (0, 1)


def test_servers_of_one_process_do_not_mix(serving):
    first, second = serving(), serving()
    first.predict({"text": "x"})
    assert ("companion_requests_total", "ok", "POST", "/predict", "200") in metrics_of(first)
    assert ("companion_requests_total", "ok", "POST", "/predict", "200") not in metrics_of(second)


def test_buckets_rise():
    assert list(SECONDS) == sorted(set(SECONDS))


WORKERS = textwrap.dedent(
    """
    import os, signal
    from companion.deployment.metrics import ServerMetrics
    from companion.deployment.notes import RequestNotes

    def work(requests):
        metrics = ServerMetrics()
        for _ in range(requests):
            notes = RequestNotes("id", "POST", "/predict", model_version="v1")
            notes.count("ok")
            metrics.begin(notes)
            metrics.end(notes, 200, 0.02)
        metrics.begin(notes)
        metrics.queue(requests, 1.0)
        return metrics

    def start(requests):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            work(requests)
            os.write(writing, b"done")
            signal.pause()
        os.read(reading, 4)
        return pid

    living, dead = start(4), start(5)
    os.kill(dead, signal.SIGKILL)  # as the kernel does it: no chance to tidy up
    os.waitpid(dead, 0)
    text = work(3).render("")[0].decode()
    os.kill(living, signal.SIGKILL)
    os.waitpid(living, 0)
    print(dead)
    print(text)
    """
)


@pytest.mark.timeout(600)
def test_one_worker_answers_for_all_and_the_dead_are_buried(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WORKERS]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    dead, _, text = answer.partition("\n")
    found = read(text)
    assert found["companion_requests_total", "ok", "POST", "/predict", "200"] == 12, "what was counted stays"
    assert found["companion_texts_total", "ok"] == 12
    assert found["companion_request_seconds_bucket", "0.02", "/predict"] == 12
    assert found["companion_request_seconds_bucket", "0.015", "/predict"] == 0
    assert found["companion_requests_in_flight",] == 2, "one each of the two that live"
    assert found["companion_queue_length",] == 7
    assert found["companion_queue_age_seconds",] == 1.0
    assert found["companion_model_info", "v1"] == 1
    assert list(tmp_path.glob("gauge_live*_*.db")), "the living keep theirs"
    assert not list(tmp_path.glob(f"gauge_live*_{dead}.db"))
