"""What a load test found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from companion.deployment.loadtest.plan import LoadPlan
from companion.inference.intervals import Percentile

__all__ = [
    "GeneratorUse",
    "Knee",
    "LoadCounts",
    "LoadReport",
    "LoadSecond",
    "LoadStep",
    "Patience",
    "Trouble",
]


@dataclass(frozen=True)
class LoadCounts:
    """What became of the requests that were due while it was measured.

    Requests that are in flight when a test is interrupted are in none of the numbers.

    Attributes
    ----------
    due : int
        Requests that clients wanted answered.
    ok, failed : int
        Of those, how many were answered, and how many failed.
    refused : int
        Refusals: 429 or 503. A client that tries again may be refused several times.
    unsent : int
        Of those due, how many were never sent: all connections were taken until the end.
    late : int
        Of those due, how many had to wait for a connection.
    """

    due: int
    ok: int
    refused: int
    failed: int
    unsent: int
    late: int


@dataclass(frozen=True)
class Trouble:
    """One kind of answer that is none, and how often it came.

    Attributes
    ----------
    outcome : str
        ``"refused"`` or ``"failed"``.
    status : int
        0 where there was no answer.
    title : str
        Of the problem document, or what happened.
    count : int
    """

    outcome: str
    status: int
    title: str
    count: int


@dataclass(frozen=True)
class LoadSecond:
    """One second of the test.

    Attributes
    ----------
    second : int
        From 0, warm-up and all steps included.
    length : float
        Seconds that it lasted: a step may end within one.
    warmup : bool
        Whether it began before measuring did.
    rate : float or None
        Requests per second by the timetable; None in a closed loop.
    users : int
        Clients of a closed loop, or the connections of an open one.
    due, ok, refused, failed : int
        Requests that were due in it; answers, refusals and failures that came in it.
    p50, p99, slowest : float or None
        Seconds, of the requests due in it that were answered. p99 needs a hundred of them.
    """

    second: int
    length: float
    warmup: bool
    rate: float | None
    users: int
    due: int
    ok: int
    refused: int
    failed: int
    p50: float | None
    p99: float | None
    slowest: float | None


@dataclass(frozen=True)
class GeneratorUse:
    """What the sending process itself needed: it runs on one core.

    Attributes
    ----------
    cpu : float
        Share of one core that it used while it was measured.
    busiest : float
        The same, in its busiest second.
    lag_p50, lag_p99 : float
        Seconds by which it woke up late; they are part of every latency.
    limit : str or None
        Why the generator may have been the limit, or None.
    """

    LATE_S: ClassVar[float] = 0.01
    """A generator that is later than this every other time shares its core with others."""

    cpu: float
    busiest: float
    lag_p50: float
    lag_p99: float
    limit: str | None

    @property
    def starved(self) -> bool:
        """Whether it did not get its core when it wanted it: others, perhaps the server, had it."""
        return self.lag_p50 > self.LATE_S


@dataclass(frozen=True)
class Patience:
    """What the refusals said of trying again.

    Attributes
    ----------
    honoured : bool
        Whether the clients waited as long as they were told.
    named : int
        Refusals that had a usable Retry-After.
    shortest, longest : float or None
        Seconds.
    """

    honoured: bool
    named: int
    shortest: float | None
    longest: float | None


@dataclass(frozen=True)
class LoadStep:
    """One rate of a ramp, or the whole of another test.

    Attributes
    ----------
    rate : float or None
        By the timetable, in requests per second; None in a closed loop.
    seconds : float
        That were measured.
    throughput : float
        Answers per second.
    counts : LoadCounts
    latency : tuple of Percentile
        Seconds from when a request was due to its answer. Where requests were never sent, the time that they
        had waited counts, so that the percentiles are lower bounds.
    service : tuple of Percentile
        Seconds from when a request was really sent.
    generator : GeneratorUse
    broke : str or None
        Why the server did not follow this rate, or None where it did.
    """

    rate: float | None
    seconds: float
    throughput: float
    counts: LoadCounts
    latency: tuple[Percentile, ...]
    service: tuple[Percentile, ...]
    generator: GeneratorUse
    broke: str | None = None

    @property
    def offered(self) -> float:
        """Requests that were really due per second; a Poisson process has more or fewer than its rate."""
        return self.counts.due / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return asdict(self) | {
            "offered": self.offered,
            "latency": [found.to_dict() for found in self.latency],
            "service": [found.to_dict() for found in self.service],
        }


@dataclass(frozen=True)
class Knee:
    """Where a server stops to follow.

    Attributes
    ----------
    low : float or None
        The highest rate that it followed, in requests per second; None where it followed none.
    high : float or None
        The lowest above it that it did not follow; None where it followed all.
    throughput : float
        The most answers per second of any step.
    reason : str
        What ended the ramp.
    trusted : bool
        Whether the end is the server's, not the generator's.
    """

    low: float | None
    high: float | None
    throughput: float
    reason: str
    trusted: bool


@dataclass(frozen=True)
class LoadReport:
    """A load test.

    Attributes
    ----------
    url : str
        The server's address.
    plan : LoadPlan
    total : LoadStep
        The test; of a ramp, the highest step that was followed, or else the first.
    steps : tuple of LoadStep
        Of a ramp, in the order in which they were run; else empty.
    knee : Knee or None
        Of a ramp.
    troubles : tuple of Trouble
        Of the measured time of all steps, most frequent first.
    patience : Patience
        Of the measured time of all steps.
    seconds : tuple of LoadSecond
    warmup_requests : int
        Not measured.
    ready : str
        ``"ready"``, or ``"unknown"`` where the server has no address that tells.
    interrupted : bool
        Whether somebody stopped it early.
    latencies : tuple of float
        Seconds of each answered request of `total`, in the order in which they were due. Not in `to_dict`.
    """

    url: str
    plan: LoadPlan
    total: LoadStep
    steps: tuple[LoadStep, ...]
    knee: Knee | None
    troubles: tuple[Trouble, ...]
    patience: Patience
    seconds: tuple[LoadSecond, ...]
    warmup_requests: int
    ready: str
    interrupted: bool
    latencies: tuple[float, ...] = field(repr=False)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.total.throughput

    @property
    def counts(self) -> LoadCounts:
        """What became of the requests of all steps together."""
        parts = [asdict(step.counts) for step in self.steps or (self.total,)]
        return LoadCounts(**{name: sum(part[name] for part in parts) for name in parts[0]})

    @property
    def statuses(self) -> dict[int, int]:
        """How often each status came that is no answer; 0 where there was none."""
        found: dict[int, int] = {}
        for trouble in self.troubles:
            found[trouble.status] = found.get(trouble.status, 0) + trouble.count
        return found

    def percentile(self, percent: float) -> Percentile:
        """Return one of the percentiles of the latency.

        Parameters
        ----------
        percent : float
            50, 90, 95 or 99.

        Raises
        ------
        KeyError
            For any other.
        """
        for found in self.total.latency:
            if found.percent == percent:
                return found
        raise KeyError(f"there is no p{percent:g}: expected one of 50, 90, 95, 99")

    @property
    def omission(self) -> dict[str, float]:
        """Seconds by which each percentile would be too low, had it been counted from the real sending.

        Not 0 only in an open loop whose connections were all taken, or whose generator was late. A percentile
        that is refused is not in it.
        """
        return {
            due.name: due.estimate.value - sent.estimate.value
            for due, sent in zip(self.total.latency, self.total.service, strict=True)
            if due.estimate is not None and sent.estimate is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {
            "url": self.url,
            "plan": self.plan.to_dict(),
            "ready": self.ready,
            "interrupted": self.interrupted,
            "throughput": self.throughput,
            "counts": asdict(self.counts),
            "total": self.total.to_dict(),
            "omission": self.omission,
            "steps": [step.to_dict() for step in self.steps],
            "knee": None if self.knee is None else asdict(self.knee),
            "troubles": [asdict(trouble) for trouble in self.troubles],
            "patience": asdict(self.patience),
            "warmup_requests": self.warmup_requests,
            "seconds": [asdict(second) for second in self.seconds],
        }

    def text(self) -> str:
        """Write tables for a terminal."""
        from companion.deployment.loadtest.text import written

        return written(self)
