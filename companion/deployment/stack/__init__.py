"""The whole topology on one machine: nginx in front of several servers, Redis behind, Prometheus beside.

`Stack` runs it natively, with the programs that Debian has. `companion.deployment.stack.rendering` has the
configurations, from the same templates as those in ``deploy/``, where containers and Kubernetes take theirs.
"""

from __future__ import annotations

from companion.deployment.stack.probing import PartStatus
from companion.deployment.stack.running import Stack, StackFailedError, take_down
from companion.deployment.stack.topology import StackSettings

__all__ = ["PartStatus", "Stack", "StackFailedError", "StackSettings", "take_down"]
