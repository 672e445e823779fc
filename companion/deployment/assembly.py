"""What stands between the edge and the model: caches, a rollout, the prediction log, each only where chosen.

A question meets them in this order: the prediction log, the rollout, then for each version a single flight,
an exact cache, a semantic one, and the batcher. What is not chosen is not imported, and costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.routing import Route

from companion.deployment.answering import Answerer
from companion.deployment.configuration import ServerSettings
from companion.deployment.notes import current_request_id
from companion.deployment.observing import ServingObserver
from companion.deployment.service import ModelService, ServedModel
from companion.deployment.watching.prediction_log import LoggedAnswerer, PredictionLog
from companion.settings import get_settings

if TYPE_CHECKING:
    from companion.deployment.caching.layers import CacheLayers
    from companion.deployment.rollout.headers import RolloutCaller
    from companion.deployment.rollout.serving import RolloutService
    from companion.deployment.rollout.versions import Inspect

__all__ = ["CACHE_SECRET_VARIABLE", "AnswererChain", "Load", "share"]

Load = Callable[[Path, int], ServedModel]
CACHE_SECRET_VARIABLE = "COMPANION_CACHE_SECRET"
"""Holds what servers that share a Redis share beside it: see `RedisStore`."""


class AnswererChain:
    """Everything behind the edge of one server.

    Parameters
    ----------
    folder : Path
    settings : ServerSettings
    load : callable
        Opens a folder with so many threads.
    inspect : callable, optional
        Reads a folder's description of itself, for a rollout. Default: that of an ONNX folder.
    observer : ServingObserver
        Told of everything.

    Attributes
    ----------
    service : ModelService or RolloutService
        What is loaded, ready, drained and closed.
    answerer : Answerer
        What answers.
    routers : list of APIRouter
        Further routes: those that control a rollout, with the admin key.
    middlewares : list
        Further middlewares for the addresses that need a model: each takes `guarded`.
    """

    def __init__(
        self,
        folder: Path,
        settings: ServerSettings,
        *,
        load: Load,
        inspect: Inspect | None = None,
        observer: ServingObserver,
    ) -> None:
        self._settings, self._observer = settings, observer
        self._folder, self._inspect = folder, inspect
        self._workers, threads_each = share(settings.workers, settings.threads)
        self._open: Callable[[Path], ServedModel] = lambda place: load(place, threads_each)
        self._closing: list[Callable[[], Awaitable[object]]] = []
        self.service: ModelService | RolloutService
        self.answerer: Answerer
        self.routers: list[APIRouter] = []
        self.middlewares: list[type[RolloutCaller]] = []
        caches = self._caches()
        if settings.rollout is None:
            self.service, self.answerer = self._one_model(caches)
        else:
            self.service = self.answerer = self._versions(settings.rollout, caches)
        if caches is not None:
            self._closing.append(caches.aclose)
        if settings.prediction_log is not None:
            log = PredictionLog(settings.prediction_log)
            self.answerer = LoggedAnswerer(self.answerer, log, request_id=current_request_id)
            self._closing.append(log.aclose)

    @property
    def admin_routes(self) -> frozenset[str]:
        """The addresses that ask for the admin key, in place of a caller's."""
        routes = (route for router in self.routers for route in router.routes)
        return frozenset(route.path for route in routes if isinstance(route, Route))

    async def aclose(self) -> None:
        """Answer what was accepted, then close everything."""
        for close in self._closing:
            await close()

    def _caches(self) -> CacheLayers | None:
        settings = self._settings
        if settings.cache is None:
            return None
        from companion.deployment.caching.layers import ENTRIES, TTL_S, CacheLayers

        return CacheLayers(
            settings.cache,
            entries=settings.cache_entries or ENTRIES,
            ttl_s=settings.cache_ttl_s or TTL_S,
            certificate=settings.semantic_cache,
            secret=os.environ.get(CACHE_SECRET_VARIABLE, "").encode(),
            report=self._observer.event,
        )

    def _one_model(self, caches: CacheLayers | None) -> tuple[ModelService, Answerer]:
        service = ModelService(
            lambda: self._open(self._folder),
            workers=self._workers,
            limits=self._settings.batching,
            observer=self._observer,
        )
        if caches is None:
            self._closing.append(service.aclose)
            return service, service
        flight = caches.before(service, lambda: service.model.manifest.model_version)
        self._closing += [service.aclose, flight.aclose]
        return service, flight

    def _versions(self, state_file: Path, caches: CacheLayers | None) -> RolloutService:
        from companion.deployment.rollout.admin import admin_router
        from companion.deployment.rollout.admin_key import read_admin_key
        from companion.deployment.rollout.headers import RolloutCaller
        from companion.deployment.rollout.inspecting import inspect_folder
        from companion.deployment.rollout.serving import RolloutService

        settings = self._settings
        key = read_admin_key(settings.admin_key)
        service = RolloutService(
            self._folder,
            self._open,
            state_file=state_file,
            workers=self._workers,
            limits=settings.batching,
            observer=self._observer,
            front=None if caches is None else caches.before,
            root=settings.rollout_root,
            settings=settings.rollout_settings,
            inspect=self._inspect or inspect_folder,
        )
        self._closing.append(service.aclose)
        self.routers.append(admin_router(service.rollout, key))
        self.middlewares.append(RolloutCaller)
        return service


def share(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Share threads among workers.

    Returns
    -------
    workers, threads_each : int
    """
    threads = threads or get_settings().threads
    workers = workers or threads
    return workers, max(1, threads // workers)
