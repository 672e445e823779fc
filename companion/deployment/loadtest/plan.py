"""What a load test does: how much, for how long, and what each request carries."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from companion.deployment.loadtest.arriving import ArrivalKind
from companion.deployment.loadtest.asking import Endpoint

__all__ = ["MAX_CONNECTIONS", "LoadMode", "LoadPlan", "Ramp"]

LoadMode = Literal["users", "rate", "ramp"]

MAX_CONNECTIONS = 900
"""More open sockets than this, and the generator's own bookkeeping ends (select takes 1,024 at most)."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Ramp:
    """Rates that rise until the server no longer follows.

    Attributes
    ----------
    start : float
        Requests per second at first.
    factor : float
        Each step has so many times the rate of the one before.
    step : float or None
        In place of the factor: each step has so many requests per second more.
    refine : int
        So many more steps between the last rate that was kept up and the first that was not, each in the
        middle of what is left.
    highest : float
        No step goes beyond it.
    """

    start: float = 10.0
    factor: float = 2.0
    step: float | None = None
    refine: int = 2
    highest: float = 20_000.0

    def __post_init__(self) -> None:
        """Refuse a ramp that does not rise."""
        for name in ("start", "highest"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name} is {getattr(self, name)}, expected requests per second above 0")
        if self.start > self.highest:
            raise ValueError(f"the ramp starts at {self.start:g}, expected no more than {self.highest:g}")
        if self.step is None and not 1 < self.factor <= 100:
            raise ValueError(f"factor is {self.factor}, expected more than 1, such as 2")
        if self.step is not None and not 0 < self.step < 1e6:
            raise ValueError(f"step is {self.step}, expected requests per second above 0")
        if not 0 <= self.refine <= 10:
            raise ValueError(f"refine is {self.refine}, expected 0 to 10 steps")


@dataclass(frozen=True)
class LoadPlan:
    """A load test. Exactly one of `users`, `rate` and `ramp` says which kind.

    Attributes
    ----------
    users : int or None
        A closed loop: so many clients, each of which sends when its last request is answered.
    rate : float or None
        An open loop: requests per second, by a timetable, whatever the server does.
    ramp : Ramp or None
        Open loops of rising rates, to find the knee.
    seconds : float
        That are measured; of each step of a ramp.
    warmup : float
        Seconds before, under the same load, that are not measured. Each step of a ramp has a fifth of its
        length as warm-up besides.
    arrivals : {"poisson", "even"}
        Of an open loop.
    seed : int
        Of the timetable.
    connections : int or None
        The most requests in flight in an open loop. One that is due while all connections are taken is sent
        late, and its latency counts from when it was due. Default: twice the rate, 32 to 512.
    endpoint : {"predict", "batch", "kserve"}
    per_request : int
        Texts in one request.
    model_name : str
        For KServe's protocol.
    api_key : str or None
        Sent as X-API-Key; in no report.
    deadline_ms : int or None
        Sent as X-Request-Timeout-Ms.
    honour_retry_after : bool
        Whether a client that is refused waits as long as the server says, and sends the same request again.
    timeout : float
        Seconds after which a request is given up as failed.
    """

    users: int | None = None
    rate: float | None = None
    ramp: Ramp | None = None
    seconds: float = 10.0
    warmup: float = 2.0
    arrivals: ArrivalKind = "poisson"
    seed: int = 0
    connections: int | None = None
    endpoint: Endpoint = "predict"
    per_request: int = 1
    model_name: str = "companion"
    api_key: str | None = field(default=None, repr=False)
    deadline_ms: int | None = None
    honour_retry_after: bool = False
    timeout: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be carried out."""
        if sum(one is not None for one in (self.users, self.rate, self.ramp)) != 1:
            raise ValueError("give exactly one of users (closed loop), rate (open loop) and ramp")
        if self.users is not None and not 1 <= self.users <= MAX_CONNECTIONS:
            raise ValueError(f"users is {self.users}, expected 1 to {MAX_CONNECTIONS}")
        if self.connections is not None and not 1 <= self.connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections is {self.connections}, expected 1 to {MAX_CONNECTIONS}")
        if self.connections is not None and self.users is not None:
            raise ValueError("connections belong to an open loop: in a closed one each user has its own")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise ValueError(f"rate is {self.rate}, expected requests per second above 0, such as 50")
        self._check_times()
        self._check_request()

    def _check_times(self) -> None:
        for name, least in (("seconds", 0.1), ("timeout", 0.1), ("warmup", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= 86_400):
                raise ValueError(f"{name} is {value}, expected {least:g} seconds to a day")

    def _check_request(self) -> None:
        for name, value, known in (
            ("arrivals", self.arrivals, get_args(ArrivalKind)),
            ("endpoint", self.endpoint, get_args(Endpoint)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if not 1 <= self.per_request <= 10_000:
            raise ValueError(f"per_request is {self.per_request}, expected 1 to 10,000 texts")
        if self.endpoint == "predict" and self.per_request != 1:
            raise ValueError(
                "the endpoint predict takes one text per request: choose batch or kserve for more"
            )
        if not _MODEL_NAME.fullmatch(self.model_name):
            raise ValueError(
                f"the model's name is {self.model_name!r}, expected letters, digits, dots, - and _"
            )
        if self.deadline_ms is not None and self.deadline_ms < 1:
            raise ValueError(f"deadline_ms is {self.deadline_ms}, expected at least 1 millisecond")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and not key.isspace()):
            raise ValueError("the API key is empty or has characters that no header can carry")

    @property
    def mode(self) -> LoadMode:
        """Which kind of test it is."""
        return "users" if self.users is not None else "rate" if self.rate is not None else "ramp"

    def connections_for(self, rate: float) -> int:
        """Return how many requests may be in flight at a rate."""
        return self.connections or max(32, min(512, math.ceil(2 * rate)))

    def headers(self) -> dict[str, str]:
        """Return the headers of every request."""
        found = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key is not None:
            found["X-API-Key"] = self.api_key
        if self.deadline_ms is not None:
            found["X-Request-Timeout-Ms"] = str(self.deadline_ms)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; of the API key, only whether there is one."""
        return asdict(self) | {"mode": self.mode, "api_key": self.api_key is not None}
