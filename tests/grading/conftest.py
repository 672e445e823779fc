"""One sandbox for all tests of grading: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from companion.grading import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened
