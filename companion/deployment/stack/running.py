"""A stack as processes of this machine: brought up, looked at, taken down; all of it noted in one folder."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from companion.artifacts import staged_file
from companion.deployment.server import check_folder, listen
from companion.deployment.stack.probing import PartStatus, fault_of
from companion.deployment.stack.processes import ProcessFile
from companion.deployment.stack.rendering import (
    NginxPlace,
    alert_rules,
    nginx_conf,
    prometheus_conf,
    redis_conf,
)
from companion.deployment.stack.topology import Part, StackSettings, part_names, parts_of
from companion.settings import get_settings

__all__ = ["Stack", "StackFailedError", "take_down"]

_LOOK_S = 0.2
_PATIENCE_S = 40.0
"""A server answers what it has accepted before it ends, for at most 30 s."""
_BACK = "nginx-back"


class StackFailedError(ValueError):
    """A part did not come up; what this call had started is down again."""


class Stack:
    """Redis, several servers, nginx and Prometheus, on 127.0.0.1 alone.

    As a context manager it comes up and goes down with the block. Processes outlive this object otherwise:
    another one with the same state folder finds them.

    Parameters
    ----------
    settings : StackSettings, optional
        Without: what the state folder says of the stack that was last there.
    state : Path, optional
        Holds configurations, logs and process ids. Default: ``stack`` under ``COMPANION_HOME``.
    ready_within_s : float
        Longest wait for all parts together.

    Raises
    ------
    FileNotFoundError
        If there are no settings and the state folder holds no stack.
    """

    def __init__(
        self,
        settings: StackSettings | None = None,
        state: Path | None = None,
        *,
        ready_within_s: float = 120.0,
    ) -> None:
        self.state = _state_folder(state)
        self._ready_within_s = ready_within_s
        noted = self._noted()
        if settings is None and noted is None:
            raise FileNotFoundError(f"no stack was ever started in {self.state}: companion stack up FOLDER")
        self._settings = settings or _settings(noted)
        self._ports: dict[str, int] = {} if noted is None else noted["ports"]
        self._files: dict[str, ProcessFile] = {}

    @property
    def settings(self) -> StackSettings:
        """What the stack is to be."""
        return self._settings

    @property
    def ports(self) -> dict[str, int]:
        """The port of each part, once it was started."""
        return dict(self._ports)

    @property
    def url(self) -> str:
        """The address for clients: nginx, or without it the first server."""
        return f"http://127.0.0.1:{self._ports['nginx' if 'nginx' in self._ports else 'server-1']}"

    def __enter__(self) -> Stack:
        """Bring it up."""
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down."""
        self.down()

    def up(self) -> list[PartStatus]:
        """Start whatever does not run, and wait until all of it works.

        Returns
        -------
        list of PartStatus

        Raises
        ------
        FileNotFoundError
            If the model or a program is missing.
        ValueError
            If the model is none, the port is taken, or a stack of other settings runs in this state folder.
        StackFailedError
            If a part ends or does not come to work in time. What this call started is down again.
        """
        check_folder(self._settings.folder)
        self.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(self.state), ExitStack() as undo:
            running = [name for name in _known(self.state) if self._file(name).pid is not None]
            self._ports = self._keep_ports() if running else self._take_ports()
            parts = parts_of(self._settings, self.state, self._ports)
            self._write(parts)
            for part in parts:
                file = self._file(part.name)
                if file.pid is None:
                    file.stop(part.stop, 0)  # what a dead one left behind
                    undo.callback(file.stop, part.stop, _PATIENCE_S)
                    file.start(part.command, self._log(part.name))
            self._wait(parts)
            undo.pop_all()
            return self._look(parts)

    def down(self) -> list[str]:
        """Stop everything that runs; see `take_down`."""
        return _stop_all(self.state, self._file)

    def status(self) -> list[PartStatus]:
        """Ask every part whether it works."""
        return self._look(parts_of(self._settings, self.state, self._ports)) if self._ports else []

    def process(self, name: str) -> int | None:
        """Return the id of a part's process; None when it does not run."""
        return self._file(name).pid

    # --- how

    def _look(self, parts: Sequence[Part]) -> list[PartStatus]:
        found = []
        for part in parts:
            pid = self._file(part.name).pid
            found.append(
                PartStatus(part.name, pid, part.port, "does not run" if pid is None else fault_of(part))
            )
        return found

    def _wait(self, parts: Sequence[Part]) -> None:
        end = time.monotonic() + self._ready_within_s
        for part in parts:
            while True:
                if self._file(part.name).pid is None:
                    raise StackFailedError(f"{part.name} ended: {_last_words(self._log(part.name))}")
                fault = fault_of(part)
                if fault is None:
                    break
                if time.monotonic() > end:
                    raise StackFailedError(
                        f"{part.name} {fault}, {self._ready_within_s:g} s after the start: "
                        f"{_last_words(self._log(part.name))}"
                    )
                time.sleep(_LOOK_S)

    def _file(self, name: str) -> ProcessFile:
        if name not in self._files:
            self._files[name] = _process_file(self.state, name)
        return self._files[name]

    def _log(self, name: str) -> Path:
        return self.state / "logs" / f"{name}.log"

    def _keep_ports(self) -> dict[str, int]:
        """Return the ports of the stack that runs; it has to be the one that is asked for."""
        noted = self._noted()
        if noted is None:
            raise ValueError(
                f"parts of a stack run, and {self.state} does not say which: companion stack down"
            )
        there, asked = _settings(noted), self._settings
        differing = [
            f"{field.name} is {getattr(there, field.name)}, not {getattr(asked, field.name)}"
            for field in fields(there)
            if getattr(there, field.name) != getattr(asked, field.name)
            and not (field.name == "port" and asked.port == 0)
        ]
        if differing:
            raise ValueError(
                f"another stack runs in {self.state} ({'; '.join(differing)}): companion stack down, or give "
                "another --state"
            )
        return dict(noted["ports"])

    def _take_ports(self) -> dict[str, int]:
        names = [*part_names(self._settings)]
        with ExitStack() as held:
            found: dict[str, int] = {}
            for name in [*names, _BACK] if "nginx" in names else names:
                wanted = self._settings.port if name == "nginx" else 0
                probe: socket.socket = held.enter_context(closing(listen("127.0.0.1", wanted)))
                found[name] = probe.getsockname()[1]
        return found

    def _write(self, parts: Sequence[Part]) -> None:
        """Write notes and configurations; nothing runs yet that is not found again by them."""
        for name in ("run", "logs", "temporary"):
            (self.state / name).mkdir(exist_ok=True)
        for name, text in self._configurations(parts).items():
            with staged_file(self.state / name) as staging:
                staging.write_text(text, encoding="utf-8")

    def _configurations(self, parts: Sequence[Part]) -> dict[str, str]:
        servers = [f"127.0.0.1:{part.port}" for part in parts if part.name.startswith("server-")]
        noted = {
            "settings": asdict(self._settings) | {"folder": str(self._settings.folder)},
            "ports": self._ports,
        }
        found = {"stack.json": json.dumps(noted, indent=1)}
        if "redis" in self._ports:
            found["redis.conf"] = redis_conf(
                bind="127.0.0.1", port=self._ports["redis"], folder=str(self.state)
            )
        if "nginx" in self._ports:
            place = NginxPlace(
                listen=f"127.0.0.1:{self._ports['nginx']}",
                back=f"127.0.0.1:{self._ports[_BACK]}",
                servers=servers,
                pid_file=str(self.state / "temporary" / "nginx.pid"),
                error_log=str(self.state / "logs" / "nginx-errors.log"),
                access_log=str(self.state / "logs" / "nginx.json"),
                temporary=str(self.state / "temporary"),
            )
            found["nginx.conf"] = nginx_conf(
                place,
                client_timeout_s=self._settings.client_timeout_s,
                connections_per_address=self._settings.connections_per_address,
            )
        if "prometheus" in self._ports:
            found["alerts.yml"] = alert_rules()
            found["prometheus.yml"] = prometheus_conf(targets=servers, rules=str(self.state / "alerts.yml"))
        return found

    def _noted(self) -> dict[str, Any] | None:
        path = self.state / "stack.json"
        try:
            noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _settings(noted)
            return {"settings": noted["settings"], "ports": dict(noted["ports"])}
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} cannot be read: delete it after companion stack down") from None


