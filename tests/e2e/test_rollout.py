"""`companion serve --rollout --cache` and `companion rollout` as an operator meets them: real processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

COMPANION = [sys.executable, "-m", "companion.cli"]
MEBI = 1 << 20


class Server:
    """`companion serve` with a rollout, on a free port."""

    def __init__(self, folder: Path, home: Path, *options: object) -> None:
        self.key = home / "admin.key"
        self.key.write_text("0123456789abcdef0123456789abcdef\n")
        wanted = ["--port", 0, "--threads", 1, "--rollout", home / "state.json", "--admin-key", self.key]
        command = [*COMPANION, "serve", *map(str, [folder, *wanted, *options])]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + self.process.stderr.read()
        self.url = found[0]
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def rollout(self, *arguments: object, code: int = 0) -> Any:
        """Run `companion rollout` against it; return the status, or what it said on stderr.

        A process for each call takes seconds on a busy machine: `admin` does the same without one.
        """
        words = [*map(str, arguments), "--url", self.url, "--admin-key", str(self.key)]
        ended = subprocess.run(
            [*COMPANION, "rollout", *words, "--json"], capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == code, ended.stderr
        return json.loads(ended.stdout) if code == 0 else ended.stderr

    def admin(self, path: str = "", **body: object) -> Any:
        """Change the rollout, or look at it; return the status."""
        headers = {"X-Admin-Key": self.key.read_text().strip(), "X-Request-Timeout-Ms": "60000"}
        method = "POST" if path else "GET"
        answer = self.http.request(method, f"/admin/rollout{path}", headers=headers, json=body or None)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def version(self, text: str = "a lovely film", **headers: str) -> str:
        """Ask; return which version answered."""
        answer = self.http.post("/predict", json={"text": text}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-model-version"] == answer.json()["model_version"]
        return answer.headers["x-model-version"]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def run(folder: Path, *options: object) -> Server:
        started.append(Server(folder, tmp_path, *options))
        return started[-1]

    yield run
    for server in started:
        server.process.kill()
        server.process.communicate()


def settled(server: Server) -> Any:
    """Return the status once nothing is being loaded."""
    end = time.monotonic() + 120
    while (status := server.admin())["loading"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    return status


pytestmark = pytest.mark.timeout(600)
STAYS = ("stage", "canary", "by_header", "shadow")


def test_a_canary_survives_the_death_of_its_server(start, onnx_folder, fp32_folder, tmp_path):
    candidate = tmp_path / "candidate"
    shutil.copytree(fp32_folder, candidate)
    server = start(onnx_folder, "--cache", "memory")
    live = server.version()
    other = server.admin("/load", folder=str(candidate))["candidate"]["version"]
    before = server.rollout("canary", 0.5, "--by-header")
    callers = [f"caller-{number}" for number in range(40)]
    dealt = [server.version(**{"X-Sticky-ID": caller}) for caller in callers]
    assert set(dealt) == {live, other}
    assert server.version(**{"X-Rollout": "candidate"}) == other
    server.stop(signal.SIGKILL)

    server = start(onnx_folder, "--cache", "memory")
    after = settled(server)
    assert {name: after[name] for name in STAYS} == {name: before[name] for name in STAYS}
    assert (after["live"]["version"], after["candidate"]["version"]) == (live, other)
    assert [server.version(**{"X-Sticky-ID": caller}) for caller in callers] == dealt

    # The files turn to rubbish while it runs: what is loaded stays, and what is not is refused.
    (candidate / "model.onnx").write_bytes(b"rubbish" * 1000)
    assert server.version(**{"X-Rollout": "candidate"}) == other
    server.admin("/rollback")
    said = server.rollout("load", candidate, code=2)
    assert "version-refused" in said and "model.onnx" in said and said.count("\n") == 1
    assert server.version() == live

    # Whatever comes of the candidate's files, a server that starts again has its live version.
    shutil.rmtree(candidate)
    shutil.copytree(fp32_folder, candidate)
    server.admin("/load", folder=str(candidate))
    server.admin("/canary", share=0.5)
    (candidate / "model.onnx").write_bytes(b"rubbish" * 1000)
    server.stop(signal.SIGKILL)
    server = start(onnx_folder)
    after = settled(server)
    assert (after["stage"], after["live"]["version"]) == ("live", live)
    assert any("is live alone after this restart" in warning for warning in after["warnings"])
    assert server.version() == live
    assert server.stop() == 0


def test_a_promotion_survives_and_can_be_taken_back(start, onnx_folder, fp32_folder):
    server = start(onnx_folder)
    live = server.version()
    other = server.admin("/load", folder=str(fp32_folder))["candidate"]["version"]
    assert server.admin("/promote")["previous"]["version"] == live
    server.stop(signal.SIGKILL)
    server = start(onnx_folder)
    assert server.version() == other
    settled(server)
    server.admin("/rollback")
    assert server.version() == live
    assert "nothing to roll back" in server.rollout("rollback", code=2)


ROOM = 60 * MEBI
"""What a 6-layer encoder of 23 million INT8 weights takes, beyond the model of these tests: its weights twice
(as read, and laid out for the kernels) and its activations."""


def test_a_server_with_all_of_it_stays_small(start, onnx_folder, tmp_path):
    server = start(onnx_folder, "--cache", "memory", "--prediction-log", tmp_path / "log")
    for number in range(200):
        server.version("we went there in spring, " * (number % 30 + 1))
    assert psutil.Process(server.process.pid).memory_info().rss + ROOM < 250 * MEBI
    mapped = {Path(part.path).parts for part in psutil.Process(server.process.pid).memory_maps()}
    assert not {name for parts in mapped for name in parts} & {"torch", "transformers"}
