"""Serving one INT8 model beside FastAPI, LitServe, mosec, BentoML and Ray Serve, and under overload.

    python benchmarks/serving.py --model INT8_FOLDER [--parts pick race ...] [--peers-env mosec=FOLDER ...]

All servers get the same exported folder, the same texts (lengths log-normal, median 24 words, 4 to 120), the
same cores and, processes times threads of onnxruntime, as many threads as cores; wrk drives them on these
cores with 32 clients. Their answers are compared with ours before anything is timed. `pick` finds the best
processes and batch size of each peer and of onnxruntime alone; `race` runs ours, these and that ceiling in
turns, in another order each round; `overload` asks ours for three times its peak. Without `--peers-env` an
environment is made for each peer with pip. Each measurement is written as soon as it is there: the same
command run again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from serving_candidates import (
    PACKAGES,
    Candidate,
    Started,
    environment_of,
    ours,
    started,
    variants,
    version_of,
)
from serving_ceiling import Arrangement, arrangements, texts_per_second
from serving_overload import overload
from serving_results import CEILING, best, median_of, text
from serving_traffic import Traffic
from store import Store

from companion import artifacts, inference
from companion.settings import usable_cores

RESULTS = Path(__file__).parent / "results" / "serving.json"
PARTS = ("pick", "race", "overload")
WARM_S = 3
TOLERANCE = 1e-6
CHECKED = 64


def main() -> None:
    arguments = parse()
    pin(arguments.cores)
    texts = inference.mixed_texts(arguments.texts, seed=arguments.seed)
    settings = {
        "model": inference.read_manifest(arguments.model).model_version,
        "texts": artifacts.digest(texts),
        "clients": arguments.clients,
        "cores": arguments.cores,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
    }
    store = Store(arguments.out, settings)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            arguments, store, Traffic(texts, Path(scratch), clients=arguments.clients), Path(scratch)
        )
        for part in arguments.parts:
            getattr(bench, part)()
    print(text(store.rows))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--model", type=Path, required=True, help="an exported INT8 folder")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a JSON file, gone on with if it is there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peers", nargs="*", choices=tuple(PACKAGES), default=tuple(PACKAGES))
    parser.add_argument(
        "--peers-env", nargs="+", type=_named, default=[], metavar="PEER=FOLDER", help="virtual environments"
    )
    parser.add_argument("--peers-home", type=Path, default=Path(tempfile.gettempdir()) / "serving-peers")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement of `race`")
    parser.add_argument("--pick-seconds", type=float, default=8, help="of each measurement of `pick`")
    parser.add_argument("--pick-rounds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--overload-seconds", type=float, default=20)
    parser.add_argument("--timeout-ms", type=int, default=1000, help="deadline of each request of `overload`")
    return parser.parse_args(words)


def _named(word: str) -> tuple[str, Path]:
    peer, equals, folder = word.partition("=")
    if peer not in PACKAGES or not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not PEER=FOLDER with a peer of {', '.join(PACKAGES)}")
    return peer, Path(folder)


def pin(cores: int) -> None:
    """Keep this process, and all that it starts, on so many cores."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores or usable_cores() < cores:
        raise SystemExit(f"{cores} cores are asked for, but {min(len(usable), usable_cores())} may be used")
    os.sched_setaffinity(0, usable[:cores])


