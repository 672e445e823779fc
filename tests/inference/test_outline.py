"""The file of a graph, read without the onnx package, says what the onnx package says."""

from __future__ import annotations

import subprocess
import sys

import onnx
import pytest

from companion.inference.graph import Graph
from companion.inference.outline import outline


@pytest.mark.parametrize("kind", ["onnx_folder", "fp32_folder"])
def test_it_agrees_with_the_library(kind, request):
    file = request.getfixturevalue(kind) / "model.onnx"
    model = onnx.load(str(file))
    found = outline(file)
    assert found.inputs == tuple(item.name for item in model.graph.input)
    assert found.operators == Graph(model).operators()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_refused(onnx_folder, tmp_path, share):
    content = (onnx_folder / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.onnx is no whole ONNX graph"):
        outline(tmp_path / "model.onnx")


def test_something_else_is_refused_or_empty(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="is no whole ONNX graph"):
        outline(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(onnx.ModelProto(ir_version=10).SerializeToString())
    assert outline(tmp_path / "model.onnx").operators == {}


def test_it_needs_no_onnx():
    code = "import sys, companion.inference.outline; print({'onnx', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
