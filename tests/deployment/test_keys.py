"""API keys: what is written down, who is let in, and that a key leaves no trace."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from companion.deployment import keys as keys_module
from companion.deployment.keys import KeyRing, add_key, read_keys, revoke_keys


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_the_file_holds_the_hash_and_not_the_token(file):
    token, key = add_key(file, "mobile-app", now=datetime(2026, 1, 31, tzinfo=UTC))
    assert re.fullmatch(r"ck_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", token)
    digest = hashlib.sha256(token.encode()).hexdigest()
    assert file.read_text() == f"{key.id} sha256:{digest} mobile-app 2026-01-31\n"
    assert token.split("_", 2)[2] not in file.read_text()
    assert token.split("_")[1] == key.id, "the id is public: it finds the line"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_keys(file) == {key.id: key}


def test_keys_are_added_to_what_is_there(file):
    file.write_text("# ours\n\n")
    first = add_key(file, "a")[1]
    with file.open("a") as lines:
        lines.write("# a line without an end")
    second = add_key(file, "a")[1]
    assert list(read_keys(file).values()) == [first, second]
    assert "# a line without an end\n" in file.read_text()


def test_many_at_once_are_all_kept(file):
    add_key(file, "first")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: add_key(file, f"key-{n}")[1], range(24)))
    assert {key.id for key in made} < set(read_keys(file))
    assert len(read_keys(file)) == 25


def test_tokens_differ(file):
    assert len({add_key(file, "a")[0] for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["", "a b", "a\n", "ä", "x" * 65, "a/b", "#a"])
def test_names_that_would_spoil_a_line(file, name):
    with pytest.raises(ValueError, match="the key's name is"):
        add_key(file, name)
    assert not file.exists()


def test_lines_that_are_no_keys_are_named_by_number_and_not_repeated(file):
    token, key = add_key(file, "a")
    good = file.read_text()
    for line in (token, "nonsense", good.strip() + " more", good.replace("sha256", "md5").strip()):
        file.write_text(good + line + "\n")
        with pytest.raises(ValueError, match="line 2 is not a key") as refused:
            read_keys(file)
        assert token not in str(refused.value)
    file.write_text(good + good)
    with pytest.raises(ValueError, match=f"line 2 has the id {key.id} again"):
        read_keys(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not text"):
        read_keys(file)
    with pytest.raises(FileNotFoundError, match="companion keys new"):
        read_keys(file.with_name("nothing"))


def test_revoking_keeps_the_others_the_comments_and_the_rights(file):
    file.touch(mode=0o640)
    file.chmod(0o640)
    _, kept = add_key(file, "kept")
    with file.open("a") as lines:
        lines.write("# a comment\n")
    gone = [add_key(file, "gone")[1], add_key(file, "gone")[1]]
    assert revoke_keys(file, "gone") == gone
    assert file.read_text() == f"{kept.line()}\n# a comment\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(ValueError, match="no key with the id or name 'gone'"):
        revoke_keys(file, "gone")
    assert revoke_keys(file, kept.id) == [kept]


def test_a_token_is_known_only_when_every_character_is_right(file):
    token, key = add_key(file, "a")
    other, _ = add_key(file, "b")
    ring = KeyRing(file)
    assert ring.find(token) == key
    flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
    swapped = token[:16] + other[16:]  # this id, that secret
    wrong = [
        flipped,
        swapped,
        token[:-1],
        token + "A",
        f" {token}",
        token.upper(),
        "",
        "ck_",
        "ä\udcff",
        key.id,
    ]
    wrong += [key.digest.hex(), f"ck_{'0' * 12}_{token[16:]}"]
    assert [guess for guess in wrong if ring.find(guess)] == []


def test_hashes_are_compared_in_constant_time_also_for_unknown_ids(file, monkeypatch):
    token, key = add_key(file, "a")
    ring = KeyRing(file)
    compared = []

    def compare(left, right):
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    for guess in (token, f"ck_{'0' * 12}_{token[16:]}", "nonsense"):
        ring.find(guess)
    assert [len(left) == len(right) == 32 for left, right in compared] == [True] * 3
    assert compared[0][1] == key.digest


def test_a_changed_file_counts_within_a_second(file, caplog):
    token, key = add_key(file, "a")
    clock = Clock()
    ring = KeyRing(file, clock=clock)
    later, _ = add_key(file, "b")
    assert ring.find(later) is None, "not looked at yet"
    clock.now = 1.0
    assert ring.find(later).name == "b"
    revoke_keys(file, key.id)
    clock.now = 2.0
    assert ring.find(token) is None
    # Rubbish, or no file: the keys of before stay, and the log says so once.
    for spoil in (lambda: file.write_text(later), file.unlink):
        spoil()
        caplog.clear()
        for _ in range(3):
            clock.now += 1.0
            assert ring.find(later).name == "b"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert later not in caplog.text
    renewed, _ = add_key(file, "c")
    clock.now += 1.0
    assert ring.find(renewed).name == "c"
    assert ring.find(later) is None


def test_a_file_without_keys_would_lock_everybody_out(file):
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match="holds no key"):
        KeyRing(file)


# --- the gate

ASK = {"json": {"text": "x"}}


@pytest.fixture
def guarded(serving, file):
    token, key = add_key(file, "mobile-app")
    return serving(api_keys=file), token, key


@pytest.mark.parametrize(
    "headers",
    [
        lambda token: {"Authorization": f"Bearer {token}"},
        lambda token: {"authorization": f"bearer  {token}"},
        lambda token: {"X-API-Key": token},
        lambda token: {"Authorization": "Basic eDp5", "X-API-Key": token},
    ],
)
def test_both_headers_let_in(guarded, headers):
    client, token, _ = guarded
    assert client.request("POST", "/predict", headers=headers(token), **ASK).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="companion"'),
        ({"Authorization": "Basic eDp5"}, 'Bearer realm="companion"'),
        ({"Authorization": "Bearer"}, 'Bearer realm="companion", error="invalid_token"'),
        ({"Authorization": "Bearer nonsense"}, 'Bearer realm="companion", error="invalid_token"'),
        ({"X-API-Key": "nonsense"}, 'Bearer realm="companion", error="invalid_token"'),
        ({"X-API-Key": "ä".encode("latin-1")}, 'Bearer realm="companion", error="invalid_token"'),
    ],
)
@pytest.mark.parametrize(
    "path", ["/predict", "/predict/batch", "/v2/models/companion/infer", "/openapi.json", "/no"]
)
def test_without_a_key_nothing_is_answered(guarded, headers, challenge, path, model):
    client, _, _ = guarded
    answer = client.request("POST", path, headers=headers, content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == challenge
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert len(model.seen) == 1, "only the warm-up reached the model"


def test_health_and_metrics_stay_open(guarded):
    client, _, _ = guarded
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert client.request("GET", path).status_code == 200, path
    assert client.request("GET", "/v2/models/companion/ready").status_code == 200
    assert client.request("GET", "/health/live/").status_code == 401, "only as they are written"


def test_openapi_tells_of_keys_where_they_are_asked_for(guarded, serving):
    client, token, _ = guarded
    schema = client.request("GET", "/openapi.json", headers={"X-API-Key": token}).json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, methods in schema["paths"].items():
        (operation,) = methods.values()
        is_open = path.startswith(("/health", "/v2/health", "/metrics")) or path.endswith("/ready")
        assert ("401" in operation["responses"]) == ("security" in operation) == (not is_open), path
    schema = serving().request("GET", "/openapi.json").json()
    assert "401" not in schema["paths"]["/predict"]["post"]["responses"]


def test_a_key_is_in_no_log_and_no_metric(serving, file, tmp_path, caplog):
    token, key = add_key(file, "mobile-app")
    log = tmp_path / "requests.jsonl"
    client = serving(api_keys=file, log_requests=True, log_format="json", log_file=log)
    headers = {"Authorization": f"Bearer {token}"}
    wrong = token[:-5] + "AAAAA"
    with caplog.at_level(0):
        client.request("POST", "/predict", headers=headers, **ASK)
        client.request("POST", "/predict", headers=headers, json={"text": "boom"})
        client.request("POST", f"/{token}?key={token}", headers={"X-API-Key": wrong}, **ASK)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["mobile-app", "mobile-app", None]
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert ours, "the exception was logged"
    told = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    everything = log.read_text() + told + client.request("GET", "/metrics").text
    for secret in (token, wrong, token.split("_", 2)[2], wrong.split("_", 2)[2], key.digest.hex()):
        assert secret not in everything


# --- the command


def test_keys_of_the_command_line(run, file, serving):
    add_key(file, "mobile-app")
    code, out, err = run("keys", "new", "partner", "--file", file)
    assert code == 0
    token = out.strip()
    assert "only time" in err and token not in err
    client = serving(api_keys=file)
    assert client.request("POST", "/predict", headers={"X-API-Key": token}, **ASK).status_code == 200
    code, out, _ = run("keys", "list", "--file", file)
    assert [line.split()[2] for line in out.splitlines()] == ["mobile-app", "partner"]
    assert token.split("_", 2)[2] not in out
    code, out, _ = run("keys", "revoke", "partner", "--file", file, "--json")
    assert json.loads(out)["revoked"][0]["name"] == "partner"
    code, out, err = run("keys", "revoke", "partner", "--file", file)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_file_that_cannot_be_written(run, tmp_path):
    code, _, err = run("keys", "new", "a", "--file", tmp_path / "nowhere" / "keys")
    assert (code, err.count("\n")) == (2, 1)
    assert "nowhere" in err
