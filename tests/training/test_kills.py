"""A short campaign of SIGKILLs; ``python tests/training/kills.py --kills 60`` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(400)
def test_killed_runs_end_as_if_nothing_had_happened():
    """In a fresh process: a process that has computed gradients must not be forked."""
    script = str(Path(__file__).with_name("kills.py"))
    done = subprocess.run([sys.executable, script, "--kills", "10"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for phase in ("step", "writing", "renaming", "pruning", "reading"):
        assert f"died while {phase}" in done.stdout
    assert "different from a run left in peace: 0" in done.stdout
