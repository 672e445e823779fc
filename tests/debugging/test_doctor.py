"""The doctor: what it runs, in which order it reports, and how that looks."""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from companion.debugging import Diagnosis, Subject, diagnose, load_checks
from companion.debugging.checks.registry import Check, NotApplicable
from companion.debugging.finding import Finding
from companion.debugging.ordering import CAUSES, ordered
from companion.debugging.zoo.subjects import reference_subject


def toy(name: str, look, **options) -> Check:
    """Return a check that is in no list."""
    settings = {
        "family": "model",
        "component": "layers",
        "question": "?",
        "needs": (),
        "slow": False,
        "likelihood": 0.5,
    }
    return Check(name, function=look, **{**settings, **options})  # type: ignore[arg-type]


def passes(subject: Subject) -> Finding:
    return Finding("passes", "ok", "as expected", "layers")


def fails(name: str, likelihood: float = 0.5, **options) -> Check:
    summary = options.pop("summary", f"{name} is wrong")
    where = options.pop("where", "")
    component = options.get("component", "layers")

    def look(subject: Subject) -> Finding:
        return Finding(
            name,
            "problem",
            summary,
            component,
            {"found": 2.0},
            where,
            "it costs",
            "do",
            likelihood=likelihood,
        )

    return toy(name, look, **options)


def inapplicable(subject: Subject) -> Finding:
    raise NotApplicable("there is nothing to see")


def calls_it(subject: Subject) -> Finding:
    subject.scores(subject.model(), subject.ids(), None)
    return passes(subject)


def broken(subject: Subject) -> Finding:
    return Finding("broken", "ok", max([]), "layers")


def stops(*arguments):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def draws(subject: Subject) -> Finding:
    return Finding("draws", "ok", f"{torch.rand(1).item()}", "layers")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return reference_subject("classification")


# --- what runs


def test_every_kind_of_finding_and_no_check_stops_another(subject):
    checks = [
        toy("passes", passes),
        toy("crashes", calls_it),
        toy("says nothing", inapplicable),
        fails("fails"),
        toy("needs records", passes, needs=("steps",)),
        toy("is broken", broken),
    ]
    found = diagnose(replace(subject, scores=stops), checks=checks)
    assert [finding.status for finding in found.findings] == [
        "ok",
        "problem",
        "not applicable",
        "problem",
        "not applicable",
        "not applicable",
    ]
    assert [problem.check for problem in found.problems] == ["fails", "crashes"]
    assert found.first is found.problems[0]
    assert not found.ok
    reasons = found.not_applicable()
    assert reasons.pop("there is nothing to see") == ("says nothing",)
    assert reasons.pop("it needs steps") == ("needs records",)
    (reason,) = reasons
    assert reason.startswith(f"the check itself failed in {__name__}, line ") and "ValueError" in reason
    assert found.seconds >= sum(finding.seconds for finding in found.findings) > 0


def test_nothing_wrong(subject):
    found = diagnose(subject, checks=[toy("passes", passes)])
    assert found.ok
    assert found.first is None
    assert found.verdict().startswith("No problem found: 1 check ran")
    nothing = diagnose(subject, checks=[toy("says nothing", inapplicable)])
    assert nothing.ok
    assert nothing.verdict().startswith("Nothing could be checked")


def test_choosing_checks(subject):
    checks = [fails("one thing", family="data"), fails("two things"), fails("it trains", slow=True)]

    def ran(**options) -> list[str]:
        return [f.check for f in diagnose(subject, checks=checks, **options).problems]

    assert ran() == ["one thing", "two things", "it trains"]
    assert ran(families=["data"]) == ["one thing"]
    assert ran(only=["two_things"]) == ["two things"]
    assert ran(slow=False) == ["one thing", "two things"]
    left_out = diagnose(subject, checks=checks, slow=False).findings[-1]
    assert (left_out.check, left_out.status) == ("it trains", "not applicable")
    with pytest.raises(ValueError, match="no check 'one thin'; near it: one thing"):
        ran(only=["one thin"])
    with pytest.raises(ValueError, match="no family 'modle', expected some of: data, model"):
        ran(families=["modle"])
    with pytest.raises(ValueError, match="no check is left"):
        ran(families=["dynamics"])


