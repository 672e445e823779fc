"""What a folder needs of the processor, and what this one has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from companion.artifacts import cpu_features

__all__ = ["check_processor", "features", "missing"]


def features() -> frozenset[str]:
    """Name the instruction sets of this processor, by Linux's names.

    Returns
    -------
    frozenset of str
        Such as ``avx2``, ``avx512_vnni``, ``asimddp``. Empty where the system does not tell.
    """
    return cpu_features()


def missing(needed: Iterable[str], found: Collection[str]) -> tuple[str, ...]:
    """Choose what is needed and not there.

    Parameters
    ----------
    needed : iterable of str
        Names, or several joined by ``|`` of which one is enough: ``"avx512_vnni|avx_vnni"``.
    found : collection of str

    Returns
    -------
    tuple of str
        Of `needed`, in its order.
    """
    return tuple(name for name in needed if not set(name.split("|")) & set(found))


def check_processor(folder: Path, needed: Collection[str], found: Collection[str] | None = None) -> None:
    """Refuse a folder whose answers would be wrong on this processor.

    Parameters
    ----------
    folder : Path
        To name in the error.
    needed : collection of str
        As for `missing`: `Manifest.cpu_features`.
    found : collection of str, optional
        Default: `features`, which is only asked where something is needed.

    Raises
    ------
    ValueError
        When something is missing, or something is needed and the processor's features are not known.
    """
    if not needed:
        return
    found = features() if found is None else found
    if lacking := missing(needed, found):
        wanted = ", ".join(name.replace("|", " or ") for name in lacking)
        has = ", ".join(sorted(_relatives(needed, found))) or "none of that kind"
        state = f"this processor has {has}" if found else "this system does not tell what its processor has"
        raise ValueError(
            f"{folder} needs a processor with {wanted}, or its answers would be wrong; {state}. Run it on "
            "another machine, or export the model again for any processor: companion export --precision int8"
        )


def _relatives(needed: Iterable[str], found: Iterable[str]) -> set[str]:
    """Choose the features that could be meant: vectors and matrices, on the processor's own side."""
    families = ("avx", "amx", "sse", "asimd", "sve", "i8mm")
    wanted = {name for entry in needed for name in entry.split("|")}
    return {name for name in found if name in wanted or name.startswith(families)}
