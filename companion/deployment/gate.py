"""The gate: who asks (API key or address), and how much is left of their quota. It opens before the body."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from companion.deployment.keys import ApiKey, KeyRing
from companion.deployment.notes import RequestNotes, notes_of
from companion.deployment.problems import RATE_LIMITED, UNAUTHORIZED, ProblemError, respond
from companion.deployment.rates import QuotaUse, RateLimiter

__all__ = ["OPEN_ROUTES", "AccessGate", "charge"]

OPEN_ROUTES = frozenset(
    (
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}/ready",
        "/metrics",
    )
)
"""What probes and Prometheus read: neither key nor quota."""
KEY_HEADER = "X-API-Key"


class AccessGate:
    """Ask for a key and take from a quota, before anything of the body is read.

    Every request costs one; a batch is charged for the rest of its texts by `charge`, once they are counted.

    Parameters
    ----------
    app : ASGI application
    keys : KeyRing, optional
        Without, everybody may ask.
    limiter : RateLimiter, optional
        Without, as often as they like. The quota is one per key; where no keys are, one per address.
    open_routes : frozenset of str
        Addresses that everybody may ask, or that look after themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyRing | None = None,
        limiter: RateLimiter | None = None,
        open_routes: frozenset[str] = OPEN_ROUTES,
    ) -> None:
        self.app = app
        self._open_routes = open_routes
        self._keys = keys
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if scope["type"] != "http" or notes_of(scope).route in self._open_routes:
            await self.app(scope, receive, send)
            return
        try:
            await self._let_in(scope)
        except ProblemError as error:
            await respond(error, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _let_in(self, scope: Scope) -> None:
        notes, caller = notes_of(scope), None
        if self._keys is not None:
            key = _known(self._keys, Headers(scope=scope))
            notes.key, caller = key.name, f"key:{key.id}"
        if self._limiter is not None:
            caller = caller or caller_address(scope)
            notes.charge = partial(_take, self._limiter, notes, caller)
            await notes.charge(1)


async def charge(scope: Scope, cost: int) -> None:
    """Take more of the caller's quota than the one that every request costs.

    Raises
    ------
    ProblemError
        429 `rate-limited`, when there is not as much left.
    """
    take: Callable[[int], Awaitable[None]] | None = notes_of(scope).charge
    if take is not None and cost > 0:
        await take(cost)


def caller_address(scope: Scope) -> str:
    """Name a caller by address; an IPv6 caller by its network of 64 bits, all of which is theirs."""
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        address = None
    if address is None:
        return "address:unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return f"address:{address.ipv4_mapped}"
        return f"address:{ipaddress.ip_network((int(address), 64), strict=False)}"
    return f"address:{address}"


def _known(keys: KeyRing, headers: Headers) -> ApiKey:
    token = _token(headers)
    if token is None:
        how = f"Send 'Authorization: Bearer KEY' or '{KEY_HEADER}: KEY'."
        raise ProblemError(UNAUTHORIZED, how, headers={"WWW-Authenticate": 'Bearer realm="companion"'})
    key = keys.find(token)
    if key is None:
        challenge = 'Bearer realm="companion", error="invalid_token"'
        detail = "This key is not known here; it may have been revoked."
        raise ProblemError(UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
    return key


def _token(headers: Headers) -> str | None:
    # A proxy may use Authorization for itself (Basic): then the other header counts.
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return headers.get(KEY_HEADER)


async def _take(limiter: RateLimiter, notes: RequestNotes, caller: str, cost: int) -> None:
    use = await limiter.take(caller, cost)
    notes.headers.update(_quota_headers(limiter, use))
    if use.allowed:
        return
    per = f"{limiter.amount:,} in {limiter.window_s:,} s"
    if math.isinf(use.reset_s):
        raise ProblemError(RATE_LIMITED, f"The quota is {per}, and this asks for more at once: send less.")
    detail = f"The quota is {per}, and {use.remaining:,} are left of it now."
    # At that very moment the count is still a whisker too high: the next full second is safe.
    raise ProblemError(RATE_LIMITED, detail, retry_after_s=math.floor(use.reset_s) + 1)


def _quota_headers(limiter: RateLimiter, use: QuotaUse) -> dict[str, str]:
    """Write the two fields of the IETF's draft on rate limit headers."""
    fields = {"RateLimit-Policy": f'"default";q={limiter.amount};w={limiter.window_s}'}
    reset = "" if math.isinf(use.reset_s) else f";t={max(0, math.ceil(use.reset_s))}"
    return fields | {"RateLimit": f'"default";r={use.remaining}{reset}'}
