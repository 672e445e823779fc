"""Several texts in one request: each with its own answer or its own problem."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.deployment import Limits
from companion.deployment.answering import Answer, Question
from companion.deployment.problems import NOT_READY, ProblemError

JSON = {"content-type": "application/json"}


def batch(client, items, **headers):
    return client.request("POST", "/predict/batch", json={"items": items}, headers=headers)


def test_items_are_what_predict_answers_in_their_order(client):
    texts = ["a fine film", "awful", "so long that nobody reads it to the end"]
    answer = batch(client, [{"text": text} for text in texts], **{"X-Request-ID": "one"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"items", "failed", "request_id"}
    assert (body["failed"], body["request_id"]) == (0, "one")
    alone = [client.predict({"text": text}, **{"X-Request-ID": "one"}).json() for text in texts]
    assert body["items"] == [{"answer": item} for item in alone]


def test_pairs_reach_the_model(client, model):
    assert batch(client, [{"text": "a", "pair": "b"}, {"text": "c"}]).json()["failed"] == 0
    assert model.seen[-2:] == [("a", "b"), ("c", None)]


def test_regression_items(serving, model):
    model.is_regression, model.labels = True, ()
    (item,) = batch(serving(), [{"text": "one"}]).json()["items"]
    assert set(item["answer"]) == {"score", "model_version", "request_id"}


BAD = [
    ({"text": " "}, "#/items/1/text", "blank"),
    ({}, "#/items/1/text", "missing"),
    ({"text": 5}, "#/items/1/text", "string_type"),
    ({"text": "x" * 51}, "#/items/1/text", "too_long"),
    ({"text": "x", "pair": "x" * 51}, "#/items/1/pair", "too_long"),
    ({"text": "x", "more": 1}, "#/items/1/more", "extra_forbidden"),
    ({"text": "x", "m" * 1000: 1}, "#/items/1", "extra_forbidden"),
    ({"text": "a\0b"}, "#/items/1/text", "nul_character"),
    (None, "#/items/1", None),
    ("text", "#/items/1", None),
    ([], "#/items/1", None),
]


@pytest.mark.parametrize(("bad", "pointer", "code"), BAD)
def test_a_bad_item_fails_alone(serving, bad, pointer, code):
    client = serving(Limits(characters=50))
    answer = batch(client, [{"text": "good"}, bad, {"text": "fine"}])
    assert answer.status_code == 200
    body = answer.json()
    assert body["failed"] == 1
    first, problem, last = body["items"]
    assert first["answer"]["label"] and last["answer"]["label"]
    assert set(problem) == {"problem"}
    assert (problem["problem"]["code"], problem["problem"]["status"]) == ("invalid-input", 422)
    assert problem["problem"]["request_id"] == body["request_id"]
    (error,) = problem["problem"]["errors"]
    assert error["pointer"] == pointer
    assert code is None or error["code"] == code


@pytest.mark.parametrize("surrogate", [r"\ud800", r"\udfffb"])
def test_half_a_character_fails_alone(client, surrogate):
    content = '{"items": [{"text": "good"}, {"text": "SURROGATE"}]}'.replace("SURROGATE", surrogate)
    body = client.request("POST", "/predict/batch", content=content, headers=JSON).json()
    assert body["failed"] == 1
    assert body["items"][1]["problem"]["code"] == "invalid-input"


def test_an_exception_fails_its_item_only_and_is_logged(client, caplog):
    answer = batch(
        client, [{"text": "good"}, {"text": "boom"}, {"text": "nan"}], **{"X-Request-ID": "find-me"}
    )
    assert answer.status_code == 200
    assert "secret" not in answer.text
    assert [set(item) for item in answer.json()["items"]] == [{"answer"}, {"problem"}, {"problem"}]
    assert answer.json()["items"][1]["problem"]["code"] == "internal-error"
    logged = [record.getMessage() for record in caplog.records if record.exc_info]
    assert logged == ["request find-me failed, text 1", "request find-me failed, text 2"]


def test_all_items_may_be_bad(client):
    answer = batch(client, [{"text": ""}, {}])
    assert (answer.status_code, answer.json()["failed"]) == (200, 2)
    answer = batch(client, [{"text": "boom"}])
    assert (answer.status_code, answer.json()["failed"]) == (200, 1)


def test_a_reason_of_the_server_is_the_answer_to_the_whole_request(serving, model):
    model.gate.clear()
    client = serving(wait=False)
    answer = batch(client, [{"text": "a"}, {"text": "b"}])
    assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
    assert answer.headers["retry-after"] == "1"
    # A list that cannot be right whatever the server does says so, even now.
    assert batch(client, []).status_code == 422
    mixed = batch(client, [{"text": "a"}, {}])
    assert (mixed.status_code, mixed.json()["failed"]) == (200, 2)


class Picky:
    """Refuses some texts as a full queue would."""

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        if "refuse" in question.text:
            raise ProblemError(NOT_READY, "Not now.", retry_after_s=3)
        return Answer((0.25, 0.75), ("no", "yes"), "v2")


def test_what_was_answered_is_kept_when_others_are_refused(client):
    client.app.state.answerer = Picky()
    answer = batch(client, [{"text": "refuse"}, {"text": "take"}])
    assert (answer.status_code, answer.json()["failed"]) == (200, 1)
    refused, taken = answer.json()["items"]
    assert refused["problem"]["retry_after_ms"] == 3000
    assert (taken["answer"]["label"], taken["answer"]["model_version"]) == ("yes", "v2")
    assert batch(client, [{"text": "refuse"}, {"text": "refuse too"}]).status_code == 503


def test_the_list_as_a_whole(serving, model):
    client = serving(Limits(characters=30, batch_texts=3, batch_characters=50))
    seen = len(model.seen)
    empty = batch(client, [])
    assert (empty.status_code, empty.json()["code"]) == (422, "invalid-input")
    assert empty.json()["errors"][0]["pointer"] == "#/items"
    for items in (
        [{"text": "x"}] * 4,
        [0] * 4,
        [{"text": "x" * 17}] * 3,
        [{"text": "x" * 26, "pair": "y" * 25}],
    ):
        answer = batch(client, items)
        assert (answer.status_code, answer.json()["code"]) == (413, "batch-too-large"), items
    assert len(model.seen) == seen, "none of them reached the model"
    fits = [{"text": "x" * 20, "pair": "y" * 10}, {"text": "x" * 10}, {"text": "x" * 10}]
    assert batch(client, fits).json()["failed"] == 0
    # A text that is too long for itself is not read, and does not count.
    assert batch(client, [{"text": "x" * 1000}, {"text": "x"}]).json()["failed"] == 1


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"items": {}}', b'{"items": null}', b'{"items": "ab"}'])
def test_no_list(client, content):
    answer = client.request("POST", "/predict/batch", content=content, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-input")


any_text = st.text(st.characters(exclude_categories=()), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
good_items = st.fixed_dictionaries({"text": st.text("abc é", min_size=1).filter(str.strip)})


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(items=st.lists(good_items | values | st.fixed_dictionaries({}, optional={"text": values}), min_size=1))
def test_any_item_has_its_place_and_good_ones_their_answer(client, items):
    items = items[:64]
    answer = client.request("POST", "/predict/batch", content=json.dumps({"items": items}), headers=JSON)
    assert answer.status_code == 200, answer.text
    outcomes = answer.json()["items"]
    assert len(outcomes) == len(items)
    for item, outcome in zip(items, outcomes, strict=True):
        alone = client.request("POST", "/predict", content=json.dumps(item), headers=JSON)
        if alone.status_code == 200:
            assert outcome["answer"]["probabilities"] == alone.json()["probabilities"]
        else:
            assert outcome["problem"]["code"] == alone.json()["code"] == "invalid-input"
    assert answer.json()["failed"] == sum("problem" in outcome for outcome in outcomes)
