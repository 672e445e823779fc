"""The KServe v2 addresses: the same answers in the protocol's words."""

from __future__ import annotations

import numpy as np
import pytest

from companion.deployment import Limits

INFER = "/v2/models/companion/infer"


def tensor(texts, name="text", **changes):
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": texts} | changes


def infer(client, *inputs, **more):
    return client.request("POST", INFER, json={"inputs": list(inputs), **more})


def refused(answer, status, code):
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["error"] == body["detail"], "where KServe's clients look"
    return body


def test_health(client):
    assert client.request("GET", "/v2/health/live").json() == {"live": True}
    assert client.request("GET", "/v2/health/ready").json() == {"ready": True}
    answer = client.request("GET", "/v2/models/companion/ready")
    assert answer.json() == {"name": "companion", "ready": True}


def test_not_ready(serving, model):
    model.gate.clear()
    client = serving(wait=False)
    assert client.request("GET", "/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/companion/ready", "/v2/models/companion"):
        answer = client.request("GET", path)
        refused(answer, 503, "not-ready")
        assert answer.headers["retry-after"] == "1"
    refused(infer(client, tensor(["a"])), 503, "not-ready")


def test_metadata_of_a_classifier(client):
    assert client.request("GET", "/v2/models/companion").json() == {
        "name": "companion",
        "versions": ["v-test"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
            {"name": "pair", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("nested", [False, True])
def test_classification(client, model, nested):
    texts = ["fine", "quite awful", "so so"]
    given = tensor([[text] for text in texts], shape=[3, 1]) if nested else tensor(texts)
    body = infer(client, given, id="mine").json()
    assert {name: body[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "companion",
        "model_version": "v-test",
        "id": "mine",
    }
    probabilities, label = body["outputs"]
    expected = np.concatenate([model.probabilities([text]) for text in texts])
    assert (probabilities["name"], probabilities["datatype"]) == ("probabilities", "FP32")
    assert probabilities["shape"] == [3, 2]
    assert np.array_equal(np.array(probabilities["data"], dtype=np.float32).reshape(3, 2), expected)
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "BYTES", [3])
    assert label["data"] == [model.labels[row.argmax()] for row in expected]


def test_pairs(client, model):
    assert infer(client, tensor(["c", "d"], "pair"), tensor(["a", "b"])).status_code == 200
    assert model.seen[-2:] == [("a", "c"), ("b", "d")]


def test_chosen_outputs_come_in_the_order_asked_for(client):
    outputs = [{"name": "label", "parameters": {"classification": 1}}, {"name": "probabilities"}]
    body = infer(client, tensor(["a"]), outputs=outputs, parameters={"priority": 1}).json()
    assert [output["name"] for output in body["outputs"]] == ["label", "probabilities"]
    assert "id" not in body


def test_regression(serving, model):
    model.is_regression, model.labels = True, ()
    client = serving()
    (output,) = client.request("GET", "/v2/models/companion").json()["outputs"]
    assert output == {"name": "score", "datatype": "FP32", "shape": [-1]}
    (score,) = infer(client, tensor(["one", "two"])).json()["outputs"]
    expected = [float(model.logits([text])[0, 0]) for text in ("one", "two")]
    assert score == {"name": "score", "datatype": "FP32", "shape": [2], "data": expected}
    body = refused(infer(client, tensor(["a"]), outputs=[{"name": "label"}]), 422, "invalid-input")
    assert body["errors"][0]["pointer"] == "#/outputs/0/name"


@pytest.mark.parametrize(
    ("inputs", "pointer"),
    [
        ([tensor(["a"], shape=[2])], "#/inputs/0/shape"),
        ([tensor(["a"], shape=[1, 2])], "#/inputs/0/shape"),
        ([tensor(["a", "b"], shape=[1, 2])], "#/inputs/0/shape"),
        ([tensor(["a"], "pair")], "#/inputs"),
        ([tensor(["a"]), tensor(["a", "b"], "pair")], "#/inputs"),
        ([tensor(["a"]), tensor(["a"])], "#/inputs/1/name"),
        ([tensor(["a"], datatype="FP32")], "#/inputs/0/datatype"),
        ([tensor(["a"], "tokens")], "#/inputs/0/name"),
        ([tensor([])], "#/inputs/0/shape/0"),
        ([tensor(["a", "x" * 51])], "#/inputs/0/data/1"),
        ([tensor(["a"]), tensor(["x" * 51], "pair")], "#/inputs/1/data/0"),
        ([], "#/inputs"),
    ],
)
def test_what_does_not_fit_says_where(serving, model, inputs, pointer):
    client = serving(Limits(characters=50))
    body = refused(infer(client, *inputs), 422, "invalid-input")
    assert pointer in [error["pointer"] for error in body["errors"]]
    assert len(model.seen) == 1, "only the warm-up reached the model"


@pytest.mark.parametrize("data", [[" "], ["a\0"], [5], [None], [["a", "b"]], [[["a"]]], [[" "]], "a", [[]]])
def test_data_that_is_no_text(client, data):
    body = refused(infer(client, tensor(["a"], data=data)), 422, "invalid-input")
    (error,) = body["errors"]
    assert error["pointer"] == ("#/inputs/0/data" if data == "a" else "#/inputs/0/data/0")


def test_limits_are_those_of_a_batch(serving):
    client = serving(Limits(batch_texts=3, batch_characters=50))
    refused(infer(client, tensor(["a"] * 4)), 413, "batch-too-large")
    refused(infer(client, tensor(["a" * 26]), tensor(["b" * 25], "pair")), 413, "batch-too-large")
    assert infer(client, tensor(["a" * 16] * 3)).status_code == 200


def test_one_text_that_fails_fails_the_request(client):
    answer = infer(client, tensor(["fine", "boom"]))
    refused(answer, 500, "internal-error")
    assert "secret" not in answer.text


def test_another_model(serving):
    client = serving(model_name="reviews")
    assert client.request("GET", "/v2/models/reviews").json()["name"] == "reviews"
    for method, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
        answer = client.request(method, f"/v2/models/companion{path}", json={"inputs": [tensor(["a"])]})
        refused(answer, 404, "model-not-found")
