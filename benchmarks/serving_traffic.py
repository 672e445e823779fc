"""The traffic of `benchmarks/serving.py`: bodies on disk, wrk that sends them, and what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCRIPT = """\
-- Sends each line of a file as the body of a POST, in turn, and counts the answers by status.
local requests, place, answers, unexplained, threads = {}, 0, {}, 0, {}

function setup(thread)
  table.insert(threads, thread)
end

function init(arguments)
  local headers = {["Content-Type"] = "application/json"}
  local pause = tonumber(arguments[3] or "0")
  if arguments[4] then headers["X-Request-Timeout-Ms"] = arguments[4] end
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", arguments[2], headers, line)
  end
  counted = ""
  if pause > 0 then  -- else neither function may be there: wrk is faster without
    math.randomseed(os.time())
    delay = function() return math.random(0, 2 * pause) end
    response = function(status, headers, body)
      answers[status] = (answers[status] or 0) + 1
      if (status == 429 or status == 503) and not (headers["Retry-After"] or headers["retry-after"]) then
        unexplained = unexplained + 1
      end
      local parts = {}
      for code, count in pairs(answers) do parts[#parts + 1] = '"' .. code .. '": ' .. count end
      counted = table.concat(parts, ", ")
      refused_without_retry_after = unexplained
    end
  end
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary, latency, requests)
  local thread = threads[1]
  io.write(string.format(
    '\\n{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d, '
      .. '"unexplained": %d, "answers": {%s}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    thread:get("refused_without_retry_after") or 0, thread:get("counted") or ""))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw in one run.

    Attributes
    ----------
    requests : int
        Answered, in whatever way.
    seconds : float
    p50_ms, p99_ms : float
    refused : int
        Answers with a status of 400 or more.
    broken : int
        Connections that failed, and answers that took longer than wrk waits.
    unexplained : int
        Answers 429 and 503 without Retry-After, where the statuses were counted.
    answers : mapping of str to int
        Answers by status, where they were counted.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    broken: int
    unexplained: int
    answers: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Answers a second that were none of an error."""
        return (self.requests - self.refused) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rate": self.rate}


def read(output: str) -> Load:
    """Read what the script wrote at the end of wrk's output."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise ValueError(f"wrk gave no result, but: {output.strip()[-300:]}")
    found = json.loads(lines[-1])
    return Load(
        requests=found["requests"],
        seconds=found["us"] / 1e6,
        p50_ms=found["p50_us"] / 1e3,
        p99_ms=found["p99_us"] / 1e3,
        refused=found["refused"],
        broken=found["broken"],
        unexplained=found["unexplained"],
        answers=found["answers"],
    )


class Traffic:
    """Texts to send, and the compiled client that sends them.

    `form` is how a server wants its texts: by the name of one (`text`) or of a list of them (`texts`).
    """

    def __init__(self, texts: Sequence[str], folder: Path, *, clients: int) -> None:
        self.texts, self.clients = list(texts), clients
        self.script = folder / "wrk.lua"
        self.script.write_text(SCRIPT, encoding="utf-8")
        self._folder = folder

    def body(self, text: str, form: str) -> dict[str, Any]:
        return {form: [text] if form.endswith("s") else text}

    def bodies(self, form: str) -> Path:
        path = self._folder / f"{form}.jsonl"
        if not path.exists():
            lines = [json.dumps(self.body(text, form)) + "\n" for text in self.texts]
            path.write_text("".join(lines), encoding="utf-8")
        return path

    def drive(
        self,
        port: int,
        seconds: float,
        *,
        form: str = "text",
        clients: int | None = None,
        pause_ms: int = 0,
        timeout_ms: int | None = None,
    ) -> Load:
        """Let all clients ask for some seconds, each anew when it is answered, or after a random pause."""
        clients = clients or self.clients
        command = [
            "wrk",
            "-t1",
            f"-c{clients}",
            f"-d{round(seconds)}s",
            "--timeout",
            "30s",
            "-s",
            str(self.script),
        ]
        words = [str(self.bodies(form)), "/predict", str(pause_ms)]
        if timeout_ms is not None:
            words.append(str(timeout_ms))
        command += [f"http://127.0.0.1:{port}", "--", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return read(done.stdout + done.stderr)
