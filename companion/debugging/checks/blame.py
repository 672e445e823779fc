"""Tells whose code raised an error while a check ran: the subject's, or the check's own."""

from __future__ import annotations

import sys
from traceback import walk_tb
from types import CodeType, FrameType

__all__ = ["fault_of_the_check"]

_OURS = "companion.debugging"
_SUBJECTS = ("calling", "adapters", "recipe", "zoo")
"""Parts of the package that call the subject, refuse what it returned, or are one themselves."""
_BETWEEN = "spying"
"""Stands between the subject's code and torch: an error passes through it."""
_TOOLS = ("torch", "numpy", "scipy", "sklearn", "cleanlab", "datasketch")
"""What checks calculate with, as subjects do: an error in there is that of whoever called it."""


def fault_of_the_check(error: BaseException, check: CodeType | None) -> str:
    """Return where a check failed by itself; empty when the subject's code raised the error.

    The innermost frame decides that belongs to either of them. Frames of libraries that only calculate belong
    to neither, but for two: a module that is called, and a backward pass, are the subject's.

    Parameters
    ----------
    error : BaseException
        As it was caught.
    check : code, optional
        Of the check's function, which may be defined anywhere.
    """
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        owner = _owner(frame, check)
        if owner is not None:
            return f"{frame.f_globals.get('__name__', '?')}, line {line}" if owner == "check" else ""
    return ""


def _owner(frame: FrameType, check: CodeType | None) -> str | None:
    """Return whose a frame is, "check" or "subject"; None if it is nobody's."""
    name, code = str(frame.f_globals.get("__name__", "")), frame.f_code
    here = check is not None and code.co_filename == check.co_filename
    if here and check is not None and f"{code.co_qualname}.".startswith(f"{check.co_qualname}."):
        return "check"
    if name == _OURS or name.startswith(f"{_OURS}."):
        part = name.removeprefix(_OURS).strip(".").partition(".")[0]
        return "subject" if part in _SUBJECTS else None if part == _BETWEEN else "check"
    top = name.partition(".")[0]
    if top == "torch":
        called = name == "torch.nn.modules.module" and code.co_name == "_call_impl"
        return "subject" if called or name.startswith("torch.autograd") else None
    return None if top in _TOOLS or top in sys.stdlib_module_names else "subject"