class Bench:
    """What all parts share."""

    def __init__(self, arguments: argparse.Namespace, store: Store, traffic: Traffic, scratch: Path) -> None:
        self.arguments, self.store, self.traffic, self.scratch = arguments, store, traffic, scratch
        self.shuffle = random.Random(arguments.seed).shuffle
        given = dict(arguments.peers_env)
        self.pythons = {peer: environment_of(peer, given, arguments.peers_home) for peer in arguments.peers}

    def start(self, candidate: Candidate) -> Any:
        python = self.pythons.get(candidate.peer, Path())
        log = self.scratch / f"{candidate.peer}.log"
        return started(candidate, python, self.arguments.model, log)

    # --- pick: the best settings of each

    def pick(self) -> None:
        for peer, python in self.pythons.items():
            self.store.measured(f"version/{peer}", lambda p=python, n=peer: {"version": version_of(p, n)})
        for peer in self.pythons:
            for candidate in variants(peer, self.arguments.cores):
                self.store.measured(f"pick/{candidate.name}", partial(self.tried, candidate))
        for how in arrangements(self.arguments.cores):
            self.store.measured(f"ceiling/{how.name}", partial(self.alone, how))

    def tried(self, candidate: Candidate) -> dict[str, Any]:
        """Check a candidate's answers, and measure it a few times after one another."""
        with self.start(candidate) as server:
            moved = self.checked(candidate, server)
            self.traffic.drive(server.port, WARM_S, form=server.form)
            loads = [
                self.traffic.drive(server.port, self.arguments.pick_seconds, form=server.form)
                for _ in range(self.arguments.pick_rounds)
            ]
        return {
            "rate": median_of([load.rate for load in loads]),
            "rates": [load.rate for load in loads],
            "p99_ms": [load.p99_ms for load in loads],
            "failed": sum(load.refused + load.broken for load in loads),
            "largest_difference": moved,
        }

    def checked(self, candidate: Candidate, server: Started) -> float:
        """Compare answers with those of the predictor; return the largest difference of a probability."""
        predictor = inference.OnnxPredictor(self.arguments.model, threads=1)
        texts = self.traffic.texts[:CHECKED]
        largest = 0.0
        for one, row in zip(texts, predictor.probabilities(texts), strict=True):
            said = server.ask(one)
            expected = dict(zip(predictor.labels, row.tolist(), strict=True))
            off = max(abs(said["probabilities"][label] - value) for label, value in expected.items())
            largest = max(largest, off)
            if off > TOLERANCE or expected[said["label"]] != max(expected.values()):
                raise SystemExit(f"{candidate.name} says {said} to {one!r}, expected {expected}")
        return largest

    def alone(self, how: Arrangement) -> dict[str, Any]:
        seconds = self.arguments.pick_seconds
        run = partial(texts_per_second, self.arguments.model, self.traffic.texts, how, seconds)
        rates = [run() for _ in range(self.arguments.pick_rounds)]
        return {"rate": median_of(rates), "rates": rates}

    # --- race: the best of each, in turns

    def race(self) -> None:
        cores = self.arguments.cores
        entered = [ours(cores)]
        for peer in self.pythons:
            choices = {candidate.name: candidate for candidate in variants(peer, cores)}
            entered.append(choices[best(self.store.rows, list(choices))])
        ceilings = {how.name: how for how in arrangements(cores)}
        ceiling = ceilings[best(self.store.rows, list(ceilings), "ceiling")]
        self.store.measured("checked/companion", lambda: self.tried(ours(cores)))
        for number in range(1, self.arguments.rounds + 1):
            self.store.measured(f"race/{number}", partial(self.round, entered, ceiling))

    def round(self, entered: Sequence[Candidate], ceiling: Arrangement) -> dict[str, Any]:
        turns: list[Candidate | Arrangement] = [*entered, ceiling]
        self.shuffle(turns)
        found: dict[str, Any] = {}
        for turn in turns:
            if isinstance(turn, Candidate):
                found[turn.name] = self.timed(turn)
            else:
                seconds = self.arguments.seconds
                rate = texts_per_second(self.arguments.model, self.traffic.texts, turn, seconds)
                found[CEILING] = {"rate": rate}
        return {"order": list(found), "ceiling": ceiling.name, "candidates": found}

    def timed(self, candidate: Candidate) -> dict[str, Any]:
        with self.start(candidate) as server:
            self.traffic.drive(server.port, WARM_S, form=server.form)
            before = server.cpu_s()
            load = self.traffic.drive(server.port, self.arguments.seconds, form=server.form)
            cpu_ms = 1000 * (server.cpu_s() - before) / max(1, load.requests)
            memory = server.memory_mb()
        return {
            "rate": load.rate,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
            "failed": load.refused + load.broken,
            "cpu_ms": cpu_ms,
            "memory_mb": memory,
        }

    # --- overload

    def overload(self) -> None:
        for number in range(1, 4):
            self.store.measured(f"overload/{number}", self.overloaded)

    def overloaded(self) -> dict[str, Any]:
        with self.start(ours(self.arguments.cores)) as server:
            return overload(
                server,
                self.traffic,
                self.arguments.overload_seconds,
                times=3,
                timeout_ms=self.arguments.timeout_ms,
            )


if __name__ == "__main__":
    main()
