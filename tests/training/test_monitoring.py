"""The monitor sees what is there, changes nothing, and survives a killed run."""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from companion.models import load
from companion.training import TrainingConfig, fit
from companion.training.callbacks import Callback
from companion.training.monitoring.health import Thresholds
from companion.training.monitoring.monitor import Monitor
from companion.training.monitoring.observations import (
    FILE,
    Alarm,
    Observation,
    read_alarms,
    read_log,
    read_observations,
    to_line,
)
from companion.training.monitoring.plots import (
    plot_attention_entropy,
    plot_gradient_norms,
    plot_update_ratios,
)

LABELS = ("negative", "positive")
LAYERS = ["embeddings", "layer 0", "layer 1", "head"]


def config(**changes) -> TrainingConfig:
    basis = {"epochs": 1, "batch_size": 16, "learning_rate": 3e-3, "max_length": 48, "precision": "fp32"}
    return TrainingConfig(**{**basis, **changes})


def quiet(folder: Path | None = None, **changes) -> Monitor:
    return Monitor(folder, **{"every": 5, "tensorboard": False, **changes})


def trained(folder: Path, examples, *callbacks, checkpoints=None, resume=False, **changes):
    model = load(folder, labels=LABELS)
    run = fit(
        model.model,
        model.tokenizer,
        examples,
        config=config(**changes),
        callbacks=callbacks,
        checkpoints=checkpoints,
        resume=resume,
    )
    return model.model, run


def steps(observations) -> list[int]:
    return [seen.step for seen in observations]


class Then(Callback):
    """Calls a function at one moment of every step."""

    def __init__(self, *, start=None, gradients=None, step=None) -> None:
        self.start, self.gradients, self.step = start, gradients, step

    def on_start(self, state) -> None:
        if self.start:
            self.start(state)

    def on_gradients(self, state) -> None:
        if self.gradients:
            self.gradients(state)

    def on_step(self, state, record) -> None:
        if self.step:
            self.step(state, record)


# --- what it sees


def test_observes_step_one_and_every_so_many(encoder_folder, toy):
    monitor = quiet(every=4)
    _, run = trained(encoder_folder, toy[:160], monitor)
    assert steps(monitor.observations) == [1, 4, 8]
    for seen in monitor.observations:
        record = run.steps[seen.step - 1]
        assert (seen.loss, seen.learning_rate, seen.grad_norm) == (
            record.loss,
            record.learning_rate,
            record.grad_norm,
        )
        assert seen.examples_per_second == record.examples_per_second
        assert list(seen.grad_norm_by_layer) == list(seen.update_ratio_by_layer) == LAYERS
        squares = sum(norm**2 for norm in seen.grad_norm_by_layer.values())
        assert math.sqrt(squares) == pytest.approx(record.grad_norm, rel=1e-5)
        assert list(seen.attention_entropy_by_layer) == ["layer 0", "layer 1"]
        assert all(0 < value < 1 for value in seen.attention_entropy_by_layer.values())
        assert seen.memory > 1e7
        assert seen.seconds_of_monitoring > 0
    assert sum(seen.seconds_of_monitoring for seen in monitor.observations) <= monitor.seconds


def test_update_ratios_are_those_of_the_weights(encoder_folder, toy):
    monitor, copies = quiet(every=2), []

    def keep(state, *_) -> None:
        copies.append({n: p.detach().clone() for n, p in state.model.named_parameters()})

    trained(encoder_folder, toy[:64], monitor, Then(gradients=keep, step=keep))

    def norm(tensors) -> float:
        return math.sqrt(sum(float(tensor.double().pow(2).sum()) for tensor in tensors))

    assert steps(monitor.observations) == [1, 2, 4]
    for seen in monitor.observations:
        before, after = copies[2 * seen.step - 2], copies[2 * seen.step - 1]
        for layer, part in (("layer 0", "encoder.layer.0."), ("layer 1", "encoder.layer.1.")):
            change = norm(after[name] - before[name] for name in before if part in name)
            size = norm(before[name] for name in before if part in name)
            assert seen.update_ratio_by_layer[layer] == pytest.approx(change / size, rel=1e-4)


def test_frozen_layers_are_left_out(encoder_folder, toy):
    monitor = quiet()
    trained(
        encoder_folder,
        toy[:32],
        Then(start=lambda state: state.model.bert.encoder.layer[0].requires_grad_(False)),
        monitor,
    )
    assert list(monitor.observations[0].grad_norm_by_layer) == ["embeddings", "layer 1", "head"]
    assert monitor.alarms == []


# --- what it leaves alone


