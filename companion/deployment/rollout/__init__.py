"""A second version of the model in the running process: tried on copies, then on some callers, then live.

`Rollout` is an `companion.deployment.answering.Answerer` over versions. It loads a candidate while the live
version answers, sends it copies of questions (shadow) or some callers (canary), compares, promotes, and goes
back: at once when told to, and by itself when the candidate fails or disagrees more than is tolerated.
"""

from __future__ import annotations

from companion.deployment.rollout.control import Rollout, RolloutConflictError
from companion.deployment.rollout.copying import CopyRules
from companion.deployment.rollout.guarding import Tolerance, Tolerances
from companion.deployment.rollout.inspecting import VersionFacts, inspect_folder
from companion.deployment.rollout.reporting import RolloutStatus
from companion.deployment.rollout.routing import Caller, calling
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.versions import BackgroundVersion, RefusedVersionError, Version

__all__ = [
    "BackgroundVersion",
    "Caller",
    "CopyRules",
    "RefusedVersionError",
    "Rollout",
    "RolloutConflictError",
    "RolloutSettings",
    "RolloutStatus",
    "Tolerance",
    "Tolerances",
    "Version",
    "VersionFacts",
    "calling",
    "inspect_folder",
]
