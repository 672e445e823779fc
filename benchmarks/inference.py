"""Text classification on a CPU: torch, ONNX FP32, the standard INT8, optimum's INT8, and ours, side by side.

    python benchmarks/inference.py --task sst2 --data GLUE_FOLDER [--model MODEL_FOLDER] [--threads 2]

Without --model it fine-tunes the embedded encoder first (at most 12,000 examples, two epochs) and keeps it
as an artifact. All candidates get the same texts, the same tokenizer, the same threads, and take turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from companion import artifacts, data, inference, models, training
from companion.inference.graph import Graph
from companion.settings import get_settings

BATCHES = (1, 8, 32)


def main() -> None:
    arguments = parse()
    threads = arguments.threads
    torch.set_num_threads(threads)
    task = data.load(arguments.task, data_dir=arguments.data, max_examples=12_000)
    model = arguments.model or train(task)
    with tempfile.TemporaryDirectory() as work:
        predictors = candidates(model, Path(work), threads)
        texts, labels = (task.test or task.dev), data.labels_of(task.test or task.dev)
        report = measure(
            task.task, [example.text for example in texts], labels, predictors, arguments.repeats
        )
    report["machine"] = artifacts.machine()
    report["threads"] = threads
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", type=Path, default=get_settings().data_dir, help="a GLUE folder")
    parser.add_argument("--model", type=Path, help="a fine-tuned model folder for the task")
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def train(task: data.TaskData) -> Path:
    """Fine-tune the profile's encoder with the defaults of `companion train`."""

    def build(folder: Path) -> None:
        classifier = models.load(get_settings().names.encoder, labels=task.task.labels)
        training.fit(classifier.model, classifier.tokenizer, task.train)
        training.save(classifier.model, classifier.tokenizer, folder, max_length=128)

    inputs = {"task": task.task.name, "train": artifacts.digest([list(example) for example in task.train])}
    return artifacts.make("benchmark-model", build, version=1, inputs=inputs)


def candidates(model: Path, work: Path, threads: int) -> dict[str, inference.Predictor]:
    inference.export(model, work / "fp32", precision="fp32")
    inference.export(model, work / "int8", precision="int8")
    inference.standard_int8(work / "fp32", work / "standard")
    found: dict[str, inference.Predictor] = {
        "torch eager FP32": inference.TorchPredictor(model),
        "ONNX FP32": inference.OnnxPredictor(work / "fp32", threads=threads),
        "standard dynamic INT8": inference.OnnxPredictor(work / "standard", threads=threads),
    }
    if optimum_int8(work / "fp32", work / "optimum"):
        found["optimum INT8 preset"] = inference.OnnxPredictor(work / "optimum", threads=threads)
    return found | {"companion INT8": inference.OnnxPredictor(work / "int8", threads=threads)}


def optimum_int8(fp32: Path, out: Path) -> bool:
    """Quantize with optimum's preset for this processor, if optimum is installed."""
    try:
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig
    except ImportError:
        return False
    import shutil
    from dataclasses import replace

    import onnx

    vnni = torch.cpu.get_capabilities().get("avx512_vnni", False)
    preset = AutoQuantizationConfig.avx512_vnni if vnni else AutoQuantizationConfig.avx2
    quantizer = ORTQuantizer.from_pretrained(fp32, file_name="model.onnx")
    quantizer.quantize(save_dir=out / "made", quantization_config=preset(is_static=False, per_channel=True))
    shutil.copytree(fp32, out, dirs_exist_ok=True)
    shutil.copy(out / "made" / "model_quantized.onnx", out / "model.onnx")
    shutil.rmtree(out / "made")
    manifest = inference.read_manifest(fp32)
    files = manifest.files | {"model.onnx": artifacts.digest(out / "model.onnx")}
    operators = Graph(onnx.load(str(out / "model.onnx"))).operators()
    from companion.inference.manifest import write_manifest

    write_manifest(replace(manifest, files=files, operators=operators), out)
    return True


def measure(
    task: data.Task,
    texts: Sequence[str],
    labels: Sequence[float],
    predictors: dict[str, inference.Predictor],
    repeats: int,
) -> dict[str, object]:
    rows: dict[str, dict[str, object]] = {name: {} for name in predictors}
    timings = {}
    for size in BATCHES:
        runs = {
            name: partial(predictor.logits, texts, batch_size=size) for name, predictor in predictors.items()
        }
        timings[size] = inference.side_by_side(runs, repeats=repeats)
    reference = predictors["torch eager FP32"].logits(texts).argmax(1)
    for name, predictor in predictors.items():
        logits = {size: predictor.logits(texts, batch_size=size) for size in BATCHES}
        chosen = {size: values.argmax(1) for size, values in logits.items()}
        rows[name] = {
            "texts_per_second": {size: timings[size][name].rate(len(texts))[0] for size in BATCHES},
            "accuracy": {size: data.score(task, labels, logits[size])[task.metric] for size in BATCHES},
            "moved_by_batch": int(np.any([chosen[size] != chosen[1] for size in BATCHES], axis=0).sum()),
            "bit_identical": all(np.array_equal(logits[size], logits[1]) for size in BATCHES),
            "flips_against_torch": int((chosen[32] != reference).sum()),
            "companion_int8_is_faster": {
                size: inference.ratio(timings[size][name], timings[size]["companion INT8"])
                for size in BATCHES
            },
        }
    return {
        "task": task.name,
        "metric": task.metric,
        "examples": len(texts),
        "repeats": repeats,
        "rows": rows,
    }


def table(report: dict[str, object]) -> str:
    head = f"{'':22} {'texts per second':>20} {report['metric']:>20} moved  same bits  flips  ours is faster"
    sizes = f"{'batch':22} {'1':>6} {'8':>6} {'32':>6} {'1':>6} {'8':>6} {'32':>6}"
    lines = [
        f"{report['task']}, {report['examples']} texts, {report['threads']} threads, "
        f"median of {report['repeats']} rounds",
        head,
        sizes,
    ]
    for name, row in report["rows"].items():  # type: ignore[attr-defined]
        speed = " ".join(f"{value:6.0f}" for value in row["texts_per_second"].values())
        accuracy = " ".join(f"{value:6.4f}" for value in row["accuracy"].values())
        ratios = "  ".join(
            f"{median:.2f}x ({low:.2f}-{high:.2f})"
            for median, (low, high) in row["companion_int8_is_faster"].values()
        )
        lines.append(
            f"{name:22} {speed} {accuracy} {row['moved_by_batch']:5} {row['bit_identical']!s:>10} "
            f"{row['flips_against_torch']:6}  {ratios}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
