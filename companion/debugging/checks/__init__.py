"""Checks: each looks at a subject, and returns a finding.

A check states what holds for every right model, not what a known bug looks like: it is run on bugs that
nobody has listed, and on right models that nobody has seen. Where it could not tell right from wrong it says
"not applicable" instead of passing.

Each module holds one concern, and its checks register themselves: `companion.debugging.load_checks` imports
all of them.
"""

from __future__ import annotations

from companion.debugging.checks.registry import Check, NotApplicable, check

__all__ = ["Check", "NotApplicable", "check"]
