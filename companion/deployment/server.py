"""The process around the application: checks first, one line when ready, a clean end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.deployment.app import create_app
from companion.deployment.assembly import Load
from companion.deployment.configuration import ServerSettings
from companion.deployment.logs import messages_logged

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn
    from fastapi import FastAPI

    from companion.deployment.service import ModelService

GRACE_S = 30
"""Longest time, in seconds, that requests already accepted may take after a signal to stop."""


def serve(
    folder: Path, settings: ServerSettings | None = None, *, load: Load | None = None, **changes: Any
) -> None:
    """Serve an exported model over HTTP until SIGTERM or SIGINT.

    Folder, settings and port are checked before anything starts. One line on stderr gives the address as soon
    as the first request can be answered. A signal ends it cleanly: further requests are refused with 503
    `draining`, what was accepted is answered, and the function returns. With several processes all of that
    holds for them together (see `companion.deployment.scaling.supervising.supervise`).

    Parameters
    ----------
    folder : Path
        A folder made by `companion.inference.export`.
    settings : ServerSettings, optional
    load : callable, optional
        As for `create_app`. With several processes a function of a module.
    **changes
        Fields of the settings that are different, such as ``port=0``; None leaves a field as it is.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no such file of keys.
    ValueError
        If the folder is not an exported model or does not match its manifest, if the port cannot be had, or
        if the settings cannot work.
    OSError
        If the log file cannot be opened.
    """
    settings = (settings or ServerSettings()).but(**changes)
    folder = Path(folder)
    check_folder(folder)
    with closing(listen(settings.host, settings.port)) as listener, messages_logged(settings):
        # Each worker reads its texts by itself; a pool of the tokenizer's own would use cores nobody gave it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if settings.processes > 1:
            from companion.deployment.scaling.supervising import supervise

            supervise(folder, settings, listener, load)
            return
        from companion.deployment.draining import DrainingServer

        app = create_app(folder, settings) if load is None else create_app(folder, settings, load=load)
        service: ModelService = app.state.service
        service.report = lambda error: None  # it is raised below
        _run(DrainingServer(configure(app, settings), service), service, listener)
    if service.failure is not None:
        raise service.failure


def configure(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """Return how uvicorn runs an application of ours."""
    import uvicorn

    from companion.deployment.heads import TimedHeadProtocol

    return uvicorn.Config(
        app,
        http=TimedHeadProtocol,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def check_folder(folder: Path) -> None:
    """Look whether `folder` can be an exported model, without reading it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds something else.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder} does not exist, expected a folder made by 'companion export': check the path."
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder made by 'companion export'.")
    missing = [name for name in ("manifest.json", "model.onnx") if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}, expected an exported model: "
            f"make one with 'companion export {folder} OUT' and serve OUT."
        )


def listen(host: str, port: int) -> socket.socket:
    """Open a listening TCP socket.

    Raises
    ------
    ValueError
        If the port is not a port or is taken, or if the host is not an address of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}, expected 0 to 65535: choose one with --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"host {host!r} is not known here, expected for example 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        # Not on Windows, where this option would let two servers share the port.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ValueError(_why_not(host, port, error)) from error
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or choose another with --port."
    if error.errno == errno.EACCES:
        return f"port {port} needs special rights, expected 1024 or above: choose another with --port."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host!r} is not an address of this machine, expected for example 127.0.0.1."
    return f"cannot listen on {host} port {port} ({error.strerror}): choose another with --host or --port."


def _run(server: uvicorn.Server, service: ModelService, listener: socket.socket) -> None:
    async def main() -> None:
        watching = asyncio.create_task(_announce(server, service, listener))
        try:
            await server.serve(sockets=[listener])
        finally:
            watching.cancel()

    with _signals_stop(server), asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(main())


async def _announce(server: uvicorn.Server, service: ModelService, listener: socket.socket) -> None:
    """Print the address once the model answers; stop the server if it never will."""
    await service.settled.wait()
    if service.failure is not None:
        server.should_exit = True
    elif not server.should_exit:
        announce(listener)


def announce(listener: socket.socket) -> None:
    """Print the address on stderr: the first request can be answered."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"serving on http://{host}:{port} (stop with Ctrl+C)", file=sys.stderr, flush=True)


@contextmanager
def _signals_stop(server: uvicorn.Server) -> Iterator[None]:
    """Let SIGTERM and SIGINT mean a clean end, exit code 0.

    uvicorn handles both itself, but raises them again at the end, and the default handler would then kill
    the process. These handlers take that second call, and a signal that comes before uvicorn listens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
