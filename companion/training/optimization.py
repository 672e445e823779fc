"""The optimizer, its parameter groups and the learning-rate schedule of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from companion.training.config import TrainingConfig

__all__ = ["make_optimizer", "make_schedule", "parameter_groups", "rate_factor"]


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split the trainable parameters into those that decay and those that do not.

    Matrices decay. Vectors (biases, the scales of normalisation layers) do not: pulling them to zero does not
    make the function smoother.

    Parameters
    ----------
    model : torch.nn.Module
    weight_decay : float

    Returns
    -------
    list of dict
        Two groups for a torch optimizer; together they hold every trainable parameter once.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: torch.nn.Module, config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of a run.

    Parameters
    ----------
    model : torch.nn.Module
        On the device, sharded if it is to be.
    config : TrainingConfig
        ``adamw`` is torch's fused one [1]_; ``lamb`` scales each layer's step to the size of its weights
        [2]_.
    device : torch.device

    Returns
    -------
    torch.optim.Optimizer

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    .. [2] You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020.
    """
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "lamb":
        from pytorch_optimizer import Lamb

        lamb: torch.optim.Optimizer = Lamb(
            groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        return lamb
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning-rate schedule of a run, to be stepped after every optimizer step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(config, total_steps))


def rate_factor(config: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """Return the function from steps done to the share of the peak rate that the next step is taken with.

    Parameters
    ----------
    config : TrainingConfig
        Its `schedule` and `warmup` count.
    total_steps : int

    Returns
    -------
    callable
        Rises to 1 in ``config.warmup_steps(total_steps)`` steps, of which none is taken with rate zero.
    """
    warmup = config.warmup_steps(total_steps)
    rest = max(1, total_steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = min(1.0, max(0.0, (total_steps - step) / rest))
        if config.schedule == "linear":
            return left
        return (1 - math.cos(math.pi * left)) / 2 if config.schedule == "cosine" else 1.0

    return factor
