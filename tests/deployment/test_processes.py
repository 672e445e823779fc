"""Several processes behind one port: real ones, with a model that says which of them answered."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.deployment import ServerSettings, serve
from companion.deployment.scaling.board import FRESH_S, Board
from companion.deployment.scaling.dividing import check_alone, divide
from companion.deployment.scaling.restarting import Restarts

HERE = Path(__file__).parent
SERVER = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import process_fakes
    from companion.deployment import serve

    try:
        serve(Path(sys.argv[2]), load=process_fakes.load, port=0, threads=2, **json.loads(sys.argv[3]))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    """
)


class Running:
    def __init__(self, process: subprocess.Popen[str], stderr: Path) -> None:
        self.process, self.stderr = process, stderr

    def said(self) -> str:
        return self.stderr.read_text(encoding="utf-8")

    def url(self) -> str:
        until = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", self.said())):
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            time.sleep(0.02)
        return found[0]

    def members(self) -> set[int]:
        children = psutil.Process(self.process.pid).children()
        return {child.pid for child in children if "--multiprocessing-fork" in child.cmdline()}

    def ended(self) -> int:
        return self.process.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("manifest.json", "model.onnx"):
        (folder / name).touch()
    started: list[Running] = []

    def run(**changes: object) -> Running:
        stderr = tmp_path / f"stderr-{len(started)}"
        changes = {"processes": 2, **changes}
        with stderr.open("w") as file:
            command = [sys.executable, "-c", SERVER, str(HERE), str(folder), json.dumps(changes)]
            started.append(Running(subprocess.Popen(command, stderr=file, text=True), stderr))
        return started[-1]

    yield run
    for each in started:
        (folder / "go").touch()
        for pid in each.members() if each.process.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        each.process.kill()
        each.process.wait()


def ask(url: str, text: str = "x", *, tries: int = 1) -> str:
    """Ask over a connection of its own; say which process answered."""
    while True:
        tries -= 1
        try:
            answer = httpx.post(f"{url}/predict", json={"text": text}, timeout=60)
        except httpx.TransportError:
            assert tries > 0
            continue
        if answer.status_code == 200 or tries <= 0:
            assert answer.status_code == 200, answer.text
            version: str = answer.json()["model_version"]
            return version


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


def test_killed_started_again_counted_together_and_drained(start):
    server = start(log_requests=True, log_format="json")
    url = server.url()
    first = server.members()
    assert len(first) == 2
    with ThreadPoolExecutor(8) as pool:
        answered = Counter(pool.map(lambda _: ask(url), range(24)))
        asked = 24
        assert {int(version.removeprefix("pid-")) for version in answered} == first, "both have work"
        # One is killed in the middle of its work: the other goes on, and it is replaced.
        dead = min(first)
        os.kill(dead, signal.SIGKILL)
        assert len(list(pool.map(lambda _: ask(url, tries=5), range(8)))) == 8
        asked += 8
        until(lambda: len(server.members()) == 2 and dead not in server.members())
        (fresh,) = server.members() - first
        until(lambda: "is started again" in server.said())
        while ask(url) != f"pid-{fresh}":
            asked += 1
        asked += 1
        # Any of them counts for all, the dead one's requests included.
        found = {}
        for _ in range(6):
            text = httpx.get(f"{url}/metrics").text
            for line in text.splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    found[name] = float(value)
        ok = 'companion_requests_total{code="ok",method="POST",route="/predict",status="200"}'
        assert found[ok] == asked
        assert found["companion_requests_in_flight"] == 1, "the one that asks, and none of the dead"
        assert f'companion_model_info{{model_version="pid-{dead}"}}' not in found
        # The end: what was accepted by both is answered, and what comes later is refused with words.
        slow = [pool.submit(ask, url, "sleep 1.5") for _ in range(4)]
        until(lambda: "in_flight 5.0" in httpx.get(f"{url}/metrics").text)
        server.process.terminate()
        assert all(each.result(60).startswith("pid-") for each in slow)
    assert server.ended() == 0
    assert server.said().count("serving on") == 1
    lines = [json.loads(line) for line in server.said().splitlines() if line.startswith("{")]
    assert sum(line["event"] == "request" and line["status"] == 200 for line in lines) == asked + 4
    assert not [line for line in lines if "Traceback" in json.dumps(line)]


