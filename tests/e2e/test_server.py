"""`companion serve` as a user runs it: a real process, a real exported model, real connections."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

COMMAND = [
    sys.executable,
    "-X",
    "importtime",
    "-c",
    "import sys; from companion.cli import main; sys.exit(main())",
]
TEXTS = [
    "A warm, funny and generous film.",
    "Not once did it manage to surprise me.",
    "ok",
    "It is long, " * 200,
    "日本語 \U0001f600 \u200b and <b>tags</b>\ttoo",
]


@dataclass
class Server:
    process: subprocess.Popen[str]
    stderr: Path

    def words(self) -> list[str]:
        """Return what it said on stderr, without the interpreter's list of imports."""
        lines = self.stderr.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith("import time:")]

    def modules(self) -> set[str]:
        """Return the top-level names of everything that the process has imported."""
        lines = self.stderr.read_text(encoding="utf-8").splitlines()
        names = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
        return {name.partition(".")[0] for name in names}

    def url(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in self.words():
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    return found[0]
            assert self.process.poll() is None, self.words()
            time.sleep(0.02)
        raise AssertionError(f"not ready after a minute: {self.words()}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def run(*arguments: object) -> Server:
        stderr = tmp_path / f"stderr-{len(servers)}"
        with stderr.open("w") as file:
            command = [*COMMAND, "serve", *map(str, arguments)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        servers.append(Server(process, stderr))
        return servers[-1]

    yield run
    for server in servers:
        server.process.kill()
        server.process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_answers_are_those_of_the_predictor_alone_or_many_at_once(start, onnx_folder):
    from companion.inference.predictor import OnnxPredictor

    server = start(onnx_folder, "--port", free_port())
    url = server.url()
    predictor = OnnxPredictor(onnx_folder)

    def ask(text):
        answer = httpx.post(f"{url}/predict", json={"text": text}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    expected = {text: predictor.probabilities([text])[0] for text in TEXTS}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, TEXTS * 8))
    for text, answer in zip(TEXTS * 8, answers, strict=True):
        got = np.array([answer["probabilities"][label] for label in predictor.labels], dtype=np.float32)
        assert np.array_equal(got, expected[text]), text
        assert answer["label"] == predictor.labels[int(expected[text].argmax())]
        assert answer["model_version"] == predictor.manifest.model_version


def test_nonsense_is_refused_and_the_server_lives_on(start, onnx_folder):
    url = start(onnx_folder, "--port", free_port()).url()
    json_type = {"content-type": "application/json"}
    nonsense = [
        (dict(content=b"{", headers=json_type), 422),
        (dict(content=b"\xff\xfe\x00", headers=json_type), 422),
        (dict(content=b'{"text": "\\ud800"}', headers=json_type), 422),
        (dict(content=b"[" * 200_000, headers=json_type), 422),
        (dict(json={"text": " "}), 422),
        (dict(json={"text": "a\0b"}), 422),
        (dict(json={"text": 1}), 422),
        (dict(json={"text": "a", "other": 1}), 422),
        (dict(json={"text": "a" * 100_000}), 422),
        (dict(json={"text": "a" * 3_000_000}), 413),
        (dict(content=iter([b" " * 100_000] * 30), headers=json_type), 413),
        (dict(content=b"text=a"), 415),
        (dict(content=b""), 422),
    ]
    with httpx.Client(base_url=url, timeout=60) as client:
        for request, status in nonsense:
            answer = client.post("/predict", **request)
            assert answer.headers["content-type"] == "application/problem+json", answer.text
            assert (answer.status_code, answer.json()["status"]) == (status, status), answer.text
        assert client.get("/nothing").json()["code"] == "not-found"
        assert client.get("/predict").json()["code"] == "method-not-allowed"
        for junk in (
            b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\n",
        ):
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
                raw.sendall(junk)
        assert client.post("/predict", json={"text": "still here"}).status_code == 200


def test_sigterm_answers_what_was_accepted_and_nothing_heavy_was_loaded(start, onnx_folder):
    server = start(onnx_folder, "--port", free_port())
    url = httpx.URL(server.url())
    body = b'{"text": "asked before the end"}'
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with socket.create_connection((url.host, url.port)) as slow:
        slow.settimeout(60)
        slow.sendall(head.encode() + b"\r\n\r\n" + body[:10])
        httpx.get(url.join("/health/live"))  # the loop has turned: the request above is in
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        with suppress(httpx.TransportError):
            while time.monotonic() < deadline:
                httpx.get(url.join("/health/live"))
        slow.sendall(body[10:])
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer
    out, _ = server.process.communicate(timeout=60)
    assert (server.process.returncode, out) == (0, "")
    assert len(server.words()) == 1, server.words()
    assert {"fastapi", "onnxruntime", "tokenizers"} <= server.modules(), "the list of imports was read"
    assert not {"torch", "transformers", "datasets", "pandas", "scipy", "sklearn"} & server.modules()


def test_ctrl_c_ends_it_cleanly(start, onnx_folder):
    server = start(onnx_folder, "--port", free_port())
    server.url()
    server.process.send_signal(signal.SIGINT)
    assert server.process.communicate(timeout=60) == ("", None)
    assert server.process.returncode == 0


def refused(server: Server) -> str:
    out, _ = server.process.communicate(timeout=60)
    assert (server.process.returncode, out) == (2, "")
    (line,) = server.words()
    return line


def test_port_in_use(start, onnx_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(start(onnx_folder, "--port", port))
    assert f"port {port}" in line
    assert "in use" in line
    assert "--port" in line


def test_folder_that_cannot_be_served(start, onnx_folder, tmp_path):
    assert "does not exist" in refused(start(tmp_path / "nowhere", "--port", free_port()))
    (tmp_path / "empty").mkdir()
    assert "companion export" in refused(start(tmp_path / "empty", "--port", free_port()))
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in onnx_folder.iterdir():
        content = path.read_bytes()
        (torn / path.name).write_bytes(content[:-1] if path.name == "model.onnx" else content)
    assert "model.onnx" in refused(start(torn, "--port", free_port()))
