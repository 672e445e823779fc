"""Becomes a program with fewer rights: what a submitted server, and all that it starts, may do.

It may run installed programs and its own, listen and connect within its own network, and write below one
folder. It sees nobody's files, signals nobody outside, and makes no world of its own to escape into.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from companion.grading import isolation, landlock, seccomp

__all__ = ["Confinement", "main"]

_PROCESSES, _OPEN_FILES, _FILE_BYTES = 256, 4096, 128 << 20
_PARENT_DIES = 1
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/opt")
_READ = ("/etc", "/proc", "/sys/devices/system/cpu", "/dev/urandom", "/dev/random", "/dev/zero")
_START = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from companion.grading.deployment.confining import main; main()"
)


@dataclass(frozen=True)
class Confinement:
    """What a program is left.

    Attributes
    ----------
    folder : str
        The submission: can be run and read.
    scratch : str
        Can be written.
    alone : bool
        Whether it already has a network of its own. If not, one port remains to it, where the kernel can do
        that.
    """

    folder: str
    scratch: str
    alone: bool

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return a command that gives up the rights and then becomes `command`.

        Without a command it says as JSON which measures are in force, and ends.
        """
        start = _START.format(root=str(_ROOT))
        return [sys.executable, "-I", "-B", "-c", start, json.dumps(asdict(self)), *command]


_ROOT = Path(__file__).parents[3]


def main() -> None:
    """Give up rights, then become the program in the arguments."""
    told, command = Confinement(**json.loads(sys.argv[1])), sys.argv[2:]
    made = _confine(told)
    if not command:
        print(json.dumps(made))
        return
    try:
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        print(f"{command[0]!r} cannot be run: {error.strerror}", file=sys.stderr)
    sys.exit(127)


def _confine(told: Confinement) -> list[str]:
    """Give up rights; return the names of what is in force."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_NPROC, _PROCESSES),
    ):
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))
    if sys.platform != "linux":
        return ["limits"]
    port = None if told.alone or not os.environ.get("PORT") else int(os.environ["PORT"])
    dropped = isolation.drop_privileges(Path(told.scratch))
    # After the user has changed, which takes this back.
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DIES, signal.SIGKILL, 0, 0, 0)
    runnable = {
        Path(place) for place in (*_SYSTEM, sys.prefix, sys.base_prefix, told.folder, _ROOT / "companion")
    }
    runnable |= {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    writable = map(Path, (told.scratch, "/dev/null", "/dev/shm"))
    walled = landlock.restrict_program(runnable, map(Path, _READ), writable, [_ROOT], port=port)
    filtered = seccomp.forbid_escape()
    named = {"no privileges": dropped, "landlock": walled, "seccomp": filtered}
    return ["limits", *(name for name, made in named.items() if made)]
