"""A card says what the records say; a folder with a problem is not shared; nothing is uploaded unasked."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

from companion.data import Example, Task
from companion.models import EMBEDDED_SHA256, load
from companion.training import TrainingConfig, fit, save
from companion.training.sharing import (
    Measured,
    TrainingReport,
    files,
    hub,
    model_card,
    prepare,
    read_report,
    report,
    upload,
    validate,
    write_report,
)
from companion.training.sharing.cards import inert, one_line, wilson

LABELS = ("negative", "positive")
TASK = Task("toy", "accuracy", LABELS, False, "one adjective decides")


@pytest.fixture(scope="module")
def trained(encoder_folder: Path, toy, tmp_path_factory) -> SimpleNamespace:
    """Return a trained model in a folder with its report, and what the report was made of."""
    classifier = load(encoder_folder, labels=LABELS)
    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=3e-3, max_length=48, precision="fp32")
    run = fit(classifier.model, classifier.tokenizer, toy[:64], config=config, dev=toy[256:], task=TASK)
    folder = tmp_path_factory.mktemp("sharing") / "model"
    save(classifier.model, classifier.tokenizer, folder, max_length=48)
    made = report(run, classifier, TASK, train_examples=64, dev_examples=64, config=config, ece=0.25)
    return SimpleNamespace(
        folder=folder, run=run, config=config, classifier=classifier, report=write_report(made, folder)
    )


@pytest.fixture
def source(trained, tmp_path) -> Path:
    """Return a copy of that folder, to be spoilt."""
    return Path(shutil.copytree(trained.folder, tmp_path / "source"))


@pytest.fixture(scope="module")
def healthy(trained, tmp_path_factory) -> Path:
    """Return a hub folder."""
    return prepare(trained.folder, tmp_path_factory.mktemp("healthy") / "shared")


@pytest.fixture
def shared(healthy, tmp_path) -> Path:
    """Return a copy of it, to be spoilt."""
    return Path(shutil.copytree(healthy, tmp_path / "shared"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card_of(made: TrainingReport, tmp_path: Path) -> ModelCard:
    (tmp_path / "README.md").write_text(model_card(made), encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


MARKDOWN = MarkdownIt("commonmark", {"html": True, "linkify": True}).enable(["table", "strikethrough"])
if find_spec("linkify_it"):  # comes with the book's tools
    MARKDOWN.enable("linkify")


def tokens(card: ModelCard) -> list:
    return MARKDOWN.parse(card.text)


def rows(card: ModelCard) -> list[list[str]]:
    """Return the cells of all tables, as a reader sees them."""
    found, row = [], []
    for token in tokens(card):
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            found.append(row)
        elif token.type == "inline" and token.level >= 4:
            row.append("".join(child.content for child in token.children))
    return found


# --- the report


def test_the_report_holds_what_the_run_recorded(trained):
    made, run = trained.report, trained.run
    assert [(done.step, done.metrics) for done in made.evaluations] == [
        (done.step, done.metrics) for done in run.evaluations
    ]
    assert made.measured == Measured(8, run.evaluations[-1].metrics)
    assert (made.steps, made.final_loss, made.seconds) == (8, run.steps[-1].loss, run.seconds)
    assert made.examples_per_second == run.examples_per_second
    assert made.parameters == sum(tensor.numel() for tensor in trained.classifier.model.state_dict().values())
    assert (made.task, made.metric, made.labels, made.seeds) == ("toy", "accuracy", LABELS, (0,))
    assert (made.max_length, made.config["learning_rate"], made.config["epochs"]) == (48, 3e-3, 2)
    assert made.packages["torch"] == torch.__version__
    assert made.weights_sha256 != made.base_sha256 == trained.classifier.sha256
    assert (made.base_model, made.base_on_hub) == ("model", False)
    assert str(Path(trained.classifier.source).parent) not in json.dumps(asdict(made))


def test_the_report_survives_the_disk(trained, tmp_path):
    assert read_report(trained.folder) == trained.report
    changed = replace(
        trained.report,
        labels=("é\n|", "\u2028"),
        ece=None,
        language=("en",),
        config={"a": 1, "b": 1e-5, "c": True},
    )
    shutil.copy(trained.folder / "model.safetensors", tmp_path)
    write_report(changed, tmp_path)
    found = read_report(tmp_path)
    assert found == changed
    assert [type(value) for value in found.config.values()] == [int, float, bool]


def test_the_kept_weights_are_those_of_a_step(trained):
    made = replace(trained.report, weights_step=4)
    assert made.measured == made.evaluations[0]
    assert replace(trained.report, weights_step=3).measured is None


def test_the_embedded_encoder_is_named_as_on_the_hub(trained):
    for source, sha256 in (("embedded", None), ("/srv/models/mine", EMBEDDED_SHA256)):
        classifier = replace(trained.classifier, source=source, sha256=sha256)
        made = report(trained.run, classifier, TASK, train_examples=1)
        assert (made.base_model, made.base_on_hub) == ("sentence-transformers/all-MiniLM-L6-v2", True)
    classifier = replace(trained.classifier, source="google-bert/bert-base-uncased", sha256=None)
    made = report(trained.run, classifier, TASK, train_examples=1)
    assert (made.base_model, made.base_on_hub) == ("google-bert/bert-base-uncased", True)
    assert made.name == "bert-base-uncased-toy"


def test_a_report_about_another_task_or_other_weights_is_refused(trained, source):
    other = Task("other", "accuracy", ("no", "yes"), False, "")
    with pytest.raises(ValueError, match="expected the task that the model was trained for"):
        report(trained.run, trained.classifier, other, train_examples=1)
    with pytest.raises(ValueError, match="about weights with SHA-256"):
        write_report(replace(trained.report, weights_sha256="0" * 64), source)
    (source / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        write_report(trained.report, source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"evaluations": (Measured(3, {"f1": float("inf")}),)}, "f1 after step 3 is inf"),
        ({"ece": 1.5}, "ece is 1.5"),
        ({"train_examples": 0}, "train_examples is 0"),
        ({"dev_examples": 0}, "dev_examples is 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(trained, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(trained.report, **changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[:50], "is not JSON"),
        (lambda text: "[]", "format None, expected 1"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, expected 1"),
        (lambda text: text.replace('"task"', '"tusk"'), "is damaged: t.sk: "),
        (lambda text: text.replace('"steps": 8', '"steps": "8"'), "is damaged: steps: .*integer"),
        (lambda text: text.replace('"steps": 8', '"steps": 0'), "is damaged: .*steps is 0"),
    ],
)
def test_a_damaged_report_is_named(source, spoil, words):
    path = source / "training.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=words):
        read_report(source)


def test_a_folder_without_a_report_says_where_reports_come_from(source, tmp_path):
    (source / "training.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no training\.json.*companion train"):
        prepare(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


# --- the card


def test_the_numbers_on_the_card_are_those_of_the_records(trained, tmp_path):
    made = replace(
        trained.report, base_model="someone/base", base_on_hub=True, license="mit", language=("en",)
    )
    card = card_of(made, tmp_path)
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", made.measured.metrics["accuracy"])
    assert (result.dataset_name, result.dataset_type, result.task_type) == (
        "toy",
        "toy",
        "text-classification",
    )
    assert card.data.to_dict().keys() == {
        "language", "license", "base_model", "library_name", "pipeline_tag", "metrics", "model-index",
    }  # fmt: skip
    assert (card.data.license, card.data.base_model, card.data.language) == ("mit", "someone/base", ["en"])
    value = made.measured.metrics["accuracy"]
    low, high = wilson(value, 64)
    table = rows(card)
    assert ["accuracy", f"{value:.4f}", f"{low:.4f} to {high:.4f}"] in table
    assert ["0", "negative"] in table and ["1", "positive"] in table
    assert ["loss of the last batch", f"{made.final_loss:.4f}"] in table
    assert ["training speed", f"{made.examples_per_second:.1f} examples/s"] in table
    assert ["time", f"{made.seconds:.1f} s"] in table
    for name, setting in made.config.items():
        assert [name, str(setting)] in table, name
    for done in made.evaluations:
        assert [f"{done.step}", f"{done.metrics['accuracy']:.4f}"] in table
    assert "Expected calibration error: 0.2500." in card.text
    assert "longer than 48 tokens" in card.text
    assert made.weights_sha256 in card.text


def test_what_is_not_known_is_not_on_the_card(trained, tmp_path):
    made = replace(
        trained.report,
        evaluations=(),
        config={},
        seeds=(),
        **dict.fromkeys(("dev_examples", "ece", "final_loss", "processes", "max_length", "base_sha256")),
        examples_per_second=None,
    )
    card = card_of(made, tmp_path)
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag"}
    assert "not evaluated" in card.text
    for word in ("None", "interval", "loss", "tokens are cut", "hyper-parameter", "seed", "processes"):
        assert word not in card.text, word


def test_limits_follow_from_the_records(trained, tmp_path):
    first, last = Measured(4, {"f1": 0.9, "accuracy": 0.75}), Measured(8, {"f1": 0.5, "accuracy": 0.5})
    made = replace(trained.report, metric="f1", evaluations=(first, last))
    kept = card_of(replace(made, weights_step=4), tmp_path)
    assert "have the highest f1 of 2 evaluations" in kept.text
    assert "f1 is that of the label positive" in kept.text
    assert {result.metric_value for result in kept.data.eval_results} == {0.9, 0.75}
    assert "have the highest" not in card_of(made, tmp_path).text
    assert "one seed" in kept.text
    assert "one seed" not in card_of(replace(made, seeds=(0, 1, 2)), tmp_path).text
    assert "since step 4, where it was resumed" in card_of(replace(made, resumed_from=4), tmp_path).text


def test_wilson_agrees_with_the_formula_and_wants_a_share_of_n():
    n, p, z = 80, 0.9, 1.959963984540054
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    expected = [(centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert wilson(0.9, 80) == pytest.approx(expected, abs=1e-12)
    low, high = wilson(1.0, 50)
    assert 0.9 < low < high == 1.0
    assert wilson(0.9, 7) is None
    assert wilson(1.2, 10) is None


HOSTILE = (
    "a | b \"quoted\" 'single'",
    "line\n---\n# heading\n\n| x | y |",
    "<script>alert(1)</script> <!-- -->",
    "[here](https://example.org) ![x](y) https://example.org www.example.org a@example.org",
    "``` `code` **bold** _it_ ~~no~~ $x$ \\(x\\) &lt; \\| \\",
    "\u202eevil\u2028: {x: [1, *a]} %TAG !!python/object",
    "---",
    "- item: # x",
)


def test_hostile_names_stay_inert(trained, tmp_path):
    made = replace(
        trained.report, name=HOSTILE[1], task=HOSTILE[0], labels=HOSTILE, base_model=HOSTILE[3],
        machine={HOSTILE[2]: HOSTILE[1]}, config={HOSTILE[4]: HOSTILE[1]}, device=HOSTILE[2],
    )  # fmt: skip
    plain, card = card_of(trained.report, tmp_path), card_of(made, tmp_path)
    assert card.data.to_dict().keys() == plain.data.to_dict().keys()
    assert card.data.eval_results[0].dataset_name == HOSTILE[0]
    assert re.fullmatch(r"[\w.-]+", card.data.eval_results[0].dataset_type)

    def headings(card):
        return sum(token.type == "heading_open" for token in tokens(card))

    assert headings(card) == headings(plain) == 5
    kinds = {token.type for token in tokens(card)}
    kinds |= {child.type for token in tokens(card) for child in token.children or ()}
    assert not kinds & {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "code_inline",
        "em_open",
        "strong_open",
    }
    assert sum(token.type == "fence" for token in tokens(card)) == 1
    table = rows(card)
    for index, label in enumerate(HOSTILE):
        seen = re.sub(r"[\s\u202e\u2028]+", " ", label).strip()
        assert [str(index), seen] in table, label
    code = next(token.content for token in tokens(card) if token.type == "fence")
    assert code.count("labels = ") == 1
    names = {}
    exec(re.search(r"labels = .*", code)[0], names)
    assert tuple(names["labels"]) == HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_inert_text_reads_as_the_text_itself(text):
    html = MARKDOWN.renderInline(inert(text))
    assert "<" not in html
    assert unescape(html) == one_line(text)
    assert "\n" not in inert(text) and not re.search(r"\\[()\[]|\$", inert(text)), "could be a formula"


@pytest.mark.parametrize("paired", [False, True])
def test_the_example_on_the_card_runs(trained, shared, paired, monkeypatch):
    text = model_card(replace(trained.report, paired=paired))
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(shared)
    names: dict = {}
    exec(code, names)
    assert names["probabilities"].shape == (1, 2)
    assert names["probabilities"].sum().item() == pytest.approx(1)
    assert names["labels"] == list(LABELS)
    assert len(names["inputs"]["input_ids"][0]) > 3
    assert ("token_type_ids" in names["inputs"]) and bool(names["inputs"]["token_type_ids"].any()) == paired


def test_a_regression_has_a_card_too(encoder_folder, toy, tmp_path):
    task = Task("score", "pearson", (), False, "a number")
    classifier = load(encoder_folder, regression=True)
    scored = [Example(example.text, float(example.label)) for example in toy]
    config = TrainingConfig(epochs=1, batch_size=32, max_length=48, precision="fp32")
    run = fit(
        classifier.model, classifier.tokenizer, scored[:64], config=config, dev=scored[64:128], task=task
    )
    save(classifier.model, classifier.tokenizer, tmp_path / "model", max_length=48)
    made = report(run, classifier, task, train_examples=64, dev_examples=64, config=config)
    write_report(made, tmp_path / "model")
    out = prepare(tmp_path / "model", tmp_path / "out")
    assert validate(out) == ()
    card = ModelCard.load(out / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"pearsonr", "spearmanr"}
    assert "labels" not in card.text and "answers with a number" in card.text


# --- the folder


def test_a_prepared_folder_is_healthy_and_holds_the_same_model(trained, source, tmp_path):
    (source / "notes.txt").write_text("for myself")
    out = prepare(source, tmp_path / "deep" / "out", repo_id="me/toy", license="apache-2.0", language=["en"])
    assert validate(out) == ()
    assert {path.name for path in out.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
        "training.json", ".gitattributes",
    }  # fmt: skip
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert "from_pretrained('me/toy')" in (out / "README.md").read_text()
    assert read_report(out) == replace(trained.report, license="apache-2.0", language=("en",))
    assert load(out).labels == LABELS


def test_places_on_this_machine_are_taken_out(source, tmp_path):
    for name in ("config.json", "tokenizer_config.json"):
        data = json.loads((source / name).read_text())
        data |= {"_name_or_path": str(source), "name_or_path": str(source), "note": "kept"}
        (source / name).write_text(json.dumps(data))
    out = prepare(source, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json"):
        assert str(source) not in (out / name).read_text()
        assert json.loads((out / name).read_text())["note"] == "kept"


def test_an_earlier_result_is_replaced_and_other_folders_are_not(source, tmp_path):
    out = prepare(source, tmp_path / "out")
    before = tree(out)
    prepare(source, out, repo_id="me/toy")
    assert tree(out) != before
    for other in (source, source / "inside", tmp_path):
        with pytest.raises(ValueError, match="lie in each other"):
            prepare(source, other)
    model = Path(shutil.copytree(source, tmp_path / "other-model"))
    with pytest.raises(ValueError, match=r"not empty and has no \.gitattributes"):
        prepare(source, model)
    (out / ".git").mkdir()
    with pytest.raises(ValueError, match=r"holds \.git: expected a new folder"):
        prepare(source, out)
    assert (out / ".git").is_dir() and (model / "training.json").is_file()


def test_large_files_go_through_large_file_storage(source, tmp_path, monkeypatch):
    size = (source / "tokenizer.json").stat().st_size
    monkeypatch.setattr(files, "LARGE", size - 1)
    monkeypatch.setattr(hub, "LARGE", size - 1)
    out = prepare(source, tmp_path / "out")
    lines = (out / ".gitattributes").read_text().splitlines()
    assert lines == [
        f"{name} filter=lfs diff=lfs merge=lfs -text" for name in ("*.safetensors", "tokenizer.json")
    ]
    (out / ".gitattributes").write_text(lines[0])
    assert [problem.file for problem in validate(out)] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "is pickled"),
        ("training_args.BIN", "is pickled"),
        ("model.pt", "is pickled"),
        (".netrc", "is hidden"),
        (".checkpoints/step-00000004/x", "is hidden"),
        ("optimizer.safetensors", "state of a training run"),
        ("checkpoint-8/model.safetensors", "state of a training run"),
        ("step-00000004/state.json", "state of a training run"),
    ],
)
def test_what_must_not_be_shared_is_refused(source, tmp_path, name, words):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("x")
    with pytest.raises(ValueError, match=f"problems: 1. .*{words}"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_and_files_too_large_are_refused(source, tmp_path, monkeypatch):
    (tmp_path / "outside").write_text("x")
    (source / "vocab.txt").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"vocab\.txt: is a link"):
        prepare(source, tmp_path / "out")
    (source / "vocab.txt").unlink()
    monkeypatch.setattr(files, "LIMIT", (source / "model.safetensors").stat().st_size - 1)
    with pytest.raises(ValueError, match=r"model\.safetensors: has .* bytes, the hub takes at most"):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize(
    "error", [SystemExit(143), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_preparation_that_breaks_leaves_nothing_behind(source, tmp_path, monkeypatch, error):
    out = prepare(source, tmp_path / "out")
    before = tree(tmp_path)

    def breaks(*arguments, **keywords):
        raise error

    monkeypatch.setattr(hub, "model_card", breaks)  # the weights are copied by then
    for folder in (out, tmp_path / "new" / "folder"):
        with pytest.raises(type(error)):
            prepare(source, folder)
    assert tree(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"repo_id": "a/b/c"}, "repository's name is 'a/b/c'"),
        ({"license": "Apache 2.0"}, "license is 'Apache 2.0'"),
        ({"language": ["English"]}, "language is 'English'"),
        ({"language": "en"}, "expected a sequence"),
    ],
)
def test_identifiers_that_the_hub_refuses_are_refused(source, tmp_path, keywords, words):
    with pytest.raises(ValueError, match=words):
        prepare(source, tmp_path / "out", **keywords)


# --- the checks


def change_json(name: str, **changes):
    def spoil(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | changes))

    return spoil


def change_text(name: str, old: str, new: str):
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return spoil


def change_weights(**changes):
    """Replace tensors, or drop them for None. The report is made to fit, so that one thing alone is wrong."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors")
        write_report(replace(read_report(folder), weights_sha256=None), folder)

    return spoil


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    write_report(replace(read_report(folder), weights_sha256=None), folder)


PROBLEMS = {
    **{
        f"no {name}": ("missing", name, "is missing", lambda folder, name=name: (folder / name).unlink())
        for name in files.REQUIRED
    },
    "pickle": ("file", "model.pt", "is pickled", lambda folder: (folder / "model.pt").touch()),
    "link": ("file", "vocab.txt", "is a link", lambda folder: (folder / "vocab.txt").symlink_to("README.md")),
    "hidden": ("file", ".env", "is hidden", lambda folder: (folder / ".env").touch()),
    "stranger": ("file", "a.txt", "no part of a shared model", lambda folder: (folder / "a.txt").touch()),
    "folder": ("file", "runs", "no part of a shared model", lambda folder: (folder / "runs").mkdir()),
    "weight missing": (
        "weights",
        "model.safetensors",
        "has no classifier.bias",
        change_weights(classifier__bias=None),
    ),
    "weight too many": (
        "weights",
        "model.safetensors",
        "has extra, which",
        change_weights(extra=torch.zeros(1)),
    ),
    "weight of another shape": (
        "weights",
        "model.safetensors",
        r"classifier.bias has the shape \[3\]",
        change_weights(classifier__bias=torch.zeros(3)),
    ),
    "weights cut off": ("weights", "model.safetensors", "cannot be read", truncate),
    "other weights": (
        "report",
        "training.json",
        "not about this",
        change_json("training.json", weights_sha256="0" * 64),
    ),
    "config broken": (
        "config",
        "config.json",
        "cannot be read",
        lambda folder: (folder / "config.json").write_text("{"),
    ),
    "config of no classifier": (
        "config",
        "config.json",
        "names BertModel",
        change_json("config.json", architectures=["BertModel"]),
    ),
    "labels in another order": (
        "labels",
        "config.json",
        "has the labels",
        change_json(
            "config.json",
            id2label={"0": "positive", "1": "negative"},
            label2id={"positive": 0, "negative": 1},
        ),
    ),
    "labels that contradict": (
        "labels",
        "config.json",
        "contradict",
        change_json("config.json", label2id={"positive": 0, "negative": 1}),
    ),
    "labels off the card": (
        "labels",
        "README.md",
        "has no row",
        change_text("README.md", "| 1 | positive |", ""),
    ),
    "tokenizer broken": (
        "tokenizer",
        "tokenizer.json",
        "cannot be read",
        lambda folder: (folder / "tokenizer.json").write_text("{"),
    ),
    "another length": (
        "report",
        "training.json",
        "tokenizer cuts at 32",
        change_json("tokenizer_config.json", model_max_length=32),
    ),
    "report broken": (
        "report",
        "training.json",
        "cannot be read",
        lambda folder: (folder / "training.json").write_text("{"),
    ),
    "no front matter": (
        "card",
        "README.md",
        "no front matter",
        lambda folder: (folder / "README.md").write_text("# toy\n| 0 | negative |\n| 1 | positive |\n"),
    ),
    "front matter broken": (
        "card",
        "README.md",
        "cannot be read",
        change_text("README.md", "library_name:", "library_name: [\n"),
    ),
    "model index broken": (
        "card",
        "README.md",
        "cannot be read.*model_index",
        change_text("README.md", "  results:", "  other:"),
    ),
    "another pipeline": (
        "card",
        "README.md",
        "states the pipeline_tag",
        change_text("README.md", "pipeline_tag: text-c", "pipeline_tag: token-c"),
    ),
    "a license from nowhere": (
        "card",
        "README.md",
        "states the license 'mit'",
        change_text("README.md", "library_name:", "license: mit\nlibrary_name:"),
    ),
    "a value from nowhere": (
        "card",
        "README.md",
        "states {'accuracy': 0.99",
        lambda folder: (folder / "README.md").write_text(
            re.sub(r"value: [\d.]+", "value: 0.99999", (folder / "README.md").read_text())
        ),
    ),
    "a dataset type that the hub refuses": (
        "card",
        "README.md",
        "dataset type 'a b'",
        change_text("README.md", "type: toy", "type: a b"),
    ),
    "path in the config": (
        "path",
        "config.json",
        r"names a place on your machine \(/srv/models/base\)",
        change_json("config.json", _name_or_path="/srv/models/base"),
    ),
    "path of Windows": (
        "path",
        "tokenizer_config.json",
        "names a place",
        change_json("tokenizer_config.json", note="C:\\Users\\ann\\model"),
    ),
    "path in the card": (
        "path",
        "README.md",
        "names a place",
        lambda folder: (folder / "README.md").open("a").write("from /srv/models/base\n"),
    ),
    "home in the vocabulary": (
        "path",
        "tokenizer.json",
        "names a place",
        change_text("tokenizer.json", '"[UNK]"', '"/' + 'home/ann/x"'),
    ),
    "token of the hub": (
        "secret",
        "config.json",
        r"holds a key \(hf_a\.\.\.\)",
        change_json("config.json", note="hf_" + "aB3" * 12),
    ),
}


