"""Fusions are counted, in the file and in what runs, and change no answer; a profile counts each call."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from companion.inference import OnnxPredictor, compare_fusions, fused_model, time_by_operator
from companion.inference.fusion import fuse_attention, fuse_projections
from companion.inference.fusion_report import FUSIONS
from companion.inference.graph import Graph
from companion.inference.profiling import _summed, profile_feeds
from companion.inference.sessions import open_session

LAYERS = 2


@pytest.fixture(scope="module")
def report(fp32_folder):
    return compare_fusions(fp32_folder, shapes=((1, 24), (3, 16)), repeats=3, threads=1)


@pytest.fixture(scope="module")
def feed(fp32_folder, toy):
    predictor = OnnxPredictor(fp32_folder)
    return predictor.feed(predictor.encode([example.text for example in toy[:5]]))


def run(model: onnx.ModelProto, feed) -> np.ndarray:
    return open_session(model.SerializeToString()).run(None, feed)[0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_layer_is_fused_and_no_answer_changes(fp32_folder, feed, fusion):
    model = fused_model(fp32_folder, fusion)
    operators = Graph(model).operators()
    fused = {
        "none": {"Softmax": LAYERS},
        "attention": {"MultiHeadAttention": LAYERS},
        "attention and projections": {"Attention": LAYERS},
        "attention, first token": {"MultiHeadAttention": LAYERS},
    }[fusion]
    kinds = ("Softmax", "MultiHeadAttention", "Attention", "QAttention")
    assert {kind: operators[kind] for kind in kinds if kind in operators} == fused
    expected = run(fused_model(fp32_folder, "none"), feed)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(run(model, feed), expected, atol=1e-5)


def test_the_standard_int8_of_a_fused_attention_is_qattention(fp32_folder, feed):
    operators = Graph(fused_model(fp32_folder, "attention and projections", "standard int8")).operators()
    assert operators["QAttention"] == LAYERS
    assert "Attention" not in operators
    plain = Graph(fused_model(fp32_folder, "none", "standard int8")).operators()
    assert plain["MatMulInteger"] - operators["MatMulInteger"] == 3 * LAYERS, "query, key and value"


def test_projections_that_differ_stay_outside(fp32_folder):
    graph = Graph(onnx.load(str(fp32_folder / "model.onnx")))
    assert fuse_projections(graph) == 0, "there is no fused attention yet"
    fuse_attention(graph, heads=2)
    query = graph.producer(next(n for n in graph.nodes if n.op_type == "MultiHeadAttention").input[0])
    query.input[0] = "something else"
    assert fuse_projections(graph) == LAYERS - 1


def test_a_graph_of_another_pattern_is_not_called_fused(fp32_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("companion.inference.fusion_comparison.fuse_attention", lambda graph, heads: 1)
    with pytest.raises(ValueError, match="1 of 2 attentions were fused"):
        fused_model(fp32_folder, "attention")


@pytest.mark.parametrize("wrong", [("all", "fp32"), ("none", "int4"), ("attention and projections", "int8")])
def test_names_that_mean_nothing(fp32_folder, wrong):
    with pytest.raises(ValueError, match="expected one of"):
        fused_model(fp32_folder, *wrong)


def test_only_fp32_can_be_fused(onnx_folder):
    with pytest.raises(ValueError, match="expected fp32"):
        fused_model(onnx_folder, "attention")


def test_a_report_has_every_case_once(report):
    cases = [(graph.fusion, graph.numbers) for graph in report.graphs]
    assert len(set(cases)) == len(cases) == 11
    assert report.layers == LAYERS
    for graph in report.graphs:
        assert set(graph.seconds) == set(graph.faster) == set(graph.profiles) == {(1, 24), (3, 16)}
        limit = {"fp32": 1e-5, "int8": 0.3, "standard int8": 2}[graph.numbers]
        assert graph.difference < limit
        if graph.fusion == "none":
            assert graph.faster[1, 24] == (1, (1, 1))
    json.dumps(report.to_dict())
    assert len(report.text().splitlines()) == 13
    with pytest.raises(KeyError):
        report.find("none", "int4")


def test_what_runs_is_what_was_fused(report):
    fused = report.find("attention", "int8").profiles[3, 16]
    assert fused.nodes("MultiHeadAttention") == LAYERS
    assert fused.nodes("Softmax") == 0
    assert report.find("none", "fp32").profiles[3, 16].nodes("MultiHeadAttention") == 0
    table = report.profile_text("standard int8", (3, 16), most=3)
    assert "QAttention" in table or "others" in table
    assert table.splitlines()[-1].startswith("all")


def test_a_profile_accounts_for_each_call(fp32_folder, toy):
    texts = [example.text for example in toy[:10]]
    found = time_by_operator(fp32_folder, texts, batch_size=4, repeats=3, threads=1)
    assert found.runs == 3
    assert all(row.calls == row.nodes * found.runs for row in found.rows), "one pass, without the warm-up"
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.seconds_per_run() * found.runs == pytest.approx(sum(row.seconds for row in found.rows))
    assert found.nodes("Softmax") == LAYERS
    assert [row.seconds for row in found.rows] == sorted((row.seconds for row in found.rows), reverse=True)
    assert found.text(most=2).splitlines()[-1].split()[1] == "others"
    json.dumps(found.to_dict())


def test_a_profile_of_nothing(fp32_folder, feed):
    with pytest.raises(ValueError, match="found 0 batches"):
        time_by_operator(fp32_folder, [])
    with pytest.raises(ValueError, match="repeats 0"):
        profile_feeds(fp32_folder / "model.onnx", [feed], repeats=0)


def test_a_shape_that_the_model_cannot_take(fp32_folder):
    with pytest.raises(ValueError, match="1 x 500"):
        compare_fusions(fp32_folder, shapes=((1, 500),))


def test_a_node_that_was_interrupted_once_does_not_count():
    def event(name, operator, start, duration):
        args = {"op_name": operator} if operator else {}
        return {
            "cat": "Node" if operator else "Session",
            "name": name,
            "ts": start,
            "dur": duration,
            "args": args,
        }

    events = [event("a_kernel_time", "MatMul", 1, 77), event("model_run", "", 0, 99)]  # the warm-up
    for repeat, spent in enumerate((10, 12, 5000)):
        for batch in (0, 1):
            start = 10_000 * (2 * repeat + batch + 1)
            events += [
                event("model_run", "", start, spent + 3),
                event("a_kernel_time", "MatMul", start + 1, spent * (batch + 1)),
                event("a_fence_before", "MatMul", start + 1, 1000),
                event("b_kernel_time", "Softmax", start + 2, 2),
            ]
    found = _summed(events, batches=2, repeats=3)
    rows = [(row.operator, row.nodes, row.calls) for row in found.rows]
    assert rows == [("MatMul", 1, 2), ("Softmax", 1, 2)]
    assert [row.seconds for row in found.rows] == pytest.approx([36e-6, 4e-6])
    assert found.rows[0].share == pytest.approx(0.9)
    assert (found.runs, found.seconds) == (2, pytest.approx(30e-6))
