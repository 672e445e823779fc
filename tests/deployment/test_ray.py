"""Ray on this machine, for real: the server as an application of Ray Serve, and a file answered by actors."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from companion.deployment import ServerSettings
from companion.deployment.scaling import Replicas, build_app
from companion.inference import OfflineJob, OnnxPredictor, mixed_texts, predict_file

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a small cluster; give its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # A busy machine may take longer than the five seconds after which Ray kills its proxy.
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        import ray

        context = ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=80 * 2**20,
            log_to_driver=False,
        )
        try:
            yield context.address_info["gcs_address"]
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def url(cluster: str, onnx_folder: Path) -> Iterator[str]:
    """Run the application; give its address."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = build_app(
        onnx_folder, ServerSettings(threads=1), replicas=Replicas(least=1, most=2, check_s=0.5, up_s=600)
    )
    serve.run(app, name="companion", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.1)


def test_answers_and_errors_are_those_of_the_server(url, onnx_folder):
    predictor = OnnxPredictor(onnx_folder, threads=1)
    texts = list(mixed_texts(20))
    answer = httpx.post(
        f"{url}/predict/batch", json={"items": [{"text": text} for text in texts]}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found = [item["answer"] for item in answer.json()["items"]]
    got = [[each["probabilities"][label] for label in predictor.labels] for each in found]
    assert np.array_equal(np.array(got, dtype=np.float32), predictor.probabilities(texts))
    for request, status, code in (
        ({"json": {"text": ""}}, 422, "invalid-input"),
        ({"content": b"x" * 3_000_000}, 413, "body-too-large"),
    ):
        answer = httpx.post(f"{url}/predict", timeout=60, **request)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.get(f"{url}/nothing").json()["code"] == "not-found"
    assert httpx.get(f"{url}/health/ready").json()["model_version"] == predictor.manifest.model_version
    assert "companion_requests_total" in httpx.get(f"{url}/metrics").text


def replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        ours = os.getpid() in {parent.pid for parent in process.parents()}
        if ours and title.startswith("ray::ServeReplica:companion:companion"):
            found.append(process)
    return found


def test_a_replica_that_is_killed_is_replaced(url):
    (replica,) = replicas()
    replica.kill()
    until(lambda: [each.pid for each in replicas()] not in ([], [replica.pid]))

    def answered() -> bool:
        try:
            return httpx.post(f"{url}/predict", json={"text": "x"}, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    until(answered)


def test_a_file_answered_by_actors_is_the_same(cluster, onnx_folder, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in mixed_texts(100)))
    job = OfflineJob(onnx_folder, file, "text", batch_size=1, threads=1)
    predict_file(job, tmp_path / "here.jsonl")
    report = predict_file(job, tmp_path / "there.jsonl", processes=2, ray=cluster)
    assert report.rows == 100
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_what_makes_no_sense_is_refused(onnx_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"several replicas.*--redis"):
        build_app(onnx_folder, rate="1/minute")
    with pytest.raises(ValueError, match="processes is 2, expected 1"):
        build_app(onnx_folder, processes=2)
    with pytest.raises(ValueError, match="least <= most"):
        Replicas(least=3, most=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'companion\[scale\]'"):
        build_app(onnx_folder)
