"""Processes against threads: one server with all threads, or several that share them. Ratios, in turns.

    python benchmarks/processes.py --folder ONNX_FOLDER [--processes 1 2] [--threads 2] [--repeats 3]

wrk asks, over 32 connections that stay open, for texts of mixed lengths. Every arrangement is started once a
round, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from store import Store

from companion import inference
from companion.settings import get_settings, usable_cores

RESULTS = Path(__file__).parent / "results" / "processes.json"
SCRIPT = """
local bodies = {%s}
local next = 0
request = function()
  next = next %% #bodies + 1
  return wrk.format("POST", "/predict", {["Content-Type"] = "application/json"}, bodies[next])
end
"""


def main() -> None:
    arguments = parse()
    names = ("threads", "seconds", "repeats", "connections")
    settings = {name: getattr(arguments, name) for name in names} | {
        "model": inference.read_manifest(arguments.folder).model_version,
        "processes": arguments.processes,
        "cores": usable_cores(),
    }
    row = Store(arguments.out, settings).measured("processes", lambda: compare(arguments))
    print("", "processes  requests/s (spread)      p99 ms  memory MiB  ratio to the first", sep="\n")
    for each in row["arrangements"]:
        print(
            f"{each['processes']:9}  {each['rate']:10.1f} ({min(each['rates']):.1f}-{max(each['rates']):.1f})"
            f"  {each['p99_ms']:9.1f}  {each['memory_mib']:10.0f}  {each['ratio']:.2f}"
        )


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a JSON file, gone on with if it is there")
    parser.add_argument("--folder", type=Path, required=True, help="an ONNX folder")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all arrangements in turns."""
    rounds: dict[int, list[dict[str, float]]] = {processes: [] for processes in arguments.processes}
    for turn in range(arguments.repeats):
        order = arguments.processes if turn % 2 == 0 else arguments.processes[::-1]
        for processes in order:
            rounds[processes].append(measure(arguments, processes))
    first = [found["rate"] for found in rounds[arguments.processes[0]]]
    return {
        "arrangements": [
            {
                "processes": processes,
                "rate": median(each["rate"] for each in found),
                "rates": [each["rate"] for each in found],
                "p99_ms": median(each["p99_ms"] for each in found),
                "memory_mib": median(each["memory_mib"] for each in found),
                "ratio": median(each["rate"] / one for each, one in zip(found, first, strict=True)),
            }
            for processes, found in rounds.items()
        ]
    }


def measure(arguments: argparse.Namespace, processes: int) -> dict[str, float]:
    """Start one arrangement, ask it, end it."""
    command = [sys.executable, "-m", "companion.cli", "serve", str(arguments.folder), "--port", "0"]
    command += ["--threads", str(arguments.threads), "--processes", str(processes)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line}{server.stderr.read()}")
        ask(found[0], arguments, seconds=1)
        answer = ask(found[0], arguments, seconds=arguments.seconds)
        whole = psutil.Process(server.pid)
        resident = sum(each.memory_info().rss for each in (whole, *whole.children(recursive=True)))
        return answer | {"memory_mib": resident / 2**20}
    finally:
        server.terminate()
        server.communicate()


def ask(url: str, arguments: argparse.Namespace, *, seconds: int) -> dict[str, float]:
    bodies = ", ".join(f"[==[{json.dumps({'text': text})}]==]" for text in inference.mixed_texts(512))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % bodies)
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{arguments.connections}",
            f"-d{seconds}s",
            "--latency",
            "-s",
            script.name,
            url,
        ]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told:
        raise SystemExit(f"some requests were refused: {told}")
    rate, p99 = re.search(r"Requests/sec:\s+([\d.]+)", told), re.search(r"99%\s+([\d.]+)(us|ms|s)", told)
    assert rate and p99, told
    return {"rate": float(rate[1]), "p99_ms": float(p99[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p99[2]]}


if __name__ == "__main__":
    main()
