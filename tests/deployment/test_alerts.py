"""The alert rules and the dashboard: rules fire when they should, and read what servers really say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from companion.deployment.metrics import ALARMING
from companion.deployment.rates import COUNTED_ALONE, RateLimiter
from companion.deployment.rollout.journal import RolloutJournal
from companion.deployment.stack.dashboard import PANELS
from companion.deployment.stack.rendering import alert_rules

FOLDER = Path(__file__).parents[2] / "deploy" / "alerts"
TESTS = sorted(FOLDER.glob("*.test.yml"))
GROUPS: list[dict[str, Any]] = yaml.safe_load(alert_rules())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}
QUERIES = [query for panel in PANELS for query, _ in panel.queries]
EXPRESSIONS = [rule["expr"] for rule in RULES] + QUERIES
Promtool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def promtool(program: Callable[[str], str]) -> Promtool:
    binary = program("promtool")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)

    return run


def planted() -> list[dict[str, Any]]:
    """Return the tests of both files."""
    return [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]


def test_the_rules_are_rules(promtool):
    done = promtool("check", "rules", FOLDER / "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_on_its_series_and_none_on_a_service_that_is_well(promtool):
    done = promtool("test", "rules", *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("broken", ["vector(1)", "vector(1) > 2"])
def test_rules_that_always_or_never_fire_are_noticed(promtool, tmp_path, broken):
    rules = yaml.safe_load(alert_rules())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"] = broken
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    copies = [shutil.copy(file, tmp_path) for file in TESTS]
    done = promtool("test", "rules", *copies)
    assert done.returncode == 1 and "FAILED" in done.stderr, done.stdout
    # The healthy service shows each rule that always fires, its planted fault each that never does.
    blamed = re.findall(r'alertname="(\w+)"', done.stderr)
    assert set(blamed) == set(ALERTS)


def test_every_alert_says_what_happened_and_where_to_look():
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "look"}
    assert {name for name in ALERTS if any(test["name"].startswith(name) for test in planted())} == set(
        ALERTS
    )


def test_the_queries_of_the_dashboard_are_promql(promtool, tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(QUERIES)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    file.write_text(file.read_text().replace("sum(", "sum((", 1))
    assert promtool("check", "rules", file).returncode != 0


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return each metric that an expression reads, with the labels that it asks for."""
    found = []
    for name, braces in re.findall(r"\b(companion[a-z_:0-9]+|up)\b(?:\{([^}]*)\})?", expression):
        labels = re.findall(r"(\w+)(?:=~|!=|=)", braces)
        found.append((name, dict.fromkeys(labels, "")))
    return found


def exposed(text: str) -> dict[str, set[str]]:
    """Return the series of a /metrics page, with the names of their labels."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z_:0-9]+)(?:\{(.*)\})? ", line):
            found.setdefault(match[1], set()).update(re.findall(r'(\w+)="', match[2] or ""))
    return found


def test_what_rules_and_dashboard_read_is_what_the_server_says(client, promtool, tmp_path):
    assert client.predict({"text": "something"}).status_code == 200
    page = client.request("GET", "/metrics").text
    there = exposed(page) | {name: set() for name in RECORDS} | {"up": set()}
    added = {"job", "instance"}
    for expression in EXPRESSIONS:
        read = selectors(expression)
        assert read, expression
        for name, labels in read:
            assert name in there, f"{name} is read by {expression} and is not in /metrics"
            assert name in RECORDS or labels.keys() - added <= there[name], expression
    checked = subprocess.run(
        [shutil.which("promtool") or "promtool", "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_gauge_of_readiness_follows_readiness(serving):
    import threading

    go = threading.Event()

    def load(folder, threads):
        assert go.wait(30)
        raise ValueError("no model")

    client = serving(wait=False, load=load)
    assert "\ncompanion_ready 0.0" in client.request("GET", "/metrics").text
    go.set()
    client.wait_until_settled()
    assert "\ncompanion_ready 0.0" in client.request("GET", "/metrics").text
    well = serving()
    assert "\ncompanion_ready 1.0" in well.request("GET", "/metrics").text


def test_answers_are_counted_by_label_and_version(client):
    for text in ("a", "bb", "c" * 60):
        assert client.predict({"text": text}).status_code == 200
    items = [{"text": "one"}, {"text": "two"}, {"text": " "}]
    assert client.request("POST", "/predict/batch", json={"items": items}).status_code == 200
    page = client.request("GET", "/metrics").text
    counts = re.findall(r'companion_answers_total\{label="(\w+)",model_version="v-test"\} (\S+)', page)
    assert {label: float(count) for label, count in counts} == {"positive": 5.0}


def test_events_that_alarm_have_a_series_from_the_start(client):
    page = client.request("GET", "/metrics").text
    named = set(re.findall(r'event=~?"([^"]+)"', " ".join(rule["expr"] for rule in ALERTS.values())))
    events = {event for names in named for event in names.split("|")}
    assert events == set(ALARMING)
    for event in events:
        assert f'companion_events_total{{event="{event}"}} 0.0' in page


def test_the_events_that_alarm_happen(tmp_path):
    from companion.deployment.caching.events import EVENTS

    happened: list[str] = []
    journal = RolloutJournal(None, lambda: 0.0, happened.append)
    journal.note("rolled back", "v2", automatic=True)
    journal.note("promoted", "v2")
    assert happened == ["rollout-rolled-back-automatically", "rollout-promoted"]
    possible = {happened[0], COUNTED_ALONE, *(f"redis-{name.replace('_', '-')}" for name in EVENTS)}
    assert set(ALARMING) <= possible


def test_calls_that_are_counted_alone_are_told():
    import asyncio

    class Gone:
        async def acquire_sliding_window_entry(self, *arguments):
            raise ConnectionError("gone")

        get_sliding_window = acquire_sliding_window_entry

    told: list[str] = []
    limiter = RateLimiter("10/minute", shared=Gone(), event=told.append)  # type: ignore[arg-type]
    for _ in range(3):
        assert asyncio.run(limiter.take("a")).allowed
    assert told == [COUNTED_ALONE] * 3
    alone = RateLimiter("10/minute", event=told.append)
    assert asyncio.run(alone.take("a")).allowed and len(told) == 3


def test_the_dashboard_is_one_that_grafana_opens():
    grafana = FOLDER.parent / "compose" / "grafana"
    board = json.loads((grafana / "companion.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places) == len(PANELS)
    assert len({panel["id"] for panel in board["panels"]}) == len(PANELS)
    source = yaml.safe_load((FOLDER.parent / "compose" / "grafana" / "datasource.yml").read_text())[
        "datasources"
    ][0]
    for panel in board["panels"]:
        assert panel["description"] and panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
