"""Every bug of the zoo is one: it changes what the right code does, except where it is said not to."""

from __future__ import annotations

import inspect
import traceback
from functools import cache

import pytest
import torch

from companion.debugging import recipe
from companion.debugging.checks import Check, NotApplicable
from companion.debugging.finding import COMPONENTS, Finding
from companion.debugging.zoo import (
    BUGS,
    Configuration,
    Edit,
    edited,
    named,
    source_of,
    subject_at,
    subject_of,
)
from companion.debugging.zoo.baselines import looks_different, taught_checks_alarm
from companion.debugging.zoo.behaviours import KINDS, behaviours, differences, first_difference
from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.matrix import BugRow, matrix, share_detected, share_placed
from companion.debugging.zoo.measure import Judged, judged, measured
from companion.debugging.zoo.page import bug_table, check_table, matrix_table
from companion.debugging.zoo.subjects import fresh_reviews, reference_subject, reviews, toy_splits

EQUIVALENT = [bug for bug in BUGS if bug.equivalent_where]


@cache
def right(kind, shape, settings):
    return subject_at((), Configuration(kind, dict(shape), dict(settings)))


def right_at(configuration):
    return right(
        configuration.kind, tuple(configuration.shape.items()), tuple(configuration.settings.items())
    )


@cache
def done_right(key, name):
    return behaviours(right(*key), [name])


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_changes_what_the_code_does(bug):
    key, wrong = (bug.kind, tuple(bug.shape.items()), tuple(bug.settings.items())), subject_of(bug)
    assert any(differences(done_right(key, name), behaviours(wrong, [name])) for name in KINDS)


@pytest.mark.parametrize("bug", EQUIVALENT, ids=lambda bug: bug.name)
def test_it_changes_nothing_where_it_is_said_not_to(bug):
    where = bug.equivalent_where
    assert where.because
    assert first_difference(right_at(where), subject_at(bug, where)) is None


def test_the_right_code_does_not_differ_from_itself():
    first, second = (subject_at((), Configuration("causal language model")) for _ in range(2))
    found = behaviours(first)
    assert not differences(found, behaviours(second))
    assert not [name for name, value in found.items() if isinstance(value, str) and "Error" in value]
    assert found.keys() == KINDS.keys()


def test_the_zoo_is_as_large_as_it_says():
    assert len(BUGS) >= 52 and len({bug.name for bug in BUGS}) == len(BUGS)
    counts = {
        family: sum(bug.family == family for bug in BUGS) for family in ("architecture", "training", "data")
    }
    assert counts["architecture"] >= 30 and counts["training"] >= 14 and counts["data"] >= 8
    assert {bug.component for bug in BUGS} == set(COMPONENTS)
    for bug in BUGS:
        assert all(len(text) > 8 for text in (bug.title, bug.symptom, bug.why, bug.fix, bug.hint))
        assert bug.hint != bug.fix


def changed(name="planted", before="not there", after="x", file="recipe"):
    from dataclasses import replace

    return replace(BUGS[0], name=name, edits=(Edit(file, before, after),))


def test_an_edit_that_does_not_fit_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"'planted' replaces 'not there', which occurs 0 times in the recipe"
    ):
        edited(changed())
    with pytest.raises(ValueError, match=r"'planted' replaces 'nn.Linear', which occurs \d+ times"):
        edited(changed(before="nn.Linear", file="transformer"))
    with pytest.raises(ValueError, match="does not leave Python behind"):
        edited(changed(before="PAD, UNKNOWN, START, END, MASK =", after="PAD = ="))
    with pytest.raises(ValueError, match="no bug is called 'moth', expected one of"):
        named("moth")
    with pytest.raises(ValueError, match="is in 'garden', expected one of"):
        Bug("x", "x", "data", "garden", (), "encoder", "", "", "", "")  # type: ignore[arg-type]


def test_bugs_can_be_combined_unless_they_overlap():
    names = ("attention-without-dropout", "no-warm-up", "padding-marked-real")
    trio = tuple(named(name) for name in names)
    transformer, changed_recipe = edited(trio)
    for bug in trio:
        file, module = bug.edits[0].file, {"transformer": transformer, "recipe": changed_recipe}
        assert bug.edits[0].before not in inspect.getsource(module[file])
    assert subject_of(trio).model() is not None
    with pytest.raises(ValueError, match="edit the same lines of the transformer"):
        edited((named("mask-added"), named("mask-after-softmax")))


def test_edited_code_shows_itself_in_tracebacks():
    transformer, _ = edited(named("heads-merged-wrongly"))
    assert "x.reshape(x.size(0), x.size(2), -1)" in inspect.getsource(transformer.Attention.merge_heads)
    with pytest.raises(AttributeError) as caught:
        transformer.Attention.merge_heads(None, None)
    assert "x.reshape" in "".join(traceback.format_exception(caught.value))
    assert source_of((), "recipe") == inspect.getsource(recipe)


