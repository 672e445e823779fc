"""What a process gives up before it runs somebody else's code: each measure on its own, used where it can be.

No measure relies on another. On Linux they are namespaces, Landlock, seccomp, no privileges, and limits; on
other systems limits and Python's audit hook remain, and the hook stops honest mistakes alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from companion.grading import landlock, seccomp

__all__ = ["drop_privileges", "enter_namespaces", "readable", "restrict"]

_NEW_MOUNTS, _NEW_USERS, _NEW_PIDS, _NEW_NETWORK = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_NEW_IPC = 0x08000000
_PRIVATE, _RECURSIVE, _NOSUID, _NODEV, _NOEXEC = 1 << 18, 1 << 14, 2, 4, 8
_SET_DUMPABLE, _SET_NO_NEW_PRIVS, _CAPABILITIES_3 = 4, 38, 0x20080522
_NOBODY = 65534
_PROCESSES, _FILES = 32, 64
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu")
_DEVICES = ("/dev/urandom", "/dev/random", "/dev/zero", "/proc/cpuinfo", "/proc/meminfo")
_REFUSED = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork", "pty.", "os.kill")


def enter_namespaces(folder: Path, size: int) -> list[str]:
    """Leave the network and the mounts behind, and make the next child process number 1 of its own world.

    Parameters
    ----------
    folder : Path
        Where a file system in memory of its own goes.
    size : int
        Its bytes.

    Returns
    -------
    list of str
        What is in force.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        unshare, mount = libc.unshare, libc.mount
    except AttributeError:  # not Linux
        return []
    user, group = os.getuid(), os.getgid()
    wanted = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC
    if unshare(wanted):
        if unshare(wanted | _NEW_USERS):
            return []
        with contextlib.suppress(OSError):  # unmapped, it is nobody: less, not more, is allowed
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    made = ["no network", "own process numbers"]
    if mount(None, b"/", None, _PRIVATE | _RECURSIVE, None) == 0:
        options = f"size={size},nr_inodes=500,mode=777".encode()
        if mount(b"tmpfs", bytes(folder), b"tmpfs", _NOSUID | _NODEV | _NOEXEC, options) == 0:
            made.append("own file system")
    return made


def restrict(folder: Path, *, seconds: float, memory_bytes: int, file_bytes: int) -> list[str]:
    """Give up all that submitted code has no use for; return what is in force.

    To be called in the process that will run the code: the filter of system calls knows its number.
    """
    # What dies here must leave no memory image behind, and no process of the same user may look inside.
    made = ["limits"]
    _limit(seconds, memory_bytes, file_bytes)
    paths = list(readable())
    if sys.platform == "linux":
        if drop_privileges(folder):
            made.append("no privileges")
        if landlock.restrict(paths, [folder, Path("/dev/null")]):
            made.append("landlock")
        if seccomp.forbid():
            made.append("seccomp")
    _hook([*paths, folder] if "landlock" not in made else None)
    return [*made, "audit hook"]


def readable() -> Iterator[Path]:
    """Yield what Python and its packages need; the package that grades, and all of ours, is not among it."""
    yield from map(Path, (*_SYSTEM, *_DEVICES))
    homes = {Path(path) for path in sys.path if path}
    homes |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    homes |= {Path(sys.base_prefix) / "lib"}
    for home in homes:
        if not home.is_dir() or ((home / "companion").is_dir() and "-packages" not in home.name):
            continue  # a source tree, with the grader in it
        for entry in home.iterdir():
            ours = entry.name.lower().startswith(("companion", "__editable__"))
            if not ours and not entry.name.endswith(("-packages", ".pth")) and entry not in homes:
                yield entry


def _limit(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    taken = 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    limits = {
        "RLIMIT_AS": taken + memory_bytes,
        "RLIMIT_CPU": int(seconds) + 2,
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_NPROC": _PROCESSES,
        "RLIMIT_NOFILE": _FILES,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    for name, value in limits.items():
        if kind := getattr(resource, name, None):
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))


def drop_privileges(folder: Path) -> bool:
    """Become nobody where Python can still be read as nobody; in any case keep no capability.

    Parameters
    ----------
    folder : Path
        Becomes nobody's.

    Returns
    -------
    bool
        Whether no capability is left.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getuid() == 0 and all(map(_open_to_all, (os.__file__, *sys.path, str(folder.parent)))):
        os.chown(folder, _NOBODY, _NOBODY)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    return int(libc.capset(header, (ctypes.c_uint32 * 6)())) == 0


def _open_to_all(path: str) -> bool:
    """Tell whether anybody can read a path, or it is not there."""
    place = Path(path)
    return not place.exists() or all(step.stat().st_mode & 0o001 for step in place.parents)


def _hook(allowed: list[Path] | None) -> None:
    """Refuse at Python's level what the kernel may not refuse everywhere; `allowed` only without Landlock."""
    roots = tuple(os.path.realpath(path) for path in allowed or ())
    within = os.path.realpath  # held here: what is replaced later has no effect

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if roots and event in ("open", "os.listdir", "os.remove", "os.rename", "os.mkdir", "os.symlink"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                place = within(os.fsdecode(path))
                if not any(place == root or place.startswith(root + os.sep) for root in roots):
                    raise PermissionError(f"{event} of {place} is not allowed here")

    sys.addaudithook(refuse)
