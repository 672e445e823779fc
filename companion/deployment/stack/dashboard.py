"""The Grafana dashboard: a table of panels, and the document that Grafana reads made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["PANELS", "Panel", "dashboard"]

_PREDICTING = 'route=~"/predict|/predict/batch|/v2/models/.*/infer"'
_EACH = "{{instance}}"
_WIDTH, _HEIGHT, _ROW = 8, 8, 24


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes
    ----------
    title : str
    queries : tuple of (str, str)
        PromQL, and how a line is called in the legend.
    unit : str
        As Grafana names units: ``s``, ``reqps``, ``percentunit``, ``short``.
    about : str
        What it shows, and what to make of it.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str
    about: str


def _quantile(part: str, series: str, filters: str = "") -> str:
    return f"histogram_quantile({part}, sum by (le) (rate({series}_bucket{filters}[$__rate_interval])))"


PANELS: tuple[Panel, ...] = (
    Panel(
        "Servers that answer",
        (("sum(companion_ready)", "ready"), ('sum(up{job="companion"})', "running")),
        "short",
        "Running but not ready: loading, stuck or about to stop.",
    ),
    Panel(
        "Requests by outcome",
        ((f"sum by (status, code) (rate(companion_requests_total{{{_PREDICTING}}}[$__rate_interval]))", "{{status}} {{code}}"),),
        "reqps",
        "ok is an answer; every other code is in the table of problems.",
    ),
    Panel(
        "Latency",
        tuple((_quantile(part, "companion_request_seconds", f"{{{_PREDICTING}}}"), name) for part, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))),
        "s",
        "From a request's headers to the end of its answer, over all servers.",
    ),
    Panel(
        "Texts by outcome",
        (("sum by (code) (rate(companion_texts_total[$__rate_interval]))", "{{code}}"),),
        "short",
        "Texts, not requests: a batch counts as many as it holds.",
    ),
    Panel(
        "Queue length",
        (("companion_queue_length", _EACH),),
        "short",
        "Texts that wait. Long and young is a burst; long and old is too much work.",
    ),
    Panel(
        "Queue age",
        (("companion_queue_age_seconds", _EACH), (_quantile("0.99", "companion_queue_wait_seconds"), "p99 waited")),
        "s",
        "How long the oldest text has waited, and how long the slowest hundredth did.",
    ),
    Panel(
        "Texts in one run",
        (("sum(rate(companion_batch_texts_sum[$__rate_interval])) / sum(rate(companion_batch_texts_count[$__rate_interval]))", "mean"),),
        "short",
        "More of them ride together when more of them wait.",
    ),
    Panel(
        "Time of one run",
        (("sum(rate(companion_batch_seconds_sum[$__rate_interval])) / sum(rate(companion_batch_seconds_count[$__rate_interval]))", "mean"), (_quantile("0.99", "companion_batch_seconds"), "p99")),
        "s",
        "What the model takes. It grows when the machine is shared with others.",
    ),
    Panel(
        "Share of tokens that are padding",
        (("1 - sum(rate(companion_tokens_total[$__rate_interval])) / sum(rate(companion_padded_tokens_total[$__rate_interval]))", "padding"),),
        "percentunit",
        "Work without use: what batches of unequal lengths cost.",
    ),
    Panel(
        "Answers by label",
        (("companion:answer_share:1h", "{{label}} ({{model_version}})"),),
        "percentunit",
        "The last hour. A share that moves is a change of texts, of the model, or chance: companion drift tells which.",
    ),
    Panel(
        "Model version",
        (("sum by (model_version) (companion_model_info)", "{{model_version}}"),),
        "short",
        "How many servers answered last with each version.",
    ),
    Panel(
        "In flight",
        (("companion_requests_in_flight", _EACH),),
        "short",
        "Requests that have begun and not ended.",
    ),
    Panel(
        "Events",
        (("sum by (event) (rate(companion_events_total[$__rate_interval]))", "{{event}}"),),
        "short",
        "Refused, cancelled, too late, hit and missed caches, Redis gone and back, versions taken back.",
    ),
)  # fmt: skip


def dashboard() -> str:
    """Write the dashboard as Grafana reads it.

    Returns
    -------
    str
        JSON.
    """
    panels = [_panel(number, panel) for number, panel in enumerate(PANELS)]
    document = {
        "uid": "companion",
        "title": "companion",
        "tags": ["companion"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "editable": True,
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    column, row = number * _WIDTH % _ROW, number * _WIDTH // _ROW * _HEIGHT
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": column, "y": row, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": query, "legendFormat": name}
            for index, (query, name) in enumerate(panel.queries)
        ],
    }
