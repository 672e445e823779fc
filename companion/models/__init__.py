"""Encoders by name or by folder, and one transformer to read (`Transformer`).

Importing this package does not import torch or transformers; the first use of a name that needs them does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.models.embedded import EMBEDDED_SHA256, embedded_folder

if TYPE_CHECKING:
    from companion.models.cache import FixedShapeCache, KeyValueCache
    from companion.models.conversion import from_transformers
    from companion.models.loading import Classifier, load, resolve
    from companion.models.transformer import Transformer, TransformerConfig

_HOMES = {
    "cache": ("FixedShapeCache", "KeyValueCache"),
    "conversion": ("from_transformers",),
    "loading": ("Classifier", "load", "resolve"),
    "transformer": ("Transformer", "TransformerConfig"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "EMBEDDED_SHA256",
    "Classifier",
    "FixedShapeCache",
    "KeyValueCache",
    "Transformer",
    "TransformerConfig",
    "embedded_folder",
    "from_transformers",
    "load",
    "resolve",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME_OF:
        return getattr(import_module(f"companion.models.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
