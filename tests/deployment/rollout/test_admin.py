"""The control surface: over HTTP with a key, and from the command line."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from companion.cli.rolling import _checked
from companion.deployment.answering import Question
from companion.deployment.middleware import RequestContext
from companion.deployment.notes import RouteNames
from companion.deployment.problems import on_http_exception, on_validation_error
from companion.deployment.rollout.admin import admin_router
from companion.deployment.rollout.headers import RolloutCaller

KEY = "an-admin-key-of-enough-characters"


def application(world: Any, key: str | None = KEY) -> FastAPI:
    """Wire a rollout into an application as a server does."""
    rollout = world.rollout()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        await rollout.start()
        yield
        await rollout.aclose()

    app = FastAPI(
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_validation_error},
    )

    @app.post("/predict")
    async def predict(text: str) -> dict[str, str]:
        answer = await rollout.answer(Question(text), deadline=time.monotonic() + 30)
        return {"model_version": answer.model_version}

    if key is not None:
        app.include_router(admin_router(rollout, key))
    app.add_middleware(RolloutCaller)
    app.add_middleware(RequestContext, RouteNames(()))
    return app


@contextmanager
def asking(app: FastAPI) -> Iterator[Any]:
    """Run the application; give a function that puts requests to it."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test"
        )

        def ask(method: str, path: str, **keywords: Any) -> httpx.Response:
            return portal.call(lambda: client.request(method, path, **keywords))

        yield ask


@pytest.fixture
def ask(world: Any) -> Iterator[Any]:
    with asking(application(world)) as found:
        yield found


def admin(ask: Any, path: str, body: Any = None, method: str = "POST") -> httpx.Response:
    return ask(method, f"/admin/rollout{path}", json=body, headers={"X-Admin-Key": KEY})


ROUTES = ("/load", "/unload", "/canary", "/shadow", "/promote", "/rollback")


def test_nothing_without_the_key(ask, world):
    for headers in (
        {},
        {"X-Admin-Key": ""},
        {"X-Admin-Key": KEY[:-1]},
        {"X-Admin-Key": KEY + "x"},
        {"X-API-Key": KEY},
    ):
        answers = [ask("GET", "/admin/rollout", headers=headers)]
        answers += [
            ask("POST", f"/admin/rollout{path}", json={"share": 1}, headers=headers) for path in ROUTES
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (401, "admin-key-required")
            assert answer.headers["content-type"] == "application/problem+json"
            assert KEY not in answer.text
    assert set(world.made) == {"m1"}


def test_no_key_no_routes(world):
    with asking(application(world, key=None)) as ask:
        assert ask("GET", "/admin/rollout", headers={"X-Admin-Key": "None"}).json()["code"] == "not-found"


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 15, "ümläut" * 5, "with a blank in between", "line\nbreak" * 3]
)
def test_a_key_that_is_none_is_refused(world, key):
    with pytest.raises(ValueError, match="expected at least 16") as told:
        application(world, key)
    assert not key or key not in str(told.value)


def test_the_whole_way_over_http(ask, world):
    found = admin(ask, "", method="GET").json()
    assert (found["stage"], found["live"]["version"], found["candidate"]) == ("live", "v1", None)
    found = admin(ask, "/load", {"folder": str(world.folder / "m2")}).json()
    assert (found["stage"], found["candidate"]["version"]) == ("candidate", "v2")
    assert admin(ask, "/canary", {"share": 0.05, "by_header": True}).json()["canary"] == 0.05
    assert admin(ask, "/shadow", {"share": 1}).json()["shadow"] == 1
    assert ask("POST", "/predict?text=x", headers={"X-Rollout": "Candidate"}).json() == {
        "model_version": "v2"
    }
    assert ask("POST", "/predict?text=x", headers={"X-Rollout": "live"}).json() == {"model_version": "v1"}
    assert admin(ask, "/promote").json()["live"]["version"] == "v2"
    assert ask("POST", "/predict?text=x").json() == {"model_version": "v2"}
    found = admin(ask, "/rollback").json()
    assert (found["stage"], found["live"]["version"]) == ("live", "v1")
    assert found["events"][-1]["detail"] == "asked for over HTTP"
    admin(ask, "/load", {"folder": str(world.folder / "m3")})
    assert admin(ask, "/unload").json()["candidate"] is None


