"""What the tests of the book share: the extension's modules, and the site where it has been built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))


@pytest.fixture(scope="session")
def site() -> Path:
    """Return the built site: `_build/html`, or the folder that BOOK_HTML names."""
    folder = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))
    if not (folder / "index.html").is_file():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"no site at {folder}: run make book first", pytrace=False)
        pytest.skip("run make book first")
    return folder
