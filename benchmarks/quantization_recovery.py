"""What training with rounding wins back of what rounding costs, over seeds: the part `qat`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from companion import data, inference, models, training
from companion.inference.exporting import feeds_of, to_onnx
from companion.inference.quantization.calibration import Method
from companion.inference.quantization.rounding import rounded
from companion.inference.quantization.schemes import Fixed, WeightsOnly, quantize
from companion.inference.sessions import run_all
from companion.training.distillation import layers_of, make_student

FP32, STATIC, AWARE = "FP32", "rounded afterwards", "trained with rounding, then rounded"
MORE, MORE_STATIC = "FP32, trained as much longer", "trained as much longer, rounded afterwards"
CALIBRATION = 256
RESAMPLES = 10_000


@dataclass(frozen=True)
class Configuration:
    """How a model is made and narrowed.

    `layers`: so many of the encoder's, evenly spaced; all if None. `method` chooses the ranges of
    `int8-fixed`, `block` is the number of weights of the other two that share a scale. `epochs` and
    `learning_rate` are those of the training with rounding, which begins with the trained model.
    `outliers`: so many times larger is one channel of each attention head, see `with_outliers`.
    """

    precision: Literal["int8-fixed", "int4-weights", "int2-weights"]
    layers: int | None = None
    method: Method = "error"
    block: int = 32
    epochs: int = 1
    learning_rate: float = 5e-5
    outliers: float = 1.0


CONFIGURATIONS = {
    "int8-fixed": Configuration("int8-fixed"),
    # What onnxruntime's quantize_static does unless told otherwise: all that was seen is covered.
    "int8-fixed-minmax": Configuration("int8-fixed", method="minmax"),
    "int4-weights": Configuration("int4-weights"),
    "int4-weights-256": Configuration("int4-weights", block=256),
    "three-layers-int4-weights-256": Configuration("int4-weights", layers=3, block=256),
    # Four values for each weight: nobody should round to them without training for it.
    "int2-weights": Configuration("int2-weights", epochs=2, learning_rate=1e-4),
    # What large models have by themselves, and this one has not: a few channels that set the scale for all.
    "int8-fixed-outliers": Configuration("int8-fixed", outliers=64),
}


def recovery(task: data.TaskData, encoder: str, configuration: Configuration, seed: int) -> dict[str, Any]:
    """Train a model, narrow it, and narrow it again after more training with and without rounding.

    Returns which held-out examples each of the five gets right, as hexadecimal bits, and their accuracies.
    """
    plain = fine_tuned(task, encoder, configuration, seed)
    aware, longer = (replace(plain, model=copy.deepcopy(plain.model)) for _ in range(2))
    config = training.TrainingConfig(
        epochs=configuration.epochs, learning_rate=configuration.learning_rate, seed=seed + 1
    )
    with rounded(
        aware,
        configuration.precision,
        calibration=task.train[:CALIBRATION],
        method=configuration.method,
        block=configuration.block,
    ):
        training.fit(aware.model, aware.tokenizer, task.train, config=config)
    training.fit(longer.model, longer.tokenizer, task.train, config=config)
    wide, trained, more = (to_onnx(one, precision="fp32") for one in (plain, aware, longer))
    ask = partial(answers, task=task, classifier=plain)
    right = {
        FP32: ask(wide),
        STATIC: ask(narrowed(wide, plain, configuration, task)),
        AWARE: ask(narrowed(trained, aware, configuration, task)),
        MORE: ask(more),
        MORE_STATIC: ask(narrowed(more, longer, configuration, task)),
    }
    return {
        "configuration": asdict(configuration),
        "train": len(task.train),
        "examples": len(task.dev),
        "accuracy": {name: float(values.mean()) for name, values in right.items()},
        "right": {name: np.packbits(values).tobytes().hex() for name, values in right.items()},
    }


def fine_tuned(
    task: data.TaskData, encoder: str, configuration: Configuration, seed: int
) -> models.Classifier:
    """Fine-tune an encoder, or some of its layers, with the defaults of `companion train`."""
    classifier = models.load(encoder, labels=task.task.labels, seed=seed)
    if configuration.layers is not None:
        deepest = len(layers_of(classifier.model)[1]) - 1
        chosen = np.linspace(0, deepest, configuration.layers).round().astype(int).tolist()
        classifier = replace(classifier, model=make_student(classifier.model, chosen))
    config = training.TrainingConfig(seed=seed)
    training.fit(classifier.model, classifier.tokenizer, task.train, config=config)
    with_outliers(classifier.model, configuration.outliers)
    return classifier


@torch.no_grad()
def with_outliers(model: nn.Module, times: float) -> None:
    """Make the first channel of each head's values larger, and its use as much smaller, in place.

    What is attended to is linear in the values, so float32 gives the same answers. A grid of 256 steps for
    all channels of a product's input has as much less left for the others.
    """
    for layer in layers_of(model)[1]:
        attention = layer.attention
        channels = slice(0, None, attention.self.attention_head_size)
        attention.self.value.weight[channels] *= times
        attention.self.value.bias[channels] *= times
        attention.output.dense.weight[:, channels] /= times


def narrowed(
    model: onnx.ModelProto, classifier: models.Classifier, configuration: Configuration, task: data.TaskData
) -> onnx.ModelProto:
    """Quantize a graph as a configuration says."""
    bits = {"int4-weights": 4, "int2-weights": 2}.get(configuration.precision)
    if bits is not None:
        return quantize(model, WeightsOnly(bits, configuration.block))
    feeds = feeds_of(classifier, task.train[:CALIBRATION])
    return quantize(model, Fixed(inference.calibrate(model, feeds, method=configuration.method)))


def answers(model: onnx.ModelProto, classifier: models.Classifier, task: data.TaskData) -> NDArray[np.bool_]:
    """Tell which held-out examples a graph gets right."""
    logits = run_all(model.SerializeToString(), feeds_of(classifier, task.dev))
    return np.asarray(logits.argmax(axis=1) == np.array(data.labels_of(task.dev)))


@dataclass(frozen=True)
class Recovered:
    """What each variant loses against FP32, and the share that training with rounding wins back.

    `shares` has one for each seed; None where rounding afterwards lost nothing. So has `share`, that of all.
    """

    lost: Mapping[str, inference.Estimate]
    share: inference.Estimate | None
    shares: tuple[float | None, ...]


def recovered(seeds: Sequence[Mapping[str, Any]], *, level: float = 0.95) -> Recovered:
    """Put seeds together; intervals are those of drawing seeds and held-out examples again, with replacement.

    `seeds` has what `recovery` returned for each. Where rounding afterwards loses nothing in a resample, the
    share has no value, and counts as infinitely bad for one end and infinitely good for the other.
    """
    right = {name: np.array([bits(seed, name) for seed in seeds]) for name in seeds[0]["right"]}
    names = [name for name in right if name != FP32]
    worse = {name: right[FP32] - right[name] for name in names}
    generator = np.random.default_rng(0)
    count, examples = right[FP32].shape
    of_seeds = generator.multinomial(count, [1 / count] * count, RESAMPLES) / count
    of_examples = generator.multinomial(examples, [1 / examples] * examples, RESAMPLES) / examples
    drawn = {name: ((of_examples @ worse[name].T) * of_seeds).sum(axis=1) for name in names}
    tails = (1 - level) / 2, (1 + level) / 2
    lost = {
        name: inference.Estimate(float(worse[name].mean()), *map(float, np.quantile(drawn[name], tails)))
        for name in names
    }
    defined = drawn[STATIC] > 0
    share = 1 - np.divide(drawn[AWARE], drawn[STATIC], out=np.zeros(RESAMPLES), where=defined)
    ends = (
        float(np.quantile(np.where(defined, share, -np.inf), tails[0], method="lower")),
        float(np.quantile(np.where(defined, share, np.inf), tails[1], method="higher")),
    )
    losses = [(worse[AWARE][seed].mean(), worse[STATIC][seed].mean()) for seed in range(count)]
    shares = tuple(float(1 - aware / static) if static > 0 else None for aware, static in losses)
    whole = lost[STATIC].value
    total = inference.Estimate(1 - lost[AWARE].value / whole, *ends) if whole > 0 else None
    return Recovered(lost, total, shares)


def bits(row: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """Read which examples a variant gets right: 1 or 0 each."""
    packed = np.frombuffer(bytes.fromhex(row["right"][name]), dtype=np.uint8)
    return np.unpackbits(packed, count=row["examples"]).astype(np.float64)
