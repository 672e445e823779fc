"""Grading exercise 2: right answers in any form score, and nothing else does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from companion.exercises.broken_transformer import deal
from companion.exercises.broken_transformer.planted import DEFAULT, plant, zoo
from companion.grading.broken_transformer import grade
from companion.grading.broken_transformer.diagnosis import judge_diagnosis, place_of
from companion.grading.broken_transformer.programs import right_programs, wrong_programs
from companion.grading.broken_transformer.repairs import judge_repairs
from companion.grading.broken_transformer.tests import judge_tests


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("solutions", Path(__file__).parent / "solutions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


S = _load()
RIGHT = S.SOLUTIONS["as it was"]


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture(scope="module")
def few(planted):
    """Two wrong programs and two right ones: enough for a test that plays foul."""
    return wrong_programs(planted, 1, most=2), right_programs()[:2]


def repairs(sandbox, planted, model, train, seed=5):
    return judge_repairs(sandbox, {"model.py": model, "train.py": train}, planted, (seed,))


@pytest.mark.parametrize("name", S.SOLUTIONS)
def test_right_solutions_score_full_marks_however_they_are_written(sandbox, planted, name):
    found = repairs(sandbox, planted, *S.SOLUTIONS[name])
    assert found.score == 1.0, found


def test_what_was_dealt_scores_nothing(sandbox, planted):
    found = repairs(sandbox, planted, planted.model, planted.train)
    assert found.score == 0 and found.kept == 1 and not any(bug.repaired for bug in found.bugs)


def test_each_repair_counts_by_itself(sandbox, planted):
    found = repairs(sandbox, planted, RIGHT[0], planted.train)
    assert [bug.repaired for bug in found.bugs] == [True, False, False]
    assert found.score == pytest.approx(1 / 3)


def test_a_repair_that_breaks_something_else_costs(sandbox, planted):
    worse = S.change(RIGHT[0], ("math.sqrt(query.size(-1))", "1.0"))
    found = repairs(sandbox, planted, worse, RIGHT[1])
    assert all(bug.repaired for bug in found.bugs) and found.score < 0.8 and found.broken


FOUL = {
    "exit": "import sys\nsys.exit(0)",
    "leave": "import os\nos._exit(0)",
    "loop": "while True: pass",
    "empty": "",
    "forged": (
        "import os\n"
        "for fd in range(3, 64):\n"
        "    try: os.write(fd, b'{\"value\": {}}')\n"
        "    except OSError: pass"
    ),
    "patched": (
        "import sys, behaviours\n"
        "for name in list(behaviours.BEHAVIOURS): \n"
        "    object.__setattr__(behaviours.BEHAVIOURS[name], 'function', lambda m, s: [1.0])\n"
        "import torch\ntorch.Tensor.tolist = lambda self: [1.0]\ntorch.allclose = lambda *a, **k: True"
    ),
}


@pytest.mark.parametrize("name", FOUL)
def test_foul_repairs_score_nothing(sandbox, planted, name):
    found = judge_repairs(
        sandbox, {"model.py": FOUL[name], "train.py": FOUL[name]}, planted, (5,), seconds=0.5
    )
    assert found.score == 0 and not any(bug.repaired for bug in found.bugs)


# --- the tests of a learner


def test_good_tests_find_bugs_and_leave_right_programs_alone(sandbox, planted):
    found = judge_tests(sandbox, S.GOOD_TESTS, wrong_programs(planted, 3, most=40), right_programs(), seed=1)
    assert found.spared == found.variants == 8, found.objected
    assert found.killed >= 20 and found.score >= 0.5, found.survivors


@pytest.mark.parametrize(
    "text",
    [
        "def test_all(model, train): assert False",
        "def test_all(model, train): pass",
        "",
        "import sys\nsys.exit(0)",
        "import os\ndef test_all(model, train): os._exit(0)",
        "def test_all(model, train): raise SystemExit(1)",
        'import os\nos.write(3, b\'{"value": {"test_a": "wrong"}}\')\ndef test_a(model, train): pass',
        'print(\'{"value": {"test_a": "wrong"}}\')\ndef test_a(model, train): pass',
        "def test_a(model, train",
    ],
)
def test_tests_that_cannot_tell_score_nothing(sandbox, few, text):
    found = judge_tests(sandbox, text, *few, seed=1, seconds=1.0)
    assert found.score == 0


def test_endless_tests_cost_no_more_than_the_budget(sandbox, few):
    found = judge_tests(sandbox, "while True: pass", *few, seed=1, seconds=0.2, budget=1.5)
    assert found.score == 0 and found.errors


def test_tests_cannot_remember(sandbox, few):
    text = (
        "import builtins, os, torch\n"
        "def test_first_time(model, train):\n"
        "    assert not hasattr(torch, 'been_here') and not os.path.exists('been_here')\n"
        "    torch.been_here = builtins.been_here = True\n"
        "    open('been_here', 'w').close()\n"
    )
    found = judge_tests(sandbox, text, *few, seed=1)
    assert found.spared == 2 and found.killed == 0


def test_mutants_are_not_what_was_dealt(planted):
    programs = wrong_programs(planted, 7)
    right = {(program.model, program.train) for program in right_programs()}
    assert len(programs) == 12 and len({program.title for program in programs}) == 12
    given = {bug.title for bug in planted.bugs}
    assert all(
        program.title not in given and (program.model, program.train) not in right for program in programs
    )
    assert programs[:3] != wrong_programs(planted, 8, most=3)


# --- the diagnosis


def test_a_right_diagnosis_scores(planted):
    assert judge_diagnosis(json.dumps(S.DIAGNOSIS), planted).score == 1
    lines = [sorted(place_of(bug, planted).lines)[0] for bug in planted.bugs]
    files = ("model.py", "train.py", "train.py")
    by_line = [
        {"file": file, "lines": [line, line], "family": bug.family, "what": "here"}
        for file, line, bug in zip(files, lines, planted.bugs, strict=True)
    ]
    assert judge_diagnosis(json.dumps(by_line), planted).score == 1
    assert "weights = self.softmax(scores)" in planted.model.splitlines()[lines[0] - 1]
    assert "[1] * padding" in planted.train.splitlines()[lines[2] - 1]


def test_a_wrong_family_or_place_costs(planted):
    entries = [dict(entry) for entry in S.DIAGNOSIS]
    entries[0]["family"] = "training"
    assert judge_diagnosis(json.dumps(entries), planted).score == pytest.approx(8 / 9)
    entries[0]["function"] = "evaluate"
    assert judge_diagnosis(json.dumps(entries), planted).score == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[1, 2, 3]",
        "[" * 100_000,
        json.dumps([{"file": "model.py", "lines": [1, 9999], "family": "architecture", "what": "all"}]),
        json.dumps([{"file": "train.py", "function": "", "family": "data", "what": "all"}]),
        json.dumps([{"file": "train.py", "function": "collate", "family": "data", "what": ""}]),
    ],
)
def test_a_diagnosis_that_says_nothing_scores_nothing(planted, text):
    assert judge_diagnosis(text, planted).score == 0


def test_shooting_at_everything_does_not_help(planted):
    shots = [
        {"file": "train.py", "function": name, "family": "data", "what": "maybe"}
        for name in ("Vocabulary", "split", "evaluate", "collate", "Settings")
    ]
    assert judge_diagnosis(json.dumps(shots), planted).score == 0


# --- all of it


def test_a_folder_is_graded_with_a_report(sandbox, tmp_path):
    folder = deal(tmp_path / "work")
    (folder / "model.py").write_text(RIGHT[0])
    (folder / "train.py").write_text(RIGHT[1])
    (folder / "diagnosis.json").write_text(json.dumps(S.DIAGNOSIS))
    (folder / "test_broken.py").unlink()
    found = grade(folder, seed=3, sandbox=sandbox, pool=DEFAULT)
    assert found.total == pytest.approx(70)
    assert "70.0 of 100" in str(found) and "test_broken.py was not handed in" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["scores"]["repairs"] == 1.0


def test_untouched_files_score_nothing_whatever_seed_they_claim(sandbox, tmp_path):
    folder = deal(tmp_path / "work")
    untouched = grade(folder, seed=3, sandbox=sandbox).total
    (folder / "exercise.json").write_text(json.dumps({"exercise": "broken-transformer", "seed": 3}))
    claimed = grade(folder, seed=3, sandbox=sandbox)
    assert claimed.total == untouched == 0 and claimed.dealt == 3
    gone = sum(bug.repaired for bug in claimed.repairs.bugs)
    assert len(claimed.repairs.strangers) >= max(1, gone) and "not dealt" in str(claimed)
    told = grade(folder, seed=3, dealt="default", sandbox=sandbox)
    assert told.total == 0 and told.dealt == "default" and not told.repairs.strangers
    assert "exercise.json says that the deal is 3" in str(told)


def test_a_bug_that_was_not_dealt_takes_a_repair_away(sandbox, planted):
    one_left = S.change(RIGHT[1], ("[0] * padding", "[1]  *  padding"))
    names = ("constant-places", "class-without-weight", "word-numbers-collide")
    other = plant(3, [bug for bug in zoo() if bug.name in names])
    found = repairs(sandbox, other, RIGHT[0], one_left)
    assert found.strangers == (planted.bugs[2].title,)
    assert found.score == pytest.approx(2 / 3 * found.kept)
    assert not repairs(sandbox, planted, RIGHT[0], one_left).strangers


def test_right_code_in_the_words_of_a_bug_is_no_stranger(sandbox):
    by_two = "weights = self.softmax(scores)\n        weights = self.dropout(weights)"
    model = S.change(RIGHT[0], ("weights = self.dropout(self.softmax(scores))", by_two))
    assert repairs(sandbox, plant(3), model, RIGHT[1]).score == 1


@pytest.mark.parametrize("text", [None, "{", "[]", '{"seed": null}', '{"seed": "7"}', "[" * 100_000])
def test_a_deal_that_is_not_known_scores_nothing_and_says_why(sandbox, tmp_path, text):
    (tmp_path / "model.py").write_text(RIGHT[0])
    if text is not None:
        (tmp_path / "exercise.json").write_text(text)
    found = grade(tmp_path, sandbox=sandbox)
    assert found.total == 0 and found.dealt is None
    assert "exercise.json" in found.errors[0] and found.errors[0] in str(found)
    assert json.loads(json.dumps(found.to_dict()))["errors"] == list(found.errors)


def test_an_empty_folder_scores_nothing_in_a_deal_that_is_told(sandbox, tmp_path):
    found = grade(tmp_path, dealt="default", seed=3, pool=DEFAULT, sandbox=sandbox)
    assert found.total == 0 and "no exercise.json" in found.notes[0]
    assert set(found.repairs.unread) == {"model.py", "train.py"}


def test_the_cause_comes_first_and_its_consequences_in_a_line(sandbox, tmp_path):
    folder = deal(tmp_path / "work")
    for name in ("model.py", "test_broken.py"):
        (folder / name).write_text("def broken(")
    found = grade(folder, seed=3, sandbox=sandbox, dealt="default")
    lines = str(found).splitlines()
    assert lines[1].startswith("! model.py: raised: SyntaxError")
    assert "test_broken.py: raised: SyntaxError" in lines[3]
    told = "\n".join(lines)
    assert "architecture: not judged: model.py was not run" in told
    assert "right before, wrong now" not in told and "not found:" not in told and "objected to" not in told
    assert "no verdict on 20 of 20 programs" in told and len(lines) < 18
    assert len(found.tests.unjudged) == 20 and not found.tests.objected


def test_a_link_is_not_followed(sandbox, tmp_path, planted):
    folder = deal(tmp_path / "work")
    (tmp_path / "elsewhere.json").write_text(json.dumps(S.DIAGNOSIS))
    (folder / "diagnosis.json").unlink()
    (folder / "diagnosis.json").symlink_to(tmp_path / "elsewhere.json")
    for name in ("model.py", "train.py", "test_broken.py"):
        (folder / name).unlink()
    assert grade(folder, seed=3, sandbox=sandbox, pool=DEFAULT).total == 0


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        grade(tmp_path / "nowhere")