def test_a_process_that_cannot_answer_leaves_the_port_to_the_other(start):
    server = start(workers=2)
    url = server.url()
    (victim, other) = sorted(server.members())
    os.kill(victim, signal.SIGSTOP)
    time.sleep(2 * FRESH_S)
    try:
        assert {ask(url) for _ in range(10)} == {f"pid-{other}"}
        assert all(httpx.get(f"{url}/health/ready").status_code == 200 for _ in range(5))
    finally:
        os.kill(victim, signal.SIGCONT)
    until(lambda: ask(url) == f"pid-{victim}")
    # One that is told to end alone drains, and its place is filled; nobody who asks notices.
    os.kill(victim, signal.SIGTERM)
    for _ in range(30):
        ask(url)
    until(lambda: victim not in server.members() and len(server.members()) == 2)
    server.process.send_signal(signal.SIGINT)
    assert server.ended() == 0


def test_they_end_with_the_process_that_started_them(start):
    server = start()
    server.url()
    members = server.members()
    server.process.kill()
    server.process.wait()
    until(lambda: not any(psutil.pid_exists(pid) for pid in members))


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(start, tmp_path):
    (tmp_path / "model" / "broken").touch()
    server = start()
    assert server.ended() == 2
    assert server.said() == f"{tmp_path / 'model'} does not match its manifest: export it again.\n"


def test_what_makes_no_sense_is_refused(tmp_path):
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).touch()
    for changes, words in (
        ({"rate": "1/minute"}, "rates would be counted in each of several processes.*--redis"),
        ({"threads": 1}, "processes is 2, but there are 1 threads"),
        ({"threads": 2, "workers": 1}, "processes is 2, but there are 1 workers"),
        ({"processes": 0}, "processes is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            serve(tmp_path, port=0, **{"processes": 2, "threads": 2, **changes})
    check_alone(ServerSettings(rate="1/minute", redis="redis://127.0.0.1:6379/0"), "processes")


@given(st.integers(1, 8), st.integers(0, 20), st.none() | st.integers(0, 20))
def test_all_threads_and_workers_are_given_to_somebody(processes, threads, workers):
    threads += processes
    workers = None if workers is None else workers + processes
    shares = divide(ServerSettings(threads=threads, workers=workers), processes)
    given_threads = [share.threads for share in shares]
    assert (sum(given_threads), len(shares)) == (threads, processes)
    assert max(given_threads) - min(given_threads) <= 1
    assert {share.processes for share in shares} == {1}
    if workers is not None:
        assert sum(share.workers for share in shares) == workers


def test_patience_ends_and_comes_back():
    patience = Restarts(tries=4, first_s=1, longest_s=3, served_s=10)
    assert [patience.ended(ready_for_s=s) for s in (None, 9.9, None, 0)] == [0, 1, 2, 3]
    assert patience.ended(ready_for_s=10) == 0, "it had served"
    assert [patience.ended(ready_for_s=None) for _ in range(4)] == [1, 2, 3, None]


def test_notes_on_the_board_grow_old():
    now = [100.0]
    board = Board([0.0] * 9, clock=lambda: now[0])
    assert (board.others(0), board.silent_s(1)) == ([], None)
    board.beat(1, ready=True, connections=7)
    board.beat(2, ready=False, connections=1)
    assert (board.others(0), board.others(1)) == ([7], [])
    now[0] += FRESH_S
    assert (board.others(0), board.silent_s(1)) == ([], FRESH_S)
    board.beat(1, ready=True, connections=8)
    board.wipe(1)
    assert (board.others(0), board.silent_s(1)) == ([], None)
