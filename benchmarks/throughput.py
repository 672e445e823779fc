"""Throughput of an exported classifier: batch sizes, groupings, cores, memory under varying shapes, fusions.

    python benchmarks/throughput.py [--model MODEL_FOLDER] [--only PART...] [--quick] [--threads 2]

Without --model it takes the embedded encoder with a fresh head: how fast it answers does not depend on what
it has learned. Each row is written as soon as it is there: the same command run again goes on there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store import Store

from companion import artifacts, inference, models
from companion.settings import get_settings, usable_cores

RESULTS = Path(__file__).parent / "results" / "throughput.json"

Parts = dict[str, Callable[[], dict[str, Any]]]


def main() -> None:
    arguments = parse()
    source = arguments.model or fresh()
    folders = {precision: exported(source, precision) for precision in ("int8", "fp32")}
    settings = {
        "model": inference.read_manifest(folders["fp32"]).source,
        "threads": arguments.threads,
        "cores": usable_cores(),
        "repeats": arguments.repeats,
        "quick": arguments.quick,
    }
    store = Store(arguments.out, settings)
    for name, measure in parts(folders, arguments.threads, arguments.repeats, arguments.quick).items():
        if not arguments.only or name.split(",")[0] in arguments.only:
            row = store.measured(name, measure)
            print("", name, *row["table"], "", sep="\n")


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, default=RESULTS, help="a JSON file, gone on with if it is there")
    parser.add_argument("--model", type=Path, help="a fine-tuned model folder")
    names = ("curve", "groupings", "placements", "soak", "fusions")
    parser.add_argument("--only", nargs="+", choices=names, help="these parts; default: all")
    parser.add_argument("--quick", action="store_true", help="as the chapter measures: a minute in all")
    parser.add_argument("--threads", type=int, default=get_settings().threads)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def fresh() -> Path:
    """Give the profile's encoder a head with two labels."""

    def build(folder: Path) -> None:
        from companion import training

        classifier = models.load(get_settings().names.encoder, labels=("negative", "positive"))
        training.save(classifier.model, classifier.tokenizer, folder / "model", max_length=128)

    inputs = {"encoder": get_settings().names.encoder}
    return artifacts.make("throughput-model", build, version=1, inputs=inputs) / "model"


def exported(source: Path, precision: Any) -> Path:
    def build(folder: Path) -> None:
        inference.export(source, folder / "onnx", precision=precision)

    inputs = {"source": artifacts.digest(source), "precision": precision}
    return artifacts.make("throughput-onnx", build, version=1, inputs=inputs) / "onnx"


def parts(folders: dict[str, Path], threads: int, repeats: int, quick: bool) -> Parts:
    """Return what is measured, by name: the part, then the precision."""
    texts = inference.mixed_texts(128 if quick else 512)
    found: Parts = {}
    for precision, folder in folders.items():
        found[f"curve, {precision}"] = lambda folder=folder: curve(folder, threads, repeats)
        found[f"groupings, {precision}"] = lambda folder=folder: shown(
            inference.compare_groupings(
                inference.OnnxPredictor(folder, threads=threads), texts, repeats=repeats
            )
        )
    for size in (1, 4):
        found[f"placements, batches of {size}"] = lambda size=size: shown(
            inference.compare_placements(folders["int8"], texts, batch_size=size, repeats=repeats)
        )
    requests, rows = (300, 4) if quick else (3_000, 8)
    for precision, folder in folders.items():
        found[f"soak, {precision}"] = lambda folder=folder: shown(
            inference.soak(folder, requests=requests, rows=rows, threads=threads, repeats=repeats)
        )
    found["fusions"] = lambda: fusions(folders["fp32"], threads, repeats, quick)
    return found


def curve(folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    found = inference.batch_curve(inference.OnnxPredictor(folder, threads=threads), repeats=repeats)
    fit = inference.fit_cost(found.timed_batches())
    return {**found.to_dict(), "cost": fit.to_dict(), "table": [*found.text().splitlines(), fit.text()]}


def fusions(fp32: Path, threads: int, repeats: int, quick: bool) -> dict[str, Any]:
    shapes = ((1, 128),) if quick else ((1, 32), (1, 128), (8, 64), (32, 32))
    found = inference.compare_fusions(fp32, shapes=shapes, repeats=repeats, threads=threads)
    tables = [found.profile_text(numbers, (1, 128)) for numbers in ("fp32", "standard int8", "int8")]
    return {**found.to_dict(), "table": "\n\n".join([found.text(), *tables]).splitlines()}


def shown(report: Any) -> dict[str, Any]:
    return {**report.to_dict(), "table": report.text().splitlines()}


if __name__ == "__main__":
    main()
