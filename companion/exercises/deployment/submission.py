"""What is handed in: a folder with a file that says how its server starts, and an exported model."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONFIGURATION", "NAIVE", "ServerSubmission", "naive_server", "read_submission"]

CONFIGURATION = "serve.toml"
NAIVE = Path(__file__).with_name("naive.py")
"""The server that a learner begins with."""
_EXAMPLE = 'command = ["python", "server.py"] and model = "model"'
_LONGEST = 10_000


@dataclass(frozen=True)
class ServerSubmission:
    """A server that can be started.

    Attributes
    ----------
    folder : Path
        Where it is started.
    command : tuple of str
        A program and its arguments. ``{port}`` and ``{model}`` in them are filled in.
    model : Path
        The exported folder.
    """

    folder: Path
    command: tuple[str, ...]
    model: Path

    def argv(self, port: int) -> list[str]:
        """Return the command for a port."""
        return [
            word.replace("{port}", str(port)).replace("{model}", str(self.model)) for word in self.command
        ]

    def environment(self, port: int) -> dict[str, str]:
        """Return what the server finds in its environment: ``PORT`` and ``MODEL``."""
        return {"PORT": str(port), "MODEL": str(self.model)}


def read_submission(folder: str | Path) -> ServerSubmission:
    """Read ``serve.toml``.

    Raises
    ------
    FileNotFoundError
        When the folder, its ``serve.toml`` or the model's folder is missing.
    ValueError
        When ``serve.toml`` does not say how to start a server, or names a folder outside.
    """
    home = Path(folder).resolve()
    file = home / CONFIGURATION
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(f"there is no {CONFIGURATION} in {home.name}: expected one with {_EXAMPLE}")
    try:
        said = tomllib.loads(file.read_bytes()[:_LONGEST].decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIGURATION} is not TOML ({error}): expected {_EXAMPLE}") from error
    command, name = _command(said), said.get("model", "model")
    if not isinstance(name, str) or not name:
        raise ValueError(f"model in {CONFIGURATION} is {name!r}, expected the name of a folder beside it")
    model = (home / name).resolve()
    if not model.is_relative_to(home) or model == home:
        raise ValueError(f"model in {CONFIGURATION} is {name!r}, expected a folder below {home.name}")
    if not (model / "model.onnx").is_file():
        raise FileNotFoundError(
            f"there is no {name}/model.onnx in {home.name}: put the folder there that companion export made"
        )
    return ServerSubmission(home, command, model)


def naive_server(submission: ServerSubmission) -> ServerSubmission:
    """Return the naive server on the same model: what throughput is compared with."""
    command = ("python", "-P", str(NAIVE))  # -P: the modules beside it are not its own
    return ServerSubmission(submission.folder, command, submission.model)


def _command(said: Mapping[str, Any]) -> tuple[str, ...]:
    command = said.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise ValueError(f"command in {CONFIGURATION} is {command!r}, expected a list of words: {_EXAMPLE}")
    if not command[0] or any("\0" in word for word in command):
        raise ValueError(f"command in {CONFIGURATION} is {command!r}, expected a program and its arguments")
    return tuple(command)
