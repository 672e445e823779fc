"""The commands that run the whole topology on this machine: `stack up`, `stack down`, `stack status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from companion.cli.options import Json

if TYPE_CHECKING:
    from companion.deployment.stack import PartStatus
    from companion.deployment.stack.topology import OptionalPart

__all__ = ["stack"]

stack = typer.Typer(
    help="nginx, several servers, Redis and Prometheus on this machine.", rich_markup_mode=None
)

State = Annotated[
    Path | None,
    typer.Option("--state", help="The folder of its logs and notes. Default: stack under COMPANION_HOME."),
]


@stack.command()
def up(
    folder: Annotated[Path, typer.Argument(help="An ONNX folder, made by companion export.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVE OPTIONS]", help="After --: further options of companion serve."),
    ] = None,
    servers: Annotated[int, typer.Option("--servers", min=1, help="Processes that serve the model.")] = 3,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where nginx listens.")] = 8080,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="nginx, redis or prometheus: leave it out; repeatable."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Of each server. Default: the cores, shared."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Texts for each caller over all servers: 1000/minute.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Whether the servers share their answers in Redis.")
    ] = True,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Start whatever of the stack does not run yet, and wait until it works."""
    from companion.deployment.stack import Stack, StackSettings

    parts = cast("tuple[OptionalPart, ...]", tuple(sorted(set(without or ()))))  # refused if it is another
    settings = StackSettings(
        folder=folder.resolve(),
        servers=servers,
        port=port,
        without=parts,
        threads=threads,
        rate=rate,
        cache=cache,
        arguments=tuple(arguments or ()),
    )
    found = Stack(settings, state)
    _show(found.up(), found.url, as_json)


@stack.command()
def down(state: State = None, as_json: Json = False) -> None:
    """Stop the stack: what was accepted is answered, and no process is left."""
    from companion.deployment.stack import take_down

    stopped = take_down(state)
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing ran")


@stack.command()
def status(state: State = None, as_json: Json = False) -> None:
    """Show each part, and end with 1 when one of them does not work."""
    from companion.deployment.stack import Stack

    try:
        found = Stack(state=state)
    except FileNotFoundError as error:
        if as_json:
            typer.echo(json.dumps({"url": None, "parts": []}))
        else:
            typer.echo(f"companion: {error}", err=True)
        raise typer.Exit(1) from None
    parts = found.status()
    _show(parts, found.url, as_json)
    if any(part.fault for part in parts):
        raise typer.Exit(1)


def _show(parts: list[PartStatus], url: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"url": url, "parts": [part.to_dict() for part in parts]}))
        return
    for part in parts:
        pid = "-" if part.pid is None else part.pid
        typer.echo(f"{part.name:12} port {part.port:<6} pid {pid:<8} {part.fault or 'works'}")
    typer.echo(f"{'address':12} {url}")
