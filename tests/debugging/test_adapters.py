"""From what people have to a subject: sizes, batches, optimizers, steps, folders and names."""

from __future__ import annotations

import json
import math
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from companion.debugging import diagnose, read_records, subject_from, subjects_from
from companion.debugging.adapters.batches import form_of, joined
from companion.debugging.adapters.calls import named_call, takes
from companion.debugging.adapters.locating import located
from companion.debugging.adapters.losses import targets_of
from companion.debugging.checks.registry import NotApplicable
from companion.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocab_size=50, width=16, layers=1, heads=2, max_length=24, classes=3, dropout=0.0)
CAUSAL = TransformerConfig(
    vocab_size=50, width=16, layers=1, heads=2, max_length=24, causal=True, dropout=0.0
)
GPT2 = GPT2Config(
    vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=1, eos_token_id=1
)
T5 = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)


class Plain(nn.Module):
    """A model that says nothing about itself: no config, and a small vocabulary beside many places."""

    def __init__(self, words: int = 11, places: int = 30, outputs: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(places, 8), nn.Embedding(words, 8, padding_idx=2)
        self.c = nn.Linear(8, outputs)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.c((self.b(x) + self.a(torch.arange(x.size(1)))).mean(1))


def bare() -> nn.Module:
    return Transformer(CONFIG)


def batch(rows: int = 4, seq: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (rows, seq), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {
        "input_ids": ids.masked_fill(mask == 0, 0),
        "attention_mask": mask,
        "labels": torch.arange(rows) % 3,
    }


# --- models


def test_sizes_come_from_the_model():
    subject = subject_from(Plain, task="classification")
    found = (subject.vocab_size, subject.max_length, subject.classes, subject.pad_token_id, subject.fresh)
    assert found == (11, 30, 5, 2, True)
    assert subject.takes_mask()
    told = subject_from(Plain, task="classification", vocab_size=7, max_length=9, pad_token_id=1, classes=4)
    assert (told.vocab_size, told.max_length, told.pad_token_id, told.classes) == (7, 9, 1, 4)
    assert subject_from(lambda: Plain(outputs=1), task="regression").classes == 1
    subject = subject_from(lambda: GPT2LMHeadModel(GPT2), task="clm")
    assert (subject.vocab_size, subject.max_length, subject.pad_token_id) == (40, 24, 1)
    assert subject.kind == "causal language model"
    assert subject.classes == 0


def test_the_length_is_tried_out_where_it_cannot_be_seen():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(12, 8)
            self.places = nn.Parameter(torch.randn(20, 8))

        def forward(self, ids: Tensor) -> Tensor:
            return (self.words(ids) + self.places[: ids.size(1)]).mean(1)

    assert subject_from(Hidden, task="classification").max_length == 16


def test_a_model_is_copied_and_never_changed():
    model = bare().train()
    model(batch()["input_ids"]).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    subject = subject_from(model, task="classification", batches=[batch()])
    assert not subject.fresh
    made = subject.make_model()
    assert made is not model
    assert all(parameter.grad is None for parameter in made.parameters())
    with torch.no_grad():
        model.head.weight.zero_()
    assert torch.equal(subject.model().head.weight, before["head.weight"]), "later changes do not count"
    model.load_state_dict(before)
    diagnose(subject, slow=False)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert subject_from(model, task="classification", fresh=True).fresh


def test_a_model_that_breaks_is_still_a_subject():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(13, 8), nn.Linear(9, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.words(ids)).mean(1)

    subject = subject_from(Broken, task="classification", classes=2)
    assert subject.vocab_size == 13
    found = diagnose(subject, slow=False)
    assert not found.ok
    assert "cannot be multiplied" in found.first.summary
    assert len([problem for problem in found.problems if "multiplied" in problem.summary]) == 1


def test_models_that_are_refused():
    for model, task, words in (
        (bare, "translation", "the task is 'translation', expected one of: classification"),
        (lambda: 5, "classification", "returned an int, expected a torch.nn.Module"),
        (Transformer, "classification", "Transformer needs config, expected a function without arguments"),
        (bare, "clm", r"returns \(batch, numbers\), and causal language model needs scores for each token"),
        (lambda: Transformer(CAUSAL), "classification", r"returns \(batch, seq, numbers\)"),
        (bare, "seq2seq", "is no encoder-decoder"),
        (lambda: nn.Linear(3, 3), "classification", "the vocabulary's size cannot be seen in Linear"),
        ("nowhere", "classification", "nowhere does not exist, expected a model folder, or MODULE:NAME"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            subject_from(model, task=task)
    with pytest.raises(ValueError, match="unknown: 'optimiser'; known: optimizer"):
        subject_from(bare, task="classification", optimiser=None)
    locked = bare()
    locked.register_buffer("odd", torch.ones(2, requires_grad=True) * 2)
    with pytest.raises(ValueError, match="Transformer cannot be copied"):
        subject_from(locked, task="classification")


# --- batches


@pytest.mark.parametrize(
    "raw",
    [
        batch(),
        BatchEncoding(batch()),
        {"idx": batch()["input_ids"], "target": batch()["labels"]},
        {"x": batch()["input_ids"], "key_padding_mask": batch()["attention_mask"] == 0},
        (batch()["input_ids"], batch()["labels"]),
        [batch()["input_ids"], batch()["attention_mask"], batch()["labels"]],
        ({"input_ids": batch()["input_ids"], "attention_mask": batch()["attention_mask"]}, batch()["labels"]),
    ],
)
def test_batches_of_all_forms_there_and_back(raw):
    form = form_of(raw)
    read = form.read(raw)
    assert torch.equal(read["input_ids"], batch()["input_ids"])
    first = raw[0] if isinstance(raw, tuple | list) else raw
    told = len(raw) == 3 or (
        not isinstance(first, Tensor) and bool({"key_padding_mask", "attention_mask"} & set(first))
    )
    if told:
        assert torch.equal(read["attention_mask"], batch()["attention_mask"])
    assert read["attention_mask"].dtype == torch.int64
    written = form.write(read)
    assert type(written) is type(raw)
    if isinstance(raw, tuple | list):
        assert len(written) == len(raw)
        assert torch.equal(written[-1], raw[-1])
    else:
        assert written.keys() == raw.keys()
        assert all(torch.equal(written[key], raw[key]) for key in raw)


def test_loaders_are_read_in_part():
    def endless():
        while True:
            yield batch()

    assert len(subject_from(bare, task="classification", batches=endless()).batches) == 8
    assert subject_from(bare, task="classification", batches=[]).batches == []
    ids_alone = subject_from(lambda: Transformer(CAUSAL), task="clm", batches=[batch()["input_ids"]])
    assert ids_alone.batches[0].keys() == {"input_ids", "attention_mask"}
    for raw, words in (
        ("text", "is a str"),
        ({"pixels": torch.ones(2)}, "has the keys pixels, expected input_ids"),
        ((1, 2, 3, 4), "is a tuple of 4"),
    ):
        with pytest.raises(ValueError, match=words):
            subject_from(bare, task="classification", batches=[raw])


def test_parts_are_joined():
    narrow = {name: tensor[:, :4] if tensor.dim() > 1 else tensor for name, tensor in batch(2).items()}
    whole = joined([batch(), narrow], pad_token_id=9)
    assert whole["input_ids"].shape == (6, 6)
    assert (whole["input_ids"][4:, 4:] == 9).all()
    assert (whole["attention_mask"][4:, 4:] == 0).all()
    assert whole["labels"].tolist() == [0, 1, 2, 0, 0, 1]


# --- losses


def test_targets_of_a_language_model():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = [[6, 7, 8, -100], [6, -100, -100, -100]]
    kind = "causal language model"
    given = {"input_ids": ids, "attention_mask": mask}
    assert targets_of(given, kind).tolist() == expected
    assert targets_of({**given, "labels": torch.tensor([0, 1])}, kind).tolist() == expected
    same = ids.masked_fill(mask == 0, -100)
    assert targets_of({**given, "labels": same}, kind).tolist() == expected, "labels at their own place"
    following = torch.tensor([[6, 7, 8, 9], [6, -1, -1, -1]])
    assert targets_of({**given, "labels": following}, kind).tolist() == [[6, 7, 8, 9], [6, -100, -100, -100]]


def test_losses_of_all_forms_agree():
    def of_model(model, batch):
        return functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    def of_scores(logits, labels):
        return functional.cross_entropy(logits, labels)

    losses = [
        subject_from(bare, task="classification", loss=loss, batches=[batch()])
        for loss in (None, of_model, of_scores, nn.CrossEntropyLoss(), functional.cross_entropy)
    ]
    values = [subject.loss(subject.model(), subject.batches[0]).item() for subject in losses]
    assert values == pytest.approx([values[0]] * 5, rel=1e-6)
    assert math.log(3) * 0.8 < values[0] < math.log(3) * 1.2
    own = subject_from(lambda: GPT2LMHeadModel(GPT2), task="clm")
    mine = {"input_ids": batch()["input_ids"] % 40, "attention_mask": batch()["attention_mask"]}
    model = own.model()
    labels = mine["input_ids"].masked_fill(mine["attention_mask"] == 0, -100)
    expected = model(**mine, labels=labels).loss
    assert torch.allclose(own.loss(model, mine), expected)
    assert torch.allclose(own.loss(model, {**mine, "labels": batch()["labels"]}), expected)
    assert subject_from(lambda: GPT2LMHeadModel(GPT2), task="clm", loss=nn.CrossEntropyLoss()).loss(
        model, mine
    ).item() == pytest.approx(expected.item(), rel=1e-5)


def test_losses_that_are_refused():
    with pytest.raises(ValueError, match=r"takes scores, expected \(model, batch\) or \(logits, labels\)"):
        subject_from(bare, task="classification", loss=lambda logits: logits.sum())
    subject = subject_from(bare, task="classification", loss=lambda model, batch: torch.ones(3))
    with pytest.raises(ValueError, match="one number: its mean"):
        subject.loss(subject.model(), batch())


# --- optimizers and schedules


def test_an_optimizer_is_made_again_for_a_copy():
    model = Transformer(CAUSAL)  # tied: one parameter under two names
    groups = [
        {"params": [model.head.weight], "weight_decay": 0.3},
        {"params": [p for n, p in model.named_parameters() if n != "tokens.weight"], "lr": 0.02},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    subject = subject_from(model, task="clm", optimizer=optimizer)
    copied = subject.model()
    made = subject.make_optimizer(copied)
    assert type(made) is torch.optim.AdamW
    assert [(group["lr"], group["weight_decay"], group["betas"]) for group in made.param_groups] == [
        (0.01, 0.3, (0.8, 0.9)),
        (0.02, 0.01, (0.8, 0.9)),
    ], "the learning rate is the one before the schedule"
    assert made.param_groups[0]["params"][0] is copied.tokens.weight
    held = {id(item) for group in made.param_groups for item in group["params"]}
    assert held == {id(parameter) for parameter in copied.parameters()}
    assert not held & {id(parameter) for parameter in model.parameters()}


def test_an_optimizer_keeps_what_is_wrong_with_it():
    model, other = bare(), bare()
    parameters = [*list(model.parameters())[:3], *other.head.parameters()]
    subject = subject_from(model, task="classification", optimizer=torch.optim.SGD(parameters, lr=0.1))
    copied = subject.model()
    held = {id(item) for group in subject.make_optimizer(copied).param_groups for item in group["params"]}
    assert len(held) == 5
    assert held & {id(p) for p in copied.parameters()} == {id(p) for p in list(copied.parameters())[:3]}
    with pytest.raises(ValueError, match="made for a model of 22 parameters"):
        subject.make_optimizer(nn.Linear(2, 2))


def test_optimizers_and_schedules_as_functions():
    subject = subject_from(
        bare,
        task="classification",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
        schedule=lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer),
    )
    optimizer = subject.make_optimizer(subject.model())
    assert subject.make_schedule(optimizer, 10).optimizer is optimizer

    def by_hugging_face(optimizer, num_warmup_steps, num_training_steps):
        return (num_warmup_steps, num_training_steps)

    schedule = partial(by_hugging_face, num_warmup_steps=3)
    assert subject_from(bare, task="classification", schedule=schedule).make_schedule(optimizer, 10) == (
        3,
        10,
    )
    optimizer = torch.optim.SGD(bare().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a schedule belongs to one optimizer and cannot be copied"):
        subject_from(bare, task="classification", schedule=torch.optim.lr_scheduler.ConstantLR(optimizer))
    with pytest.raises(ValueError, match="the model is given as a factory"):
        subject_from(bare, task="classification", optimizer=optimizer)
    wrong = subject_from(bare, task="classification", optimizer=lambda model: model)
    with pytest.raises(ValueError, match="returned a Transformer, expected a torch optimizer"):
        wrong.make_optimizer(bare())


# --- training steps


def steps():
    def usual(model, optimizer, batch):
        return model, optimizer, batch

    def swapped(batch, optimizer, net):
        return net, optimizer, batch

    def with_parts(model, optimizer, micro_batches, scheduler, device):
        assert device == torch.device("cpu")
        scheduler.step()
        return model, optimizer, micro_batches

    def by_elimination(model, optimizer, sample):
        return model, optimizer, sample

    def by_annotation(a: nn.Module, b: torch.optim.Optimizer, c):
        return a, b, c

    def by_place(model, optimizer, batch, /, *, clip=1.0):
        return model, optimizer, batch

    return [usual, swapped, with_parts, by_elimination, by_annotation, by_place]


@pytest.mark.parametrize("function", steps(), ids=lambda function: function.__name__)
def test_steps_are_called_by_their_names(function):
    subject = subject_from(
        bare,
        task="classification",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
        train_step=function,
        batches=[(batch()["input_ids"], batch()["labels"])],
    )
    model = subject.model()
    optimizer = subject.make_optimizer(model)
    got = subject.train_step(model, optimizer, [batch(), batch(2)])
    assert got[0] is model
    assert got[1] is optimizer
    if function.__name__ == "with_parts":
        assert [len(part[1]) for part in got[2]] == [4, 2]
    else:
        ids, labels = got[2]
        assert ids.shape == (6, 6), "one batch, as the loader makes it"
        assert len(labels) == 6


def test_steps_that_are_refused():
    for function, words in (
        (lambda a, b, c: None, "say nothing to the doctor: a, b, c. Name them after what they take"),
        (lambda batch: None, "has no parameter for the model"),
        (lambda model, optimizer: None, "has no parameter for the batch"),
        (lambda model, batch, optimizer, beam: None, "say nothing to the doctor: beam"),
        (dict.update, "say nothing|cannot be read|no parameter for the model"),
    ):
        with pytest.raises(ValueError, match=words):
            subject_from(bare, task="classification", train_step=function)


def test_a_step_trains_the_copy_that_it_is_given():
    def step(model, batch, optimizer):
        optimizer.zero_grad()
        functional.cross_entropy(
            model(batch["input_ids"], batch["attention_mask"]), batch["labels"]
        ).backward()
        optimizer.step()

    model = bare()
    subject = subject_from(
        model,
        task="classification",
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        train_step=step,
        batches=[batch()],
    )
    copied = subject.model()
    subject.train_step(copied, subject.make_optimizer(copied), [batch()])
    assert not torch.equal(copied.head.weight, model.head.weight)
    assert torch.equal(subject.model().head.weight, model.head.weight)


def test_calls_leave_defaults_alone():
    def step(model, batch, optimizer=None, device="meta", clip=1.0):
        return device, clip, optimizer

    plan = takes(step, ("model", "optimizer", "batch", "device"), "the step")
    assert plan == {"model": "model", "batch": "batch", "optimizer": "optimizer"}
    given = {"model": 1, "batch": 2, "optimizer": 3, "device": 4}
    assert named_call(step, plan, given) == ("meta", 1.0, 3)


# --- transformers


def test_a_decoder_is_told_its_positions():
    subject = subject_from(lambda: GPT2LMHeadModel(GPT2), task="clm")
    model = subject.model(jitter=True)
    ids = subject.ids(2, 6)
    left = torch.cat([torch.full((2, 3), subject.pad_token_id), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    with torch.no_grad():
        assert torch.allclose(
            subject.scores(model, left, mask)[:, 3:], subject.scores(model, ids, None), atol=1e-4
        )


def test_an_encoder_is_not_padded_on_the_left(model_folder):
    subject = subject_from(model_folder, task="classification")
    ids = subject.ids(2, 6)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(NotApplicable, match="is made for padding on the right"):
        subject.scores(subject.model(), ids, mask)


def test_a_model_folder(model_folder, monkeypatch):
    subject = subject_from(model_folder, task="classification")
    assert not subject.fresh
    assert subject.classes == 2
    assert subject.label_names == ("negative", "positive")
    assert subject.max_length == 48, "what the tokenizer was saved with"
    ids = subject.encode("The film was superb.")
    assert max(ids) < subject.vocab_size
    assert len(subject.encode("superb " * 100)) == 48
    assert subject.encode_served("The film was superb.") == ids
    assert subject.scores(subject.model(), torch.tensor([ids]), None).shape == (1, 2)
    monkeypatch.chdir(model_folder.parent)
    assert subject_from("model", task="classification").vocab_size == subject.vocab_size


def test_folders_that_are_refused(model_folder, tmp_path):
    with pytest.raises(ValueError, match="holds no config"):
        subject_from(tmp_path, task="classification")
    with pytest.raises(ValueError, match="cannot be loaded for --task seq2seq"):
        subjects_from(model_folder, task="seq2seq")


def test_an_encoder_decoder_is_two_subjects():
    labels = torch.tensor([[5, 6, 7, 1], [8, 9, 1, -100]])
    raw = {"input_ids": labels.clamp(min=0), "attention_mask": (labels > 0).long(), "labels": labels}
    seen = []

    def step(model, optimizer, batch):
        seen.append(batch)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    parts = subjects_from(
        lambda: T5ForConditionalGeneration(T5),
        task="seq2seq",
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        train_step=step,
        batches=[raw],
    )
    assert list(parts) == ["decoder", "encoder"]
    decoder, encoder = parts.values()
    assert (decoder.kind, encoder.kind) == ("causal language model", "encoder")
    assert decoder.batches[0]["input_ids"].tolist() == [[5, 6, 7, 1], [8, 9, 1, 0]]
    assert decoder.batches[0]["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    model = decoder.model()
    assert decoder.scores(model, decoder.ids(), None).shape == (2, 12, 40)
    assert encoder.scores(encoder.model(), encoder.ids(), None).shape == (2, 12, 16)
    decoder.train_step(model, decoder.make_optimizer(model), list(decoder.batches))
    assert seen[0]["labels"].tolist() == labels.tolist()
    assert seen[0]["input_ids"].shape == (2, 13)
    assert decoder.loss(decoder.model(), decoder.batches[0]) > 0
    with pytest.raises(ValueError, match="have the parts decoder, encoder: use subjects_from"):
        subject_from(lambda: T5ForConditionalGeneration(T5), task="seq2seq")


# --- names


def test_functions_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    (tmp_path / "my_training.py").write_text(
        "from dataclasses import dataclass\n"
        "from companion.models.transformer import Transformer, TransformerConfig\n"
        "@dataclass\nclass Home:\n    number: int = 5\n\n"
        "def make():\n    return Transformer(TransformerConfig(vocab_size=20, width=8, heads=2, classes=2))\n"
        "Home.make = staticmethod(make)\n"
    )
    (tmp_path / "my_breaking.py").write_text("1 / 0\n")
    (tmp_path / "my_ending.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "my_lacking.py").write_text("import no_such_library\n")
    assert subject_from("my_training:make", task="classification").vocab_size == 20
    assert located("my_training.py:Home.make")().config.vocab_size == 20
    assert sys.path == path
    for text, words in (
        ("nowhere_at_all:make", "there is no module 'nowhere_at_all' in"),
        ("my_training:build", "my_training has no 'build'; it has: dataclass, Transformer"),
        ("my_training:__name__", "is a str, expected a function or a class"),
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("my_breaking:make", "importing my_breaking failed with ZeroDivisionError: division by zero"),
        ("my_ending:make", "failed with SystemExit"),
        ("my_lacking:make", "importing my_lacking failed: No module named 'no_such_library'"),
        ("my_training", "names no function"),
        (":make", "names no function"),
    ):
        with pytest.raises(ValueError, match=words):
            located(text)
    for name in ("my_training", "my_breaking", "my_ending", "my_lacking"):
        sys.modules.pop(name, None)


# --- records


def test_records_of_a_run(tmp_path):
    from companion.training.monitoring.observations import FILE, Observation, to_line

    seen = [Observation(step, 1.0 / step, 0.1, 2.0, {}, {}, {}, 9.0, 0, 0.0) for step in (1, 2)]
    (tmp_path / FILE).write_text("".join(map(to_line, seen)))
    recorded, evaluations = read_records(tmp_path)
    assert [(item.step, item.loss, item.grad_norm) for item in recorded] == [(1, 1.0, 2.0), (2, 0.5, 2.0)]
    assert evaluations == ()
    lines = [
        {"step": 1, "loss": "nan", "learning_rate": 0.1, "grad_norm": 3},
        {"step": 1, "epoch": 0.5, "eval_loss": 2.0, "eval_runtime": 5.0},
    ]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recorded, evaluations = read_records(tmp_path / "run.jsonl")
    assert math.isnan(recorded[0].loss)
    assert [(item.epoch, item.metrics) for item in evaluations] == [(1, {"loss": 2.0})]
    (tmp_path / "run").mkdir()
    history = {"log_history": [*lines, {"step": 1, "train_runtime": 5.0, "train_loss": 1.0}]}
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(history))
    assert len(read_records(tmp_path / "run")[0]) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no records"),
        ("{]", "line 1 is not JSON"),
        ('{"loss": 1}', "record 1 has no step"),
        ('{"step": 1, "loss": 1}', "it has no learning_rate, grad_norm"),
        ('{"step": 1, "loss": "low", "learning_rate": 1, "grad_norm": 1}', "could not convert"),
    ],
)
def test_records_that_are_refused(tmp_path, content, words):
    (tmp_path / "run.jsonl").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_records(tmp_path / "run.jsonl")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_records(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no records of a run"):
        read_records(tmp_path / "other.json")
