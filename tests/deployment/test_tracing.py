"""Tracing: a span for each request when somebody collects them, and never a text in it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from companion.deployment import create_app

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans(trace.TracerProvider, trace.Tracer):
    """Stands for a collector: keeps what is written to each span."""

    def __init__(self) -> None:
        self.kept: list[tuple[dict[str, Any], trace.SpanContext]] = []

    def get_tracer(self, *arguments: Any, **keywords: Any) -> trace.Tracer:
        return self

    def start_span(self, name: str, context: Any = None, **keywords: Any) -> trace.Span:
        written: dict[str, Any] = {"name": name, **(keywords.get("attributes") or {})}
        parent = trace.get_current_span(context).get_span_context()
        self.kept.append((written, parent))

        class Span(trace.NonRecordingSpan):
            def is_recording(self) -> bool:
                return True

            def set_attribute(self, key: str, value: Any) -> None:
                written[key] = value

            def set_attributes(self, attributes: Any) -> None:
                written.update(attributes)

            def update_name(self, name: str) -> None:
                written["name"] = name

            def record_exception(self, exception: BaseException, *arguments: Any, **keywords: Any) -> None:
                written["exception"] = str(exception)

        return Span(trace.INVALID_SPAN_CONTEXT)

    def start_as_current_span(self, *arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("only whole requests are traced")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    provider = Spans()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return provider


def test_a_span_for_each_request_without_its_text(spans, client):
    client.predict({"text": "my private words"}, traceparent=PARENT)
    client.predict({"text": "boom my private words"})
    client.request("POST", "/predict", content=b"my private words")
    (first, parent), (second, _), (third, _) = spans.kept
    assert (first["http.route"], first["http.response.status_code"]) == ("/predict", 200)
    assert format(parent.trace_id, "032x") == PARENT.split("-")[1], "the caller's trace goes on"
    assert second["http.response.status_code"] == 500
    assert third["http.response.status_code"] == 415
    assert "private" not in str(spans.kept)


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"])
def test_a_collector_without_the_sdk_is_a_warning_and_no_more(model, monkeypatch, caplog, endpoint):
    for name in ("trace_exporter", "_log_exporter"):
        monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.http.{name}", None)
    if endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    app = create_app(Path("fake"), load=lambda folder, threads: model)
    heard = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said: list[str] = []

    async def live() -> None:
        async def receive() -> Any:
            return next(heard)

        async def send(message: Any) -> None:
            said.append(message["type"])

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    asyncio.run(live())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert ("telemetry configuration failed" in caplog.text) == (endpoint is not None)
