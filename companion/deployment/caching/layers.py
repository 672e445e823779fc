"""The caches of a server, put together: one store, and the layers over it in front of each model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from companion.deployment.answering import Answerer
from companion.deployment.caching.events import NamedEvents
from companion.deployment.caching.exact import AnswerStore, ExactCache
from companion.deployment.caching.flight import SingleFlight

if TYPE_CHECKING:
    from companion.deployment.caching.certificate import Certificate
    from companion.deployment.caching.neighbours import Embed

__all__ = ["ENTRIES", "IN_MEMORY", "TTL_S", "CacheLayers", "embedder_of", "read_certificate"]

logger = logging.getLogger("companion.deployment")

IN_MEMORY = "memory"
"""Where answers are kept when no other process shall have them."""
ENTRIES, TTL_S = 10_000, 3600.0
_HASHED = "hashed-words/"


class CacheLayers:
    """Puts caches in front of models. All models share one store: the version is part of each key.

    Parameters
    ----------
    where : str
        `IN_MEMORY`, or the address of a Redis.
    entries : int
        The most answers that are kept in memory; Redis has a bound of its own.
    ttl_s : float
        Seconds after which an answer is forgotten.
    certificate : Path, optional
        Lets the model that it is about be spared similar texts as well (see `SemanticCache`).
    secret : bytes
        As for `RedisStore`.
    report : callable
        Takes the name of each event, such as ``exact-hit`` or ``redis-opened``.

    Raises
    ------
    ValueError
        When the store cannot work, or the certificate is none, or allows no hit.
    OSError
        When the certificate cannot be read.
    """

    def __init__(
        self,
        where: str,
        *,
        entries: int = ENTRIES,
        ttl_s: float = TTL_S,
        certificate: Path | None = None,
        secret: bytes = b"",
        report: Callable[[str], None],
    ) -> None:
        self._counter = NamedEvents(report)
        self._certificate = None if certificate is None else read_certificate(certificate)
        self._embed = None if self._certificate is None else embedder_of(self._certificate.embedder)
        self._store: AnswerStore
        if where == IN_MEMORY:
            from companion.deployment.caching.memory import MemoryStore

            self._store = MemoryStore(max_entries=entries, ttl_s=ttl_s)
        else:
            from companion.deployment.caching.remote import RedisStore

            self._store = RedisStore(where, ttl_s=ttl_s, secret=secret, counter=self._counter)

    def before(self, model: Answerer, version: Callable[[], str]) -> SingleFlight:
        """Put the layers in front of a model.

        Parameters
        ----------
        model : Answerer
        version : callable
            Gives the model's version; it may raise a `ProblemError` while there is none.

        Returns
        -------
        SingleFlight
            Close it before the model, and `CacheLayers` after all of them.
        """
        inner = model
        if self._certificate is not None and self._embed is not None:
            from companion.deployment.caching.semantic import SemanticCache

            inner = SemanticCache(
                inner,
                self._embed,
                self._certificate,
                embedder=self._certificate.embedder,
                version=version,
                counter=self._counter,
            )
        exact = ExactCache(inner, self._store, version=version, counter=self._counter)
        return SingleFlight(exact, counter=self._counter)

    async def aclose(self) -> None:
        """Write what waits to be written, and let go of the store."""
        await self._store.aclose()


def read_certificate(file: Path) -> Certificate:
    """Read a certificate that allows hits.

    Parameters
    ----------
    file : Path
        A certificate's `to_dict`, as JSON.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        When it is none, or says that no similarity keeps the budget.
    OSError
        When the file cannot be read.
    """
    from companion.deployment.caching.certificate import Certificate

    try:
        found = Certificate.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"{file} is no certificate: {error} Expected certify(...).to_dict() as JSON."
        ) from None
    if found.threshold is None:
        raise ValueError(
            f"{file} allows no hit, so a semantic cache would only cost time ({found.reason}): leave it out."
        )
    return found


def embedder_of(name: str) -> Embed:
    """Make the embedding function that a certificate names.

    Raises
    ------
    ValueError
        When it is not one that needs nothing but its name.
    """
    from companion.deployment.caching.encoders import HashedWords

    dimension = name.removeprefix(_HASHED)
    if not name.startswith(_HASHED) or not dimension.isdecimal() or len(dimension) > 6:
        raise ValueError(
            f"the certificate is about the vectors {name!r}, expected {_HASHED}DIMENSION: a server makes no "
            "others. Put a SemanticCache in front of the model in Python for those."
        )
    return HashedWords(int(dimension))
