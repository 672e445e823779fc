"""The commands on a server's API keys: `keys new`, `keys list`, `keys revoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from companion.cli.options import Json, show

__all__ = ["list_keys", "new_key", "revoke_key"]

KeyFile = Annotated[
    Path, typer.Option("--file", help="The file of keys; companion serve takes it as --api-keys.")
]


def new_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; log lines show it.")],
    file: KeyFile,
    as_json: Json = False,
) -> None:
    """Make a key, print it once, and add its hash to a file."""
    from companion.deployment.keys import add_key

    token, key = add_key(file, name)
    if as_json:
        show({"token": token, "id": key.id, "name": key.name, "file": str(file)}, as_json)
        return
    typer.echo(token)
    typer.echo(
        f"companion: this is the only time that the key of {key.name} is shown; {file} holds its hash",
        err=True,
    )


def list_keys(file: KeyFile, as_json: Json = False) -> None:
    """List the keys of a file: id, day, name."""
    from companion.deployment.keys import read_keys

    keys = read_keys(file).values()
    if as_json:
        show({"keys": [{"id": key.id, "name": key.name, "made_on": key.made_on} for key in keys]}, as_json)
        return
    for key in keys:
        typer.echo(f"{key.id}  {key.made_on}  {key.name}")


def revoke_key(
    which: Annotated[str, typer.Argument(help="The id of one key, or the name of all of somebody's.")],
    file: KeyFile,
    as_json: Json = False,
) -> None:
    """Remove keys from a file; a running server refuses them within a second."""
    from companion.deployment.keys import revoke_keys

    gone = revoke_keys(file, which)
    if as_json:
        show({"revoked": [{"id": key.id, "name": key.name} for key in gone]}, as_json)
        return
    for key in gone:
        typer.echo(f"revoked {key.id}  {key.made_on}  {key.name}")