def test_weights_and_random_state_are_those_of_a_run_without_it(encoder_folder, toy, tmp_path):
    states: list[list[torch.Tensor]] = [[], []]
    modes: list[set[tuple[str, str, bool]]] = [set(), set()]

    def note(index: int) -> Callback:
        def step(state, record) -> None:
            states[index].append(torch.get_rng_state())
            modes[index].update(
                (name, state.model.config._attn_implementation, module.training)
                for name, module in state.model.named_modules()
            )

        # One module in evaluation mode while the others train must stay so.
        return Then(gradients=lambda state: state.model.dropout.eval(), step=step)

    bare, run = trained(encoder_folder, toy[:96], note(0))
    watched, watched_run = trained(encoder_folder, toy[:96], Monitor(tmp_path, every=1), note(1))
    assert [r.loss for r in run.steps] == [r.loss for r in watched_run.steps]
    for (name, one), (_, other) in zip(bare.state_dict().items(), watched.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert len(states[0]) == 6
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert modes[0] == modes[1]
    assert ("dropout", "sdpa", False) in modes[1]
    assert ("", "sdpa", True) in modes[1]


# --- alarms


def test_a_healthy_run_raises_none(encoder_folder, toy, tmp_path):
    monitor = quiet(tmp_path, every=5)
    _, run = trained(encoder_folder, toy, monitor, epochs=4)
    assert run.steps[-1].loss < run.steps[0].loss / 4, "it must have learned, or it proves nothing"
    assert monitor.alarms == []
    assert read_alarms(tmp_path) == ()


def kinds_and_places(monitor: Monitor) -> list[tuple[str, str]]:
    return [(alarm.kind, alarm.where) for alarm in monitor.alarms]


def test_a_planted_dead_layer(encoder_folder, toy, caplog, tmp_path):
    def cut(state) -> None:
        layer = state.model.bert.encoder.layer[1]
        layer.forward = lambda hidden_states, *args, **kwargs: hidden_states

    monitor = quiet(tmp_path, every=2, attention_rows=0)
    with caplog.at_level(logging.WARNING, "companion.training"):
        trained(encoder_folder, toy[:128], Then(start=cut), monitor)
    assert kinds_and_places(monitor) == [("dead layer", "layer 1")]
    [alarm] = monitor.alarms
    assert (alarm.step, alarm.value) == (2, 0.0), "two observations in a row"
    assert [str(alarm)] == [record.getMessage() for record in caplog.records], "said once"
    assert read_alarms(tmp_path) == (alarm,)


def test_a_layer_that_the_optimizer_does_not_move(encoder_folder, toy):
    def pin(state) -> None:
        pinned = {id(parameter) for parameter in state.model.bert.encoder.layer[0].parameters()}
        for group in state.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in pinned]

    monitor = quiet(every=2)
    trained(encoder_folder, toy[:64], Then(start=pin), monitor)
    assert kinds_and_places(monitor) == [("dead layer", "layer 0")]
    assert "optimizer" in monitor.alarms[0].advice


def test_a_planted_spike(encoder_folder, toy):
    monitor = quiet(every=1000)  # every step's loss is looked at, observed or not

    def ruin(state, record) -> None:
        if record.step == 70:
            with torch.no_grad():
                state.model.classifier.weight.mul_(-20)

    _, run = trained(encoder_folder, toy, monitor, Then(step=ruin), epochs=4)
    assert kinds_and_places(monitor) == [("loss spike", "loss")]
    [alarm] = monitor.alarms
    assert alarm.step == 71
    assert alarm.value == run.steps[70].loss > alarm.threshold


def test_a_planted_collapse(encoder_folder, toy):
    def collapse(state, record) -> None:
        if record.step == 3:
            attention = state.model.bert.encoder.layer[1].attention.self
            with torch.no_grad():
                attention.query.weight.mul_(300)
                attention.key.weight.mul_(300)

    monitor = quiet(every=2)
    trained(encoder_folder, toy[:96], Then(step=collapse), monitor, learning_rate=1e-4)
    assert ("attention collapse", "layer 1") in kinds_and_places(monitor)
    assert ("attention collapse", "layer 0") not in kinds_and_places(monitor)
    [alarm] = [alarm for alarm in monitor.alarms if alarm.kind == "attention collapse"]
    assert alarm.step == 4
    assert alarm.value < 0.1


