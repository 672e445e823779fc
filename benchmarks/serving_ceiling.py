"""The ceiling of `benchmarks/serving.py`: onnxruntime alone, on texts sorted by length beforehand."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from companion import inference
from companion.inference.manifest import MODEL
from companion.inference.sessions import open_session


@dataclass(frozen=True)
class Arrangement:
    """Sessions that run at once, the threads of each, and the texts of a batch."""

    sessions: int
    threads: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.sessions} x {self.threads}, batch {self.batch}"


def arrangements(cores: int, batches: Sequence[int] = (1, 2, 4, 8, 16)) -> list[Arrangement]:
    places = {(cores, 1), (1, cores)}
    return [Arrangement(*place, batch) for place in sorted(places) for batch in batches]


def texts_per_second(folder: Path, texts: Sequence[str], how: Arrangement, seconds: float) -> float:
    """Run batches for some seconds, tokens made and padded beforehand, and count the texts."""
    predictor = inference.OnnxPredictor(folder, threads=how.threads)
    sessions = [open_session(folder / MODEL, threads=how.threads) for _ in range(how.sessions)]
    encodings = predictor.encode(texts)
    groups = inference.by_length([len(encoding.ids) for encoding in encodings], batch_size=how.batch)
    feeds = [predictor.feed([encodings[place] for place in group]) for group in groups]
    random.Random(0).shuffle(feeds)  # so that part of them is like all of them
    lock, turn, done = threading.Lock(), cycle(feeds), [0] * how.sessions
    ready, end = threading.Barrier(how.sessions + 1), [0.0]

    def work(number: int) -> None:
        session = sessions[number]
        for feed in feeds[: len(feeds) // 16]:
            session.run(None, feed)
        ready.wait()
        while time.perf_counter() < end[0]:
            with lock:
                feed = next(turn)
            session.run(None, feed)
            done[number] += len(feed["input_ids"])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(how.sessions)]
    for worker in workers:
        worker.start()
    end[0] = math.inf
    ready.wait()
    start = time.perf_counter()
    end[0] = start + seconds
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - start)
