"""Where the time of a graph goes, by operator: onnxruntime's own profile, summed up.

The nodes are those that onnxruntime runs, after its own rewrites. They can differ from those in the file:
a product with a bias and a Gelu after it, say, may have become one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from companion.inference.manifest import MODEL
from companion.inference.predictor import OnnxPredictor
from companion.inference.sessions import open_session
from companion.inference.tables import table
from companion.inference.throughput.grouping import by_length

__all__ = ["OperatorProfile", "OperatorTime", "profile_feeds", "time_by_operator"]

Feed = Mapping[str, NDArray[Any]]

_WARMUP = 2  # passes over all batches that are not counted


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator.

    Attributes
    ----------
    operator : str
    nodes : int
        In the graph that runs.
    calls : int
        Of all of them, in one pass over the batches.
    seconds : float
        In one pass: for each node and batch the median of the passes, so that a node that the system
        interrupts once does not count.
    share : float
        Of the time of all operators.
    """

    operator: str
    nodes: int
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class OperatorProfile:
    """Where the time went.

    Attributes
    ----------
    rows : tuple of OperatorTime
        The slowest first.
    runs : int
        Batches of a pass.
    seconds : float
        Of one pass, with what is in no operator: for each batch the median of the passes.
    """

    rows: tuple[OperatorTime, ...]
    runs: int
    seconds: float

    def seconds_per_run(self, *operators: str) -> float:
        """Return the time of some operators in one batch, on average; without any given, of all."""
        rows = [row for row in self.rows if not operators or row.operator in operators]
        return sum(row.seconds for row in rows) / self.runs

    def nodes(self, operator: str) -> int:
        """Return how many nodes of an operator run."""
        return sum(row.nodes for row in self.rows if row.operator == operator)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {"runs": self.runs, "seconds": self.seconds, "rows": [asdict(row) for row in self.rows]}

    def text(self, *, most: int = 10) -> str:
        """Write a table for a terminal.

        Parameters
        ----------
        most : int
            Operators with a line of their own.
        """
        rows = list(self.rows[:most])
        if rest := self.rows[most:]:
            rows.append(
                OperatorTime(
                    f"{len(rest)} others",
                    sum(row.nodes for row in rest),
                    sum(row.calls for row in rest),
                    sum(row.seconds for row in rest),
                    sum(row.share for row in rest),
                )
            )
        shown = [
            {
                "operator": row.operator,
                "nodes": str(row.nodes),
                "ms a batch": f"{1e3 * row.seconds / self.runs:.3f}",
                "share": f"{row.share:.1%}",
            }
            for row in rows
        ]
        title = f"{1e3 * self.seconds / self.runs:.2f} ms a batch"
        return table(title, shown, left={"operator"})


def time_by_operator(
    folder: Path,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    repeats: int = 5,
    threads: int | None = None,
) -> OperatorProfile:
    """Say which operators an ONNX folder spends its time in.

    Parameters
    ----------
    folder : Path
    texts : sequence of str
        At least one; batches are those that the predictor would make.
    batch_size : int
    repeats : int
        Passes over all texts that count.
    threads : int, optional
        Default: the settings' threads.

    Returns
    -------
    OperatorProfile

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is missing or damaged, there are no texts, or a number is below 1.
    """
    predictor = OnnxPredictor(folder, threads=threads)
    encodings = predictor.encode(texts)
    groups = by_length([len(encoding.ids) for encoding in encodings], batch_size=batch_size)
    feeds = [predictor.feed([encodings[place] for place in places]) for places in groups]
    return profile_feeds(Path(folder) / MODEL, feeds, repeats=repeats, threads=threads)


def profile_feeds(
    model: Path | bytes, feeds: Sequence[Feed], *, repeats: int = 5, threads: int | None = None
) -> OperatorProfile:
    """Profile a graph on the same inputs, again and again.

    Parameters
    ----------
    model : Path or bytes
        A file, or a serialised model.
    feeds : sequence of mapping of str to ndarray
        The inputs of the runs.
    repeats : int
    threads : int, optional

    Returns
    -------
    OperatorProfile

    Raises
    ------
    ValueError
        When there are no inputs, or `repeats` is below 1.
    """
    if not len(feeds) or repeats < 1:
        raise ValueError(f"found {len(feeds)} batches and repeats {repeats}, expected at least one of each")
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "profile")
        for _ in range(_WARMUP + repeats):
            for feed in feeds:
                session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _summed(events, batches=len(feeds), repeats=repeats)


def _summed(events: Sequence[Mapping[str, Any]], *, batches: int, repeats: int) -> OperatorProfile:
    """Sum up the last passes. Times in the profile are whole microseconds."""
    whole = sorted((event for event in events if event.get("name") == "model_run"), key=lambda e: e["ts"])
    whole = whole[-repeats * batches :]
    starts = [event["ts"] for event in whole]
    micros: dict[tuple[str, str, int], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time") and event["ts"] >= starts[0]:
            batch = (bisect_right(starts, event["ts"]) - 1) % batches
            key = str(event["args"]["op_name"]), name, batch
            micros.setdefault(key, []).append(event["dur"])
    spent, nodes, calls = Counter[str](), dict[str, set[str]](), Counter[str]()
    for (operator, name, _), durations in micros.items():
        spent[operator] += statistics.median(durations)  # type: ignore[assignment]
        nodes.setdefault(operator, set()).add(name)
        calls[operator] += 1
    total = sum(spent.values())
    rows = [
        OperatorTime(
            operator, len(nodes[operator]), calls[operator], 1e-6 * time, time / total if total else 0.0
        )
        for operator, time in spent.most_common()
    ]
    runs = [statistics.median(event["dur"] for event in whole[batch::batches]) for batch in range(batches)]
    return OperatorProfile(tuple(rows), batches, 1e-6 * sum(runs))
