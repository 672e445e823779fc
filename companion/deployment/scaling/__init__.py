"""More than one server: several processes behind one port, and replicas on Ray.

`companion serve --processes N` is `supervise` here; `build_app` makes a Ray Serve application. Importing this
package imports neither uvicorn nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.deployment.scaling.ray_app import Replicas, build_app

__all__ = ["Replicas", "build_app"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from companion.deployment.scaling import ray_app

        return getattr(ray_app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
