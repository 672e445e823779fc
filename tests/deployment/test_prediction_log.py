"""The prediction log of a served application: each answer with its request, none with its text."""

from __future__ import annotations

import json

from companion.deployment.notes import current_request_id
from companion.deployment.watching import read_log


def test_each_answer_is_logged_with_its_request(serving, tmp_path):
    client = serving(prediction_log=tmp_path / "log")
    one = client.predict({"text": "a secret text"})
    items = [{"text": "first"}, {"text": "second"}, {"text": ""}]
    two = client.request("POST", "/predict/batch", json={"items": items})
    client.portal.call(client.app.state.answerer.log.flush)

    lines = [line for file in (tmp_path / "log").iterdir() for line in file.read_text().splitlines()]
    answers = [row for row in map(json.loads, lines) if row.get("request_id")]
    ids = [row["request_id"] for row in answers]
    assert sorted(ids) == sorted([one.json()["request_id"], *[two.json()["request_id"]] * 2])
    assert "secret" not in "".join(lines)
    (columns,) = read_log(tmp_path / "log").versions.values()
    assert len(columns) == 3


def test_there_is_no_request_outside_of_one():
    assert current_request_id() is None
