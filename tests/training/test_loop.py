"""The loop learns, is reproducible to the bit, and stops with a clear word."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from companion.data import Example, Task
from companion.models import load
from companion.training import TrainingConfig, fit, predict_logits
from companion.training.optimization import make_schedule, parameter_groups

LABELS = ("negative", "positive")
TASK = Task("toy", "accuracy", LABELS, False, "one adjective decides")


@pytest.fixture
def classifier(encoder_folder: Path):
    return load(encoder_folder, labels=LABELS)


def config(**changes) -> TrainingConfig:
    basis = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
    return TrainingConfig(**{**basis, **changes})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def trained(folder: Path, examples, **changes):
    classifier = load(folder, labels=LABELS)
    fit(classifier.model, classifier.tokenizer, examples, config=config(**changes))
    return weights(classifier.model)


def test_learns_a_toy_task_and_records_every_step(classifier, toy):
    train, dev = toy[:256], toy[256:]
    run = fit(classifier.model, classifier.tokenizer, train, config=config(epochs=6), dev=dev, task=TASK)
    losses = [step.loss for step in run.steps]
    assert sum(losses[-16:]) < 0.3 * sum(losses[:16])
    assert run.evaluations[-1].metrics["accuracy"] > 0.9
    assert [step.step for step in run.steps] == list(range(1, 6 * 16 + 1))
    assert [(done.epoch, done.step) for done in run.evaluations] == [(e, 16 * e) for e in range(1, 7)]
    assert (run.precision, run.device) == ("fp32", "cpu")
    assert run.examples_per_second == run.steps[-1].examples_per_second > 0
    assert all(math.isfinite(step.grad_norm) and step.grad_norm > 0 for step in run.steps)
    assert not classifier.model.training
    logits = predict_logits(classifier.model, classifier.tokenizer, dev, max_length=48)
    right = (logits.argmax(1) == [example.label for example in dev]).mean()
    assert right == run.evaluations[-1].metrics["accuracy"]


def test_one_seed_gives_one_set_of_weights(encoder_folder, toy):
    first = trained(encoder_folder, toy[:96])
    torch.manual_seed(1234)  # whatever the caller's random state is
    torch.rand(7)
    assert same(first, trained(encoder_folder, toy[:96]))
    assert not same(first, trained(encoder_folder, toy[:96], seed=1))


def test_workers_do_not_change_the_weights(encoder_folder, toy):
    assert same(trained(encoder_folder, toy[:48]), trained(encoder_folder, toy[:48], workers=2))


def test_the_global_random_state_is_left_alone(classifier, toy):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(classifier.model, classifier.tokenizer, toy[:32], config=config())
    assert torch.equal(before, torch.get_rng_state())


def test_bf16_runs_on_a_cpu_and_is_another_arithmetic(encoder_folder, toy):
    classifier = load(encoder_folder, labels=LABELS)
    run = fit(classifier.model, classifier.tokenizer, toy[:96], config=config(precision="bf16"))
    assert run.precision == "bf16"
    assert {parameter.dtype for parameter in classifier.model.parameters()} == {torch.float32}
    assert not same(weights(classifier.model), trained(encoder_folder, toy[:96]))


def test_steps_are_taken_with_the_scheduled_rates(classifier, toy):
    run = fit(
        classifier.model,
        classifier.tokenizer,
        toy[:320],
        config=config(learning_rate=1e-3, warmup=0.2, epochs=2, batch_size=32),
    )
    rates = [step.learning_rate for step in run.steps]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:] == pytest.approx([1e-3 * (20 - step) / 16 for step in range(4, 20)])


@pytest.mark.parametrize(("total", "share"), [(100, 0.1), (100, 0.0), (1, 0.06), (3, 0.99), (7, 0.5)])
def test_schedule_rises_to_its_peak_and_ends_at_zero(total, share):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    schedule = make_schedule(optimizer, TrainingConfig(warmup=share), total)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    warmup = math.ceil(total * share)
    assert max(rates) == pytest.approx(2.0)
    assert all(rate > 0 for rate in rates), "no step is taken in vain"
    rise, fall = rates[:warmup], rates[warmup:]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    assert schedule.get_last_lr()[0] == 0


def test_groups_hold_every_trainable_parameter_once(classifier):
    model = classifier.model
    frozen = model.bert.embeddings.word_embeddings.weight
    frozen.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.3)
    held = [id(parameter) for parameter in (*decayed["params"], *plain["params"])]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters()} - {id(frozen)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("LayerNorm" in names[id(p)] or "bias" in names[id(p)] for p in plain["params"])
    assert not any("LayerNorm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])


def test_gradients_are_clipped_before_the_step(classifier, toy, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **keywords):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run = fit(classifier.model, classifier.tokenizer, toy[:64], config=config(max_grad_norm=0.01))
    assert all(record.grad_norm > 0.02 for record in run.steps), "the record is from before clipping"
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_texts_longer_than_the_position_table_are_cut(encoder_folder, toy):
    classifier = load(encoder_folder, labels=LABELS)
    long = [example._replace(text=example.text * 40) for example in toy[:8]]
    run = fit(
        classifier.model, classifier.tokenizer, long, config=config(max_length=512), dev=long, task=TASK
    )
    assert len(run.steps) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_padding_stays_inside_the_position_table(encoder_folder, toy, precision):
    """Widths are multiples of 8; a table of 42 positions is not."""
    from transformers import BertConfig, BertForSequenceClassification

    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=800, max_position_embeddings=42, **narrow))
    tokenizer = load(encoder_folder, labels=LABELS).tokenizer
    tokenizer.model_max_length = 42
    long = [example._replace(text=example.text * 40) for example in toy[:8]]
    fit(model, tokenizer, long, config=config(max_length=512, precision=precision), dev=long, task=TASK)
    assert predict_logits(model, tokenizer, long, max_length=42).shape == (8, 2)


def test_a_loss_that_is_not_finite_ends_it_with_the_step(classifier, toy, monkeypatch):
    steps = iter(range(100))
    forward = type(classifier.model).forward

    def breaks(self, *arguments, **keywords):
        output = forward(self, *arguments, **keywords)
        if self.training and next(steps) == 2:
            output.logits = output.logits * float("nan")
        return output

    monkeypatch.setattr(type(classifier.model), "forward", breaks)
    with pytest.raises(ValueError, match=r"step 3: the loss is nan.*lower the learning rate \(now 0\.003\)"):
        fit(classifier.model, classifier.tokenizer, toy[:96], config=config())
    assert not classifier.model.training
    assert all(torch.isfinite(tensor).all() for tensor in classifier.model.state_dict().values())
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    logits = predict_logits(classifier.model, classifier.tokenizer, toy[:4], max_length=48)
    assert torch.isfinite(torch.from_numpy(logits)).all()


def test_a_huge_learning_rate_is_named(classifier, toy):
    with pytest.raises(ValueError, match=r"step \d+: .* lower the learning rate"):
        fit(classifier.model, classifier.tokenizer, toy[:96], config=config(learning_rate=1e38, epochs=3))


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ([], "no training examples"),
        ([Example("a", 0), Example("b", None)], "training example 1 has no label"),
        ([Example("a", 0), Example("b", 2)], "training example 1 has label 2.*expected 0 to 1"),
        ([Example("a", -1), Example("b", 1)], "training example 0 has label -1"),
        ([Example("a", 0), Example("b", 0.5)], "label 0.5"),
        ([Example("a", 0), Example("b", float("nan"))], "label nan"),
        ([Example("a", 0), Example("b", float("inf"))], "label inf"),
        ([Example("a", 1), Example("b", 1)], "same label"),
    ],
)
def test_examples_that_cannot_be_learnt_from_are_refused(classifier, examples, words):
    before = weights(classifier.model)
    with pytest.raises(ValueError, match=words):
        fit(classifier.model, classifier.tokenizer, examples, config=config())
    assert same(before, weights(classifier.model))


def test_development_examples_are_checked_before_the_first_step(classifier, toy):
    with pytest.raises(ValueError, match="development example 1 has label 5"):
        fit(classifier.model, classifier.tokenizer, toy[:8], dev=[toy[0], Example("b", 5)], task=TASK)
    with pytest.raises(ValueError, match="dev and task go together"):
        fit(classifier.model, classifier.tokenizer, toy[:8], task=TASK)
    with pytest.raises(ValueError, match="no development examples"):
        fit(classifier.model, classifier.tokenizer, toy[:8], dev=[], task=TASK)


def test_regression_learns_a_number(encoder_folder, toy):
    classifier = load(encoder_folder, regression=True)
    task = Task("score", "pearson", (), False, "a number")
    scored = [Example(example.text, 4.0 * example.label + 0.5) for example in toy]
    run = fit(
        classifier.model,
        classifier.tokenizer,
        scored[:256],
        config=config(epochs=6),
        dev=scored[256:],
        task=task,
    )
    assert run.evaluations[-1].metrics["pearson"] > 0.8
    with pytest.raises(ValueError, match="target nan"):
        fit(classifier.model, classifier.tokenizer, [Example("a", float("nan"))])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("max_length", 7),
        ("workers", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("max_grad_norm", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("warmup", float("nan")),
        ("warmup", -1),
        ("precision", "fp8"),
        ("schedule", "cosin"),
        ("optimizer", "sgd"),
        ("micro_batch_size", 0),
        ("max_steps", 0),
        ("evaluate_every", 0),
        ("checkpoint_every", 0),
        ("keep", 0),
    ],
)
def test_a_choice_that_cannot_work_is_named(field, value):
    with pytest.raises(ValueError, match=rf"{field} is"):
        TrainingConfig(**{field: value})


def test_a_device_that_is_not_there_is_named(classifier, toy, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setenv("COMPANION_DEVICE", "cuda")
    with pytest.raises(ValueError, match="COMPANION_DEVICE is 'cuda'"):
        fit(classifier.model, classifier.tokenizer, toy[:8], config=config())


@pytest.mark.weights
def test_the_embedded_encoder_can_be_fine_tuned(toy):
    classifier = load("embedded", labels=LABELS)
    examples = [example for example in toy if len(example.text) < 60][:64]
    run = fit(
        classifier.model,
        classifier.tokenizer,
        examples,
        config=config(learning_rate=2e-4, batch_size=16, epochs=2),
    )
    assert run.steps[-1].loss < 0.8 * run.steps[0].loss
