"""Kills runs with SIGKILL wherever they are, resumes them, and compares them with runs left in peace.

    python tests/training/kills.py --kills 60

Each run is a process of its own, killed twice and then resumed to its end. A byte of shared memory tells in
which phase it died: in a step, while a checkpoint's tensors are written, while it is forced to the disk and
renamed, while older ones are pruned, while a checkpoint is read. Kills are aimed at each phase in turn, at a
random moment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = ("loading", "step", "writing", "renaming", "pruning", "reading", "finished")
TARGETS = ("step", "writing", "renaming", "pruning", "reading")
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Kill:
    """Where a process died: run, phase, epoch, optimizer steps done."""

    run: int
    workers: int
    phase: str
    epoch: int
    step: int


class Board:
    """What a child tells its parent, readable after its death: phase, visits of that phase, epoch, step."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 8)

    def enter(self, phase: str) -> int:
        before = self._bytes[0]
        self._bytes[0] = PHASES.index(phase)
        return before

    def leave(self, before: int) -> None:
        self._bytes[0] = before

    def progress(self, epoch: int, step: int) -> None:
        self._bytes[1], self._bytes[2] = epoch, step

    def clear(self) -> None:
        self._bytes[:] = bytes(8)

    @property
    def phase(self) -> str:
        return PHASES[self._bytes[0]]

    @property
    def place(self) -> tuple[int, int]:
        return self._bytes[1], self._bytes[2]


def watched(function: Callable[..., Any], board: Board, phase: str) -> Callable[..., Any]:
    """Wrap a function of the package so that the board shows when it runs."""

    def watching(*arguments: Any, **keywords: Any) -> Any:
        before = board.enter(phase)
        try:
            return function(*arguments, **keywords)
        finally:
            board.leave(before)

    return watching


def train(encoder: Path, examples: Sequence[Any], folder: Path | None, workers: int, result: Path) -> None:
    """Train to the end, from wherever the folder says, and write the hashes of what came out."""
    import torch

    from companion.models import load
    from companion.training import TrainingConfig, fit
    from companion.training.callbacks import Callback

    class Hashes(Callback):
        def on_end(self, state: Any) -> None:
            states = [
                (name, sorted(state.optimizer.state[parameter].items()))
                for name, parameter in state.model.named_parameters()
            ]
            self.optimizer = (
                digest(f"{n}.{key}" for n, items in states for key, _ in items),
                digest(value for _, items in states for _, value in items),
            )

    def digest(parts: Any) -> str:
        found = hashlib.sha256()
        for part in parts:
            found.update(part.encode() if isinstance(part, str) else part.detach().numpy().tobytes())
        return found.hexdigest()

    torch.set_num_threads(1)
    classifier = load(encoder, labels=LABELS)
    config = TrainingConfig(
        epochs=3,
        batch_size=16,
        learning_rate=3e-3,
        max_length=48,
        precision="fp32",
        checkpoint_every=2,
        keep=3,
        workers=workers,
    )
    hashes = Hashes()
    run = fit(
        classifier.model,
        classifier.tokenizer,
        examples,
        config=config,
        callbacks=[hashes],
        checkpoints=folder,
        resume=folder is not None,
    )
    weights = classifier.model.state_dict()
    result.write_text(
        json.dumps(
            {
                "weights": digest(item for name in sorted(weights) for item in (name, weights[name])),
                "optimizer": list(hashes.optimizer),
                "order": run.order,
                "losses": [record.loss for record in run.steps],
            }
        )
    )


