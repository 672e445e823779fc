"""What an exact cache saves where traffic repeats, what equal questions cost, and Redis that dies."""

from __future__ import annotations

import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from companion.deployment.experiments.clients import SteadyClients
from companion.deployment.experiments.processes import ask, serving

__all__ = ["herd", "repeating", "saved", "without_redis"]

_EVENT = re.compile(r'^companion_events_total\{event="([\w-]+)"\} ([\d.]+)', re.MULTILINE)


def repeating(texts: Sequence[str], share: float, count: int, *, seed: int = 0) -> list[str]:
    """Make traffic in which a share of the requests was there before.

    Parameters
    ----------
    texts : sequence of str
        All different; as many as are new are taken, from the first on.
    share : float
        Of the requests, those that repeat an earlier one, drawn at random.
    count : int
    seed : int

    Returns
    -------
    list of str
        Exactly ``round(share * count)`` of them repeat.

    Raises
    ------
    ValueError
        When there are too few texts.
    """
    repeats = round(share * count)
    fresh = count - repeats
    if fresh > len(set(texts)) or fresh < 1:
        raise ValueError(f"found {len(set(texts))} different texts, expected at least {max(fresh, 1)}")
    rng = random.Random(f"repeating/{seed}")
    again = set(rng.sample(range(1, count), repeats))
    left, found = iter(dict.fromkeys(texts)), list[str]()
    for place in range(count):
        found.append(rng.choice(found) if place in again else next(left))
    return found


def saved(folder: Path, texts: Sequence[str], *, clients: int = 8) -> dict[str, Any]:
    """Ask a server with a cache in memory and one without for the same texts.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        In this order.
    clients : int
        Each asks for the next text when its last one is answered.

    Returns
    -------
    dict
        ``"requests"``; ``"runs"``: how many of them reached the model; ``"seconds"`` with and without a
        cache; ``"same"``: whether all answers were equal.
    """
    seconds, labels, events = [], [], dict[str, float]()
    for arguments in ((), ("--cache", "memory")):
        with serving(folder, "--threads", 1, *arguments) as server:
            ask(f"{server.url}/predict", {"text": "warm"})
            begun = time.monotonic()
            with SteadyClients(server.url, texts, count=len(texts), connections=clients) as asked:
                pass  # its end waits for all of them
            seconds.append(time.monotonic() - begun)
            labels.append(sorted((one.text, one.status, one.label or "") for one in asked.told))
            events = _events(server.url)
    spared = events.get("exact-hit", 0) + events.get("flight-joined", 0)
    return {
        "requests": len(texts),
        "runs": len(texts) - spared,
        "events": events,
        "seconds": {"without": seconds[0], "with": seconds[1]},
        "same": labels[0] == labels[1],
    }


def herd(folder: Path, text: str, *, clients: int = 24) -> dict[str, Any]:
    """Ask one question many times at the same moment.

    Parameters
    ----------
    folder : Path
        An exported model.
    text : str
    clients : int

    Returns
    -------
    dict
        ``"clients"``, ``"answered"``, and the server's ``"events"``.
    """
    with serving(folder, "--threads", 1, "--cache", "memory") as server:
        gate = threading.Barrier(clients)
        answered = list[int]()

        def one() -> None:
            gate.wait()
            answered.append(ask(f"{server.url}/predict", {"text": text}).status)

        threads = [threading.Thread(target=one) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"clients": clients, "answered": answered.count(200), "events": _events(server.url)}


def without_redis(
    folder: Path, texts: Sequence[str], *, rate: float = 60.0, gone_s: tuple[float, float] = (2.0, 4.5)
) -> dict[str, Any]:
    """Kill the Redis that holds a server's cache under load, and start it again.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        Asked in turn.
    rate : float
        Requests per second.
    gone_s : tuple of float
        When Redis is killed, and when it is back, in seconds; it ends two and a half seconds later.

    Returns
    -------
    dict
        ``"answers"``: for each request its second, latency and status; ``"gone"`` and ``"back"`` in seconds;
        ``"events"``.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as place, _redis(port, place) as process:
        arguments = ("--threads", 1, "--cache", f"redis://127.0.0.1:{port}/0")
        with (
            serving(folder, *arguments) as server,
            SteadyClients(server.url, texts, rate=rate) as clients,
        ):
            time.sleep(gone_s[0])
            process.send_signal(signal.SIGKILL)
            gone = clients.elapsed
            time.sleep(gone_s[1] - gone_s[0])
            with _redis(port, place):
                back = clients.elapsed
                time.sleep(2.5)
                events = _events(server.url)
                clients.stop()
    answers = [[round(one.due, 4), round(one.seconds, 5), one.status] for one in clients.told]
    return {"answers": answers, "gone": gone, "back": back, "events": events}


def _events(url: str) -> dict[str, float]:
    """Read the counters of events."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(count) for name, count in _EVENT.findall(text)}


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _redis(port: int, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed: apt-get install redis-server")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()
