"""The independent witness: wrk, a load generator in C, asks the same server with the same texts.

It shares no line with the other generator, and sends several times as many requests with one core. Its loop
is closed: compare it with users, not with a rate.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from companion.deployment.loadtest.asking import Endpoint, bodies, path_of
from companion.deployment.loadtest.running import load_texts
from companion.deployment.loadtest.target import ready_state, target_of

__all__ = ["WrkReport", "lua_script", "witness", "wrk_binary", "wrk_report"]

_MARK = "companion-witness "
_PERCENTS = (50, 90, 95, 99)
_MOST_TEXTS = 2_000
_GRACE_S = 60.0


@dataclass(frozen=True)
class WrkReport:
    """What wrk measured.

    Attributes
    ----------
    requests : int
        Answered with any status.
    seconds : float
    errors : int
        Answers with a status of 400 or more, and requests without an answer.
    percentiles : mapping of int to float
        Seconds, of all answers, whatever their status.
    connections, threads : int
    """

    requests: int
    seconds: float
    errors: int
    percentiles: Mapping[int, float]
    connections: int
    threads: int

    @property
    def throughput(self) -> float:
        """Answers per second, those with an error status not counted."""
        return max(0, self.requests - self.errors) / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        percentiles = {str(percent): seconds for percent, seconds in self.percentiles.items()}
        return asdict(self) | {"throughput": self.throughput, "percentiles": percentiles}


def witness(
    url: str,
    connections: int = 16,
    seconds: float = 10,
    threads: int = 1,
    *,
    texts: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    endpoint: Endpoint = "predict",
    per_request: int = 1,
    model_name: str = "companion",
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    allow_remote: bool = False,
    binary: str | None = None,
) -> WrkReport:
    """Ask wrk how many requests a second a server answers.

    Parameters
    ----------
    url : str
        The server, such as ``"http://127.0.0.1:8000"``.
    connections : int
        Clients in a closed loop.
    seconds : float
        Rounded up to whole seconds: wrk has no others.
    threads : int
        No more than connections.
    texts, pairs : sequence of str, optional
        As for `loadtest`; the first 2,000 are sent in turn.
    endpoint, per_request, model_name
        As in `LoadPlan`.
    headers : mapping of str to str, optional
        Of every request; default: those of JSON.
    timeout : float
        Seconds after which wrk counts a request as not answered.
    allow_remote : bool
        Whether the server may be another machine.
    binary : str, optional
        Default: ``wrk`` on the path, or /usr/bin/wrk.

    Returns
    -------
    WrkReport

    Raises
    ------
    FileNotFoundError
        When there is no wrk.
    ConnectionError, ValueError
        As `loadtest`, or when wrk fails.
    """
    if not (1 <= threads <= connections and seconds > 0):
        raise ValueError(
            f"found {threads} threads, {connections} connections, {seconds} seconds, expected at least one "
            "of each, and no more threads than connections"
        )
    program = wrk_binary(binary)
    target = target_of(url, allow_remote=allow_remote)
    ready_state(target)
    chosen = list(load_texts() if texts is None else texts)[:_MOST_TEXTS]
    if not chosen:
        raise ValueError("there are no texts, expected at least one")
    second = None if pairs is None else pairs[: len(chosen)]
    script = lua_script(
        target.prefix + path_of(endpoint, model_name),
        bodies(endpoint, chosen, second, per_request=per_request),
        headers or {"Content-Type": "application/json"},
    )
    whole = max(1, -int(-seconds // 1))
    with tempfile.TemporaryDirectory(prefix="companion-wrk-") as folder:
        file = Path(folder) / "requests.lua"
        file.write_text(script, encoding="ascii")
        options = [
            f"-t{threads}",
            f"-c{connections}",
            f"-d{whole}s",
            "--timeout",
            f"{max(1, round(timeout))}s",
        ]
        command = [program, *options, "-s", str(file), target.origin]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=whole + timeout + _GRACE_S,
            stdin=subprocess.DEVNULL,
        )
    return wrk_report(ran.stdout, ran.stderr, connections, threads)


def wrk_binary(name: str | None = None) -> str:
    """Find wrk.

    Parameters
    ----------
    name : str, optional
        Default: ``wrk`` on the path, or /usr/bin/wrk.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        When there is none.
    """
    for candidate in ("wrk", "/usr/bin/wrk") if name is None else (name,):
        if found := shutil.which(candidate):
            return found
    wanted = "on the path or at /usr/bin/wrk" if name is None else f"at {name}"
    raise FileNotFoundError(f"wrk is not installed, expected {wanted}: apt-get install wrk")


def lua_script(path: str, requests: Sequence[str], headers: Mapping[str, str]) -> str:
    """Write the script that tells wrk what to send, and to say at its end what it measured.

    Parameters
    ----------
    path : str
    requests : sequence of str
        Bodies, ASCII alone.
    headers : mapping of str to str

    Returns
    -------
    str
        Each thread begins at another body.
    """
    written = "\n".join(f"  {_quoted(body)}," for body in requests)
    named = "\n".join(f"  [{_quoted(name)}] = {_quoted(value)}," for name, value in headers.items())
    percents = ", ".join(map(str, _PERCENTS))
    return f"""local bodies = {{
{written}
}}
local headers = {{
{named}
}}
local requests, count, threads = {{}}, 0, 0

function setup(thread)
  thread:set("first", threads * 97)
  threads = threads + 1
end

function init(arguments)
  for place, body in ipairs(bodies) do
    requests[place] = wrk.format("POST", {_quoted(path)}, headers, body)
  end
  count = first
end

function request()
  count = count + 1
  return requests[(count - 1) % #requests + 1]
end

function done(summary, latency, rates)
  local errors = summary.errors
  io.write(string.format({_quoted(_MARK)} .. "%d %d %d %d", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
  for _, percent in ipairs({{{percents}}}) do
    io.write(string.format(" %d", latency:percentile(percent)))
  end
  io.write("\\n")
end
"""


def _quoted(text: str) -> str:
    """Write a Lua string of ASCII: whatever could end or change it becomes a number."""
    plain = (
        sign if sign.isascii() and sign.isprintable() and sign not in '"\\' else f"\\{ord(sign):03d}"
        for sign in text
    )
    return f'"{"".join(plain)}"'


def wrk_report(output: str, errors: str, connections: int, threads: int) -> WrkReport:
    """Read what the script printed.

    Parameters
    ----------
    output, errors : str
        Of wrk.
    connections, threads : int
        That it was given.

    Returns
    -------
    WrkReport

    Raises
    ------
    ValueError
        When it is not there: wrk failed.
    """
    lines = [line for line in output.splitlines() if line.startswith(_MARK)]
    if not lines:
        said = (errors.strip() or output.strip()).splitlines() or ["no word of why"]
        raise ValueError(f"wrk measured nothing: {said[-1]}")
    requests, microseconds, status, broken, *latencies = map(int, lines[0].removeprefix(_MARK).split())
    # A connection that broke is no answer and in no count of requests; one with a bad status is.
    return WrkReport(
        requests + broken,
        microseconds / 1e6,
        status + broken,
        dict(zip(_PERCENTS, (latency / 1e6 for latency in latencies), strict=True)),
        connections,
        threads,
    )
