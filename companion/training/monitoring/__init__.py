"""Looks into a run: gradients, updates and attention of each layer, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.training.monitoring.observations import Alarm, Observation, read_alarms, read_observations

if TYPE_CHECKING:
    from companion.training.monitoring.health import Thresholds
    from companion.training.monitoring.monitor import Monitor
    from companion.training.monitoring.plots import (
        plot_attention_entropy,
        plot_gradient_norms,
        plot_update_ratios,
    )

__all__ = [
    "Alarm",
    "Monitor",
    "Observation",
    "Thresholds",
    "plot_attention_entropy",
    "plot_gradient_norms",
    "plot_update_ratios",
    "read_alarms",
    "read_observations",
]

_HOMES = {"Monitor": "monitor", "Thresholds": "health"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"companion.training.monitoring.{_HOMES.get(name, 'plots')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
