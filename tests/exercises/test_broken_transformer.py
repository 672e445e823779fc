"""Exercise 2 on the learner's side: what is dealt, and what the checks say."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from companion.debugging.zoo.editing import right_source
from companion.exercises.broken_transformer import HANDED_IN, deal, exercise, load_module, seed_of
from companion.exercises.broken_transformer.planted import DEFAULT, breaks, candidates, plant
from companion.exercises.broken_transformer.trained import combine, suits, trained


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was dealt; nobody writes in it."""
    return deal(tmp_path_factory.mktemp("dealt") / "work")


@pytest.fixture
def folder(dealt: Path, tmp_path: Path) -> Path:
    """A copy to work in."""
    return Path(shutil.copytree(dealt, tmp_path / "work"))


def test_a_folder_holds_all_that_is_needed(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {*HANDED_IN, "reviews.csv", "README.md", "exercise.json"}
    for name in ("model.py", "train.py", "test_broken.py"):
        compile((folder / name).read_text(), name, "exec")
    assert len((folder / "reviews.csv").read_text().splitlines()) == 1901
    assert seed_of(folder) == "default"
    assert not re.search("weights = self.dropout", (folder / "model.py").read_text())


def test_what_was_dealt_trains(dealt):
    model_file, train_file = load_module(dealt / "model.py"), load_module(dealt / "train.py")
    reviews = train_file.read_reviews(dealt / "reviews.csv")
    few = reviews[:64] + reviews[-16:]
    settings = train_file.Settings(epochs=1)
    model, rows, losses = train_file.experiment(model_file, few, settings)
    assert [len(rows[part]) for part in ("train", "dev")] == [64, 16] and len(losses) == 2
    assert 0 <= train_file.evaluate(model, list(train_file.batches(rows["dev"], settings))) <= 1


def test_nothing_is_overwritten_and_nothing_is_left_over(folder):
    (folder / "model.py").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        deal(folder)
    assert (folder / "model.py").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == ["work"]


def test_seeds_deal_other_bugs_that_can_be_told_apart(tmp_path):
    seen = set()
    for seed in (1, 2):
        planted = plant(seed)
        assert [bug.family for bug in planted.bugs] == ["architecture", "training", "data"]
        assert sum(bug.silent for bug in planted.bugs) >= 2
        assert all(planted.marks) and not planted.marks[1] & planted.marks[2]
        assert plant(seed).model == planted.model
        seen.add(tuple(bug.name for bug in planted.bugs))
    assert len(seen) == 2
    assert seed_of(deal(tmp_path / "other", 2)) == 2


def test_the_default_deal_has_a_name_and_other_words_are_refused(folder, tmp_path):
    assert plant("default") == plant() and plant().seed == "default" and plant(2).seed == 2
    for wrong in (None, "7", True, 1.0):
        with pytest.raises(ValueError, match='expected a whole number or "default"'):
            plant(wrong)
    (folder / "exercise.json").unlink()
    (folder / "exercise.json").symlink_to(tmp_path)
    with pytest.raises(FileNotFoundError, match="no exercise"):
        seed_of(folder)


def test_what_is_dealt_was_measured_to_be_what_the_page_says():
    guess, right, runs = trained()
    for seed in (1, 2, 3):
        bugs = plant(seed).bugs
        assert all(runs[bug.name].differs and suits(bug) for bug in bugs) and combine(bugs)
        assert all(guess + 0.1 < runs[bug.name].accuracy for bug in bugs)
        assert min(runs[bug.name].accuracy for bug in bugs) < right
    for family in candidates():
        assert len([bug for bug in family if suits(bug)]) >= 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("class-without-weight", "its loss falls to nothing, and it guesses"),
        ("schedule-too-fast", "its loss hardly falls"),
        ("padding-counts-as-wrong", "a classifier does not notice"),
        ("mean-of-means", "a classifier does not notice"),
    ],
)
def test_a_bug_that_does_not_fit_the_page_is_not_dealt(name, why):
    [bug] = [bug for family in candidates() for bug in family if bug.name == name]
    assert not suits(bug), why


