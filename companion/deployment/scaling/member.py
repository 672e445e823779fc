"""One of the processes behind a shared port: a whole server, told by its parent when to end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from companion.deployment.app import Load, create_app
from companion.deployment.configuration import ServerSettings
from companion.deployment.draining import DrainingServer
from companion.deployment.logs import messages_logged
from companion.deployment.problems import ProblemError
from companion.deployment.scaling.accepting import SharedPort
from companion.deployment.scaling.board import Board

if TYPE_CHECKING:
    import uvicorn

    from companion.deployment.service import ModelService

__all__ = ["Membership", "run_member"]


@dataclass(frozen=True)
class Membership:
    """All that a process needs to know.

    Attributes
    ----------
    folder : Path
    settings : ServerSettings
        Its own share.
    load : callable
        Opens the folder; a function of a module.
    process : int
        Its line on the board.
    board : Board
    """

    folder: Path
    settings: ServerSettings
    load: Load
    process: int
    board: Board


class _MemberServer(DrainingServer):
    """A server that shares its port.

    Parameters
    ----------
    config : uvicorn.Config
    service : ModelService
    listen : callable
        Makes the side of the port from what makes a connection's protocol.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: ModelService,
        listen: Callable[[_MemberServer], SharedPort],
    ) -> None:
        super().__init__(config, service)
        self._listen = listen
        self._keeping: asyncio.Task[None] | None = None  # referred to, or it would be collected

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections, this process's share."""
        await super().startup(sockets=[])
        port = self._listen(self)
        self.servers = [port]  # type: ignore[list-item]  # is closed when uvicorn closes its own
        self._keeping = asyncio.create_task(port.keep())

    def protocol(self) -> asyncio.Protocol:
        """Make the protocol of one connection, as uvicorn does."""
        kind = self.config.http_protocol_class
        made: asyncio.Protocol = kind(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def run_member(member: Membership, listener: socket.socket, parent: Connection) -> None:
    """Be one of the processes, until told to end or left alone.

    Parameters
    ----------
    member : Membership
    listener : socket
    parent : Connection
        Told ``("ready", "")`` or ``("failed", reason)``. Its end is the parent's.
    """
    from companion.deployment.server import configure  # it imports this module's neighbours

    listener.setblocking(False)
    with messages_logged(member.settings):
        app = create_app(member.folder, member.settings, load=member.load)
        service: ModelService = app.state.service
        service.report = lambda error: None  # the parent says it

        def side(server: _MemberServer) -> SharedPort:
            return SharedPort(
                listener,
                member.board,
                member.process,
                ready=lambda: _is_ready(service),
                connections=lambda: len(server.server_state.connections),
                protocol=server.protocol,
            )

        server = _MemberServer(configure(app, member.settings), service, side)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        # Whoever started this process holds them back until here, so that none is lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_run(server, service, listener, parent))


async def _run(
    server: uvicorn.Server, service: ModelService, listener: socket.socket, parent: Connection
) -> None:
    loop = asyncio.get_running_loop()

    def left_alone() -> None:
        loop.remove_reader(parent.fileno())
        server.should_exit = True

    loop.add_reader(parent.fileno(), left_alone)  # nothing is ever sent: it can only be the end
    telling = asyncio.create_task(_tell(server, service, parent))
    try:
        await server.serve(sockets=[listener])
    finally:
        telling.cancel()
        loop.remove_reader(parent.fileno())


async def _tell(server: uvicorn.Server, service: ModelService, parent: Connection) -> None:
    await service.settled.wait()
    if service.failure is None:
        _send(parent, "ready", "")
    else:
        _send(parent, "failed", str(service.failure) or type(service.failure).__name__)
        server.should_exit = True


def _send(parent: Connection, what: str, detail: str) -> None:
    with suppress(OSError):  # it has ended, and this process will too
        parent.send((what, detail))


def _is_ready(service: ModelService) -> bool:
    try:
        service.check_ready()
    except ProblemError:
        return False
    return True
