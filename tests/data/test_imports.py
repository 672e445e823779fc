"""The package opens without its heavy parts."""

from __future__ import annotations

import subprocess
import sys

import pytest

import companion.data

HEAVY = {"torch", "transformers", "pandas", "pyarrow", "sklearn", "scipy", "datasets", "numpy"}


def test_torch_is_imported_only_for_batches() -> None:
    code = (
        "import sys, companion.data as data; data.load('sentiment', max_examples=1); "
        f"print(sorted({HEAVY!r} & set(sys.modules))); data.batches; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_every_public_name_is_there() -> None:
    for name in companion.data.__all__:
        assert getattr(companion.data, name) is not None
        assert name in dir(companion.data)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = companion.data.nothing
