"""The same load in turns on servers that differ in one setting: a second process, the edge's features."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from companion.deployment.experiments.processes import serving
from companion.deployment.keys import add_key
from companion.deployment.loadtest import LoadPlan, loadtest
from companion.inference.timing import Timing, ratio

__all__ = ["compared", "edge_cost"]


def compared(
    folder: Path,
    variants: Mapping[str, Sequence[object]],
    texts: Sequence[str],
    *,
    users: int = 16,
    seconds: float = 2.0,
    repeats: int = 3,
    api_keys: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Start a server for each variant; let them take turns under a closed loop while the others idle.

    Parameters
    ----------
    folder : Path
        An exported model.
    variants : mapping of str to sequence
        Name to arguments of ``companion serve``. The first is what the others are compared with.
    texts : sequence of str
    users : int
        Clients that wait for their answers.
    seconds : float
        Of each turn.
    repeats : int
        Turns of each.
    api_keys : mapping of str to str, optional
        The key that a variant's clients send.

    Returns
    -------
    dict
        For each variant the requests per second of each turn, the ratio to the first with its spread,
        failures, and the resident memory of all its processes in bytes.
    """
    plan = LoadPlan(users=users, seconds=seconds, warmup=0.5)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    failed = dict.fromkeys(variants, 0)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, *arguments)) for name, arguments in variants.items()
        }
        for turn in range(repeats):
            order = list(variants)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                key = (api_keys or {}).get(name)
                report = loadtest(servers[name].url, replace(plan, api_key=key), texts)
                rates[name].append(report.throughput)
                failed[name] += report.counts.failed + report.counts.refused
        memory = {name: _memory(server.pid) for name, server in servers.items()}
    timings = {name: Timing(tuple(1 / rate for rate in found)) for name, found in rates.items()}
    first = next(iter(timings.values()))
    found: dict[str, Any] = {}
    for name, timing in timings.items():
        faster, spread = ratio(first, timing)
        found[name] = {
            "rates": rates[name],
            "faster": faster,
            "spread": list(spread),
            "failed": failed[name],
            "memory": memory[name],
        }
    return found


def edge_cost(
    folder: Path, texts: Sequence[str], *, seconds: float = 2.0, repeats: int = 3
) -> dict[str, Any]:
    """Compare a bare server with one that has keys, a rate limit, a request log and a prediction log.

    Parameters
    ----------
    folder, texts, seconds, repeats
        As for `compared`.

    Returns
    -------
    dict
        As `compared`.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        token, _ = add_key(place / "keys", "clients")
        everything = (
            *("--threads", 1, "--api-keys", place / "keys", "--rate", "1000000/minute"),
            *("--log-requests", "--log-format", "json", "--log-file", place / "requests.json"),
            *("--prediction-log", place / "predictions"),
        )
        return compared(
            folder,
            {"bare": ("--threads", 1), "with everything": everything},
            texts,
            seconds=seconds,
            repeats=repeats,
            api_keys={"with everything": token},
        )


def _memory(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
