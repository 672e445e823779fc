"""Who takes part in `benchmarks/serving.py`: each server with its settings, started and stopped."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

OURS = "companion"
APPS = Path(__file__).parent / "serving_apps"
PACKAGES = {
    "fastapi": ("fastapi", "uvicorn[standard]"),
    "litserve": ("litserve==0.2.19",),
    "mosec": ("mosec==0.9.8",),
    "bentoml": ("bentoml==1.4.38",),
    "ray": ("ray[serve]==2.60.0",),
}
"""What each peer's environment has, beside onnxruntime and tokenizers of our own versions."""


@dataclass(frozen=True)
class Candidate:
    """One server with one choice of processes, threads and batch size.

    Attributes
    ----------
    peer : str
        `OURS`, or a key of `PACKAGES`.
    processes, threads, batch : int
        Threads are those of one run of onnxruntime, in each process.
    wait_ms : float
        How long a batch may be waited for, where a server asks.
    """

    peer: str
    processes: int = 1
    threads: int = 1
    batch: int = 1
    wait_ms: float = 5

    @property
    def name(self) -> str:
        if self.peer == OURS:
            return OURS
        wait = f" within {self.wait_ms:g} ms" if self.batch > 1 and self.peer != "bentoml" else ""
        return f"{self.peer}, {self.processes} x {self.threads}, batch {self.batch}{wait}"

    @property
    def form(self) -> str:
        return "texts" if self.peer == "bentoml" and self.batch > 1 else "text"

    def command(self, python: Path, folder: Path, port: int, flags: Sequence[str] = ()) -> list[str]:
        if self.peer == OURS:
            serve = [sys.executable, "-m", "companion.cli", "serve", str(folder), "--port", str(port)]
            return [*serve, "--threads", str(self.processes * self.threads), *flags]
        words = {
            "--folder": folder,
            "--port": port,
            "--processes": self.processes,
            "--threads": self.threads,
            "--batch": self.batch,
            "--wait-ms": self.wait_ms,
        }
        return [str(python), f"{self.peer}_app.py", *(str(w) for pair in words.items() for w in pair)]


def ours(cores: int) -> Candidate:
    return Candidate(OURS, processes=1, threads=cores)


def variants(peer: str, cores: int) -> list[Candidate]:
    """List the settings that a peer is tried at; threads times processes are the cores."""
    one_each = Candidate(peer, processes=cores)
    if peer == "fastapi":
        # The last one: its pool of threads runs several texts at once, each on one core.
        return [one_each, Candidate(peer, threads=cores), Candidate(peer)]
    batched = [Candidate(peer, processes=cores, batch=size, wait_ms=wait) for size, wait in ((4, 2), (8, 5))]
    return [one_each, *batched, Candidate(peer, processes=cores, batch=32, wait_ms=10)]


@dataclass
class Started:
    """A server that answers."""

    port: int
    process: psutil.Process
    form: str
    _gone: dict[int, float] = field(default_factory=dict)

    def ask(self, text: str) -> dict[str, Any]:
        body = json.dumps({self.form: [text] if self.form.endswith("s") else text}).encode()
        address = f"http://127.0.0.1:{self.port}/predict"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            said = json.load(response)
        found: dict[str, Any] = said[0] if isinstance(said, list) else said
        return found

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of a core that the process and all below it have taken."""
        return sum(_or_nothing(lambda one=one: sum(one.cpu_times()[:2])) for one in self.family())

    def memory_mb(self) -> float:
        return sum(_or_nothing(lambda one=one: one.memory_info().rss) for one in self.family()) / 1e6


def _or_nothing(read: Any) -> float:
    try:
        return float(read())
    except psutil.Error:
        return 0.0


@contextmanager
def started(
    candidate: Candidate, python: Path, folder: Path, log: Path, *flags: str, limit_s: float = 300
) -> Iterator[Started]:
    """Start a server, wait until it answers, and leave nothing of it behind."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = candidate.command(python, folder.resolve(), port, flags)
    with log.open("w") as lines:
        process = subprocess.Popen(
            command,
            cwd=None if candidate.peer == OURS else APPS,
            env=environment,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
        server = Started(port, psutil.Process(process.pid), candidate.form)
        family: list[psutil.Process] = []
        try:
            _wait(server, process, candidate, log, limit_s)
            yield server
            family = server.family()[1:]
        finally:
            with suppress(psutil.Error):  # it may have ended by itself
                family = family or server.process.children(recursive=True)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _, left = psutil.wait_procs(family, timeout=5)
            for one in left:
                with suppress(psutil.Error):
                    one.kill()


def _wait(
    server: Started, process: subprocess.Popen[bytes], candidate: Candidate, log: Path, limit_s: float
) -> None:
    until = time.monotonic() + limit_s
    while True:
        try:
            server.ask("Is anybody there?")
            return
        except urllib.error.HTTPError as error:
            if error.code in (400, 405, 422):  # 404: it has no routes yet
                raise SystemExit(f"{candidate.name} says {error.code}: {error.read()[:600]!r}") from None
            time.sleep(0.2)
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                tail = log.read_text(errors="replace")[-600:]
                raise SystemExit(
                    f"{candidate.name} does not answer ({error}); its log ends: {tail}"
                ) from None
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment_of(peer: str, given: Mapping[str, Path], home: Path) -> Path:
    """Return a peer's Python: of the environment that was given, or of one made here."""
    folder = given.get(peer, home / peer)
    python = folder / "bin" / "python"
    if not python.exists():
        if peer in given:
            raise SystemExit(f"{folder} is no virtual environment: {python} is missing")
        import onnxruntime
        import tokenizers

        own = (f"onnxruntime=={onnxruntime.__version__}", f"tokenizers=={tokenizers.__version__}")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[peer], *own], check=True)
    return python.absolute()


def version_of(python: Path, peer: str) -> str:
    package = re.split(r"[\[=]", PACKAGES[peer][0])[0]
    read = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run(
        [str(python), "-c", read], capture_output=True, text=True, check=True
    ).stdout.strip()
