"""Grading a folder of submissions: a row for each, and nothing that is handed in stops the others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from companion.exercises.broken_transformer import deal
from companion.exercises.broken_transformer.planted import DEFAULT
from companion.grading.broken_transformer import collecting, nothing


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    """Four submissions: an empty one, one as dealt, one that breaks the grader, one with a broken file."""
    folder = tmp_path / "in"
    for name in ("a-empty", "b-file", "c-fails", ".hidden"):
        (folder / name).mkdir(parents=True)
    (folder / "notes.txt").write_text("no submission")
    (folder / "b-file" / "exercise.json").write_text("{")
    deal(folder / "=d")
    return folder


def test_every_submission_gets_a_row_and_none_stops_the_others(run, handed_in, tmp_path, monkeypatch):
    right = collecting.grade

    def fails(folder, **options):
        if folder.name == "c-fails":
            raise RuntimeError("the sandbox is gone")
        return right(folder, pool=DEFAULT, **options)

    monkeypatch.setattr(collecting, "grade", fails)
    out = tmp_path / "grades.csv"
    code, told, said = run("grade", handed_in, "--seed", "default", "--out", out, "--draw", 3, "--json")
    assert code == 0 and "a-empty" in said
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert tuple(rows[0]) == collecting.COLUMNS
    assert [row["name"] for row in rows] == ["'=d", "a-empty", "b-file", "c-fails"]
    assert {row["total"] for row in rows} == {"0.0"}
    assert rows[0]["dealt"] == "default" and "was not handed in" in rows[1]["says"]
    assert "look at this one by hand: RuntimeError: the sandbox is gone" in rows[3]["says"]
    assert [one["name"] for one in json.loads(told)["submissions"]] == ["=d", "a-empty", "b-file", "c-fails"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_seed_the_reason_is_in_the_row(run, handed_in, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "submissions_in", lambda _: [handed_in / "a-empty"])
    code, told, _ = run("grade", handed_in)
    assert code == 0 and "0.0  a-empty" in told and "no exercise.json" in told


def test_mistakes_are_one_line(run, handed_in, tmp_path):
    for arguments, says in (
        ((handed_in, "--seed", "seven"), 'expected a whole number or "default"'),
        ((tmp_path / "nowhere",), "there is no folder"),
        ((handed_in / "=d",), "is a submission itself"),
        ((handed_in / "a-empty",), "unpack each submission"),
        ((handed_in, "--out", tmp_path / "no" / "grades.csv"), "make it first"),
    ):
        code, out, err = run("grade", *arguments)
        assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_a_row_is_one_line():
    row = collecting.Submission("=1+1", nothing("two\nlines")).row()
    assert row["name"] == "'=1+1" and row["says"] == "two lines" and row["total"] == "0.0"
