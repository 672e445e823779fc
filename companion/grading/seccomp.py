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

__all__ = ["forbid", "forbid_escape"]

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
# What a server has no use for either: mount umount2 chroot pivot_root unshare setns ptrace process_vm_readv
# process_vm_writev bpf perf_event_open userfaultfd pidfd_getfd keyctl add_key request_key open_by_handle_at
# init_module finit_module delete_module kexec_load reboot swapon open_tree move_mount fsopen fsmount
_ESCAPES = {
    "x86_64": (
        *(165, 166, 161, 155, 272, 308, 101, 310, 311, 321, 298, 323, 438, 250, 248, 249, 304),
        *(175, 313, 176, 246, 169, 167, 428, 429, 430, 432, 425),
    ),
    "aarch64": (
        *(40, 39, 51, 41, 97, 268, 117, 270, 271, 280, 241, 282, 438, 219, 217, 218, 265),
        *(105, 273, 106, 104, 142, 224, 428, 429, 430, 432, 425),
    ),
}
_NEW_WORLD = 0x7E020080  # any of the flags with which clone makes a namespace
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
    return _install(_program(machine, os.getpid()))


def forbid_escape() -> bool:
    """Put a wider filter on this process and all it starts: it makes no namespace, looks into nobody.

    Programs, sockets and processes are left: it is for servers.
    """
    machine = platform.machine()
    return machine in _ESCAPES and _install(_escape_program(machine))


def _install(code: bytes) -> bool:
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return int(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)) == 0


def _program(machine: str, own: int) -> bytes:
    """Assemble the filter for a process with this number."""
    lines = _refused(machine, _FORBIDDEN[machine])
    # The C library makes threads with clone3, whose flags a filter cannot see, and without it with clone.
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    # clone makes a thread, or not at all; tgkill, which abort needs, signals this process, or not at all.
    lines += [(_EQUAL, 0, 4, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_EQUAL, 0, 3, _TGKILL[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_EQUAL, 1, 0, own), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _escape_program(machine: str) -> bytes:
    """Assemble the filter for a server and all its processes."""
    lines = _refused(machine, _ESCAPES[machine])
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    lines += [(_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    lines += [(_ANY_BIT, 0, 1, _NEW_WORLD), (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _refused(machine: str, numbers: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Begin a filter: another architecture and these calls fail; the number of the call stays loaded."""

    def fail_if(test: int, value: int) -> list[tuple[int, int, int, int]]:
        return [(test, 0, 1, value), (_RETURN, 0, 0, _FAIL | errno.EPERM)]

    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _AUDIT_NAMES[machine])]
    lines += [(_RETURN, 0, 0, _FAIL | errno.EPERM), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        lines += fail_if(_ANY_BIT, _X32)
    for number in numbers:
        lines += fail_if(_EQUAL, number)
    return lines
