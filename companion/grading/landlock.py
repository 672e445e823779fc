"""Landlock: a process gives up most of the file system, and cannot get it back (Linux 5.13 or newer).

The system calls have no wrapper in Python or the C library; they are called by number, which is the same on
every architecture. The rules are in the kernel's "Landlock: unprivileged access control".
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

__all__ = ["abi", "restrict", "restrict_program"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH, _SET_NO_NEW_PRIVS = 1, 1, 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_MAKE_SOCK, _MAKE_FIFO = 1 << 9, 1 << 10
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ = _READ_FILE | _READ_DIR
_WRITE = _OF_FILES | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM
_RUN = _READ | _EXECUTE
_WORK = _WRITE | _MAKE_SOCK | _MAKE_FIFO
_PORT, _BIND, _CONNECT = 2, 1, 2
# How many access rights each version knows: what a version does not know must not be asked of it.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST = 16


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _OfPort(ctypes.Structure):
    _fields_ = (("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64))


def abi() -> int:
    """Return the version of Landlock that the kernel has; 0 without one."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        return max(0, int(libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)))
    except AttributeError:  # not Linux
        return 0


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Let this process, for good, read some paths, write others, and run no program.

    With version 4 it cannot connect or listen over TCP either; with version 6 it reaches no process outside
    by a signal or an abstract socket.

    Parameters
    ----------
    readable, writable : iterable of Path
        Folders, with all below them, and files. One that is missing is left out.

    Returns
    -------
    bool
        Whether the kernel enforces it.
    """
    return _enforce(((readable, _READ), (writable, _WRITE)), tcp=True)


def restrict_program(
    runnable: Iterable[Path],
    readable: Iterable[Path],
    writable: Iterable[Path],
    listable: Iterable[Path] = (),
    *,
    port: int | None = None,
) -> bool:
    """Let this process, and the programs that it becomes, run some paths, read some, and write others.

    Parameters
    ----------
    runnable, readable, writable : iterable of Path
        As `restrict` takes them; what can be run can be read.
    listable : iterable of Path
        Folders whose names, and not contents, can be seen.
    port : int, optional
        The only one that can be listened on and connected to, from version 4. Default: all.

    Returns
    -------
    bool
        Whether the kernel enforces it.
    """
    parts = ((runnable, _RUN), (readable, _READ), (writable, _WORK), (listable, _READ_DIR))
    return _enforce(parts, tcp=port is not None, ports=() if port is None else (port,))


def _enforce(parts: Iterable[tuple[Iterable[Path], int]], *, tcp: bool, ports: Iterable[int] = ()) -> bool:
    version = abi()
    if not version:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = (1 << _RIGHTS.get(version, _NEWEST)) - 1
    attributes = _Ruleset(handled, 3 if version >= 4 and tcp else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for paths, rights in parts:
            for path in paths:
                _allow(libc, ruleset, path, rights & handled)
        for port in ports if version >= 4 else ():
            rule = _OfPort(_BIND | _CONNECT, port)
            libc.syscall(_ADD, ruleset, _PORT, ctypes.byref(rule), 0)
        return (
            libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and int(libc.syscall(_RESTRICT, ruleset, 0)) == 0
        )
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _OF_FILES
        rule = _Beneath(rights, parent)
        libc.syscall(_ADD, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(parent)