def test_toy_data_has_no_text_twice_and_nothing_fresh_in_it():
    splits = toy_splits()
    seen = {name: {" ".join(recipe.words_of(row.text)) for row in rows} for name, rows in splits.items()}
    assert not seen["train"] & seen["dev"]
    assert sum(map(len, splits.values())) == len(seen["train"] | seen["dev"]) < len(reviews())
    assert not {" ".join(recipe.words_of(text)) for text, _ in fresh_reviews()} & (
        seen["train"] | seen["dev"]
    )


def test_hidden_words_are_words_and_their_targets_are_what_they_were():
    subject = reference_subject("masked language model")
    plain = reference_subject("masked language model", settings={"masked": False})
    chosen = words = hidden = 0
    for batch, before in zip(subject.batches, plain.batches, strict=True):
        targets = batch["labels"] != recipe.IGNORED
        assert (batch["labels"][targets] == before["input_ids"][targets]).all()
        assert (before["input_ids"][targets] > recipe.MASK - 1).all() or (
            before["input_ids"][targets] == recipe.UNKNOWN
        ).any()
        assert (batch["input_ids"][~targets] == before["input_ids"][~targets]).all()
        assert batch["attention_mask"][targets].all()
        chosen += int(targets.sum())
        hidden += int((batch["input_ids"] == recipe.MASK).sum())
        words += int(before["attention_mask"].sum())
    assert 0.1 < chosen / words < 0.2 and 0.65 < hidden / chosen < 0.95


def test_honest_and_seen_loss_part_where_a_decoder_sees_the_future(tmp_path):
    bug = named("causal-mask-off-by-one")
    found = measured(bug, epochs=6, home=tmp_path)
    clean = judged((), bug.configuration, epochs=6)
    assert found.seen < clean.seen and found.honest > found.seen + 0.3
    assert abs(clean.honest - clean.seen) < 0.3
    assert measured(bug, epochs=6, home=tmp_path) == found  # from the store, its seconds included
    broken = judged(changed(before="    model.train()\n", after="    model.fly()\n"))
    assert broken.seen is None and "fly" in broken.error


def test_matrix_and_shares():
    def loud(subject):
        if subject.kind == "classification":
            raise NotApplicable("texts have no future")
        ids = subject.ids()
        other = ids.clone()
        other[:, -1] = (other[:, -1] + 1) % subject.vocab_size
        model = subject.model(jitter=True)
        with torch.no_grad():
            moved = (
                (subject.scores(model, ids, None) - subject.scores(model, other, None))[:, :-1].abs().max()
            )
        return Finding("future", "problem" if moved > 1e-3 else "ok", "it moved", "attention")

    checks = [Check("future", "model", "attention", "?", (), False, 0.5, loud)]
    bugs = [named("no-causal-mask"), named("padding-seen"), named("decay-on-everything")]
    rows = matrix(bugs, checks)
    assert [row.findings[0].status for row in rows] == ["problem", "not applicable", "ok"]
    assert share_detected(rows) == share_placed(rows) == pytest.approx(1 / 3)
    unlike = (
        Finding("a", "problem", "one thing", "loss", likelihood=0.2),
        Finding("b", "problem", "another", "labels", likelihood=0.9),
    )
    twice = BugRow("x", "loss", unlike)
    assert twice.detected and not twice.placed and twice.problems[0].check == "b"


def test_the_baselines_see_what_is_loud_and_nothing_else():
    assert not taught_checks_alarm(right_at(Configuration("classification")), steps=40)
    assert taught_checks_alarm(subject_of(named("weights-not-reset")), steps=1)
    assert taught_checks_alarm(subject_of(named("zero-grad-before-step")), steps=3)
    assert looks_different(2.5, [2.0, 2.1]) and looks_different(None, [2.0])
    assert not looks_different(2.15, [2.0, 2.1]) and not looks_different(0.5, [2.0, 2.1])


def test_the_page_is_made_of_the_results_and_can_be_read_aloud():
    row = BugRow(
        "mask-added", "attention", (Finding("future", "problem", "it moved", "attention", likelihood=0.9),)
    )
    quiet = BugRow("no-warm-up", "schedule", (Finding("future", "ok", "it did not", "attention"),))
    table = bug_table(BUGS, [row, quiet])
    assert table.count('<th scope="row">') == len(BUGS) and "<caption>" in table
    assert table.count('scope="col"') == 5 and "future" in table and "not measured" in table
    cells = matrix_table([row, quiet])
    assert cells.count('<th scope="row">') == 2 and "<caption>" in cells and "found" in cells
    times = check_table([row, quiet])
    assert times.count('<th scope="row">') == 1 and '<td class="text-right">1</td>' in times
    losses = {"mask-added": (Judged(1.79, 2.4, (), 1.0), Judged(1.86, 1.9, (), 1.0))}
    assert "1.79" in bug_table(BUGS, [row], losses) and "2.40" in bug_table(BUGS, [row], losses)
