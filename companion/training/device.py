"""Chooses the device and the number format that a run computes with."""

from __future__ import annotations

import torch

from companion.settings import get_settings
from companion.training.config import Precision

__all__ = ["choose_device", "choose_dtype", "computes_bf16"]


def choose_device() -> torch.device:
    """Return the settings' device; ``auto`` takes CUDA, then MPS, then the CPU.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        When the settings name a device that this machine does not have.
    """
    wanted = get_settings().device
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise ValueError(f"COMPANION_DEVICE is {wanted!r}, but torch sees only: {there}. Set it to 'auto'.")
    return torch.device(wanted)


def computes_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 in hardware.

    Without such instructions a CPU converts every product's inputs and is slower than in float32.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    bool
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities()
        return any(bool(flags.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of the forward pass.

    Parameters
    ----------
    precision : {"auto", "fp32", "bf16", "fp16"}
    device : torch.device

    Returns
    -------
    torch.dtype

    Raises
    ------
    ValueError
        When fp16 is asked for where its gradients cannot be scaled.
    """
    if precision == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision is 'fp16', but the device is {device.type}: expected CUDA; use 'auto'")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
