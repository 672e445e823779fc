"""A model that needs no weights, and a client that runs an application with its lifespan."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from companion.deployment import Limits, create_app
from companion.deployment.batching.calibrating import WARM_UP
from companion.inference.predictor import probabilities_of


@dataclass(frozen=True)
class FakeTokens:
    """As many tokens as the text has characters; the first is the question's number."""

    ids: list[int]
    type_ids: list[int]


@dataclass
class FakeModel:
    """Counts how many runs happen at once; `gate` holds every run until it is set.

    Of a server's own first runs only one is in `seen`, and none in `batches`.
    """

    labels: tuple[str, ...] = ("negative", "positive")
    max_length: int = 128
    is_regression: bool = False
    manifest: Any = field(default_factory=lambda: SimpleNamespace(model_version="v-test"))
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    questions: list[tuple[str, str | None]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    most_running: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[FakeTokens]:
        if any("untokenizable" in text for text in texts):
            raise ValueError("secret: cannot encode " + repr(texts))
        found = []
        for question in zip(texts, pairs or [None] * len(texts), strict=True):
            length = max(1, min(self.max_length, len(question[0]) + len(question[1] or "")))
            self.questions.append(question)
            found.append(FakeTokens([self.questions.index(question)] * length, [0] * length))
        return found

    def run(self, encodings: Sequence[Any]) -> np.ndarray:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            assert self.gate.wait(30)
            questions = [self.questions[encoding.ids[0]] for encoding in encodings]
            texts = [text for text, _ in questions]
            if WARM_UP not in texts:
                self.seen.extend(questions)
                self.batches.append(texts)
            elif not self.seen:
                self.seen.append((WARM_UP, None))
            if any("boom" in text for text in texts):
                raise RuntimeError("secret: the texts were " + repr(texts))
            scores = [math.nan if "nan" in text else 0.01 * len(text) % 0.8 for text in texts]
            values = np.array(scores, dtype=np.float32)[:, None]
            return values if self.is_regression else np.concatenate([-values, values], axis=1)
        finally:
            self.running -= 1

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> np.ndarray:
        return np.concatenate([self.run([encoding]) for encoding in self.encode(texts, pairs)])

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> np.ndarray:
        return probabilities_of(self.logits(texts, pairs), is_regression=False)


class Client:
    """Blocking HTTP against an application in this process: no socket."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self.app = app
        self.portal = portal
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    def request(self, method: str, url: str, **keywords: Any) -> httpx.Response:
        return self.start(method, url, **keywords).result(60)

    def start(self, method: str, url: str, **keywords: Any) -> Future[httpx.Response]:
        return self.portal.start_task_soon(lambda: self.http.request(method, url, **keywords))

    def predict(self, body: Any, **headers: str) -> httpx.Response:
        return self.request("POST", "/predict", json=body, headers=headers)

    def wait_until_settled(self) -> None:
        self.portal.call(self.app.state.service.settled.wait)


@contextmanager
def running(app: FastAPI) -> Iterator[Client]:
    """Run the lifespan around the client, and do not wait for the model."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        yield Client(app, portal)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def serving(model: FakeModel) -> Iterator[Callable[..., Client]]:
    """Start applications around `model`; by default wait until they are ready."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(
            limits: Limits | None = None, *, wait: bool = True, load: Any = None, **settings: Any
        ) -> Client:
            load = load or (lambda folder, threads: model)
            app = create_app(Path("fake"), limits=limits, load=load, **settings)
            client = stack.enter_context(running(app))
            if wait:
                client.wait_until_settled()
            return client

        yield start
        model.gate.set()


@pytest.fixture
def running_client() -> Iterator[Callable[[FastAPI], Client]]:
    """Start any application, and wait until it is ready."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(app: FastAPI) -> Client:
            client = stack.enter_context(running(app))
            client.wait_until_settled()
            return client

        yield start


@pytest.fixture
def everything(
    serving: Callable[..., Client], model: FakeModel, tmp_path: Path
) -> tuple[Client, dict[str, Any], dict[str, str]]:
    """Return a server with keys, quotas, a cache, a rollout and small limits, its description, and its keys.

    Every folder is a version that it can load.
    """
    from companion.deployment.keys import add_key
    from companion.deployment.rollout import VersionFacts

    token, _ = add_key(tmp_path / "keys", "fuzz")
    (tmp_path / "admin.key").write_text("an-admin-key-of-enough-characters")

    def version(folder: Path) -> str:
        return "v-test" if folder == Path("fake").resolve() else "v-other"

    client = serving(
        Limits(characters=40, body_bytes=4000, batch_texts=5, batch_characters=100),
        api_keys=tmp_path / "keys",
        rate="1000000/second",
        cache="memory",
        rollout=tmp_path / "state.json",
        admin_key=tmp_path / "admin.key",
        load=lambda folder, threads: replace(model, manifest=SimpleNamespace(model_version=version(folder))),
        inspect=lambda folder: VersionFacts(version(folder), model.labels, False, "tokens"),
    )
    headers = {"X-API-Key": token, "X-Admin-Key": (tmp_path / "admin.key").read_text()}
    return client, client.request("GET", "/openapi.json", headers=headers).json(), headers


@pytest.fixture
def client(serving: Callable[..., Client]) -> Client:
    return serving()
