"""What a stack consists of: which parts, on which ports, started by which commands."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from companion.settings import usable_cores

__all__ = [
    "OptionalPart",
    "Part",
    "StackSettings",
    "find_program",
    "part_names",
    "parts_of",
    "server_arguments",
]

OptionalPart = Literal["nginx", "redis", "prometheus"]
_ELSEWHERE = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/bin")
_PROGRAMS: dict[str, tuple[str, str]] = {
    "nginx": ("nginx", "nginx-light"),
    "redis": ("redis-server", "redis-server"),
    "prometheus": ("prometheus", "prometheus"),
}
"""Each part's program, and the Debian package that it comes from."""


@dataclass(frozen=True)
class StackSettings:
    """What a stack is to be.

    Parameters
    ----------
    folder : Path
        The model: a folder made by `companion export`.
    servers : int
        How many processes serve it.
    port : int
        Where nginx listens on 127.0.0.1; 0 takes a free port. All other parts take free ports.
    without : tuple of str
        Parts that are not wanted: ``nginx``, ``redis``, ``prometheus``.
    threads : int, optional
        Threads of each server. Default: the cores of this machine, shared among them.
    rate : str, optional
        How much one caller may ask of all servers together, such as ``1000/minute``. Counted in Redis.
    cache : bool
        Whether the servers share their answers in Redis. Without a Redis there is nothing to share.
    client_timeout_s : int
        How long a client may take for the head of a request, and for each pause in its body, in seconds.
    connections_per_address : int
        Most connections that one address may hold open at once.
    arguments : tuple of str
        Further arguments of `companion serve`, such as ``("--api-keys", "keys")``.

    Raises
    ------
    ValueError
        If such a stack cannot be.
    """

    folder: Path
    servers: int = 3
    port: int = 8080
    without: tuple[OptionalPart, ...] = ()
    threads: int | None = None
    rate: str | None = None
    cache: bool = True
    client_timeout_s: int = 5
    connections_per_address: int = 1024
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("servers", "threads", "client_timeout_s", "connections_per_address"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1.")
        if self.servers > 64:
            raise ValueError(f"servers is {self.servers}, expected at most 64: they share one machine.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, expected 0 to 65535: choose one with --port.")
        for part in self.without:
            if part not in get_args(OptionalPart):
                known = ", ".join(get_args(OptionalPart))
                raise ValueError(f"--without is {part!r}, expected one of {known}.")
        if self.rate is not None:
            from companion.deployment.rates import parse_rate

            parse_rate(self.rate)

    @property
    def threads_each(self) -> int:
        """Threads of one server."""
        return self.threads or max(1, usable_cores() // self.servers)


@dataclass(frozen=True)
class Part:
    """One process of a stack.

    Attributes
    ----------
    name : str
        Such as ``server-2``.
    port : int
    command : tuple of str
        Holds the path of the state folder, by which a running process is recognised.
    stop : signal.Signals
        What asks it to finish its work and end.
    health : str or None
        The address that says whether it works; None for Redis, which is asked in its own words.
    """

    name: str
    port: int
    command: tuple[str, ...]
    stop: signal.Signals = signal.SIGTERM
    health: str | None = None


def part_names(settings: StackSettings) -> tuple[str, ...]:
    """Name the parts, in the order in which they start; they stop in the opposite one."""
    names = [
        "redis",
        *(f"server-{number}" for number in range(1, settings.servers + 1)),
        "nginx",
        "prometheus",
    ]
    return tuple(name for name in names if name not in settings.without)


def find_program(part: str) -> str:
    """Return the path of a part's program.

    Raises
    ------
    FileNotFoundError
        If it is not installed; the message names the package.
    """
    program, package = _PROGRAMS[part]
    found = shutil.which(program) or shutil.which(program, path=":".join(_ELSEWHERE))
    if found is None:
        raise FileNotFoundError(
            f"{program} is not installed, and the stack's {part} needs it: apt-get install {package}, or "
            f"leave it out with --without {part}"
        )
    return found


def parts_of(settings: StackSettings, state: Path, ports: Mapping[str, int]) -> tuple[Part, ...]:
    """Lay out the processes of a stack.

    Parameters
    ----------
    settings : StackSettings
    state : Path
        The folder of configurations, logs and process ids.
    ports : mapping
        The port of each part, by name.

    Raises
    ------
    FileNotFoundError
        If a program is not installed.
    """
    return tuple(_parts(settings, state, ports))


def _parts(settings: StackSettings, state: Path, ports: Mapping[str, int]) -> Iterator[Part]:
    command: tuple[str, ...]
    for name in part_names(settings):
        port, command = ports[name], tuple[str, ...]()
        if name == "redis":
            yield Part(name, port, (find_program(name), str(state / "redis.conf")))
        elif name == "nginx":
            command = (find_program(name), "-p", str(state), "-c", str(state / "nginx.conf"))
            health = f"http://127.0.0.1:{port}/health/live"
            yield Part(name, port, command, signal.SIGQUIT, health)
        elif name == "prometheus":
            command = (
                find_program(name),
                f"--config.file={state / 'prometheus.yml'}",
                f"--storage.tsdb.path={state / 'prometheus'}",
                "--storage.tsdb.retention.time=2d",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            )
            yield Part(name, port, command, health=f"http://127.0.0.1:{port}/-/ready")
        else:
            redis = f"redis://127.0.0.1:{ports['redis']}/0" if "redis" in ports else None
            arguments = server_arguments(settings.rate, redis, cache=settings.cache)
            command = (
                sys.executable,
                "-m",
                "companion.cli",
                "serve",
                str(settings.folder),
                "--port",
                str(port),
            )
            command += ("--threads", str(settings.threads_each), "--trust-proxy", "127.0.0.1", *arguments)
            command += ("--log-file", str(state / "logs" / f"{name}.json"))
            command += ("--prediction-log", str(state / "predictions"), *settings.arguments)
            yield Part(name, port, command, health=f"http://127.0.0.1:{port}/health/ready")


def server_arguments(rate: str | None, redis: str | None, *, cache: bool = True) -> tuple[str, ...]:
    """Return what every server of a stack is told, wherever it runs: natively or in a container.

    Where there is a Redis, they share it: their counts for the rates, and their answers.
    """
    arguments: tuple[str, ...] = ("--log-requests", "--log-format", "json")
    if rate is not None:
        arguments += ("--rate", rate)
        if redis is not None:
            arguments += ("--redis", redis)
    if redis is not None and cache:
        arguments += ("--cache", redis)
    return arguments
