"""What a measurement depends on besides its inputs: the machine it was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["machine"]


def machine() -> dict[str, str | int]:
    """Describe the machine, for the key of whatever was measured on it.

    Returns
    -------
    dict
        ``cpu``, ``cores`` (that this process may use), ``int8`` (the instructions for 8-bit products, such as
        ``avx512_vnni``, or ``"none"``), ``memory_gib``, ``accelerator`` (or ``"none"``),
        ``system``, and the versions of ``python``, ``torch`` and ``onnxruntime`` from the installed metadata;
        neither library is imported.
    """
    from companion.settings import usable_cores

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = _field(Path("/proc/cpuinfo"), "model name")
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "int8": " ".join(_int8_instructions()) or "none",
        "memory_gib": round(memory / 2**30),
        "accelerator": ", ".join(_accelerators()) or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "onnxruntime": _version("onnxruntime"),
    }


def _int8_instructions() -> list[str]:
    """Name the instructions that add four 8-bit products at once, in 32 bits."""
    flags = _field(Path("/proc/cpuinfo"), "flags") or _field(Path("/proc/cpuinfo"), "Features") or ""
    return [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if name in flags.split()]


def _version(distribution: str) -> str:
    from importlib import metadata  # slow to import, and only needed here

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _accelerators() -> list[str]:
    """Name the NVIDIA devices as their driver does."""
    devices = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [name for name in (_field(path, "Model") for path in devices) if name]


def _field(path: Path, field: str) -> str | None:
    """Return what follows ``field :`` in a file of such lines."""
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    except OSError:
        pass
    return None