def test_non_finite_gradients_are_traced_before_the_run_ends(encoder_folder, toy, tmp_path):
    def spoil(state) -> None:  # the way back through layer 0, at a step that is not observed
        if state.step == 3:
            for part in ("embeddings", "encoder.layer.0"):
                for parameter in state.model.bert.get_submodule(part).parameters():
                    parameter.grad.fill_(math.nan)

    monitor = quiet(tmp_path, every=1000)
    with pytest.raises(ValueError, match="step 4"):
        trained(encoder_folder, toy[:96], Then(gradients=spoil), monitor)
    [alarm] = read_alarms(tmp_path)
    assert (alarm.step, alarm.kind, alarm.where, alarm.value) == (4, "non-finite gradients", "layer 0", 2)


def test_a_learning_rate_of_zero_in_mid_run(encoder_folder, toy):
    def stall(state) -> None:
        state.schedule.lr_lambdas = [lambda step: float(step < 2) for _ in state.schedule.lr_lambdas]

    monitor = quiet(every=2)
    trained(encoder_folder, toy[:96], Then(start=stall), monitor)
    assert kinds_and_places(monitor) == [("learning rate zero", "learning rate")]
    assert monitor.alarms[0].step == 3


def test_models_without_attention_weights_are_said_once(encoder_folder, toy, caplog, monkeypatch):
    monkeypatch.setattr("companion.training.monitoring.monitor.entropy_by_layer", lambda *_, **__: None)
    monitor = quiet(every=1)
    with caplog.at_level(logging.WARNING, "companion.training"):
        trained(encoder_folder, toy[:48], monitor)
    assert [seen.attention_entropy_by_layer for seen in monitor.observations] == [{}, {}, {}]
    [record] = caplog.records
    assert "no attention entropy: BertForSequenceClassification" in record.getMessage()


# --- files


def test_the_file_holds_what_was_observed(encoder_folder, toy, tmp_path):
    monitor = quiet(tmp_path / "new" / "folder")
    trained(encoder_folder, toy[:160], monitor)
    assert read_observations(tmp_path / "new" / "folder" / FILE) == tuple(monitor.observations)


