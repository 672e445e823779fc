"""The Grafana dashboard: a table of panels, and the document that Grafana reads made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["PANELS", "Panel", "dashboard"]

_PREDICTING = '{route=~"/predict|/predict/batch|/v2/models/.*/infer"}'
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


def _rate(series: str, by: str, filters: str = "") -> str:
    return f"sum by ({by}) (rate({series}{filters}[$__rate_interval]))"


def _ratio(above: str, below: str) -> str:
    return f"sum(rate({above}[$__rate_interval])) / sum(rate({below}[$__rate_interval]))"


PANELS: tuple[Panel, ...] = (
    Panel(
        "Servers that answer",
        (("sum(companion_ready)", "ready"), ('sum(up{job="companion"})', "running")),
        "short",
        "Running but not ready: loading, stuck or about to stop.",
    ),
    Panel(
        "Requests by outcome",
        ((_rate("companion_requests_total", "status, code", _PREDICTING), "{{status}} {{code}}"),),
        "reqps",
        "ok is an answer; every other code is in the table of problems.",
    ),
    Panel(
        "Latency",
        (
            (_quantile("0.5", "companion_request_seconds", _PREDICTING), "p50"),
            (_quantile("0.95", "companion_request_seconds", _PREDICTING), "p95"),
            (_quantile("0.99", "companion_request_seconds", _PREDICTING), "p99"),
        ),
        "s",
        "From a request's headers to the end of its answer, over all servers.",
    ),
    Panel(
        "Texts by outcome",
        ((_rate("companion_texts_total", "code"), "{{code}}"),),
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
        (
            ("companion_queue_age_seconds", _EACH),
            (_quantile("0.99", "companion_queue_wait_seconds"), "p99 waited"),
        ),
        "s",
        "How long the oldest text has waited, and how long the slowest hundredth did.",
    ),
    Panel(
        "Texts in one run",
        ((_ratio("companion_batch_texts_sum", "companion_batch_texts_count"), "mean"),),
        "short",
        "More of them ride together when more of them wait.",
    ),
    Panel(
        "Time of one run",
        (
            (_ratio("companion_batch_seconds_sum", "companion_batch_seconds_count"), "mean"),
            (_quantile("0.99", "companion_batch_seconds"), "p99"),
        ),
        "s",
        "What the model takes. It grows when the machine is shared with others.",
    ),
    Panel(
        "Share of tokens that are padding",
        ((f"1 - {_ratio('companion_tokens_total', 'companion_padded_tokens_total')}", "padding"),),
        "percentunit",
        "Work without use: what batches of unequal lengths cost.",
    ),
    Panel(
        "Answers by label",
        (("companion:answer_share:1h", "{{label}} ({{model_version}})"),),
        "percentunit",
        "The last hour. Did a share move by chance, by the texts or by the model? companion drift tells.",
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
        ((_rate("companion_events_total", "event"), "{{event}}"),),
        "short",
        "Refused, cancelled, too late, hit and missed caches, Redis gone and back, versions taken back.",
    ),
)


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
