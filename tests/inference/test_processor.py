"""Instruction sets: read from lists of flags of other machines, and refused where one is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from companion.artifacts import cpu_features, machine
from companion.inference import OnnxPredictor, features, load_predictor, processor

X86 = "processor\t: {n}\nmodel name\t: A CPU\nflags\t\t: fpu sse4_2 avx2 {more}\n\n"
ARM = "processor\t: {n}\nFeatures\t: fp asimd asimddp i8mm\n\n"
INTEL_MAC = """hw.optional.avx1_0: 1
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
machdep.cpu.features: FPU SSE4.2 AVX1.0 FMA
machdep.cpu.leaf7_features: AVX2 BMI1 AVX512VNNI
machdep.cpu.brand_string: Intel
"""
APPLE = """hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
hw.optional.arm.caps: 868020928863928063
"""


@pytest.fixture
def cpuinfo(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "cpuinfo").write_text(text)
        return tmp_path / "cpuinfo"

    return write


def test_the_flags_of_other_machines(cpuinfo, tmp_path):
    assert cpu_features(cpuinfo(X86.format(n=0, more="avx512_vnni"))) == {
        "fpu",
        "sse4_2",
        "avx2",
        "avx512_vnni",
    }
    assert cpu_features(cpuinfo(ARM.format(n=0))) == {"fp", "asimd", "asimddp", "i8mm"}
    assert cpu_features(cpuinfo("processor\t: 0\n")) == frozenset()
    nowhere = tmp_path / "nowhere"
    found = cpu_features(nowhere, lambda: INTEL_MAC)
    assert {"sse4_2", "avx", "avx2", "avx512_vnni", "fma"} <= found
    assert not {"avx512f", "AVX2", "avx1_0", "brand_string"} & found
    assert cpu_features(nowhere, lambda: APPLE) == {"asimddp", "i8mm", "asimd"}
    assert cpu_features(nowhere, lambda: "") == frozenset()


def test_a_feature_counts_only_where_every_core_has_it(cpuinfo):
    big, little = X86.format(n=0, more="avx512_vnni avx_vnni"), X86.format(n=1, more="avx_vnni")
    assert cpu_features(cpuinfo(big + little)) == {"fpu", "sse4_2", "avx2", "avx_vnni"}


def test_a_system_that_tells_nothing(tmp_path, monkeypatch):
    def absent(*arguments, **keywords):
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr("companion.artifacts.hardware.subprocess.run", absent)
    assert cpu_features(tmp_path / "nowhere") == frozenset()


def test_the_machine_and_the_features_agree():
    named = str(machine()["int8"]).split()
    assert named == ["none"] or set(named) <= features()


def needing(folder: Path, *names: str) -> Path:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"cpu_features": names}))
    return folder


def test_a_folder_is_refused_where_a_feature_is_missing(onnx_copy):
    expected = OnnxPredictor(onnx_copy, threads=1, processor=()).logits(["fine"])
    folder = needing(onnx_copy, "avx2", "avx512_vnni|avx_vnni")
    for enough in ({"avx2", "avx_vnni"}, {"avx2", "avx512_vnni", "sse4_2"}):
        assert np.array_equal(OnnxPredictor(folder, threads=1, processor=enough).logits(["fine"]), expected)
    with pytest.raises(
        ValueError,
        match=r"processor with avx512_vnni or avx_vnni, .*this processor has avx2, sse4_2\. Run it on",
    ):
        OnnxPredictor(folder, processor={"avx2", "sse4_2", "fpu"})
    with pytest.raises(ValueError, match=r"with avx2, avx512_vnni or avx_vnni.* does not tell"):
        OnnxPredictor(folder, processor=())
    with pytest.raises(ValueError, match=r"this processor has none of that kind.*export the model again"):
        OnnxPredictor(folder, processor={"fpu"})


def test_this_processor_is_asked_only_where_something_is_needed(onnx_copy, monkeypatch):
    asked = []

    def found() -> frozenset[str]:
        asked.append(True)
        return frozenset({"avx2"})

    monkeypatch.setattr(processor, "features", found)
    load_predictor(onnx_copy, threads=1)
    assert asked == []
    load_predictor(needing(onnx_copy, "avx2"), threads=1)
    assert asked == [True]
    with pytest.raises(ValueError, match="needs a processor with amx_int8"):
        load_predictor(needing(onnx_copy, "amx_int8"), threads=1)
