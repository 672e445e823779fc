"""The process: what it refuses before it starts, when it is ready, how it ends. The model is a fake one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from companion.deployment import serve
from companion.deployment.server import listen

SLOW = textwrap.dedent(
    """
    import functools, sys, time
    from pathlib import Path
    from types import SimpleNamespace
    import companion.deployment.server as server

    import numpy as np

    class Model:
        labels, is_regression, max_length = ("no", "yes"), False, 128
        manifest = SimpleNamespace(model_version="v")
        def encode(self, texts, pairs=None):
            # The token is how long to sleep, in milliseconds; -1 until there is a file "go".
            def token(text):
                return int(1000 * float(text.split()[1])) if text.startswith("sleep ") else -(text == "wait")
            return [SimpleNamespace(ids=[token(text)], type_ids=[0]) for text in texts]
        def run(self, encodings):
            if encodings[0].ids[0]:
                print("running", flush=True)
            time.sleep(max(0, encodings[0].ids[0]) / 1000)
            while encodings[0].ids[0] < 0 and not (Path(sys.argv[1]) / "go").exists():
                time.sleep(0.01)
            return np.array([[0.0, 1.0]] * len(encodings), dtype=np.float32)

    def load(folder, threads):
        if sys.argv[2] == "fail":
            raise ValueError(f"{folder} does not match its manifest: export it again.")
        if sys.argv[2] == "slow":
            print("loading", flush=True)
            time.sleep(1.5)
        return Model()

    server.create_app = functools.partial(server.create_app, load=load)
    try:
        server.serve(Path(sys.argv[1]), port=0, threads=1)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("after", flush=True)
    """
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(how: str = "work") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW, str(folder), how]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"serving on (http://127\.0\.0\.1:\d+) \(stop with Ctrl\+C\)\n", line)
    assert found, line
    return found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_and_the_accepted_request_is_answered(start, number):
    process = start()
    url = address(process)
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=url) as idle:
        assert idle.get("/health/ready").status_code == 200  # its connection stays open
        answer = pool.submit(httpx.post, f"{url}/predict", json={"text": "sleep 1.0"}, timeout=30)
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        assert answer.result(30).json()["label"] == "yes"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "after\n", "")


def until_not_ready(url: str) -> httpx.Response:
    """Ask until the server says that it is about to stop."""
    until = time.monotonic() + 60
    while (answer := httpx.get(f"{url}/health/ready", timeout=30)).status_code == 200:
        assert time.monotonic() < until
    return answer


def test_who_comes_after_the_signal_is_told_to_go_elsewhere(start, folder):
    process = start()
    url = address(process)
    with ThreadPoolExecutor() as pool, httpx.Client(timeout=30) as open_before:
        assert open_before.get(f"{url}/health/ready").status_code == 200
        answer = pool.submit(httpx.post, f"{url}/predict", json={"text": "wait"}, timeout=120)
        assert process.stdout.readline() == "running\n"
        process.terminate()
        assert until_not_ready(url).json()["code"] == "draining"
        # Over a connection that was open before, and over a new one.
        for post in (open_before.post, partial(httpx.post, timeout=30)):
            refused = post(f"{url}/predict", json={"text": "late"})
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
        assert httpx.get(f"{url}/health/live", timeout=30).status_code == 200
        (folder / "go").touch()
        assert answer.result(120).json()["label"] == "yes"
    assert process.wait(120) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/health/live", timeout=30)


def test_a_second_interrupt_does_not_wait_for_a_model_that_hangs(start):
    process = start()
    url = address(process)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, f"{url}/predict", json={"text": "wait"}, timeout=120)
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert until_not_ready(url).json()["code"] == "draining"
        process.send_signal(signal.SIGINT)
        process.wait(60)
        with suppress(httpx.TransportError):
            assert answer.result(60).status_code == 500


def test_signal_while_the_model_loads(start):
    process = start("slow")
    assert process.stdout.readline() == "loading\n"
    process.terminate()
    assert process.communicate(timeout=30) == ("after\n", "")
    assert process.returncode == 0


def test_model_that_cannot_be_loaded_ends_the_process(start, folder):
    process = start("fail")
    message = f"{folder} does not match its manifest: export it again.\n"
    assert process.communicate(timeout=60) == ("", message)
    assert process.returncode == 2


def test_body_over_the_limit_on_a_real_connection(start):
    url = address(start())
    for _ in range(5):
        answer = httpx.post(f"{url}/predict", content=b" " * 3_000_000, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
        answer = httpx.post(f"{url}/predict", content=iter([b" " * 300_000] * 10), timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_port_in_use(folder, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} on {host} is in use: .* --port"):
            serve(folder, host=host, port=port)


def test_a_closed_server_gives_its_port_back():
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(ValueError, match="in use"):
        listen("127.0.0.1", port)
    with socket.create_connection(("127.0.0.1", port)), first.accept()[0]:
        first.close()
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_port_that_is_none(folder, port):
    with pytest.raises(ValueError, match=f"port is {port}, expected 0 to 65535"):
        serve(folder, port=port)


def test_host_that_is_not_here(folder):
    with pytest.raises(ValueError, match=r"192\.0\.2\.1.*not an address of this machine"):
        serve(folder, host="192.0.2.1", port=0)


def test_folder_that_is_missing_or_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist, expected .*companion export"):
        serve(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        serve(tmp_path / "file")
    with pytest.raises(ValueError, match=r"no manifest\.json and no model\.onnx, expected an exported model"):
        serve(tmp_path)


def test_importing_it_loads_neither_torch_nor_transformers():
    program = "import sys, json, companion.deployment; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    heavy = {"torch", "transformers", "datasets", "onnxruntime", "tokenizers", "numpy", "scipy", "pandas"}
    assert not heavy & set(json.loads(output)), "the model's libraries wait for the lifespan"