def test_what_is_refused_is_told_with_the_reason(ask, world):
    world.facts["m3"] = ValueError("m3 is rubbish")
    answer = admin(ask, "/load", {"folder": str(world.folder / "m3")})
    assert (answer.status_code, answer.json()["code"]) == (422, "version-refused")
    assert "m3 is rubbish" in answer.json()["detail"]
    for path, body in (
        ("/canary", {"share": 0.5}),
        ("/shadow", {"share": 0.5}),
        ("/promote", None),
        ("/unload", None),
    ):
        answer = admin(ask, path, body)
        assert (answer.status_code, answer.json()["code"]) == (409, "rollout-conflict"), path
        assert answer.json()["detail"]
    for body in ({"share": 1.5}, {"share": "1"}, {"share": -1}, {}, {"share": 0.5, "more": 1}):
        answer = admin(ask, "/canary", body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-input"), body
    for body in ({"folder": ""}, {"folder": "x", "other_tokenizer": "yes"}, {"folder": "x" * 5000}):
        assert admin(ask, "/load", body).json()["code"] == "invalid-input"
    assert admin(ask, "/load", {"folder": "a\0b"}).json()["code"] == "version-refused"


def test_one_caller_stays_with_one_version(ask, world):
    admin(ask, "/load", {"folder": str(world.folder / "m2")})
    admin(ask, "/canary", {"share": 0.5})

    def version(**headers: str) -> str:
        return ask("POST", "/predict?text=x", headers=headers).json()["model_version"]

    for user in range(6):
        assert len({version(**{"X-Sticky-ID": f"user {user}"}) for _ in range(8)}) == 1
    assert {version(**{"X-Sticky-ID": f"user {user}"}) for user in range(20)} == {"v1", "v2"}
    assert {version() for _ in range(40)} == {"v1", "v2"}, "without it, request by request"
    assert len({version(**{"X-Request-ID": "the-same"}) for _ in range(8)}) == 1


def test_a_version_that_nobody_knows_cannot_be_named(ask):
    answer = ask("POST", "/predict?text=x", headers={"X-Rollout": "canary"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-input")
    assert "live, candidate" in answer.json()["detail"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_the_schema_tells_every_status(world):
    paths = application(world).openapi()["paths"]
    assert {path for path in paths if path.startswith("/admin")} == {
        "/admin/rollout",
        *(f"/admin/rollout{path}" for path in ROUTES),
    }
    for path in ROUTES:
        assert {"200", "401", "409", "500"} <= paths[f"/admin/rollout{path}"]["post"]["responses"].keys()
    assert "422" in paths["/admin/rollout/load"]["post"]["responses"]


# --- the command line


@pytest.fixture
def server(world: Any) -> Iterator[str]:
    """Run a real server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(application(world), log_config=None, lifespan="on")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(30)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    (tmp_path / "admin.key").write_text(f"{KEY}\n")
    return tmp_path / "admin.key"


def test_the_whole_way_from_the_command_line(run, server, key_file, world):
    def command(*arguments: object) -> tuple[int, str, str]:
        return run("rollout", *arguments, "--url", server, "--key-file", key_file)

    code, out, err = command("status")
    assert (code, err) == (0, "")
    assert "stage                live\n" in out
    code, out, _ = command("load", world.folder / "m2")
    assert code == 0
    assert f"candidate            v2 ({world.folder / 'm2'})" in out
    code, out, _ = command("canary", 1, "--by-header", "--json")
    found = json.loads(out)
    assert (found["canary"], found["by_header"], found["live"]["version"]) == (1, True, "v1")
    for n in range(10):
        answer = httpx.post(f"{server}/predict", params={"text": f"text {n}"})
        assert answer.json() == {"model_version": "v2"}
        time.sleep(0.01)
    code, out, _ = command("shadow", 0.5)
    assert "canary               100.000% of the callers, and by header" in out
    assert "shadow               50.000% of the questions" in out
    assert "answered 10, replaced 0" in out
    code, out, _ = command("promote")
    assert "live                 v2" in out
    assert "previous             v1" in out
    code, out, _ = command("rollback")
    assert "live                 v1" in out
    assert "v2 rolled back asked for over HTTP" in out
    command("load", world.folder / "m3")
    assert "candidate " not in command("unload")[1]


def test_what_goes_wrong_is_one_line(run, server, key_file, world, tmp_path):
    def refused(*arguments: object, url: str = server, key: Path = key_file) -> str:
        code, out, err = run("rollout", *arguments, "--url", url, "--key-file", key)
        assert (code, out) == (2, ""), err
        assert err.count("\n") == 1, err
        assert err.startswith("companion: ")
        assert KEY not in err
        return err

    assert "rollout-conflict: there is no candidate: load one first." in refused("promote")
    assert "version-refused: " in refused("load", world.folder / "nowhere")
    (tmp_path / "other.key").write_text("another-key-of-enough-characters")
    assert "admin-key-required" in refused("status", key=tmp_path / "other.key")
    assert "nowhere.key" in refused("status", key=tmp_path / "nowhere.key")
    for content in ("", "\n", "two words", "ümlaut"):
        (tmp_path / "bad.key").write_text(content, encoding="utf-8")
        assert "the admin key in " in refused("status", key=tmp_path / "bad.key")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert "does not answer" in refused("status", url=nobody)
    for url in ("ftp://here", "here", "http://", "http://user@here", "http://here:99999", "http://here?x=1"):
        assert "expected an address such as" in refused("status", url=url)
    assert "start the server with --rollout" in refused("status", url=f"{server}/elsewhere")
    code, _, err = run("rollout", "canary", 2, "--url", server, "--key-file", key_file)
    assert (code, "rollout canary --help" in err) == (2, True)
    assert "COMPANION_ADMIN_KEY" in run("rollout", "status")[2]


class Odd(BaseHTTPRequestHandler):
    """A server that is not ours: redirects, breaks off, or says something else."""

    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        Odd.keys.append(self.headers["X-Admin-Key"])
        if "moved" in self.path:
            self.send_response(302)
            self.send_header("Location", "/there")
            self.end_headers()
        elif "broken" not in self.path:
            body = b"[1]" if "list" in self.path else b"<html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_server_that_is_not_ours(run, key_file):
    with HTTPServer(("127.0.0.1", 0), Odd) as other:
        threading.Thread(target=other.serve_forever).start()
        try:
            said = {
                path: run(
                    "rollout",
                    "status",
                    "--key-file",
                    key_file,
                    "--url",
                    f"http://127.0.0.1:{other.server_port}/{path}",
                )
                for path in ("moved", "broken", "list", "html")
            }
        finally:
            other.shutdown()
    assert all((code, out, err.count("\n")) == (2, "", 1) for code, out, err in said.values()), said
    assert "answered 302" in said["moved"][2]
    assert "broke off" in said["broken"][2]
    assert "gave no status of a rollout" in said["list"][2]
    assert "gave no status of a rollout" in said["html"][2]
    assert len(Odd.keys) == 4, "no redirection was followed with the key"


def test_a_key_is_not_sent_in_the_open_without_a_word(capsys):
    assert _checked("http://192.0.2.1:8000/") == "http://192.0.2.1:8000"
    assert "warning: the key goes to 192.0.2.1 unencrypted" in capsys.readouterr().err
    for url in ("https://192.0.2.1", "http://127.0.0.1:8000", "http://[::1]:8000/base/", "http://localhost"):
        assert _checked(url) == url.rstrip("/")
    assert capsys.readouterr().err == ""
