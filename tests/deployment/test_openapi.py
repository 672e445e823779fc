"""The server keeps to its own description: whatever schemathesis makes of it, good input or bad."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import response_schema_conformance

from companion.deployment import Limits, ServerSettings, create_app
from companion.deployment.batching import BatchingLimits
from companion.deployment.problems import PROBLEMS

REFUSALS = {"checks": {"negative_data_rejection": {"expected-statuses": [401, 404, 409, 413, 415, 422]}}}
"""Schemathesis' own list has no 413, and a batch of too many items is that."""
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CONFORMS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    response_schema_conformance,
]
LEAKS = ("Traceback", "site-packages", 'File "', "Error(", "Exception", "companion/", "0x7f")
OPERATIONS = (
    "live",
    "ready",
    "metrics",
    "predict",
    "predict_batch",
    "kserve_live",
    "kserve_ready",
    "kserve_model",
    "kserve_model_ready",
    "kserve_infer",
    "rollout_status",
    "rollout_load",
    "rollout_unload",
    "rollout_canary",
    "rollout_shadow",
    "rollout_promote",
    "rollout_rollback",
)
ASKING = ("predict", "predict_batch", "kserve_model", "kserve_model_ready", "kserve_infer")
STEERING = ("rollout_load", "rollout_canary", "rollout_shadow")
WITH_INPUT = ASKING + STEERING
# What the schema cannot say of a valid request: that the shape and the data of KServe's agree, that there is
# such a folder, that a rollout is in the stage for this.
ACCEPTS_ALL = tuple(name for name in ASKING if name != "kserve_infer")


def described(document, *, keys):
    """Read a description; `keys` says whether cases have made-up keys, in place of none."""
    config = REFUSALS | {"generation": {"with-security-parameters": keys}}
    return schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(config))


def operation_of(schema, name):
    found = [result.ok() for result in schema.get_all_operations()]
    (operation,) = [item for item in found if item.definition.raw["operationId"] == name]
    return operation


def send(client, case, headers):
    """Send a generated case through the client of these tests, exactly as requests would write it."""
    data = case.as_transport_kwargs(base_url="http://test", headers=headers)
    prepared = requests.Request(**data).prepare()
    body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
    sent = [(name, value) for name, value in prepared.headers.items() if name.lower() != "content-length"]
    return client.request(prepared.method, prepared.url, headers=sent, content=body)


def check(case, answer, extra=()):
    case.validate_response(answer, checks=[*CONFORMS, *extra])
    assert not [leak for leak in LEAKS if leak in answer.text], answer.text
    if answer.status_code >= 400:
        body = answer.json()
        assert body["code"] in {problem.code for problem in PROBLEMS}
        assert body["status"] == answer.status_code


def fuzz(everything, name, mode, count, extra=(), seed=0):
    client, document, headers = everything
    schema = described(document, keys=mode == NEGATIVE)
    statuses: Counter[int] = Counter()
    phases = [Phase.generate]  # shrinking would send another thousand

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation_of(schema, name).as_strategy(generation_mode=mode))
    def run(case):
        answer = send(client, case, headers)
        statuses[answer.status_code] += 1
        check(case, answer, extra)

    run()
    return statuses


def test_the_list_is_complete(everything):
    schema = described(everything[1], keys=False)
    names = {result.ok().definition.raw["operationId"] for result in schema.get_all_operations()}
    assert names == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_good_input(everything, name):
    extra = [checks.positive_data_acceptance] if name in ACCEPTS_ALL else []
    statuses = fuzz(everything, name, POSITIVE, 20 if name in WITH_INPUT else 1, extra)
    # Where good input may be refused (shape and data of `infer` agree by luck), test_kserve.py has its 200.
    assert statuses[200] > 0 or name not in ("live", "ready", "metrics", *ACCEPTS_ALL), statuses
    if name.startswith("rollout"):
        assert set(statuses) <= {200, 409, 422}, statuses


def test_a_rollout_answers_by_its_description_in_every_stage(everything, tmp_path):
    client, _, headers = everything

    def post(path):
        body = {"folder": str(tmp_path)} if path == "/load" else None
        return client.request("POST", f"/admin/rollout{path}", json=body, headers=headers).status_code

    for before, expected in (([], 409), (["/load"], 200), (["/load", "/promote"], 409)):
        assert [post(path) for path in before] == [200] * len(before)
        for name in ("rollout_canary", "rollout_shadow"):
            assert set(fuzz(everything, name, POSITIVE, 5)) == {expected}
        for name in ("rollout_status", "predict"):
            assert set(fuzz(everything, name, POSITIVE, 5)) == {200}
        fuzz(everything, "rollout_load", POSITIVE, 5)
        fuzz(everything, "kserve_infer", POSITIVE, 5)
        post("/unload")


def refused_where_it_must(statuses):
    # 200: what was added is none of the server's business, such as a query; schemathesis knows which that is.
    # 401: the key itself was spoilt.
    # 409: what is left of the input is good, but there is no candidate.
    assert set(statuses) <= {200, 401, 404, 409, 413, 415, 422}, statuses
    assert statuses[404] + statuses[422] > 0, statuses


