"""Lets the tests of this folder import what they share: `planted` and `correct_models`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
