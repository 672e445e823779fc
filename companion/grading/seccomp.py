"""A seccomp filter: system calls that code under examination has no use for fail with "not permitted".

It makes no process, runs no program, opens no socket, and sends no signal but to itself. The filter is a
program for the kernel's packet filter: load a number, compare, jump (see seccomp(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

__all__ = ["forbid"]

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # a second numbering of the same calls on x86-64
_SET_SECCOMP, _FILTER, _SET_NO_NEW_PRIVS = 22, 2, 38

# fork vfork execve execveat kill tkill ptrace socket socketpair connect mount umount2 chroot pivot_root
# unshare setns process_vm_readv process_vm_writev bpf perf_event_open userfaultfd pidfd_open pidfd_getfd
# pidfd_send_signal keyctl add_key request_key io_uring_setup open_by_handle_at shmget msgget semget
_FORBIDDEN = {
    "x86_64": (
        *(57, 58, 59, 322, 62, 200, 101, 41, 53, 42, 165, 166, 161, 155, 272),
        *(308, 310, 311, 321, 298, 323, 434, 438, 424, 250, 248, 249, 425, 304, 29, 68, 64),
    ),
    "aarch64": (
        *(221, 281, 129, 130, 117, 198, 199, 203, 40, 39, 51, 41, 97),
        *(268, 270, 271, 280, 241, 282, 434, 438, 424, 219, 217, 218, 425, 265, 194, 186, 190),
    ),
}
_AUDIT_NAMES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_TGKILL = {"x86_64": 234, "aarch64": 131}
_CLONE3 = 435


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid() -> bool:
    """Put the filter on this process, for good; return whether the kernel enforces it."""
    machine = platform.machine()
    if machine not in _FORBIDDEN:
        return False
    code = _program(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return int(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)) == 0


def _program(machine: str, own: int) -> bytes:
    """Assemble the filter for a process with this number."""

    def fail_if(test: int, value: int) -> list[tuple[int, int, int, int]]:
        return [(test, 0, 1, value), (_RETURN, 0, 0, _FAIL | errno.EPERM)]

    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT_NAMES[machine])]
    lines += [(_RETURN, 0, 0, _FAIL | errno.EPERM), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        lines += fail_if(_ANY_BIT, _X32)
    for number in _FORBIDDEN[machine]:
        lines += fail_if(_EQUAL, number)
    # The C library makes threads with clone3, whose flags a filter cannot see, and without it with clone.
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    # clone makes a thread, or not at all; tgkill, which abort needs, signals this process, or not at all.
    lines += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_EQUAL, 0, 3, _TGKILL[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_EQUAL, 1, 0, own), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