def take_down(state: Path | None = None) -> list[str]:
    """Stop every process of a stack, whatever its notes say: nginx first, then the servers, Redis last.

    Parameters
    ----------
    state : Path, optional
        As in `Stack`.

    Returns
    -------
    list of str
        The names of the parts that ran.

    Raises
    ------
    ValueError
        If another command works on this stack.
    """
    folder = _state_folder(state)
    return _stop_all(folder, lambda name: _process_file(folder, name))


def _stop_all(state: Path, file_of: Callable[[str], ProcessFile]) -> list[str]:
    if not state.is_dir():
        return []
    with _alone(state):
        names = sorted(_known(state), key=_stop_order)
        ran = [name for name in names if file_of(name).members()]
        for name in names:
            file_of(name).stop(signal.SIGQUIT if name == "nginx" else signal.SIGTERM, _PATIENCE_S)
        return ran


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    lock = FileLock(state / "lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise ValueError(f"another command works on the stack in {state}: wait for its end") from None


def _state_folder(state: Path | None) -> Path:
    return Path(state or get_settings().home / "stack").expanduser().resolve()


def _known(state: Path) -> set[str]:
    return {file.stem for file in (state / "run").glob("*.pid")}


def _process_file(state: Path, name: str) -> ProcessFile:
    return ProcessFile(state / "run" / f"{name}.pid", str(state))


def _settings(noted: dict[str, Any] | None) -> StackSettings:
    assert noted is not None
    found = dict(noted["settings"])
    for name in ("without", "arguments"):
        found[name] = tuple(found[name])
    return StackSettings(**found | {"folder": Path(found["folder"])})


def _stop_order(name: str) -> tuple[int, str]:
    return ({"nginx": 0, "prometheus": 2, "redis": 3}.get(name, 1), name)


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = " / ".join(line.strip() for line in lines[-3:])
    return f"{said or 'it said nothing'} (in {log})"
