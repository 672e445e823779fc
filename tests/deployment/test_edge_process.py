"""The edge in a process of its own: settings that only uvicorn, the environment and real sockets can show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from companion.deployment.keys import add_key

SERVER = textwrap.dedent(
    """
    import functools, json, sys
    import numpy as np
    from pathlib import Path
    from types import SimpleNamespace
    import companion.deployment.server as server

    class Model:
        labels, is_regression, max_length = ("no", "yes"), False, 128
        manifest = SimpleNamespace(model_version="v")
        def encode(self, texts, pairs=None):
            return [SimpleNamespace(ids=[int("boom" in text)], type_ids=[0]) for text in texts]
        def run(self, encodings):
            if any(encoding.ids[0] for encoding in encodings):
                raise RuntimeError("it broke")
            return np.array([[0.0, np.log(3)]] * len(encodings), dtype=np.float32)

    changes = json.loads(sys.argv[2])
    for name in ("api_keys", "log_file"):
        if name in changes:
            changes[name] = Path(changes[name])
    changes["trusted_proxies"] = tuple(changes.get("trusted_proxies", ()))
    server.create_app = functools.partial(server.create_app, load=lambda folder, threads: Model())
    server.serve(Path(sys.argv[1]), port=0, **changes)
    """
)
Start = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).touch()
    started: list[subprocess.Popen[str]] = []

    def run(**changes: object) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-c", SERVER, str(tmp_path), json.dumps(changes)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"serving on (http://127\.0\.0\.1:\d+) .*\n", line)
        assert found, line + process.stderr.read()
        return process, httpx.Client(base_url=found[1], timeout=60)

    yield run
    for process in started:
        process.kill()
        process.communicate()


def predict(client: httpx.Client, text: str = "x", **headers: str) -> httpx.Response:
    return client.post("/predict", json={"text": text}, headers=headers)


def test_keys_quota_and_log_of_a_real_server(start, tmp_path):
    token, _ = add_key(tmp_path / "keys", "mobile-app")
    process, client = start(
        api_keys=str(tmp_path / "keys"), rate="3/hour", log_requests=True, log_format="json"
    )
    assert predict(client).status_code == 401
    for expected in (200, 200, 200, 429):
        assert predict(client, **{"Authorization": f"Bearer {token}"}).status_code == expected
    assert client.get("/health/ready").status_code == 200
    assert 'key="' not in client.get("/metrics").text
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["status"], line["key"]) for line in lines] == [
        (401, None),
        (200, "mobile-app"),
        (200, "mobile-app"),
        (200, "mobile-app"),
        (429, "mobile-app"),
    ]
    assert token not in err


def test_messages_and_requests_share_a_file(start, tmp_path):
    log = tmp_path / "log"
    process, client = start(log_requests=True, log_format="json", log_file=str(log))
    assert predict(client, "boom", **{"X-Request-ID": "find-me"}).status_code == 500
    process.terminate()
    assert process.communicate(timeout=60)[1] == ""
    failure, request = [json.loads(line) for line in log.read_text().splitlines()]
    assert "find-me" in failure["event"] and "RuntimeError: it broke" in failure["exception"]
    assert (request["request_id"], request["status"]) == ("find-me", 500)


@pytest.mark.parametrize("trusted", [True, False])
def test_forwarded_addresses_count_only_from_a_trusted_proxy(start, trusted):
    _, client = start(rate="1/hour", trusted_proxies=["127.0.0.0/8"] if trusted else [])
    statuses = [predict(client, **{"X-Forwarded-For": f"10.0.0.{n}"}).status_code for n in (1, 2, 1)]
    assert statuses == ([200, 200, 429] if trusted else [200, 429, 429])
    # A client cannot buy a quota by writing the header itself: what the proxy added stands last.
    forged = predict(client, **{"X-Forwarded-For": "10.9.9.9, 10.0.0.1"}).status_code
    assert forged == 429
