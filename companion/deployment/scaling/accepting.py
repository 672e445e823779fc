"""Which of several processes takes the next connection of a port that they share.

The kernel wakes them all, and whoever is first gets it. So a server that takes as many as there are can have
all of them, and the others none; and one that cannot answer would go on taking its share.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from companion.deployment.scaling.board import Board

__all__ = ["PAUSE_S", "SharedPort"]

PAUSE_S = 0.01
"""How long, in seconds, a process with more connections than another leaves the next one to it."""
_AHEAD = 1
_TURN_S = 0.1  # between two looks at the others; what Board.FRESH_S is ten of


class SharedPort:
    """One process's side of the port.

    It takes connections while it is ready, and also while no process is: somebody has to say so. Of those
    that wait it takes one at a time, and lets a process with fewer go first.

    Parameters
    ----------
    listener : socket
        Listens, does not block.
    board : Board
    process : int
        Whose side this is.
    ready : callable
        Whether this process answers questions at this moment.
    connections : callable
        How many it has.
    protocol : callable
        Makes the protocol of a connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        board: Board,
        process: int,
        *,
        ready: Callable[[], bool],
        connections: Callable[[], int],
        protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener, self._board, self._process = listener, board, process
        self._ready, self._connections, self._protocol = ready, connections, protocol
        self._open = self._waited = self._closed = False
        self._beginning = set[asyncio.Task[object]]()

    async def keep(self) -> None:
        """Take connections, and tell the others, until closed."""
        while not self._closed:
            self.turn()
            await asyncio.sleep(_TURN_S)

    def turn(self) -> None:
        """Write this process's line, and look whether it is for this process to take connections."""
        ready, self._waited = self._ready(), False
        self._board.beat(self._process, ready=ready, connections=self._load())
        self._set(ready or not self._board.others(self._process))

    def close(self) -> None:
        """Take no more; as of an `asyncio.Server`, which uvicorn takes this for."""
        self._set(False)
        self._closed = True

    async def wait_closed(self) -> None:
        """Wait until the connections that were taken have begun."""
        await asyncio.gather(*self._beginning)

    def _load(self) -> int:
        return self._connections() + len(self._beginning)

    def _set(self, wanted: bool) -> None:
        if wanted == self._open or self._closed:
            return
        self._open, loop = wanted, asyncio.get_running_loop()
        if wanted:
            loop.add_reader(self._listener.fileno(), self._take)
        else:
            loop.remove_reader(self._listener.fileno())

    def _take(self) -> None:
        others = self._board.others(self._process)
        if others and self._load() > min(others) + _AHEAD and not self._waited:
            # Once only: should the other one be busy or dead, nobody waits for it twice.
            self._set(False)
            self._waited = True
            asyncio.get_running_loop().call_later(PAUSE_S, self._set, True)
            return
        self._waited = False
        with suppress(OSError):  # another process was faster, or the caller left, or all descriptors are used
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            task = asyncio.create_task(self._begin(connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
        self._board.beat(self._process, ready=self._ready(), connections=self._load())

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # the caller left
            connection.close()