def test_nothing_is_written_without_a_folder(encoder_folder, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(encoder_folder, toy[:32], Monitor(None, every=1))
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Ends a run as a signal does: nobody catches it."""


def killed_at(step: int) -> Callback:
    def end(state, record) -> None:
        if record.step == step:
            raise Killed

    return Then(step=end)


def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(encoder_folder, toy, tmp_path):
    changes = {"checkpoint_every": 4, "epochs": 1}
    whole = quiet(tmp_path / "whole", every=3)
    trained(encoder_folder, toy[:256], whole, checkpoints=tmp_path / "a", **changes)

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        trained(
            encoder_folder,
            toy[:256],
            quiet(cut, every=3),
            killed_at(10),
            checkpoints=tmp_path / "b",
            **changes,
        )
    assert steps(read_observations(cut)) == [1, 3, 6, 9], "beyond the checkpoint of step 8"
    with (cut / FILE).open("a") as file:  # cut off in the middle of a line, and an alarm from the lost steps
        file.write(to_line(Alarm(10, "loss spike", "loss", 9.0, 1.0, "")) + '{"observation": {"st')
    resumed = quiet(cut, every=3)
    _, run = trained(encoder_folder, toy[:256], resumed, checkpoints=tmp_path / "b", resume=True, **changes)
    assert run.resumed_from == 8
    assert (
        steps(read_observations(cut)) == steps(read_observations(tmp_path / "whole")) == [1, *range(3, 16, 3)]
    )
    assert read_observations(cut) == tuple(resumed.observations)
    assert read_alarms(cut) == ()
    timeless = {"seconds_of_monitoring": 0.0, "examples_per_second": 0.0, "memory": 0}
    assert [replace(seen, **timeless) for seen in resumed.observations] == [
        replace(seen, **timeless) for seen in whole.observations
    ]


def test_a_run_from_the_start_does_not_mix_with_an_earlier_one(encoder_folder, toy, tmp_path, caplog):
    for _ in range(2):
        trained(encoder_folder, toy[:48], quiet(tmp_path, every=1))
    assert steps(read_observations(tmp_path)) == [1, 2, 3]
    assert "3 observations from beyond step 0 are dropped" in caplog.text


def test_tensorboard_reads_the_events_of_a_resumed_run(encoder_folder, toy, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"checkpoint_every": 4, "epochs": 1}
    with pytest.raises(Killed):
        trained(
            encoder_folder,
            toy[:160],
            Monitor(tmp_path, every=3, jsonl=False),
            killed_at(7),
            checkpoints=tmp_path / "c",
            **changes,
        )
    monitor = Monitor(tmp_path, every=3)
    monitor.thresholds = Thresholds(layer_norm=(1e-4, 1e-3))  # everything is out of this band
    trained(encoder_folder, toy[:160], monitor, checkpoints=tmp_path / "c", resume=True, **changes)
    assert (tmp_path / FILE).exists()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("run/loss")
    assert [event.step for event in losses] == [1, 3, 6, 9], "step 6 once, though it was written twice"
    assert [event.value for event in losses[2:]] == pytest.approx(
        [seen.loss for seen in monitor.observations]
    )
    last = monitor.observations[-1]
    [*_, event] = events.Scalars("gradient_norm/layer_0")
    assert event.value == pytest.approx(last.grad_norm_by_layer["layer 0"])
    [*_, event] = events.Scalars("attention_entropy/layer_1")
    assert event.value == pytest.approx(last.attention_entropy_by_layer["layer 1"])
    assert events.Tensors("alarm/gradient_norm/text_summary")


OBSERVATION = Observation(
    3, 0.5, 1e-4, 12.0, {"head": 12.0}, {"head": math.inf}, {"layer 0": 0.5}, 10.0, 2**30, 0.01
)


def test_lines_survive_a_round_trip(tmp_path):
    alarm = Alarm(3, "gradient norm", "head", 12.0, 10.0, "say “less”")
    (tmp_path / FILE).write_text(to_line(OBSERVATION) + to_line(alarm))
    assert "Infinity" not in (tmp_path / FILE).read_text(), "strict JSON: any program can read it"
    log = read_log(tmp_path)
    assert (log.observations, log.alarms, log.truncated) == ((OBSERVATION,), (alarm,), False)
    assert {field.name for field in fields(Observation)} == set(vars(log.observations[0]))
    lost = replace(OBSERVATION, loss=math.nan)
    (tmp_path / FILE).write_text(to_line(lost))
    assert math.isnan(read_observations(tmp_path)[0].loss)


def test_a_line_that_was_cut_off_is_left_out_and_said(tmp_path, caplog):
    (tmp_path / FILE).write_text(to_line(OBSERVATION) + to_line(OBSERVATION)[:40])
    assert read_observations(tmp_path) == (OBSERVATION,)
    assert "line 2 was cut off" in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json\n", "Expecting value"),
        ("[1]\n", "no observation and no alarm"),
        ('{"observation": {"step": 1}}\n', "missing or unknown: attention_entropy_by_layer"),
        ('{"weights": {}}\n', "it holds 'weights'"),
        (to_line(OBSERVATION).replace("0.5", '"half"'), "could not convert"),
        ("\n", "Expecting value"),
    ],
)
def test_other_lines_are_refused(line, said, tmp_path):
    (tmp_path / FILE).write_text(to_line(OBSERVATION) + line + to_line(OBSERVATION))
    with pytest.raises(ValueError, match=f"line 2 .*{said}|line 2 is {said}"):
        read_observations(tmp_path)


def test_impossible_places_and_choices_are_refused(encoder_folder, toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"expected the {FILE}"):
        read_observations(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="every is 0"):
        Monitor(None, every=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: expected a folder"):
        trained(encoder_folder, toy[:32], quiet(tmp_path / "file"))


@pytest.mark.parametrize(
    ("norm", "band"), [(0.05, "low"), (1.0, "healthy"), (11.0, "high"), (math.nan, "high")]
)
def test_the_total_norm_is_reported_as_a_band(norm, band):
    assert replace(OBSERVATION, grad_norm=norm).band == band


# --- plots


def test_plots_say_what_they_show(encoder_folder, toy):
    monitor = quiet(every=3)
    trained(encoder_folder, toy[:160], monitor)
    norms, ratios, entropies = (
        plot(monitor.observations)
        for plot in (plot_gradient_norms, plot_update_ratios, plot_attention_entropy)
    )
    assert "all layers stay inside it" in norms.alt
    assert "4 observations, steps 1 to 9" in ratios.alt
    assert "lowest is" in entropies.alt
    for plot in (norms, ratios):
        assert all(layer in plot.svg for layer in LAYERS)
    sick = replace(monitor.observations[0], grad_norm_by_layer={"layer 0": 0.0, "head": 99.0})
    assert "outside it: layer 0, head" in plot_gradient_norms([sick]).alt
    with pytest.raises(ValueError, match="no observation tells the attention entropy"):
        plot_attention_entropy([replace(OBSERVATION, attention_entropy_by_layer={})])


def test_a_deep_model_fits_into_one_plot():
    layers = {"embeddings": 1.0, **{f"layer {i}": 0.1 * (i + 1) for i in range(12)}, "head": 2.0}
    plot = plot_gradient_norms([replace(OBSERVATION, grad_norm_by_layer=layers)] * 2)
    assert "layer 1 to layer 10" in plot.svg
