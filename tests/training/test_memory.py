"""What is counted agrees with a count by hand, the peak with torch's profiler, and the ladder never lies."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from companion.models import load
from companion.training.memory import StepMemory, ladder, ladder_plot, measure_step

walk = importlib.import_module("companion.training.memory.walk")


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def classifier(encoder_folder: Path):
    return load(encoder_folder, labels=("negative", "positive"))


def tokens(batch: int, seq: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 300, (batch, seq), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(batch) % 2}


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


# --- one step


def test_a_small_network_agrees_with_a_count_by_hand():
    found = measure_step(TwoLayers(), {"x": torch.randn(10, 8)}, repeats=1)
    numbers = 8 * 16 + 16 + 16 * 4 + 4
    assert found.parameter_bytes == found.gradient_bytes == 4 * numbers
    # Two moments of every number, and a counter for each of the four tensors.
    assert found.optimizer_bytes == 2 * 4 * numbers + 4 * 4
    # The input; the ReLU's output, which the second layer saves too, counted once; the output, squared.
    assert found.activation_bytes == 4 * 10 * (8 + 16 + 4)
    assert found.weight_copy_bytes == 0
    assert found.attention_bytes is None
    states = found.parameter_bytes + found.optimizer_bytes
    assert found.peak_bytes >= states + max(found.activation_bytes, found.gradient_bytes)
    assert found.state_bytes == states + found.gradient_bytes
    assert 0 < found.seconds_low <= found.seconds <= found.seconds_high


def test_frozen_parameters_have_no_gradients_and_no_optimizer_states():
    model = TwoLayers()
    model.first.requires_grad_(False)
    found = measure_step(model, {"x": torch.randn(10, 8)}, repeats=1)
    learned = 16 * 4 + 4
    assert (found.gradient_bytes, found.optimizer_bytes) == (4 * learned, 2 * 4 * learned + 2 * 4)
    assert found.activation_bytes == 4 * 10 * (16 + 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_is_the_profilers(classifier, precision, checkpointing):
    batch = tokens(8, 40)
    found = measure_step(
        classifier.model, batch, precision=precision, activation_checkpointing=checkpointing, repeats=1
    )
    model = copy.deepcopy(classifier.model).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        part = {name: tensor.clone() for name, tensor in batch.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(**part).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # makes the optimizer's states
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + found.optimizer_bytes
    assert found.peak_bytes == pytest.approx(resident + peak, rel=0.01)


def test_checkpointing_keeps_less_than_half_of_six_layers_and_more_than_their_inputs():
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertModel(config)
    batch = {name: tensor for name, tensor in tokens(8, 40).items() if name != "labels"}
    plain = measure_step(model, batch, repeats=1)
    checkpointed = measure_step(model, batch, activation_checkpointing=True, repeats=1)
    assert checkpointed.activation_bytes < 0.5 * plain.activation_bytes
    layer_input = 4 * 8 * 40 * 32
    one_layer = (plain.activation_bytes - checkpointed.activation_bytes) / 5  # all but one are not kept whole
    assert checkpointed.activation_bytes > 6 * layer_input + 0.9 * one_layer
    assert checkpointed.peak_bytes < plain.peak_bytes
    assert checkpointed.state_bytes == plain.state_bytes


def test_micro_batches_divide_the_activations(classifier):
    whole = measure_step(classifier.model, tokens(8, 40), repeats=1)
    parts = measure_step(classifier.model, tokens(8, 40), micro_batch_size=2, repeats=1)
    assert whole.activation_bytes / parts.activation_bytes == pytest.approx(4, rel=0.02)
    # From the second part on the gradients of the first are there, with all that the second saves.
    assert parts.peak_bytes >= parts.state_bytes + parts.activation_bytes
    assert whole.peak_bytes >= whole.parameter_bytes + whole.optimizer_bytes + whole.activation_bytes


def test_micro_batches_of_unequal_size_add_up_to_the_gradient_of_the_batch():
    model, batch = TwoLayers(), {"x": torch.randn(7, 8)}
    step = importlib.import_module("companion.training.memory.step")
    gradients = []
    for size in (7, 3):
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer.zero_grad = lambda set_to_none=True: None  # so that they can be read
        step._Parts(size, 7, torch.device("cpu"), False).step(model, optimizer, batch)
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-7)


def test_twice_the_length_is_four_times_the_attention_and_less_of_the_rest(classifier):
    short = measure_step(classifier.model, tokens(4, 24), attention="eager", repeats=1)
    long = measure_step(classifier.model, tokens(4, 48), attention="eager", repeats=1)
    assert long.attention_bytes == 4 * short.attention_bytes > 0
    assert 2 < long.activation_bytes / short.activation_bytes < 4
    rest = [found.activation_bytes - found.attention_bytes for found in (short, long)]
    assert rest[1] == pytest.approx(2 * rest[0], rel=0.02)


def test_eager_attention_saves_what_a_count_by_hand_says(classifier):
    model = without_dropout(classifier.model)
    found = measure_step(model, tokens(4, 24), attention="eager", repeats=1)
    assert found.attention_bytes == 2 * 4 * (4 * 2 * 24 * 24)  # the softmax of 2 layers, 2 heads, 4 texts
    assert measure_step(model, tokens(4, 32), attention="eager", repeats=1).attention_bytes is None  # 32 wide


def test_bf16_keeps_copies_of_the_weights_and_fp32_gradients(classifier):
    fp32 = measure_step(classifier.model, tokens(8, 40), repeats=1)
    bf16 = measure_step(classifier.model, tokens(8, 40), precision="bf16", repeats=1)
    linear = [module for module in classifier.model.modules() if isinstance(module, torch.nn.Linear)]
    assert bf16.weight_copy_bytes == sum(2 * p.numel() for module in linear for p in module.parameters())
    assert bf16.state_bytes == fp32.state_bytes
    assert bf16.activation_bytes < fp32.activation_bytes


def test_the_model_is_left_as_it_is(classifier):
    model = classifier.model.eval()
    model.activation_checkpointing_enable()
    model(**tokens(2, 10)).loss.backward()
    model.bert.embeddings.train()  # one part in another mode than the rest
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    config, modes = model.config.to_dict(), [module.training for module in model.modules()]
    implementation, random_state = model.config._attn_implementation, torch.get_rng_state()
    batch = tokens(4, 24)
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    measure_step(
        model, batch, precision="bf16", attention="eager", activation_checkpointing=False, micro_batch_size=3
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(one, p.grad) for one, p in zip(gradients, model.parameters(), strict=True))
    assert (model.config.to_dict(), [module.training for module in model.modules()]) == (config, modes)
    assert model.config._attn_implementation == implementation != "eager"
    assert model.is_activation_checkpointing
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(kept[name], batch[name]) for name in kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"micro_batch_size": 0}, "expected 1 to 4"),
        ({"micro_batch_size": 5}, "expected 1 to 4"),
        ({"activation_checkpointing": True}, "has no activation checkpointing"),
        ({"attention": "eager"}, "is no transformers model"),
        ({"batch": {}}, "no tensors"),
        ({"batch": {"x": torch.zeros(4, 8), "y": torch.zeros(3)}}, "as many examples each"),
        ({"model": TwoLayers().requires_grad_(False)}, "nothing to train"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, says):
    arguments = {"model": TwoLayers(), "batch": {"x": torch.zeros(4, 8)}, **change}
    model, batch = arguments.pop("model"), arguments.pop("batch")
    with pytest.raises(ValueError, match=says):
        measure_step(model, batch, **arguments)


# --- the ladder


def climb(classifier, toy, **changes):
    arguments = {"batch_size": 8, "max_length": 48, "repeats": 1, "keep_bf16": False, **changes}
    return ladder(classifier.model, classifier.tokenizer, toy[:40], **arguments)


def test_the_ladder_measures_every_rung(classifier, toy):
    walked = climb(classifier, toy)
    start, half, bf16, checkpointed, *parts, sharded = walked.rungs
    assert [rung.name for rung in parts] == [f"{count} micro-batches" for count in (2, 4, 8)]
    assert (start.length, half.length) == (48, 24)
    assert 0 <= start.tokens_cut < half.tokens_cut < 1
    assert start.texts_cut < half.texts_cut < 1
    assert all(rung.memory.activation_bytes < start.memory.activation_bytes for rung in walked.rungs[1:-1])
    assert (bf16.below, checkpointed.below) == (half, half)  # bf16 was measured, not kept
    assert [part.precision for part in parts] == ["fp32"] * 3
    assert [part.below for part in parts] == [checkpointed, *parts[:2]]
    assert half.saved(start) == 1 - half.peak_bytes / start.peak_bytes > 0
    activations = [rung.memory.activation_bytes for rung in (start, half)]
    assert half.activations_saved(start) == 1 - activations[1] / activations[0]
    assert half.slowdown(start) == half.memory.seconds / start.memory.seconds
    assert bf16.gives_up.endswith("not kept on the rungs above")
    assert not sharded.measured
    assert parts[-1].peak_bytes - 0.75 * parts[-1].memory.state_bytes <= sharded.peak_bytes + 1
    assert sharded.peak_bytes < parts[-1].peak_bytes
    assert walked.fitting is None
    assert "No budget" in walked.verdict


def test_bf16_is_kept_on_request(classifier, toy):
    walked = climb(classifier, toy[:16], keep_bf16=True, batch_size=2)
    assert [rung.precision for rung in walked.rungs] == ["fp32"] * 2 + ["bf16"] * 4
    assert walked.rungs[3].below == walked.rungs[2]
    assert [rung.micro_batches for rung in walked.rungs] == [1, 1, 1, 1, 2, 2]  # two texts have no four parts


def stand_in(peaks: list[int | None]):
    """Return a measurement with these peaks in turn; None is a step that runs out of memory."""
    left = iter(peaks)

    def measure(*_: object, **__: object) -> StepMemory:
        peak = next(left)
        if peak is None:
            raise torch.OutOfMemoryError("out of memory")
        return StepMemory(100, 100, 200, 50, 0, 0, peak, 1.0, 1.0, 1.0, "cpu")

    return measure


@pytest.mark.parametrize(
    ("budget", "first", "rungs"),
    [
        (1000, "start", 1),
        (999, "half the length", 2),
        (700, "half the length", 2),
        (650, "2 micro-batches", 5),
    ],
)
def test_the_walk_ends_at_the_first_rung_within_the_budget(
    classifier, toy, monkeypatch, budget, first, rungs
):
    monkeypatch.setattr(walk, "measure_step", stand_in([1000, 700, 690, 651, 650, 640, 630]))
    walked = climb(classifier, toy, budget_bytes=budget)
    assert (walked.fitting.name, len(walked.rungs)) == (first, rungs)
    assert walked.fitting is walked.rungs[-1]
    assert f"“{first}” is the first rung that fits" in walked.verdict


@pytest.mark.parametrize(("budget", "says"), [(629, "may be enough"), (100, "are not enough either")])
def test_a_computed_rung_never_fits(classifier, toy, monkeypatch, budget, says):
    monkeypatch.setattr(walk, "measure_step", stand_in([1000, 700, 690, 651, 650, 640, 630]))
    walked = climb(classifier, toy, budget_bytes=budget)
    assert walked.fitting is None
    assert walked.rungs[-1].peak_bytes == 630 - 300  # three quarters of 400 bytes of states are elsewhere
    assert walked.verdict.startswith("No measured rung fits")
    assert says in walked.verdict


def test_running_out_of_memory_is_a_rung_that_does_not_fit(classifier, toy, monkeypatch):
    monkeypatch.setattr(walk, "measure_step", stand_in([None, None, 690, 600]))
    walked = climb(classifier, toy, budget_bytes=620)
    assert [rung.peak_bytes for rung in walked.rungs] == [None, None, 690, 600]
    assert walked.fitting is walked.rungs[3]
    assert str(walked).count("out of memory") == 2
    monkeypatch.setattr(walk, "measure_step", stand_in([None] * 7))
    walked = climb(classifier, toy, budget_bytes=620)
    assert walked.verdict == "Every rung ran out of memory."
    assert walked.rungs[-1].peak_bytes is None


def test_other_errors_are_not_taken_for_a_lack_of_memory(classifier, toy, monkeypatch):
    def measure(*_: object, **__: object) -> StepMemory:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(walk, "measure_step", measure)
    with pytest.raises(RuntimeError, match="mat1"):
        climb(classifier, toy)


def test_the_table_and_the_plot_say_the_same(classifier, toy, monkeypatch):
    mebibytes = [peak * 2**20 for peak in (1000, 700, 690, 651, 650, 640, 630)]
    monkeypatch.setattr(walk, "measure_step", stand_in(mebibytes))
    walked = climb(classifier, toy, budget_bytes=640 * 2**20)
    text, html, plot = str(walked), walked._repr_html_(), ladder_plot(walked)
    assert repr(walked) == text
    assert html.count('<th scope="row">') == html.count("<tr") - 1 == len(walked.rungs) == 6
    assert html.count('<th scope="col"') == 10
    assert "<caption>" in html and "MiB" in html
    assert html.count('class="memory-fits"') == 1
    for shown in (text, html, plot.alt):
        assert walked.verdict in shown
        assert "half the length" in shown
    assert "30%" in text and "× 1.00" in text
    odd = replace(walked, model="<script>")
    assert "<script>" not in odd._repr_html_()


def test_one_repeat_shows_no_interval(classifier, toy, monkeypatch):
    monkeypatch.setattr(walk, "measure_step", stand_in([2**20] * 7))
    walked = climb(classifier, toy)
    first = walked.rungs[0]
    for low, shown in ((0.6, "0.6"), (0.4, "0.6 (0.4–0.6)")):
        memory = replace(first.memory, seconds=0.6, seconds_low=low, seconds_high=0.6)
        rungs = (replace(first, memory=memory), *walked.rungs[1:])
        assert f'<td class="text-right">{shown}</td>' in replace(walked, rungs=rungs)._repr_html_()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 41}, "expected 1 to 40"),
        ({"batch_size": 0}, "expected 1 to 40"),
        ({"budget_bytes": 0}, "positive number of bytes"),
        ({"processes": 1}, "at least 2"),
        ({"max_length": 7}, "expected at least 8"),
    ],
)
def test_a_ladder_that_cannot_stand_is_refused(classifier, toy, change, says):
    with pytest.raises(ValueError, match=says):
        climb(classifier, toy, **change)