@pytest.mark.parametrize("name", WITH_INPUT)
def test_bad_input(everything, name):
    refused_where_it_must(fuzz(everything, name, NEGATIVE, 25, [checks.negative_data_rejection]))


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/v2/models/companion/infer"])
def test_torn_json(everything, path):
    client, _, headers = everything
    whole = json.dumps({"items": [{"text": "é", "pair": None}], "inputs": [{"name": "text", "shape": [1]}]})

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(cut=st.integers(0, len(whole)), junk=st.binary(max_size=4))
    def run(cut, junk):
        content = whole[:cut].encode() + junk + whole[cut:].encode()[len(junk) :]
        sent = headers | {"content-type": "application/json"}
        answer = client.request("POST", path, content=content, headers=sent)
        assert answer.status_code in {413, 415, 422}, answer.text
        assert not [leak for leak in LEAKS if leak in answer.text], answer.text

    run()


def test_the_checks_bite(everything):
    """A description that lies is found out: else all of the above would pass on anything."""
    client, document, headers = everything
    lying = copy.deepcopy(document)
    del lying["paths"]["/predict"]["post"]["responses"]["422"]
    lying["components"]["schemas"]["Live"]["properties"]["status"]["const"] = "dead"
    with pytest.raises(BaseException, match="Undocumented"):
        fuzz((client, lying, headers), "predict", NEGATIVE, 5)
    with pytest.raises(BaseException, match="violates schema"):
        fuzz((client, lying, headers), "live", POSITIVE, 1)


def test_the_description_follows_the_settings(serving):
    client = serving(Limits(characters=7, batch_texts=3), model_name="reviews")
    schema = client.request("GET", "/openapi.json").json()
    predict = schema["components"]["schemas"]["PredictRequest"]["properties"]
    assert (predict["text"]["maxLength"], predict["pair"]["anyOf"][0]["maxLength"]) == (7, 7)
    assert schema["components"]["schemas"]["BatchRequest"]["properties"]["items"]["maxItems"] == 3
    (name,) = schema["paths"]["/v2/models/{name}"]["get"]["parameters"]
    assert name["schema"]["enum"] == ["reviews"]


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"model_name": "a/b"}, "the model's name is 'a/b'"),
        ({"rate": "often"}, "the rate is 'often'"),
        ({"redis": "redis://127.0.0.1:6379"}, "no rate is given"),
        ({"rate": "1/second", "redis": "http://x"}, "expected redis://"),
        ({"log_format": "xml"}, "the log's format is 'xml'"),
        ({"trusted_proxies": ("nginx",)}, "trusted proxy 'nginx'"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**changes)


def test_files_that_are_missing_are_found_before_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="companion keys new"):
        create_app(tmp_path, api_keys=tmp_path / "keys")
    with pytest.raises(OSError, match="nowhere"):
        create_app(tmp_path, log_requests=True, log_file=tmp_path / "nowhere" / "log")


def test_the_command_passes_every_setting_on(run, monkeypatch, tmp_path):
    got = []
    monkeypatch.setattr("companion.deployment.serve", lambda folder, settings: got.append((folder, settings)))
    assert run("serve", tmp_path)[0] == 0
    assert got.pop() == (tmp_path, ServerSettings()), "the command's defaults are the package's"
    words = (
        "--host 0.0.0.0 --port 9 --threads 2 --model-name m --api-keys k --rate 5/second "
        "--redis redis://r:1/0 --trust-proxy 10.0.0.1 --trust-proxy 10.1.0.0/16 --characters 1 "
        "--body-bytes 2 --batch-texts 3 "
        "--batch-characters 4 --queue 5 --batch-size 6 --padded-tokens 7 --timeout-ms 20001 "
        "--log-requests --log-format json --log-file l "
        "--cache memory --cache-entries 5 --cache-ttl 6.5 --semantic-cache c --rollout s --rollout-root . "
        "--admin-key k"
    )
    assert run("serve", tmp_path, *words.split())[0] == 0
    assert got.pop()[1] == ServerSettings(
        host="0.0.0.0",
        port=9,
        threads=2,
        model_name="m",
        limits=Limits(1, 2, 3, 4),
        batching=BatchingLimits(requests=5, batch_size=6, padded_tokens=7, timeout_s=20.001),
        api_keys=Path("k"),
        rate="5/second",
        redis="redis://r:1/0",
        trusted_proxies=("10.0.0.1", "10.1.0.0/16"),
        log_requests=True,
        log_format="json",
        log_file=Path("l"),
        cache="memory",
        cache_entries=5,
        cache_ttl_s=6.5,
        semantic_cache=Path("c"),
        rollout=Path("s"),
        rollout_root=Path(),
        admin_key=Path("k"),
    )
    for words in (
        "--rate often",
        "--log-format xml",
        "--redis redis://x",
        "--trust-proxy nginx",
        "--cache x",
        "--batch-size 0",
        "--timeout-ms 60001",
    ):
        code, out, err = run("serve", tmp_path, *words.split())
        assert (code, out, err.count("\n")) == (2, "", 1), err
