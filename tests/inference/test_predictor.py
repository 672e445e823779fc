"""Answers in order, bit-identical whatever the batch, and the same from torch and from ONNX."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from companion.artifacts import digest
from companion.inference import Check, Manifest, OnnxPredictor, TorchPredictor, load_predictor, standard_int8
from companion.inference.manifest import write_manifest
from companion.inference.predictor import probabilities_of

WORDS = ("film", "was", "awful", "superb", "the", "rain", "x", "museum", "not", "unbelievably", "?")
SETTINGS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
sentences = st.integers(0, 60).flatmap(
    lambda length: st.lists(st.sampled_from(WORDS), min_size=length, max_size=length).map(" ".join)
)
batches = st.lists(sentences, min_size=1, max_size=12)


@pytest.fixture(scope="module")
def int8(onnx_folder: Path) -> OnnxPredictor:
    return OnnxPredictor(onnx_folder, threads=1)


def alone(predictor: OnnxPredictor, texts, pairs=None) -> np.ndarray:
    rows = [
        predictor.logits([text], None if pairs is None else [pair])
        for text, pair in zip(texts, pairs or texts, strict=True)
    ]
    return np.concatenate(rows)


@SETTINGS
@given(texts=batches, batch_size=st.integers(1, 13), seed=st.randoms(use_true_random=False))
def test_neighbours_do_not_change_an_answer(int8, texts, batch_size, seed):
    expected = alone(int8, texts)
    assert np.array_equal(int8.logits(texts, batch_size=batch_size), expected)
    order = list(range(len(texts)))
    seed.shuffle(order)
    shuffled = int8.logits([texts[position] for position in order], batch_size=batch_size)
    assert np.array_equal(shuffled, expected[order])


@SETTINGS
@given(texts=batches, batch_size=st.integers(1, 13), data=st.data())
def test_neighbours_do_not_change_the_answer_about_a_pair(int8, texts, batch_size, data):
    pairs = data.draw(st.lists(sentences, min_size=len(texts), max_size=len(texts)))
    assert np.array_equal(int8.logits(texts, pairs, batch_size=batch_size), alone(int8, texts, pairs))


def test_the_second_text_counts(int8, torch_one):
    texts, pairs = ["the film", "the film"], ["was awful", "was superb"]
    found, expected = int8.logits(texts, pairs), torch_one.logits(texts, pairs)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(int8.logits(texts, pairs), int8.logits(texts))


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_other_families_fuse_and_are_independent_of_the_batch_too(family_folders, family, texts):
    model, onnx_folder = family_folders(family)
    predictor = OnnxPredictor(onnx_folder, threads=1)
    operators = predictor.manifest.operators
    assert operators["MultiHeadAttention"] == 2
    assert operators["Gather"] >= 2, "tables, and the first token"
    assert not {"MatMul", "Gemm", "Softmax"} & operators.keys()
    assert predictor.manifest.inputs == ("input_ids", "attention_mask")
    assert predictor.manifest.max_length == 42
    expected = alone(predictor, texts)
    for batch_size in (2, 7, 64):
        assert np.array_equal(predictor.logits(texts, batch_size=batch_size), expected)
    source = TorchPredictor(model).logits(texts)
    assert np.ptp(source, axis=0).max() > 0.3
    assert np.abs(expected - source).max() < 0.1 * np.ptp(source)


def test_the_standard_int8_moves_with_the_batch(fp32_folder, texts, tmp_path):
    """The control: the tests above can see it."""
    manifest = standard_int8(fp32_folder, tmp_path / "standard")
    predictor = OnnxPredictor(tmp_path / "standard", threads=1, anyway=True)
    assert not np.array_equal(predictor.logits(texts, batch_size=16), alone(predictor, texts))
    assert manifest.check.moved_by_batch > 0


def test_threads_do_not_change_an_answer(int8, onnx_folder, texts):
    assert np.array_equal(OnnxPredictor(onnx_folder, threads=2).logits(texts), int8.logits(texts))


def test_torch_and_onnx_agree(int8, fp32_folder, torch_one, texts):
    expected = torch_one.logits(texts)
    assert expected.shape == (len(texts), 2)
    assert np.ptp(expected) > 1, "the model has learnt something"
    np.testing.assert_allclose(OnnxPredictor(fp32_folder, threads=1).logits(texts), expected, atol=1e-4)
    # The mean: where training has put a text on the edge between the labels differs from processor to
    # processor, and there a small error of a weight is a large one of the answer.
    error = np.abs(int8.logits(texts) - expected)
    assert error.mean() < 0.01 * np.ptp(expected)
    for predictor in (int8, torch_one):
        assert predictor.labels == ("negative", "positive")
        assert not predictor.is_regression


def test_the_toy_task_is_solved(int8, torch_one, toy):
    texts, truth = [example.text for example in toy], np.array([example.label for example in toy])
    for predictor in (int8, torch_one):
        assert (predictor.probabilities(texts).argmax(1) == truth).mean() > 0.9


@pytest.mark.parametrize("kind", ["onnx_folder", "model_folder"])
def test_order_shape_and_sums(kind, request, texts):
    predictor = load_predictor(request.getfixturevalue(kind), threads=1)
    logits = predictor.logits(texts)
    probabilities = predictor.probabilities(texts, batch_size=5)
    assert logits.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        np.log(probabilities[:, 1] / probabilities[:, 0]), logits[:, 1] - logits[:, 0], atol=1e-3
    )
    np.testing.assert_allclose(predictor.logits(texts[::-1])[::-1], logits, atol=1e-5)
    for nothing in ([], ()):
        assert predictor.logits(nothing).shape == (0, 2)
        assert predictor.probabilities(nothing).shape == (0, 2)
        assert predictor.logits(nothing, nothing).shape == (0, 2)


@pytest.mark.parametrize("kind", ["onnx_folder", "model_folder"])
def test_arguments_that_would_be_misread_are_refused(kind, request):
    predictor = load_predictor(request.getfixturevalue(kind), threads=1)
    for call in (predictor.logits, predictor.probabilities):
        with pytest.raises(ValueError, match=r"one string.*write \[text\]"):
            call("one string")
        with pytest.raises(ValueError, match="one string"):
            call(["a"], "b")
        with pytest.raises(ValueError, match="2 texts but 1 pairs"):
            call(["a", "b"], ["c"])
        for batch_size in (0, -1):
            with pytest.raises(ValueError, match=f"batch_size is {batch_size}, expected at least 1"):
                call(["a"], batch_size=batch_size)


def test_a_long_text_is_cut_alike_everywhere(fp32_folder, torch_one):
    long = " ".join(f"superb {number}" for number in range(400))
    start = " ".join(long.split()[:60])
    fp32 = OnnxPredictor(fp32_folder, threads=1)
    for predictor in (fp32, torch_one):
        assert np.array_equal(predictor.logits([long]), predictor.logits([start]))
    for text, pair in ((long, None), (long, "b"), ("b", long), (start, long), (long, start)):
        pairs = None if pair is None else [pair]
        found, expected = fp32.logits([text], pairs), torch_one.logits([text], pairs)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_folder_opens_in_plain_onnxruntime(int8, onnx_folder):
    tokenizer = Tokenizer.from_file(str(onnx_folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(onnx_folder / "model.onnx")
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        (name, "tensor(int64)", ["batch", "seq"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    encoding = tokenizer.encode("The film was superb.")
    columns = (encoding.ids, encoding.attention_mask, encoding.type_ids)
    feed = {item.name: np.array([column]) for item, column in zip(session.get_inputs(), columns, strict=True)}
    (logits,) = session.run(["logits"], feed)
    np.testing.assert_allclose(logits, int8.logits(["The film was superb."]), atol=1e-5)


def test_probabilities_of_large_logits_and_of_a_number():
    shares = probabilities_of(np.array([[1e4, -1e4], [88.0, 88.0]], dtype=np.float32), is_regression=False)
    assert shares.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    with pytest.raises(ValueError, match=r"predicts a number.*logits\(\)"):
        probabilities_of(np.zeros((1, 1), dtype=np.float32), is_regression=True)


@pytest.fixture
def regression_folder(encoder_folder, tmp_path) -> Path:
    """Return an ONNX folder whose answer is the number of tokens, made by hand."""
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["tokens"], keepdims=1),
        helper.make_node("Cast", ["tokens"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "count",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(tmp_path / "model.onnx"))
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(encoder_folder / name, tmp_path)
    manifest = Manifest(
        precision="fp32",
        labels=("score",),
        is_regression=True,
        max_length=9,
        positions=9,
        inputs=("input_ids", "attention_mask"),
        source="by hand",
        source_sha256=None,
        operators={"ReduceSum": 1, "Cast": 1},
        cpu_features=(),
        check=Check(0, 0.0, 0.0, 0, 0),
        files={path.name: digest(path) for path in tmp_path.iterdir()},
        companion="0",
    )
    write_manifest(manifest, tmp_path)
    return tmp_path


def test_a_regression_gives_numbers_and_no_probabilities(regression_folder):
    predictor = OnnxPredictor(regression_folder, threads=1)
    assert predictor.is_regression
    assert predictor.max_length == 9
    assert predictor.logits(["", "the", "the film", "the " * 50]).tolist() == [[2.0], [3.0], [4.0], [9.0]]
    assert predictor.logits([]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"predicts a number.*logits\(\)"):
        predictor.probabilities(["a"])


def test_load_predictor_tells_the_two_kinds_apart(onnx_folder, model_folder, tmp_path):
    assert isinstance(load_predictor(onnx_folder), OnnxPredictor)
    assert isinstance(load_predictor(model_folder), TorchPredictor)
    with pytest.raises(FileNotFoundError, match="does not exist, expected a model folder or an ONNX folder"):
        load_predictor(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file, expected a model folder or an ONNX folder"):
        load_predictor(onnx_folder / "model.onnx")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_predictor(tmp_path)


def test_an_encoder_without_a_head_is_no_predictor(encoder_folder):
    with pytest.raises(
        ValueError, match=r"not fine-tuned.*classifier\.bias, classifier\.weight.*companion train"
    ):
        load_predictor(encoder_folder)


def test_an_onnx_folder_opens_without_torch(onnx_folder):
    code = (
        "import sys; from pathlib import Path; from companion.inference import load_predictor\n"
        f"print(load_predictor(Path({str(onnx_folder)!r})).probabilities(['a']).shape)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(1, 2)", "set()"]
