"""The commands that only look: `info`, and `artifacts list` and `clear`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from companion import __version__
from companion.cli.options import Json, show

__all__ = ["clear_artifacts", "info", "list_artifacts"]


def info(as_json: Json = False) -> None:
    """Show hardware, profile, versions, and where models and data come from."""
    from companion.artifacts import machine
    from companion.settings import get_settings

    settings = get_settings()
    names = settings.names
    report: dict[str, Any] = {
        "machine": machine(),
        "profile": settings.profile,
        "device": settings.device,
        "threads": settings.threads,
        "seed": settings.seed,
        "home": str(settings.home),
        "encoder": names.encoder,
        "encoder_from": _encoder_origin(names.encoder, settings.profile),
        "task": names.task,
        "glue_folder": str(settings.data_dir) if settings.data_dir else None,
        "versions": _versions(),
    }
    show(report, as_json)


def list_artifacts(as_json: Json = False) -> None:
    """List what is stored, with its size."""
    from companion.artifacts import entries
    from companion.settings import get_settings

    stored = entries()
    if as_json:
        rows = [{"name": e.name, "key": e.key, "bytes": e.bytes, "made_at": e.made_at} for e in stored]
        show({"home": str(get_settings().home), "artifacts": rows}, as_json)
        return
    for entry in stored:
        typer.echo(f"{entry.bytes / 2**20:8.1f} MiB  {entry.made_at}  {entry.name}  {entry.key[:12]}")
    plural = "" if len(stored) == 1 else "s"
    typer.echo(f"{len(stored)} artifact{plural} in {get_settings().home}")


def clear_artifacts(
    name: Annotated[str | None, typer.Argument(help="Only artifacts of this name.")] = None,
    as_json: Json = False,
) -> None:
    """Delete what is stored; it is made again when it is needed."""
    from companion.artifacts import clear

    show({"bytes_freed": clear(name)}, as_json)


def _encoder_origin(name: str, profile: str) -> str:
    """Say where the encoder would come from, without loading it."""
    if name == "embedded":
        from companion.models import embedded_folder

        try:
            return str(embedded_folder())
        except (FileNotFoundError, ValueError) as error:
            return f"not usable: {error}"
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return (
        "the hub, or its local cache"
        if profile == "full"
        else "nowhere: not a folder, and quick never asks the hub"
    )


def _versions() -> dict[str, str]:
    """Return the versions of what decides the results."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "companion": __version__}
    for name in ("torch", "transformers", "tokenizers", "onnxruntime", "onnx", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
