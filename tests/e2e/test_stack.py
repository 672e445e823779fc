"""`companion stack` as its user runs it: up, again up, a part that dies, killed halfway, down."""

from __future__ import annotations

import json
import os
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

from companion.deployment.stack import Stack, StackSettings, take_down


@pytest.fixture
def state(program: Callable[[str], str], tmp_path: Path) -> Iterator[Path]:
    for name in ("nginx", "redis-server", "prometheus"):
        program(name)
    yield tmp_path / "state"
    take_down(tmp_path / "state")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "companion.cli", "stack", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COMPANION_THREADS": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment)


def parts(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads(done.stdout)["parts"]}


def processes(state: Path) -> list[str]:
    """Return the command lines of whatever still runs of a stack, children of nginx included."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if str(state) in line and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line)
        except psutil.Error:
            continue
    return found


def test_up_again_up_a_part_that_dies_and_down(state, onnx_folder):
    options = (onnx_folder, "--servers", 2, "--port", 0, "--state", state, "--json")
    first = call("up", *options)
    assert first.returncode == 0, first.stderr
    assert list(parts(first)) == ["redis", "server-1", "server-2", "nginx", "prometheus"]
    assert all(part["ok"] for part in parts(first).values())
    url = json.loads(first.stdout)["url"]
    assert parts(call("up", *options)) == parts(first), "nothing was started twice"

    asked = httpx.post(f"{url}/predict", json={"text": "fine"}, headers={"X-Request-ID": "mine"})
    assert (asked.status_code, asked.json()["request_id"]) == (200, "mine")
    logged = (state / "logs" / "nginx.json").read_text().splitlines()[-1]
    assert json.loads(logged)["request_id"] == "mine" and "fine" not in logged
    assert httpx.get(f"{url}/metrics").status_code == 404
    seen = f"http://127.0.0.1:{parts(first)['prometheus']['port']}/api/v1"
    end = time.monotonic() + 60
    while (
        len(httpx.get(f"{seen}/query", params={"query": "companion_ready == 1"}).json()["data"]["result"]) < 2
    ):
        assert time.monotonic() < end, "Prometheus does not see both servers"
        time.sleep(0.2)
    assert len(httpx.get(f"{seen}/rules").json()["data"]["groups"]) == 2

    workers = psutil.Process(parts(first)["nginx"]["pid"]).children()
    os.kill(parts(first)["nginx"]["pid"], signal.SIGKILL)
    status = call("status", "--state", state, "--json")
    assert status.returncode == 1 and not parts(status)["nginx"]["ok"] and parts(status)["redis"]["ok"]
    other = call("up", onnx_folder, "--servers", 3, "--state", state)
    assert other.returncode == 2 and "companion stack down" in other.stderr and other.stderr.count("\n") == 1
    repaired = call("up", *options)
    assert repaired.returncode == 0, repaired.stderr
    assert parts(repaired)["nginx"]["pid"] != parts(first)["nginx"]["pid"]
    assert parts(repaired)["server-1"]["pid"] == parts(first)["server-1"]["pid"]
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)

    down = call("down", "--state", state)
    assert (down.returncode, down.stdout) == (0, "stopped nginx, server-1, server-2, prometheus, redis\n")
    assert processes(state) == []
    assert call("status", "--state", state).returncode == 1
    assert call("down", "--state", state).stdout == "nothing ran\n"


def test_killed_halfway_and_run_again(state, onnx_folder):
    options = (onnx_folder, "--servers", 1, "--port", 0, "--without", "prometheus", "--state", state)
    halfway = subprocess.Popen(command("up", *options), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (state / "run" / "server-1.pid").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    halfway.kill()
    halfway.wait()
    again = call("up", *options, "--json")
    assert again.returncode == 0, again.stderr
    assert all(part["ok"] for part in parts(again).values())
    assert call("down", "--state", state).returncode == 0
    assert processes(state) == []


def test_a_stack_that_cannot_come_up_is_taken_down_again(state, onnx_folder, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in onnx_folder.iterdir():
        content = path.read_bytes()
        (torn / path.name).write_bytes(content[:-1] if path.name == "model.onnx" else content)
    done = call("up", torn, "--servers", 1, "--port", 0, "--without", "prometheus", "--state", state)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "server-1 ended" in done.stderr and "model.onnx" in done.stderr
    assert processes(state) == []


def test_a_port_that_is_taken(state, onnx_folder):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("up", onnx_folder, "--port", port, "--state", state)
    assert done.returncode == 2 and f"port {port}" in done.stderr and "--port" in done.stderr
    assert processes(state) == []


def test_the_block_of_a_notebook(state, onnx_folder):
    settings = StackSettings(
        onnx_folder, servers=1, port=0, without=("nginx", "redis", "prometheus"), threads=1
    )
    with Stack(settings, state) as stack:
        assert [part.fault for part in stack.status()] == [None]
        assert httpx.get(f"{stack.url}/health/ready").status_code == 200
    assert processes(state) == []