def child(board: Board, arguments: tuple[Any, ...]) -> int:
    """Start a run in a process of its own; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from companion.training import checkpoints, loop
        from companion.training.callbacks import RunState

        checkpoints.write_tensors = watched(checkpoints.write_tensors, board, "writing")
        checkpoints.put_in_place = watched(checkpoints.put_in_place, board, "renaming")
        checkpoints.Checkpoints._prune = watched(checkpoints.Checkpoints._prune, board, "pruning")
        checkpoints.read_tensors = watched(checkpoints.read_tensors, board, "reading")
        inner = watched(loop._backward, board, "step")

        def stepping(state: RunState, *rest: Any, **keywords: Any) -> Any:
            board.progress(state.epoch, state.step)
            board.enter("step")  # until the next phase: the optimizer's step belongs to it
            return inner(state, *rest, **keywords)

        loop._backward = stepping
        train(*arguments)
        board.enter("finished")
        status = 0
    finally:
        os._exit(status)


def wait(pid: int, board: Board, target: str, after: int, delay: float) -> bool:
    """Kill a process some time after it enters a phase, from a step on; return whether it was alive then."""
    deadline = time.monotonic() + 120
    while board.phase != target or board.place[1] < after:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a run ended by itself with status {status}")
            return False
        if time.monotonic() > deadline:
            raise RuntimeError(f"no run reached the phase {target!r} within two minutes")
        time.sleep(0.0002)
    end = time.perf_counter() + delay
    while time.perf_counter() < end:
        pass
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def finish(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a resumed run ended with status {status}")


def campaign(
    encoder: Path, examples: Sequence[Any], folder: Path, *, kills: int, seed: int = 0
) -> tuple[list[Kill], list[str]]:
    """Kill at least so many times; return where, and what differed from the runs left in peace."""
    rng, board = random.Random(seed), Board()
    expected = {}
    for workers in (0, 2):
        file = folder / f"peace-{workers}.json"
        board.clear()
        finish(child(board, (encoder, examples, None, workers, file)))
        expected[workers] = json.loads(file.read_text())
    killed: list[Kill] = []
    differences: list[str] = []
    run = 0
    while len(killed) < kills or not set(TARGETS) <= {kill.phase for kill in killed}:
        workers, here, result = (0, 2)[run % 2], folder / f"run-{run}", folder / f"run-{run}.json"
        arguments = (encoder, examples, here, workers, result)
        deaths = []
        for attempt in range(2):
            board.clear()
            pid = child(board, arguments)
            target = TARGETS[(run + attempt) % len(TARGETS)]
            if target == "reading" and attempt == 0:
                target = "step"  # there is nothing to read yet
            # The first death in the first half, the second one later: both cross the ends of epochs.
            after = 0 if target == "reading" else rng.randrange(9 * attempt, 9 * attempt + 8)
            if wait(pid, board, target, after, rng.random() * 0.004):
                deaths.append(Kill(run, workers, board.phase, *board.place))
        run += 1
        if len(deaths) < 2:
            continue  # it got through: a run counts when it was killed twice
        killed += deaths
        board.clear()
        finish(child(board, arguments))
        found = json.loads(result.read_text())
        differences += [f"run {run - 1}: {key}" for key in found if found[key] != expected[workers][key]]
    return killed, differences


def report(killed: Sequence[Kill], differences: Sequence[str]) -> str:
    phases, epochs = Counter(kill.phase for kill in killed), Counter(kill.epoch for kill in killed)
    runs = len({kill.run for kill in killed})
    lines = [f"{len(killed)} kills in {runs} runs; different from a run left in peace: {len(differences)}"]
    lines += [f"  died while {phase:9} {phases[phase]:4}" for phase in PHASES if phases[phase]]
    lines += [f"  died in epoch {epoch + 1:6} {count:4}" for epoch, count in sorted(epochs.items())]
    lines += [f"  with {n} workers {sum(kill.workers == n for kill in killed):8}" for n in (0, 2)]
    return "\n".join([*lines, *differences])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["COMPANION_PROGRESS"] = "0"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conftest._write_encoder(folder)
        examples = conftest.toy_examples()[:96]
        killed, differences = campaign(
            folder / "model", examples, folder, kills=options.kills, seed=options.seed
        )
    print(report(killed, differences))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
