"""Answers given before: an exact cache, single flight, and a semantic cache that has to earn its place.

Each part answers questions and stands in front of one that does. In the order in which a question meets
them, last first::

    near = SemanticCache(model, embed, certificate, embedder="...", version=version, counter=counter)
    exact = ExactCache(near, RedisStore(url, secret=secret), version=version, counter=counter)
    answerer = SingleFlight(exact, counter=counter)

Equal questions that run at this moment join; equal questions that ran before are found; similar ones are
found where a certificate says that this is right often enough; the rest goes to the model. Importing this
package imports neither redis nor numpy; the first use of a name that needs them does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.deployment.caching.agreement import Same, same_answer
    from companion.deployment.caching.auditing import FalseHitAlarm
    from companion.deployment.caching.borrowing import BorrowedAnswer
    from companion.deployment.caching.breaker import CircuitBreaker
    from companion.deployment.caching.certificate import Bounded, Certificate, HitBudget, Trial, certify
    from companion.deployment.caching.economy import SemanticReport
    from companion.deployment.caching.encoders import HashedWords, StateEncoder
    from companion.deployment.caching.events import (
        EVENTS,
        CacheCounter,
        CacheEvent,
        CacheTally,
        NamedEvents,
    )
    from companion.deployment.caching.exact import AnswerStore, ExactCache
    from companion.deployment.caching.flight import SingleFlight
    from companion.deployment.caching.memory import MemoryStore
    from companion.deployment.caching.neighbours import Embed, NeighbourIndex
    from companion.deployment.caching.remote import RedisStore
    from companion.deployment.caching.replaying import pair_trials, replay
    from companion.deployment.caching.rewording import VARIANT_KINDS, variants
    from companion.deployment.caching.semantic import SemanticCache
    from companion.deployment.caching.turning import OPPOSITE_KINDS, Rewritten, opposites

_HOMES = {
    "agreement": ("Same", "same_answer"),
    "auditing": ("FalseHitAlarm",),
    "borrowing": ("BorrowedAnswer",),
    "breaker": ("CircuitBreaker",),
    "certificate": ("Bounded", "Certificate", "HitBudget", "Trial", "certify"),
    "economy": ("SemanticReport",),
    "encoders": ("HashedWords", "StateEncoder"),
    "events": ("EVENTS", "CacheCounter", "CacheEvent", "CacheTally", "NamedEvents"),
    "exact": ("AnswerStore", "ExactCache"),
    "flight": ("SingleFlight",),
    "memory": ("MemoryStore",),
    "neighbours": ("Embed", "NeighbourIndex"),
    "remote": ("RedisStore",),
    "replaying": ("pair_trials", "replay"),
    "rewording": ("VARIANT_KINDS", "variants"),
    "semantic": ("SemanticCache",),
    "turning": ("OPPOSITE_KINDS", "Rewritten", "opposites"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EVENTS",
    "OPPOSITE_KINDS",
    "VARIANT_KINDS",
    "AnswerStore",
    "BorrowedAnswer",
    "Bounded",
    "CacheCounter",
    "CacheEvent",
    "CacheTally",
    "Certificate",
    "CircuitBreaker",
    "Embed",
    "ExactCache",
    "FalseHitAlarm",
    "HashedWords",
    "HitBudget",
    "MemoryStore",
    "NamedEvents",
    "NeighbourIndex",
    "RedisStore",
    "Rewritten",
    "Same",
    "SemanticCache",
    "SemanticReport",
    "SingleFlight",
    "StateEncoder",
    "Trial",
    "certify",
    "opposites",
    "pair_trials",
    "replay",
    "same_answer",
    "variants",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"companion.deployment.caching.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