@pytest.mark.parametrize("which", PROBLEMS)
def test_a_planted_problem_is_found(shared, which):
    kind, name, words, spoil = PROBLEMS[which]
    spoil(shared)
    found = validate(shared)
    assert [problem for problem in found if (problem.kind, problem.file) == (kind, name)], found
    assert any(re.search(words, problem.message) for problem in found if problem.file == name), found
    assert all("aB3aB3" not in str(problem) for problem in found)


def test_a_tokenizer_of_another_model_is_found(shared):
    data = json.loads((shared / "tokenizer.json").read_text())
    data["model"]["vocab"] |= {f"piece{index}": 800 + index for index in range(5)}
    (shared / "tokenizer.json").write_text(json.dumps(data))
    [problem] = validate(shared)
    assert (problem.kind, problem.file) == ("tokenizer", "tokenizer.json")
    assert "knows 805 pieces, the model 800" in problem.message


def test_preparing_checks_before_anything_appears(source, tmp_path):
    change_json("config.json", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"problems: 2\. tokenizer\.json: is missing.*has the labels"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_were_trained_further_need_a_new_report(source, tmp_path):
    tensors = load_file(source / "model.safetensors")
    tensors["classifier.bias"] += 1
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="write the report of the run that made these weights"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validating_leaves_the_random_state_and_the_folder_alone(shared):
    torch.manual_seed(3)
    state, before = torch.get_rng_state(), tree(shared)
    validate(shared)
    assert torch.equal(torch.get_rng_state(), state)
    assert tree(shared) == before


def test_no_folder_no_verdict(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a hub folder"):
        validate(tmp_path / "absent")


# --- the upload


class FakeApi:
    def __init__(self, public: bool = False) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.public = public

    def create_repo(self, repo_id, **keywords):
        self.calls.append(("create_repo", {"repo_id": repo_id, **keywords}))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def repo_info(self, repo_id, **keywords):
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **keywords):
        self.calls.append(("upload_folder", keywords))
        return SimpleNamespace(commit_url=f"https://hub.example/{keywords['repo_id']}/commit/1")


def test_an_upload_sends_the_checked_files_once(shared):
    api = FakeApi()
    address = upload(shared, "toy", confirm=True, token="secret", api=api)
    assert address == "https://hub.example/me/toy/commit/1"
    [(first, made), (second, sent)] = api.calls
    assert (first, made["private"], made["token"], made["repo_type"]) == (
        "create_repo",
        True,
        "secret",
        "model",
    )
    assert (second, sent["repo_id"], sent["folder_path"]) == ("upload_folder", "me/toy", shared)
    assert sent["allow_patterns"] == sorted(path.name for path in shared.iterdir())


def test_an_upload_fits_the_hub_s_own_interface():
    from inspect import signature

    from huggingface_hub import HfApi

    api = FakeApi()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("companion.training.sharing.hub.validate", lambda folder: ())
        patch.setattr(Path, "iterdir", lambda folder: iter(()))
        upload(Path("absent"), "toy", confirm=True, api=api)
    for name, keywords in api.calls:
        signature(getattr(HfApi, name)).bind(None, **keywords)
    signature(HfApi.repo_info).bind(None, "me/toy", token=None, repo_type="model")


def test_the_hub_s_api_is_the_default(shared, monkeypatch):
    made = []

    def api(token):
        made.append((token, FakeApi()))
        return made[-1][1]

    monkeypatch.setattr("huggingface_hub.HfApi", api)
    upload(shared, "toy", confirm=True, token="secret", private=False)
    [(token, used)] = made
    assert token == "secret"
    assert used.calls[0][1]["private"] is False


@pytest.mark.parametrize("confirm", [False, None, 1, "yes"])
def test_nothing_is_uploaded_unasked(shared, confirm):
    api = FakeApi()
    with pytest.raises(ValueError, match="not confirmed"):
        upload(shared, "toy", confirm=confirm, api=api)
    assert api.calls == []


def test_a_folder_with_problems_is_not_uploaded(shared):
    api = FakeApi()
    (shared / "model.pt").touch()
    with pytest.raises(ValueError, match=r"problems: 1\. model\.pt: is pickled"):
        upload(shared, "toy", confirm=True, api=api)
    (shared / "model.pt").unlink()
    with pytest.raises(ValueError, match="expected NAME or OWNER/NAME"):
        upload(shared, "not a name", confirm=True, api=api)
    assert api.calls == []


def test_a_public_repository_is_no_place_for_a_private_upload(shared):
    api = FakeApi(public=True)
    with pytest.raises(ValueError, match="there already and public"):
        upload(shared, "toy", confirm=True, api=api)
    assert [name for name, _ in api.calls] == ["create_repo"]
    upload(shared, "toy", confirm=True, private=False, api=api)
    assert api.calls[-1][0] == "upload_folder"
