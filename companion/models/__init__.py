"""Encoders by name or by folder: the embedded one, the hub's, the reader's own.

Importing this package does not import torch or transformers; the first use of `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.models.embedded import EMBEDDED_SHA256, embedded_folder

if TYPE_CHECKING:
    from companion.models.loading import Classifier, load, resolve

__all__ = ["EMBEDDED_SHA256", "Classifier", "embedded_folder", "load", "resolve"]


def __getattr__(name: str) -> Any:
    if name in ("Classifier", "load", "resolve"):
        from companion.models import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
