"""The control surface over HTTP: routes under `/admin/rollout`, for who has the admin key."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, ConfigDict, Field

from companion.deployment.problems import (
    ADMIN_KEY_REQUIRED,
    INVALID_INPUT,
    ROLLOUT_CONFLICT,
    VERSION_REFUSED,
    ProblemError,
)
from companion.deployment.rollout.admin_key import check_admin_key
from companion.deployment.rollout.control import Rollout, RolloutConflictError
from companion.deployment.rollout.reporting import RolloutStatus
from companion.deployment.rollout.versions import RefusedVersionError

__all__ = ["ADMIN_HEADER", "PREFIX", "CanaryRequest", "LoadRequest", "ShadowRequest", "admin_router"]

ADMIN_HEADER = "X-Admin-Key"
PREFIX = "/admin/rollout"
_CHALLENGE = {"WWW-Authenticate": 'AdminKey realm="companion"'}

_AdminKey = Annotated[str | None, Header(include_in_schema=False)]  # it is there as a security scheme
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LoadRequest(_Request):
    """Load a candidate."""

    folder: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="An exported model, on the server."
    )
    other_tokenizer: bool = Field(
        default=False, description="Whether its tokenizer may differ from the live one."
    )


class CanaryRequest(_Request):
    """Let the candidate answer some callers."""

    share: _Share = Field(description="Share of the callers, 0 to 1.")
    by_header: bool = Field(default=False, description="Whether requests may name the candidate.")


class ShadowRequest(_Request):
    """Send the candidate copies of questions."""

    share: _Share = Field(description="Share of the questions, 0 to 1.")


def admin_router(rollout: Rollout, key: str) -> APIRouter:
    """Make the routes that control a rollout.

    Each answers with the status after the change. A server without an admin key does not have them.

    Parameters
    ----------
    rollout : Rollout
    key : str
        What a request has to send as `ADMIN_HEADER`. Only its hash is kept.

    Returns
    -------
    fastapi.APIRouter

    Raises
    ------
    ValueError
        When the key is too short, or cannot be sent in a header.
    """
    check_admin_key(key)
    router = APIRouter(
        prefix=PREFIX,
        tags=["rollout"],
        dependencies=[Depends(_Guarded(key))],
        responses=_errors(401, 500, 504),
    )

    @router.get("", operation_id="rollout_status")
    async def status() -> RolloutStatus:
        """Describe the versions, the traffic and what was seen."""
        return rollout.status()

    @router.post("/load", operation_id="rollout_load", responses=_errors(409, 413, 415, 422))
    async def load(body: LoadRequest) -> RolloutStatus:
        """Load a candidate; the answer comes when it is loaded or refused."""
        with _problems():
            await rollout.load(Path(body.folder), other_tokenizer=body.other_tokenizer)
        return rollout.status()

    @router.post("/unload", operation_id="rollout_unload", responses=_errors(409))
    async def unload() -> RolloutStatus:
        """Let the candidate go, or, without one, the previous version."""
        with _problems():
            await rollout.unload()
        return rollout.status()

    @router.post("/canary", operation_id="rollout_canary", responses=_errors(409, 413, 415, 422))
    async def canary(body: CanaryRequest) -> RolloutStatus:
        """Let the candidate answer a share of the callers; 0 ends it."""
        with _problems():
            await rollout.canary(body.share, by_header=body.by_header)
        return rollout.status()

    @router.post("/shadow", operation_id="rollout_shadow", responses=_errors(409, 413, 415, 422))
    async def shadow(body: ShadowRequest) -> RolloutStatus:
        """Send the candidate a copy of a share of the questions; 0 ends it."""
        with _problems():
            await rollout.shadow(body.share)
        return rollout.status()

    @router.post("/promote", operation_id="rollout_promote", responses=_errors(409))
    async def promote() -> RolloutStatus:
        """Make the candidate live; keep the version before."""
        with _problems():
            await rollout.promote()
        return rollout.status()

    @router.post("/rollback", operation_id="rollout_rollback", responses=_errors(409))
    async def rollback() -> RolloutStatus:
        """Drop the candidate, or undo the promotion."""
        with _problems():
            await rollout.rollback("asked for over HTTP")
        return rollout.status()

    return router


class _Guarded:
    """Lets requests with the key pass."""

    def __init__(self, key: str) -> None:
        self._digest = sha256(key.encode()).digest()

    async def __call__(self, x_admin_key: _AdminKey = None) -> None:
        offered = sha256((x_admin_key or "").encode(errors="surrogateescape")).digest()
        if not hmac.compare_digest(offered, self._digest):
            detail = f"Send the admin key in the header {ADMIN_HEADER}."
            raise ProblemError(ADMIN_KEY_REQUIRED, detail, headers=_CHALLENGE)


@contextmanager
def _problems() -> Iterator[None]:
    """Turn what the rollout refuses into a problem. Who holds the admin key may read the reasons."""
    try:
        yield
    except RolloutConflictError as error:
        raise ProblemError(ROLLOUT_CONFLICT, str(error)) from error
    except RefusedVersionError as error:
        raise ProblemError(VERSION_REFUSED, str(error)) from error
    except ValueError as error:
        raise ProblemError(INVALID_INPUT, str(error)) from error


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "A problem document"} for status in statuses}
