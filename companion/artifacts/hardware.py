"""What a measurement depends on besides its inputs: the machine it was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["cpu_features", "machine"]

_CPUINFO = Path("/proc/cpuinfo")
# What macOS calls what Linux calls by another name; everything else differs in capitals and dots alone.
_LINUX_NAMES = {
    "avx1_0": "avx",
    "avx2_0": "avx2",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "feat_dotprod": "asimddp",
    "feat_i8mm": "i8mm",
    "feat_bf16": "bf16",
    "feat_fp16": "asimdhp",
    "advsimd": "asimd",
}


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
    cpu = _field(_CPUINFO, "model name")
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


def cpu_features(cpuinfo: Path = _CPUINFO, sysctl: Callable[[], str] | None = None) -> frozenset[str]:
    """Name the instruction sets of the processor, without any library.

    Parameters
    ----------
    cpuinfo : Path
        Linux's own description of the processors.
    sysctl : callable, optional
        Gives what ``sysctl hw.optional machdep.cpu`` prints on macOS, which is asked where there is no
        `cpuinfo`.

    Returns
    -------
    frozenset of str
        By Linux's names, such as ``avx2``, ``avx512_vnni`` and ``asimddp``: those that every core has. Empty
        where nothing tells.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return _apple_features((sysctl or _sysctl)())
    cores = [
        frozenset(line.partition(":")[2].split())
        for line in lines
        if line.partition(":")[0].strip() in ("flags", "Features")  # x86, ARM
    ]
    return frozenset.intersection(*cores) if cores else frozenset()


def _sysctl() -> str:
    """Ask macOS; elsewhere there is no such command, or no such names."""
    command = ["sysctl", "hw.optional", "machdep.cpu"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _apple_features(text: str) -> frozenset[str]:
    """Read lines such as ``hw.optional.arm.FEAT_DotProd: 1`` and ``machdep.cpu.features: SSE4.2 AVX2``."""
    found = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.startswith("hw.optional.") and value.strip() == "1":
            found.append(name.rpartition(".")[2] if ".arm." in name else name.removeprefix("hw.optional."))
        elif name.endswith("features"):
            found += value.split()
    plain = (name.lower().replace(".", "_") for name in found)
    return frozenset(_LINUX_NAMES.get(name, name) for name in plain)


def _int8_instructions() -> list[str]:
    """Name the instructions that add four 8-bit products at once, in 32 bits."""
    found = cpu_features()
    return [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if name in found]


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