def test_a_bug_that_was_edited_since_it_was_measured_is_not_dealt():
    bug = next(bug for family in candidates() for bug in family if suits(bug))
    [edit, *others] = bug.edits
    assert not suits(replace(bug, edits=(replace(edit, after=f"{edit.after} "), *others)))


def test_a_pool_without_three_families_is_refused():
    with pytest.raises(ValueError, match="larger pool"):
        plant(1, DEFAULT[:2])


def test_each_default_bug_shows_in_its_own_behaviour():
    assert [sorted(breaks(bug)) for bug in DEFAULT] == [
        ["randomness inside attention"],
        ["learning rates of a run"],
        ["batches of rows"],
    ]


def test_checks_fail_on_what_was_dealt_without_naming_the_bug(folder):
    work = exercise()
    for step in ("data", "training", "architecture"):
        result = work.check(step, folder)
        assert result.status == "failed" and "not repaired yet" in result.says.lower()
        assert not re.search("dropout|warm|mask", result.says)
    assert len({work.hint("data").text for _ in range(3)}) == 3


def test_checks_pass_on_repaired_files_one_by_one(folder):
    work = exercise()
    (folder / "model.py").write_text(right_source("transformer"))
    assert work.check("architecture", str(folder)).passed
    before, after = "[0] * padding", "[1] * padding"
    text = (folder / "train.py").read_text()
    (folder / "train.py").write_text(text.replace("[1] * len(ids), " + after, "[1] * len(ids), " + before))
    result = work.check("data", folder)
    assert result.passed and result.remarks
    assert not work.check("training", folder).passed


def test_a_folder_of_another_seed_is_named_and_not_judged(folder):
    (folder / "exercise.json").write_text(json.dumps({"exercise": "broken-transformer", "seed": 7}))
    work = exercise()
    for step in ("data", "training", "architecture", "tests"):
        result = work.check(step, folder)
        assert result.status == "failed" and "use exercise(seed=7)" in result.says
        assert "something else" not in result.says
    (folder / "exercise.json").write_text("{")
    assert "not repaired yet" in exercise().check("data", folder).says.lower()


def test_the_task_says_what_each_part_is_worth(folder):
    from companion.grading.broken_transformer import Weights

    told = " ".join((folder / "README.md").read_text().split())
    weights = Weights()
    assert f"repairs are worth {weights.repairs:g} marks of 100" in told
    assert f"the diagnosis {weights.diagnosis:g}, your tests {weights.tests:g}." in told


def test_a_repair_that_breaks_another_thing_is_told(folder):
    source = right_source("transformer").replace("math.sqrt(query.size(-1))", "1.0")
    (folder / "model.py").write_text(source)
    result = exercise().check("architecture", folder)
    assert not result.passed and "something else broke" in result.says


def test_a_file_that_does_not_run_is_a_finding(folder):
    (folder / "train.py").write_text("def broken(")
    assert "SyntaxError" in exercise().check("data", folder).says
    assert exercise().check("data", None).status == "not done yet"
    assert "no folder" in exercise().check("data", folder / "nowhere").says


def test_tests_are_run_on_right_and_on_wrong_code(folder):
    work = exercise()
    assert "no test finds" in work.check("tests", folder).says.lower()
    (folder / "test_broken.py").write_text("def test_all(model, train):\n    assert False\n")
    assert "right code" in work.check("tests", folder).says


def test_what_was_dealt_says_nothing_about_its_bugs(folder):
    told = (folder / "exercise.json").read_text() + (folder / "README.md").read_text()
    assert json.loads((folder / "exercise.json").read_text()) == {
        "exercise": "broken-transformer",
        "seed": "default",
    }
    assert not re.search("dropout|warm-up|padding", told)
