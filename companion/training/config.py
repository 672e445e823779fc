"""The choices of a training run, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["OptimizerName", "Precision", "ScheduleName", "TrainingConfig"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
ScheduleName = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "lamb"]


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that `companion.training.fit` lets you choose.

    Attributes
    ----------
    epochs : int
        Passes over the training examples.
    max_steps : int, optional
        Ends the run after so many optimizer steps, wherever in an epoch that is. Needed for a stream, whose
        length nobody knows.
    batch_size : int
        Examples per optimizer step, over all processes.
    micro_batch_size : int, optional
        Examples per forward and backward pass in one process. The gradients of the passes add up to those of
        the whole batch, so this changes memory and time, not the result. Default: the whole batch.
    learning_rate : float
        The peak, reached after the warm-up.
    schedule : {"linear", "cosine", "constant"}
        How the rate goes on after the warm-up: in a line or a half cosine to zero, or not at all.
    warmup : int or float
        An int: so many steps over which the learning rate rises from zero. A float: a share of all steps.
    optimizer : {"adamw", "lamb"}
    betas : tuple of two floats
        Decay of the running means of the gradient and of its square.
    weight_decay : float
        Decay of weight matrices; biases and the scales of norms are never decayed.
    max_grad_norm : float
        Gradients whose total norm is larger are scaled down to it.
    max_length : int
        Longer texts are cut to this many tokens.
    precision : {"auto", "fp32", "bf16", "fp16"}
        ``auto`` takes bf16 where the device computes it in hardware, float32 elsewhere. ``fp16`` needs CUDA.
    activation_checkpointing : bool
        Keep one activation per layer and compute the others again on the way back: less memory, more time.
    evaluate_every : int, optional
        Steps between evaluations. Default: one at the end of each epoch.
    checkpoint_every : int, optional
        Steps between checkpoints, apart from those after each evaluation.
    keep : int
        Newest checkpoints that are kept, besides the best one.
    seed : int
        Draws the order of the examples, the dropout masks and whatever the objective draws.
    workers : int
        Processes that prepare batches; 0 prepares them in this process.

    Raises
    ------
    ValueError
        When a value cannot work; the message names the field.
    """

    epochs: int = 2
    max_steps: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 2e-4
    schedule: ScheduleName = "linear"
    warmup: int | float = 0.06
    optimizer: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 128
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 3
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        least = {"epochs": 1, "batch_size": 1, "max_length": 8, "workers": 0, "seed": 0, "keep": 1}
        least |= {"max_steps": 1, "micro_batch_size": 1, "evaluate_every": 1, "checkpoint_every": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}, expected at least {smallest}")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a finite number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}, expected 0 or more")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, expected two numbers from 0 up to, not including, 1")
        if self.warmup < 0 or (isinstance(self.warmup, float) and not self.warmup < 1):
            raise ValueError(
                f"warmup is {self.warmup}, expected a number of steps (an int) or a share from 0 up to, not "
                "including, 1 (a float)"
            )
        for name, kind in (
            ("precision", Precision),
            ("schedule", ScheduleName),
            ("optimizer", OptimizerName),
        ):
            if getattr(self, name) not in get_args(kind):
                expected = ", ".join(repr(choice) for choice in get_args(kind))
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {expected}")

    def warmup_steps(self, total_steps: int) -> int:
        """Return the steps of the warm-up in a run of `total_steps`: a share is rounded up."""
        return self.warmup if isinstance(self.warmup, int) else math.ceil(total_steps * self.warmup)
