"""The choices of a training run, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Precision", "TrainingConfig"]

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that `companion.training.fit` lets you choose.

    Attributes
    ----------
    epochs : int
        Passes over the training examples.
    batch_size : int
        Examples per optimizer step.
    learning_rate : float
        The peak, reached after the warm-up.
    weight_decay : float
        Decay of weight matrices; biases, norms and embeddings' norms are never decayed.
    warmup_share : float
        Share of all steps over which the learning rate rises from zero; it then falls linearly to zero.
    max_grad_norm : float
        Gradients whose total norm is larger are scaled down to it.
    max_length : int
        Longer texts are cut to this many tokens.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` takes bf16 where the device computes it in hardware, float32 elsewhere.
    seed : int
        Draws the order of the examples and the dropout masks.
    workers : int
        Processes that prepare batches; 0 prepares them in this process.

    Raises
    ------
    ValueError
        When a value cannot work; the message names the field.
    """

    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.06
    max_grad_norm: float = 1.0
    max_length: int = 128
    precision: Precision = "auto"
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 8), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a finite number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}, expected 0 or more")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(
                f"warmup_share is {self.warmup_share}, expected a share from 0 up to, not including, 1"
            )
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}, expected 'auto', 'fp32' or 'bf16'")