def test_the_random_state_is_left_alone_and_does_not_decide(subject):
    checks = [toy("draws", draws), toy("draws again", draws)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = diagnose(subject, checks=checks)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    with torch.no_grad():
        two = diagnose(subject, checks=checks[1:])
    assert one.findings[0].summary == one.findings[1].summary == two.findings[0].summary


def test_the_garbage_collector_is_left_as_it_was(subject):
    inside = []

    def counts(subject: Subject) -> Finding:
        inside.append(gc.get_freeze_count())
        return passes(subject)

    look = toy("look", counts)
    diagnose(subject, checks=[look])
    assert inside[0] > 0 == gc.get_freeze_count()
    gc.freeze()
    try:
        diagnose(subject, checks=[look])
        assert gc.get_freeze_count() > 0, "frozen by somebody else, who thaws"
    finally:
        gc.unfreeze()


def test_the_parts_of_a_model_are_named(subject):
    checks = [fails("fails", where="layer 1"), toy("passes", passes)]
    found = diagnose({"decoder": subject, "encoder": replace(subject, fresh=False)}, checks=checks)
    assert [finding.where for finding in found.findings] == [
        "decoder: layer 1",
        "decoder",
        "encoder: layer 1",
        "encoder",
    ]
    assert len(found.problems) == 1, "the same layer is reported once"


def test_all_checks_are_found():
    checks = load_checks()
    assert len(checks) >= 30
    assert {check.family for check in checks.values()} == {"data", "model", "training", "dynamics"}
    assert all(name == check.name and check.question.endswith("?") for name, check in checks.items())


# --- in which order


def problem(check: str, likelihood: float = 0.5, **options) -> Finding:
    return Finding(
        **{
            "check": check,
            "status": "problem",
            "summary": f"{check} is wrong",
            "component": "attention",
            "likelihood": likelihood,
            **options,
        }
    )


def order(*problems: Finding) -> list[str]:
    return [item.check for item in ordered(problems)[0]]


def test_likelihood_orders():
    assert order(problem("a", 0.2), problem("b", 0.9), problem("c", 0.5), problem("d", 0.9)) == list("bdca")


def test_causes_come_before_what_follows_from_them():
    control = problem("random token control", 0.9)
    assert order(control, problem("causality", 0.8)) == ["causality", "random token control"]
    assert ordered([control, problem("causality", 0.8)])[1] == {"random token control": "causality"}
    assert order(control, problem("something else", 0.8)) == ["random token control", "something else"]
    finite = problem("finite activations", 0.3)
    assert order(control, problem("causality", 0.8), finite)[0] == "finite activations"
    overfit = problem("overfit one batch", 0.9)
    assert order(overfit, problem("data order", 0.1)) == ["data order", "overfit one batch"]


def test_the_table_of_causes_speaks_of_checks_that_exist():
    names = load_checks()
    for cause, consequences in CAUSES:
        assert cause in names, cause
        for fragment in consequences:
            assert any(fragment in name and name != cause for name in names), (cause, fragment)


def test_one_error_in_many_checks_is_one_problem():
    crashes = [problem(name, 0.4, summary="it raised ValueError: odd") for name in "abc"]
    other = problem("d", 0.9)
    problems, _ = ordered([*crashes, other])
    assert [item.check for item in problems] == ["a", "d"]
    assert problems[0].summary == "it raised ValueError: odd (and so did b, c)"
    # Where it stopped few of them, it is one thing among others.
    fine = [Finding(str(number), "ok", "", "layers") for number in range(9)]
    assert order(*crashes, other, *fine) == ["d", "a"]
    different = problem("b", 0.4, summary="it raised ValueError: other")
    assert order(crashes[0], different) == ["a", "b"]
    one, two = (problem(name, 0.4, summary=f"it raised E: 2x{name}") for name in ("3", "4"))
    assert order(one, two) == ["3"], "the numbers are those of the checks' batches"
    assert order(one, replace(two, check="shapes")) == ["shapes"]


def test_what_says_the_same_is_there_once():
    twice = problem("b", summary="a is wrong")
    assert order(problem("a"), twice) == ["a"]
    assert order(problem("a"), replace(twice, component="positions")) == ["a", "b"]


# --- how it looks


@pytest.fixture
def found() -> Diagnosis:
    evil = "<script>alert('&')</script>"
    first = problem(
        "causality",
        0.9,
        summary=f"changing token 8 moves token 3 by 1.2 {evil}",
        evidence={"moved": 1.2, "share": math.nan},
        where=f"blocks.0 {evil}",
        why=f"it cheats {evil}",
        fix=f"add the mask {evil}",
    )
    control = problem("random token control", 0.5, component="loss")
    other = problem("mask off by one", 0.4)
    skipped = [Finding(name, "not applicable", f"it needs steps {evil}", "layers") for name in ("x", "y")]
    findings = (control, first, other, *skipped, Finding("z", "ok", f"fine {evil}", "layers"))
    problems, follows = ordered(findings)
    return Diagnosis(findings, problems, 1.25, follows)


def test_text(found):
    lines = found.text().splitlines()
    assert lines[0] == "3 problems found: 4 checks ran in 1.2 s, 2 did not apply."
    assert lines[2] == "Repair first: causality [attention]"
    text = " ".join(found.text().split())
    for words in (
        "found changing token 8",
        "where blocks.0",
        "evidence moved 1.2, share nan",
        "fix add the mask",
    ):
        assert words in text
    assert "also seen by mask off by one" in text
    assert "- random token control [loss]: random token control is wrong; may follow from: causality" in text
    assert re.search(r"Did not apply: - it needs steps .*: x, y$", text)
    assert max(map(len, lines)) <= 100
    assert str(found) == repr(found) == found.text()


def test_json(found):
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(content) == ["schema", "ok", "verdict", "seconds", "first", "problems", "follows", "findings"]
    assert (content["schema"], content["ok"], content["first"]) == (1, False, "causality")
    assert [item["check"] for item in content["problems"]] == [item.check for item in found.problems]
    assert content["problems"][0]["evidence"] == {"moved": 1.2, "share": "nan"}
    assert len(content["findings"]) == 6
    assert content["follows"] == {"random token control": "causality"}
    fine = Diagnosis((), (), 0.0).to_dict()
    assert (fine["ok"], fine["first"], fine["problems"]) == (True, None, [])


class Tags(HTMLParser):
    """Follows which tags are open, and what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_html(found):
    html = found._repr_html_()
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert not tags.open
    names = [name for name, _ in tags.seen]
    assert "script" not in names
    assert "changing token 8 moves token 3 by 1.2 <script>alert('&')</script>" in tags.words
    assert tags.seen[0][1]["role"] == "note"
    assert tags.seen[0][1]["aria-label"] == "Diagnosis: problems found"
    assert names.count("details") == names.count("summary") == 3
    assert all(attributes.get("scope") == "row" for name, attributes in tags.seen if name == "th")
    assert "color" not in html, "a colour of our own would not follow light and dark"
    fine = Tags()
    fine.feed(Diagnosis((), (), 0.0)._repr_html_())
    assert fine.seen[0][1]["aria-label"] == "Diagnosis: no problem found"


def test_importing_the_package_is_light():
    code = (
        "import sys, companion.debugging as package\nprint('torch' in sys.modules, 'Subject' in dir(package))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
