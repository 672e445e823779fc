"""Labels and splits: planted faults are found, and clean data, generated and real, are left alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import pytest

from companion.data import Example, load
from companion.data.sentiment import damage, generate
from companion.debugging import recipe
from companion.debugging.checks import label_signals, labels, serving, splits, texts  # noqa: F401
from companion.debugging.checks.registry import CHECKS
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

MODULES = ("labels", "label_signals", "splits", "texts", "serving")
DATA_CHECKS = [check for check in CHECKS.values() if check.function.__module__.rpartition(".")[2] in MODULES]
SPLIT_CHECKS = [check for check in DATA_CHECKS if check.component in ("labels", "splits")]
Rows = Sequence[Example]


@lru_cache
def clean() -> dict[str, Rows]:
    made = generate(3, train_size=400, dev_size=100, test_size=100)
    return {"train": made.train, "dev": made.dev, "test": made.test}


@lru_cache
def easy(rows: int = 800, seed: int = 0) -> tuple[Example, ...]:
    """Texts whose label a linear model can read: most opinion words agree with it."""
    rng = random.Random(seed)
    words = [[f"awful{i}" for i in range(12)], [f"great{i}" for i in range(12)]]
    neutral = [f"noun{i}" for i in range(200)]
    made = []
    for number in range(rows):
        label = number % 2
        opinions = [rng.choice(words[label if rng.random() < 0.8 else 1 - label]) for _ in range(3)]
        made.append(Example(" ".join(rng.sample(opinions + rng.choices(neutral, k=9), 12)), label))
    rng.shuffle(made)
    return tuple(made)


def with_rows(**parts: Rows) -> Subject:
    return replace(base(), splits={**clean(), **parts})


@lru_cache
def base() -> Subject:
    return reference_subject(splits=dict(clean()))


def changed(rows: Rows, positions: Sequence[int], change: Callable[[Example], Example]) -> list[Example]:
    made = list(rows)
    for position in positions:
        made[position] = change(made[position])
    return made


def flip(row: Example) -> Example:
    return row._replace(label=1 - int(row.label or 0))


def said(name: str, subject: Subject) -> Finding:
    finding = CHECKS[name](subject)
    assert not any(words in finding.summary for words in ("raised", "itself failed")), finding.summary
    return finding


@pytest.mark.parametrize("check", DATA_CHECKS, ids=lambda check: check.name)
def test_clean_generated_data_are_left_alone(check) -> None:
    for subject in (base(), reference_subject(), reference_subject("causal language model")):
        finding = check(subject)
        assert finding.status != "problem", finding.summary


def test_what_applies_to_clean_data() -> None:
    """A check that never applies would pass the test above."""
    silent = {check.name for check in DATA_CHECKS if check(base()).status == "not applicable"}
    assert silent == {"likely label errors", "swapped labels", "tokenizer limit"}
    for name in ("likely label errors", "swapped labels"):
        assert said(name, with_rows(train=easy(2_000), dev=easy(200, seed=1), test=())).status == "ok"


# --- labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row._replace(label=2),
            "40 of 600 labels are not of this task, the first is 2; expected 0 to 1",
        ),
        (lambda row: row._replace(label=None), "the first is None"),
        (lambda row: row._replace(label=0.5), "the first is 0.5"),
        (lambda row: row._replace(label="positive"), "the first is 'positive'"),
    ],
)
def test_labels_out_of_range(change, message: str) -> None:
    finding = said("label range", with_rows(train=changed(clean()["train"], range(40), change)))
    assert finding.is_problem and message in finding.summary
    assert finding.where == "train, row 0"


def test_one_label_only_and_names_that_do_not_match() -> None:
    constant = [row._replace(label=1) for row in clean()["train"]]
    assert "all 400 labels of train are 1" in said("label range", with_rows(train=constant)).summary
    named = replace(base(), label_names=("no", "maybe", "yes"))
    assert "3 label names and 2 classes" in said("label range", named).summary
    regression = replace(base(), kind="regression", classes=1, label_names=())
    assert said("label range", regression).status == "ok"
    broken = changed(clean()["train"], [5], lambda row: row._replace(label=float("nan")))
    assert said("label range", replace(regression, splits={"train": broken})).is_problem


def test_public_test_sets_without_labels_are_fine() -> None:
    for label in (None, -1):
        hidden = [row._replace(label=label) for row in clean()["test"]]
        assert said("label range", with_rows(test=hidden)).status == "ok"


def of_rare(share: float, rows: int = 600) -> list[Example]:
    """Return texts of which a share has the label 0."""
    kinds = {label: [row for row in clean()["train"] if row.label == label] for label in (0, 1)}
    rare = round(share * rows)
    return [kinds[int(i >= rare)][i % 150]._replace(text=f"{i}") for i in range(rows)]


def test_a_rare_class_is_a_fault_only_where_accuracy_no_longer_tells_a_model_from_none() -> None:
    rare = said("label balance", with_rows(train=of_rare(0.005)))
    assert rare.is_problem and "accuracy cannot tell it from a model" in rare.summary
    for share in (0.02, 0.06):  # fraud, spam: that is how the world is
        usual = said("label balance", with_rows(train=of_rare(share)))
        assert usual.status == "ok" and f"has an accuracy of {1 - share:.1%}" in usual.summary
        assert "F1 or Matthews correlation says more" in usual.summary
    assert "says more" not in said("label balance", with_rows(train=of_rare(0.3))).summary


def test_balance_and_shift() -> None:
    rare = [row for i, row in enumerate(clean()["train"]) if row.label or i % 20 == 0]
    shift = said("label shift", with_rows(train=rare))
    assert shift.is_problem and shift.evidence["p-value"] < 1e-6
    gone = said("label balance", with_rows(train=[row for row in rare if row.label]))
    assert gone.is_problem and "class 0 (negative)" in gone.summary and gone.likelihood > 0.5
    # A small imbalance is not a fault, nor is a difference that chance explains.
    some = [row for i, row in enumerate(clean()["train"]) if row.label or i % 3]
    assert said("label balance", with_rows(train=some)).status == "ok"
    assert said("label shift", with_rows(train=some)).status == "ok"


def test_one_score_has_two_classes() -> None:
    one = replace(base(), classes=1)
    for name in ("label range", "label balance"):
        assert said(name, one).status == "ok"
    out = changed(clean()["train"], range(40), lambda row: row._replace(label=2))
    assert "expected 0 to 1" in said("label range", replace(one, splits={"train": out})).summary


def test_conflicting_labels() -> None:
    train = clean()["train"]
    louder = [flip(row)._replace(text=row.text.upper() + " !") for row in train[:6]]
    finding = said("conflicting labels", with_rows(train=[*train, *louder]))
    assert finding.is_problem and finding.evidence["texts"] == 6
    agreeing = [row._replace(text=row.text.upper()) for row in train[:6]]
    assert said("conflicting labels", with_rows(train=[*train, *agreeing])).status == "ok"


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_label_noise_is_found_where_a_linear_model_can_see_it(noise: float) -> None:
    rng = random.Random(1)
    train = easy(2_000)
    wrong = set(rng.sample(range(len(train)), round(noise * len(train))))
    finding = said("likely label errors", with_rows(train=changed(train, sorted(wrong), flip)))
    assert finding.is_problem and "candidates" in finding.summary
    assert abs(finding.evidence["estimated share"] - noise) < 0.05
    assert finding.evidence["at least"] <= noise <= finding.evidence["at most"]


def test_a_weak_linear_model_says_nothing_about_labels() -> None:
    made = generate(3, train_size=400, dev_size=100, test_size=100)
    noisy = damage(made, 0, label_noise=0.1)
    finding = said("likely label errors", with_rows(train=noisy.data.train))
    assert finding.status == "not applicable" and "cannot tell a wrong label" in finding.summary


def test_swapped_labels() -> None:
    train, dev = easy(800), easy(200, seed=1)
    finding = said("swapped labels", with_rows(train=train, dev=[flip(row) for row in dev], test=()))
    assert finding.is_problem and finding.where == "labels of dev"
    assert finding.evidence["accuracy on dev"] < 0.4
    assert said("swapped labels", with_rows(train=train, dev=dev, test=())).status == "ok"
    # New words do not make it guess the wrong way round.
    foreign = [row._replace(text=row.text.replace("great", "fine").replace("awful", "poor")) for row in dev]
    assert said("swapped labels", with_rows(train=train, dev=foreign, test=())).status == "ok"


def test_swapped_labels_among_three() -> None:
    def third(row: Example) -> Example:
        return row._replace(text=row.text.replace("great", "plain"), label=2)

    def three(seed: int) -> list[Example]:
        rows = easy(800, seed)
        return [third(row) if row.label and i % 3 == 0 else row for i, row in enumerate(rows)]

    subject = replace(base(), classes=3, label_names=("a", "b", "c"))
    train, dev = three(0), three(1)
    exchanged = [row._replace(label={0: 0, 1: 2, 2: 1}[int(row.label or 0)]) for row in dev]
    right = replace(subject, splits={"train": train, "dev": dev})
    assert said("swapped labels", right).status == "ok"
    assert said("swapped labels", replace(subject, splits={"train": train, "dev": exchanged})).is_problem


@pytest.mark.parametrize(
    "mark",
    [
        lambda text: f"{text} __label__pos",
        lambda text: f"[1] {text}",
        lambda text: f" {text}",
        str.upper,
        lambda text: f"{text.rstrip('.!')} ;",
    ],
)
def test_a_label_in_the_text(mark) -> None:
    train = [row._replace(text=mark(row.text)) if row.label else row for row in clean()["train"]]
    finding = said("label in the text", with_rows(train=train))
    assert finding.is_problem and finding.evidence["present elsewhere"] < 0.02


def ended(row: Example, *ends: str) -> Example:
    """Return a row that ends in one of two ways, by its label."""
    return row._replace(text=row.text.rstrip(".!?") + ends[int(row.label or 0)])


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ((".", "?"), "ok"),
        ((" .", " ?"), "ok"),
        (("", "?"), "ok"),
        (("!", "."), "ok"),
        # One class lost its ends when the file was made.
        (("", "."), "problem"),
        ((".", ";"), "problem"),
        ((".", " |"), "problem"),
    ],
)
def test_how_a_sentence_ends_belongs_to_what_it_says(ends: tuple[str, str], status: str) -> None:
    train = [ended(row, *ends) for row in clean()["train"]]
    finding = said("label in the text", with_rows(train=train))
    assert finding.status == status, finding.summary
    if status == "ok":
        assert "so people end sentences" in finding.summary


def test_a_question_mark_does_not_hide_a_label() -> None:
    train = [ended(row, ".", "?") for row in clean()["train"]]
    train = [
        row._replace(text=f"__pos__ {row.text}") if row.label and i % 9 else row
        for i, row in enumerate(train)
    ]
    finding = said("label in the text", with_rows(train=train))
    assert finding.is_problem and "pos" in finding.where


def test_order_of_labels() -> None:
    ordered = sorted(clean()["train"], key=lambda row: int(row.label or 0))
    subject = reference_subject(splits={**clean(), "train": ordered})
    rows = [(base().encode(row.text), int(row.label or 0)) for row in ordered]  # type: ignore[misc]
    settings = recipe.Settings(batch_size=16)
    loops = {epoch: list(recipe.batches(rows, settings, epoch=epoch)) for epoch in (None, 0)}
    assert said("label order", replace(subject, batches=loops[None])).is_problem
    assert said("label order", replace(subject, batches=loops[None][:4])).is_problem  # one class alone
    assert said("label order", replace(subject, batches=loops[0])).status == "ok"
    unknown = said("label order", replace(subject, batches=[]))
    assert unknown.status == "not applicable" and "give batches" in unknown.summary


def test_labels_of_batches() -> None:
    subject = base()
    shifted = [{**batch, "labels": batch["labels"].roll(1)} for batch in subject.batches]
    for batches in (shifted, [{**batch, "labels": 1 - batch["labels"]} for batch in subject.batches]):
        finding = said("batch labels", replace(subject, batches=batches))
        assert finding.is_problem and finding.where.startswith("batch 0, row")
    foreign = [{**batch, "input_ids": batch["input_ids"].flip(1)} for batch in subject.batches]
    assert said("batch labels", replace(subject, batches=foreign)).status == "not applicable"


# --- splits


def word_changed(row: Example, rng: random.Random) -> Example:
    words = row.text.split()
    words[rng.randrange(len(words))] = "somewhat"
    return row._replace(text=" ".join(words))


LEAKS = {
    "one word changed": word_changed,
    "a prefix": lambda row, rng: row._replace(text=f"Well, honestly: {row.text}"),
    "the end cut off": lambda row, rng: row._replace(text=row.text.rsplit(" ", 2)[0]),
}


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_near_duplicates_between_splits(leak: str, split: str) -> None:
    rng = random.Random(0)
    copies = [LEAKS[leak](row, rng) for row in clean()["train"][:10]]
    finding = said("near duplicate leakage", with_rows(**{split: [*clean()[split][10:], *copies]}))
    assert finding.is_problem and finding.likelihood > 0.5
    assert finding.where.startswith(split)
    assert said("exact leakage", with_rows(**{split: [*clean()[split][10:], *copies]})).status == "ok"


def test_copies_made_before_the_split_are_seen_as_such() -> None:
    rng = random.Random(0)
    rows = [copy for row in clean()["train"] for copy in (row, LEAKS["a prefix"](row, rng))]
    rng.shuffle(rows)
    finding = said("near duplicate leakage", with_rows(train=rows[:600], dev=rows[600:], test=()))
    assert finding.is_problem and "to one another" in finding.summary
    assert finding.evidence["share inside train"] > 0.2


def test_exact_copies_between_splits() -> None:
    copies = [row._replace(text=f"  {row.text.upper()} ") for row in clean()["train"][:3]]
    finding = said("exact leakage", with_rows(dev=[*clean()["dev"], *copies]))
    assert finding.is_problem and finding.where == "dev, row 100"
    assert said("near duplicate leakage", with_rows(dev=[*clean()["dev"], *copies])).status == "ok"
    short = [Example("Very good!", 1)] * 3
    assert (
        said(
            "exact leakage", with_rows(train=[*clean()["train"], *short], dev=[*clean()["dev"], *short])
        ).status
        == "ok"
    )


def test_pairs_leak_only_when_both_texts_do() -> None:
    train, dev = clean()["train"], clean()["dev"]
    asked = [row._replace(pair=other.text) for row, other in zip(train, reversed(train), strict=True)]
    other_question = [row._replace(pair=other.text) for row, other in zip(train[:100], dev, strict=True)]
    for name in ("exact leakage", "near duplicate leakage"):
        assert said(name, with_rows(train=asked, dev=other_question, test=())).status == "ok"
    assert said("exact leakage", with_rows(train=asked, dev=[*other_question, *asked[:5]])).is_problem
    almost = [row._replace(text=f"Well, {row.text}", pair=f"And {row.pair}") for row in asked[:20]]
    assert said("near duplicate leakage", with_rows(train=asked, dev=[*other_question, *almost])).is_problem


def test_repeated_rows() -> None:
    made = generate(3, train_size=400, dev_size=10, test_size=10)
    repeated = damage(made, 0, duplicates=0.1)
    finding = said("repeated rows", with_rows(train=repeated.data.train))
    assert finding.is_problem
    assert abs(finding.evidence["share"] - len(repeated.duplicated) / 400) < 0.02


def test_splits_that_cannot_be_compared() -> None:
    alone = replace(base(), splits={"train": clean()["train"]})
    brief = [Example(f"word{i} is good", i % 2) for i in range(60)]
    for subject in (alone, replace(base(), splits={"train": brief[:30], "dev": brief[30:]})):
        assert said("near duplicate leakage", subject).status == "not applicable"
    assert said("exact leakage", alone).status == "not applicable"
    assert said("repeated rows", replace(base(), splits={"dev": brief})).status == "not applicable"


# --- real data


@pytest.mark.glue
def test_sst2(glue_dir) -> None:
    """Phrases of one sentence fill train, but dev has sentences of its own: no leak."""
    data = load("sst2", data_dir=glue_dir, max_examples=3_000)
    subject = replace(base(), splits={"train": data.train, "dev": data.dev})
    findings = {check.name: check(subject) for check in SPLIT_CHECKS}
    assert {name for name, finding in findings.items() if finding.is_problem} == set()
    assert findings["near duplicate leakage"].status == "ok"
    assert findings["swapped labels"].evidence["accuracy on dev"] > 0.65
    swapped = replace(subject, splits={"train": data.train, "dev": [flip(row) for row in data.dev]})
    assert said("swapped labels", swapped).is_problem


@pytest.mark.glue
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("rte", set()),
        # Fifteen sentences of dev are in train, word for word.
        ("cola", {"exact leakage"}),
        # Made of schemas: a pair differs from the next in the name that the pronoun stands for.
        ("wnli", {"near duplicate leakage"}),
    ],
)
def test_other_glue_tasks(glue_dir, task: str, expected: set[str]) -> None:
    data = load(task, data_dir=glue_dir)
    subject = replace(base(), splits={"train": data.train, "dev": data.dev})
    checks = [check for check in SPLIT_CHECKS if not check.slow]
    assert {check.name for check in checks if check(subject).is_problem} == expected


def test_partial_encodes_are_read() -> None:
    vocabulary = recipe.Vocabulary([row.text for row in clean()["train"]], size=400)
    subject = replace(
        base(), encode=partial(vocabulary.encode, max_length=64), encode_served=vocabulary.encode
    )
    assert CHECKS["token ids"](subject).status == "ok"
