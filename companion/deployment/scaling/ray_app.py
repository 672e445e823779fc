"""The server as an application of Ray Serve: replicas that come and go with the load.

A replica is our whole server behind Ray's proxy: the same addresses, errors, limits and length-aware batches.
Ray's own batching is not used, because it knows nothing of lengths, deadlines or what a run costs. Needs the
extra ``scale``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.deployment.app import Load, create_app, load_onnx
from companion.deployment.configuration import ServerSettings
from companion.deployment.scaling.dividing import check_alone
from companion.settings import get_settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from companion.deployment.service import ModelService

__all__ = ["Replicas", "build_app"]

_GRACE_S = 30.0


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are.

    Parameters
    ----------
    least, most : int
    ongoing : float
        Requests under way in each, which Ray adds and removes replicas to keep. About twice the batch size
        that pays: enough to choose batches from, few enough to answer soon.
    up_s, down_s : float
        For how long it has to be too many, or too few.
    check_s : float
        Between two looks whether a replica is ready. It is replaced after three without an answer.

    Raises
    ------
    ValueError
        If they make no sense.
    """

    least: int = 1
    most: int = 4
    ongoing: float = 16.0
    up_s: float = 5.0
    down_s: float = 60.0
    check_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"replicas are {self.least} to {self.most}, expected 1 or more, and least <= most"
            )
        if min(self.ongoing, self.check_s) <= 0 or min(self.up_s, self.down_s) < 0:
            raise ValueError("ongoing and check_s have to be more than 0, up_s and down_s not less than 0")

    def autoscaling(self) -> dict[str, Any]:
        """Return Ray's own settings."""
        return {
            "min_replicas": self.least,
            "initial_replicas": self.least,
            "max_replicas": self.most,
            "target_ongoing_requests": self.ongoing,
            "upscale_delay_s": self.up_s,
            "downscale_delay_s": self.down_s,
        }


def build_app(
    folder: Path,
    settings: ServerSettings | None = None,
    *,
    replicas: Replicas | None = None,
    load: Load = load_onnx,
    **changes: Any,
) -> Application:
    """Build an application for ``serve.run`` or ``serve run``.

    Parameters
    ----------
    folder : Path
        A folder made by `companion.inference.export`, under the same name on every machine.
    settings : ServerSettings, optional
        As for `create_app`, of one replica. Host and port are Ray's business.
    replicas : Replicas, optional
    load : callable
        As for `create_app`.
    **changes
        Fields of the settings that are different.

    Returns
    -------
    ray.serve.Application

    Raises
    ------
    ValueError
        When Ray is not installed, for rates without Redis, and for settings that replicas cannot have.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from ray import serve
    except ImportError:
        raise ValueError("Ray Serve is not installed: pip install 'companion[scale]'") from None
    replicas, chosen = replicas or Replicas(), (settings or ServerSettings()).but(**changes)
    if chosen.processes > 1:
        raise ValueError(f"processes is {chosen.processes}, expected 1: replicas are processes already")
    if replicas.most > 1:
        check_alone(chosen, "replicas")
    threads, path = chosen.threads or get_settings().threads, Path(folder).resolve()
    chosen = chosen.but(threads=threads)

    def application() -> FastAPI:  # called in the replica
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return create_app(path, chosen, load=load)

    deployment: Any = serve.deployment(
        name="companion",
        autoscaling_config=replicas.autoscaling(),
        ray_actor_options={"num_cpus": threads},
        # The replica refuses for itself, and says when to come again. Ray would let requests wait unseen.
        max_ongoing_requests=10_000,
        health_check_period_s=replicas.check_s,
        health_check_timeout_s=4 * replicas.check_s,
        graceful_shutdown_timeout_s=_GRACE_S,
    )(serve.ingress(application)(_Replica))
    return deployment.bind()  # type: ignore[no-any-return]


class _Replica:
    """What Ray asks of a replica; everything else is the application's."""

    app: FastAPI

    async def check_health(self) -> None:
        """Do nothing if questions are answered. The first call waits until the model is loaded.

        Raises
        ------
        Exception
            Why there will never be a model, or that it is stuck.
        """
        service: ModelService = self.app.state.service
        await service.settled.wait()
        if service.failure is not None:
            raise RuntimeError(f"the model could not be loaded: {service.failure}")
        service.check_ready()
