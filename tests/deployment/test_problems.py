"""Every error is one problem document, whatever was sent."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from companion.deployment import Limits
from companion.deployment.problems import PROBLEMS, json_pointer

JSON = {"content-type": "application/json"}


def check_problem(answer, status, code):
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["status"] == status
    assert body["type"] == f"urn:companion:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    known = {"type", "title", "status", "detail", "code", "request_id", "retry_after_ms", "errors"}
    assert set(body) <= known
    return body


def test_codes_are_unique():
    assert len({problem.code for problem in PROBLEMS}) == len(PROBLEMS)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "#/text", "missing"),
        ({"text": ""}, "#/text", "string_too_short"),
        ({"text": " \t\n\u3000"}, "#/text", "blank"),
        ({"text": "a\0b"}, "#/text", "nul_character"),
        ({"text": None}, "#/text", "string_type"),
        ({"text": 5}, "#/text", "string_type"),
        ({"text": ["a"]}, "#/text", "string_type"),
        ({"text": "a", "pair": " "}, "#/pair", "blank"),
        ({"text": "a", "pair": 1}, "#/pair", "string_type"),
        ({"text": "a", "txet": 1}, "#/txet", "extra_forbidden"),
        ({"text": "a", "a/b~c": 1}, "#/a~1b~0c", "extra_forbidden"),
        ({"text": "a", "x" * 1000: 1}, "#", "extra_forbidden"),
        ({"text": "a" * 51}, "#/text", "too_long"),
        ({"text": "a", "pair": "b" * 51}, "#/pair", "too_long"),
        ([], "#", None),
        ("text", "#", None),
        (None, "#", None),
    ],
)
def test_invalid_input_says_where_and_what(serving, model, body, pointer, code):
    answer = serving(Limits(characters=50)).request(
        "POST", "/predict", content=json.dumps(body), headers=JSON
    )
    problem = check_problem(answer, 422, "invalid-input")
    (error,) = problem["errors"]
    assert error["pointer"] == pointer
    assert code is None or error["code"] == code
    assert error["detail"] in problem["detail"]
    assert len(model.seen) == 1, "only the warm-up reached the model"


def test_the_longest_text_passes(serving):
    client = serving(Limits(characters=50))
    assert client.predict({"text": "\U0001f600" * 50, "pair": "b" * 50}).status_code == 200


def test_both_errors_are_listed(client):
    problem = check_problem(client.predict({"text": "", "pair": ""}), 422, "invalid-input")
    assert [error["pointer"] for error in problem["errors"]] == ["#/text", "#/pair"]


def test_ten_thousand_unknown_fields_get_a_short_answer(client):
    answer = client.predict({f"field-{n}": n for n in range(10_000)})
    assert len(check_problem(answer, 422, "invalid-input")["errors"]) == 16
    assert len(answer.content) < 5_000


@pytest.mark.parametrize(
    "text", [r"\ud800", r"a\udfffb", r"\ude00\ud83d", r"\ud83d"], ids=["high", "low", "swapped", "half"]
)
def test_lone_surrogates(client, text):
    answer = client.request("POST", "/predict", content=f'{{"text": "{text}"}}', headers=JSON)
    problem = check_problem(answer, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == "#/text"
    answer = client.request("POST", "/predict", content=f'{{"text": "a", "{text}": 1}}', headers=JSON)
    check_problem(answer, 422, "invalid-input")


def test_lone_surrogate_written_in_utf8(client):
    content = b'{"text": "\xed\xa0\x80"}'
    problem = check_problem(
        client.request("POST", "/predict", content=content, headers=JSON), 422, "invalid-input"
    )
    assert problem["errors"][0]["pointer"] == "#/text"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"text=a",
        b'{"text": "a",}',
        b'{"text": "a"} {}',
        b'{"text": "\xff\xfe"}',
        b"\xff",
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5_000 + b"}",
        b'{"text": "a\nb"}',
    ],
    ids=["cut", "form", "comma", "two", "utf8", "byte", "deep", "digits", "control"],
)
def test_malformed_json(client, content):
    check_problem(client.request("POST", "/predict", content=content, headers=JSON), 422, "malformed-json")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", None, "json", ";"]
)
def test_wrong_content_type(client, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = client.request("POST", "/predict", content=b'{"text": "a"}', headers=headers)
    check_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON"])
def test_right_content_types(client, content_type):
    headers = {"content-type": content_type}
    assert client.request("POST", "/predict", content=b'{"text": "a"}', headers=headers).status_code == 200


def test_no_body(client):
    check_problem(client.request("POST", "/predict", headers=JSON), 422, "invalid-input")
    check_problem(client.request("POST", "/predict"), 422, "invalid-input")


@pytest.mark.parametrize("path", ["/", "/predict/", "/nothing", "/docs", "/redoc", "/health", "/%ff", "//"])
def test_unknown_address(client, path):
    check_problem(client.request("GET", path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/predict", "POST"), ("DELETE", "/predict", "POST"), ("POST", "/health/ready", "GET")],
)
def test_wrong_method(client, method, path, allow):
    answer = client.request(method, path)
    check_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("text", ["boom", "nan"])
def test_exception_is_logged_with_its_id_and_not_shown(client, caplog, text):
    answer = client.predict({"text": text}, **{"X-Request-ID": "find-me"})
    problem = check_problem(answer, 500, "internal-error")
    assert problem["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    (record,) = [record for record in caplog.records if record.name == "companion.deployment"]
    assert "find-me" in record.getMessage()
    assert record.exc_info is not None
    assert client.predict({"text": "fine again"}).status_code == 200


def test_body_at_the_limit(serving):
    client = serving(Limits(body_bytes=100))
    content = b'{"text": "a"}'
    fits = content + b" " * (100 - len(content))
    assert client.request("POST", "/predict", content=fits, headers=JSON).status_code == 200
    answer = client.request("POST", "/predict", content=fits + b" ", headers=JSON)
    check_problem(answer, 413, "body-too-large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/predict", "/nothing"])
@pytest.mark.parametrize("declared", [b"101", b"0101", b"9" * 6_000], ids=["over", "zeros", "digits"])
def test_declared_length_is_refused_before_anything_is_read(client_of_100, path, declared):
    status, headers, body, read = client_of_100(path, [b"x"] * 50, declared)
    assert (status, json.loads(body)["code"], read) == (413, "body-too-large", 0)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"].decode() == json.loads(body)["request_id"]


def test_undeclared_length_is_counted_and_reading_stops(client_of_100):
    status, _, body, read = client_of_100("/predict", [b" " * 30] * 50, None)
    assert (status, json.loads(body)["code"]) == (413, "body-too-large")
    assert read == 4, "the fourth chunk passes 100 bytes: the other 46 stay unread"


@pytest.mark.parametrize("declared", [b"-1", b"abc", b"\xb2", b""])
def test_nonsense_length_does_not_break_the_limit(client_of_100, declared):
    status, _, _, read = client_of_100("/predict", [b" " * 30] * 50, declared)
    assert (status, read) == (413, 4)


@pytest.fixture
def client_of_100(serving):
    """Speak ASGI by hand: send chunks and count how many of them the application takes."""
    client = serving(Limits(body_bytes=100))

    async def talk(path, chunks, declared):
        read, sent, left = 0, [], list(chunks)
        headers = [(b"content-type", b"application/json")]
        if declared is not None:
            headers.append((b"content-length", declared))

        async def receive():
            nonlocal read
            read += 1
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": ""}
        scope |= {"query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http"}
        await asyncio.wait_for(client.app(scope, receive, send), 30)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], dict(sent[0]["headers"]), body, read

    return lambda *arguments: client.portal.call(talk, *arguments)


def test_client_that_leaves_while_sending_does_no_harm(client, caplog):
    async def talk():
        sent = []

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "raw_path": b"/predict",
            "root_path": "",
        }
        scope |= {"query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http"}
        await client.app(scope, receive, send)
        return sent

    client.portal.call(talk)
    assert "failed" not in caplog.text
    assert client.predict({"text": "x"}).status_code == 200


def test_pointer_escapes_what_a_pointer_and_a_uri_cannot_hold():
    assert json_pointer([]) == "#"
    assert json_pointer(["a/b", "c~d", "0"]) == "#/a~1b/c~0d/0"
    assert json_pointer(["\ud800 ä"]) == "#/%5Cud800%20%C3%A4"


any_text = st.text(st.characters(exclude_categories=()), max_size=40)  # surrogates included
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=10,
)
near_misses = st.fixed_dictionaries(
    {}, optional={"text": json_values, "pair": json_values, "texts": json_values, "\ud800": json_values}
)
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def answered_or_problem(answer):
    if answer.status_code == 200:
        assert answer.headers["content-type"] == "application/json"
        assert {"label", "probability", "probabilities"} <= set(answer.json())
    else:
        assert answer.status_code in {413, 415, 422}, answer.text
        check_problem(answer, answer.status_code, answer.json()["code"])


@FUZZ
@given(body=json_values | near_misses)
def test_no_json_gives_a_500(client, body):
    answered_or_problem(client.request("POST", "/predict", content=json.dumps(body), headers=JSON))


@FUZZ
@given(
    content=st.binary(max_size=200) | st.binary(max_size=50).map(lambda b: b'{"text": "' + b + b'"}'),
    content_type=st.sampled_from(
        ["application/json", "application/x+json", "text/plain", "/", "application/"]
    ),
)
def test_no_bytes_give_a_500(client, content, content_type):
    headers = {"content-type": content_type}
    answered_or_problem(client.request("POST", "/predict", content=content, headers=headers))


@FUZZ
@given(
    headers=st.dictionaries(
        st.sampled_from(["content-type", "content-length", "x-request-id", "accept", "transfer-encoding"]),
        st.binary(max_size=40),
    )
)
def test_no_header_gives_a_500(client, headers):
    sent = [(name.encode(), value) for name, value in headers.items()]
    answered_or_problem(client.request("POST", "/predict", content=b'{"text": "a"}', headers=sent))
