"""The `companion` command: the road from a text file to a served model, one command per step.

Heavy libraries are imported inside the commands that need them, so that ``companion --help`` answers at once.
Mistakes end with exit code 2 and one line that says what to do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from companion import __version__

if TYPE_CHECKING:
    from companion.data import Example, Task, TaskData
    from companion.inference import Predictor

__all__ = ["app", "main"]

app = typer.Typer(
    name="companion",
    help="Transformers in production: train, check, export and serve a text classifier.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
store = typer.Typer(help="The results that are stored under COMPANION_HOME.", rich_markup_mode=None)
app.add_typer(store, name="artifacts")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="A task by name: sentiment, sst2, cola, mrpc, rte, ...")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="With --task: a GLUE folder. Without: a csv, tsv, jsonl or parquet file."),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="The file's column with the texts.")]
PairColumn = Annotated[
    str | None, typer.Option("--pair-column", help="The column with second texts, for pairs.")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="The file's column with the labels.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts per step or run.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads to compute with. Default: all cores.")
]
Folder = Annotated[Path, typer.Argument(help="A model folder or an ONNX folder.")]


@app.command()
def info(as_json: Json = False) -> None:
    """Show hardware, profile, versions, and where models and data come from."""
    from companion.artifacts import machine
    from companion.settings import get_settings

    settings = get_settings()
    names = settings.names
    report: dict[str, Any] = {
        "machine": machine(),
        "profile": settings.profile,
        "device": settings.device,
        "threads": settings.threads,
        "seed": settings.seed,
        "home": str(settings.home),
        "encoder": names.encoder,
        "encoder_from": _encoder_origin(names.encoder, settings.profile),
        "task": names.task,
        "glue_folder": str(settings.data_dir) if settings.data_dir else None,
        "versions": _versions(),
    }
    _show(report, as_json)


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Encoder: a name or a folder. Default: the profile's.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 2,
    batch_size: BatchSize = 32,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The peak.")] = 2e-4,
    max_length: Annotated[
        int, typer.Option("--max-length", min=8, help="Cut texts to this many tokens.")
    ] = 128,
    max_examples: Annotated[
        int | None, typer.Option("--max-examples", min=1, help="Train on a random part.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default: COMPANION_SEED.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an encoder and write a model folder in Hugging Face layout."""
    from companion.artifacts import staged_folder
    from companion.settings import get_settings

    settings = get_settings()
    seed = settings.seed if seed is None else seed
    with staged_folder(out, marker="config.json") as staging:
        source = _Source(task, data, text_column, label_column, pair_column)
        examples = source.training_data(seed, max_examples)
        import torch

        from companion import models, training

        torch.set_num_threads(threads or settings.threads)
        config = training.TrainingConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_length=max_length,
            seed=seed,
        )
        classifier = models.load(
            model or settings.names.encoder,
            labels=examples.task.labels,
            regression=examples.task.is_regression,
            seed=seed,
        )
        run = training.fit(
            classifier.model,
            classifier.tokenizer,
            examples.train,
            config=config,
            dev=examples.dev,
            task=examples.task,
        )
        training.save(classifier.model, classifier.tokenizer, staging, max_length=max_length)
    report = {
        "folder": str(out),
        "task": examples.task.name,
        "metric": examples.task.metric,
        "value": run.evaluations[-1].metrics[examples.task.metric],
        "examples": len(examples.train),
        "examples_per_second": run.examples_per_second,
        "steps": len(run.steps),
        "seconds": run.seconds,
        "precision": run.precision,
        "device": run.device,
    }
    _show(report, as_json)


@app.command()
def evaluate(
    folder: Folder,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Annotated[
        str, typer.Option("--split", help="dev or test. Default: test where it has labels.")
    ] = "",
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score a model folder or an ONNX folder on labelled data."""
    from companion.data import labels_of, score
    from companion.inference import load_predictor

    predictor = load_predictor(folder, threads=threads)
    source = _Source(task, data, text_column, label_column, pair_column)
    labels = () if predictor.is_regression else predictor.labels
    loaded, name, examples = source.labelled(split, labels)
    unnamed = tuple(f"LABEL_{index}" for index in range(loaded.num_labels))  # what transformers calls them
    if loaded.is_regression != predictor.is_regression or (
        not loaded.is_regression and predictor.labels not in (loaded.labels, unnamed)
    ):
        raise ValueError(
            f"{folder} predicts {', '.join(predictor.labels)}; {loaded.name} has "
            f"{', '.join(loaded.labels) or 'numbers'}. Choose the task that the model was trained for."
        )
    pairs = [example.pair or "" for example in examples] if loaded.paired else None
    start = time.perf_counter()
    logits = predictor.logits([example.text for example in examples], pairs, batch_size=batch_size)
    seconds = time.perf_counter() - start
    metrics = score(loaded, labels_of(examples), logits)
    report = {
        "folder": str(folder),
        "task": loaded.name,
        "split": name,
        "metric": loaded.metric,
        "value": metrics[loaded.metric],
        "examples": len(examples),
        "examples_per_second": len(examples) / seconds,
        "metrics": metrics,
    }
    _show(report, as_json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A fine-tuned model folder.")],
    out: Annotated[Path, typer.Argument(help="The ONNX folder to write.")],
    precision: Annotated[str, typer.Option("--precision", help="int8 or fp32.")] = "int8",
    as_json: Json = False,
) -> None:
    """Turn a model folder into an ONNX folder, and compare the two."""
    if precision not in ("int8", "fp32"):
        raise ValueError(f"--precision is {precision!r}, expected int8 or fp32")
    from dataclasses import asdict

    from companion.artifacts import staged_folder

    # Entered before the heavy imports: a mistake in OUT is told at once.
    with staged_folder(out, marker="manifest.json") as staging:
        from companion import inference

        manifest = inference.export(folder, staging, precision="int8" if precision == "int8" else "fp32")
    size = sum(path.stat().st_size for path in out.iterdir())
    report = {
        "folder": str(out),
        "precision": manifest.precision,
        "model_version": manifest.model_version,
        "bytes": size,
        "check": asdict(manifest.check),
        "operators": manifest.operators,
    }
    _show(report, as_json)


@app.command()
def predict(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="A csv, tsv, jsonl or parquet file.")],
    text_column: Annotated[str, typer.Option("--text-column", help="The column with the texts.")],
    out: Annotated[Path, typer.Option("--out", help="The jsonl file to write: one line per row, in order.")],
    pair_column: PairColumn = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Label the texts of a file, in constant memory."""
    from companion.artifacts import staged_file
    from companion.data import stream_file
    from companion.inference import load_predictor

    rows, start = 0, time.perf_counter()
    with staged_file(out) as staging, staging.open("w", encoding="utf-8") as lines:
        examples = stream_file(file, text_column=text_column, pair_column=pair_column)
        predictor = load_predictor(folder, threads=threads)
        for chunk in _chunks(examples, 32 * batch_size):
            lines.writelines(_answers(predictor, chunk, batch_size, pair_column is not None))
            rows += len(chunk)
    seconds = time.perf_counter() - start
    _show({"out": str(out), "rows": rows, "seconds": seconds, "rows_per_second": rows / seconds}, as_json)


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="An ONNX folder, made by companion export.")],
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    threads: Threads = None,
) -> None:
    """Answer POST /predict over HTTP until stopped."""
    from companion import deployment

    deployment.serve(folder, host=host, port=port, threads=threads)


@store.command("list")
def list_artifacts(as_json: Json = False) -> None:
    """List what is stored, with its size."""
    from companion.artifacts import entries
    from companion.settings import get_settings

    stored = entries()
    if as_json:
        rows = [{"name": e.name, "key": e.key, "bytes": e.bytes, "made_at": e.made_at} for e in stored]
        _show({"home": str(get_settings().home), "artifacts": rows}, as_json)
        return
    for entry in stored:
        typer.echo(f"{entry.bytes / 2**20:8.1f} MiB  {entry.made_at}  {entry.name}  {entry.key[:12]}")
    typer.echo(f"{len(stored)} artifacts in {get_settings().home}")


@store.command("clear")
def clear_artifacts(
    name: Annotated[str | None, typer.Argument(help="Only artifacts of this name.")] = None,
    as_json: Json = False,
) -> None:
    """Delete what is stored; it is made again when it is needed."""
    from companion.artifacts import clear

    _show({"bytes_freed": clear(name)}, as_json)


@dataclass(frozen=True)
class _Source:
    """Where labelled examples come from: a task by name, or the user's file with its columns."""

    task: str | None
    data: Path | None
    text_column: str | None
    label_column: str | None
    pair_column: str | None

    def __post_init__(self) -> None:
        columns = (self.text_column, self.label_column, self.pair_column)
        if self.task is not None and any(columns):
            raise ValueError(
                "--task brings its own columns: leave out --text-column, --label-column, --pair-column"
            )
        if self.task is None and not (self.data and self.text_column and self.label_column):
            raise ValueError(
                "no data: give --task NAME (and --data DIR for a GLUE folder), "
                "or --data FILE --text-column C --label-column C"
            )

    def training_data(self, seed: int, max_examples: int | None) -> TaskData:
        """Load the examples to train on and to score with."""
        from companion.data import load, split_file

        if self.task is not None:
            return load(self.task, data_dir=self.data, seed=seed, max_examples=max_examples)
        return split_file(*self._columns(), seed=seed, max_examples=max_examples)

    def labelled(self, split: str, labels: tuple[str, ...]) -> tuple[Task, str, Sequence[Example]]:
        """Load one split of a task, or a whole file whose labels are those of a model."""
        from companion.data import Task, load, load_file

        if self.task is None:
            file, text, label, pair = self._columns()
            if split:
                raise ValueError(f"--split is {split!r}, but a file has no splits: leave it out")
            if not labels:
                raise ValueError(
                    "the model predicts a number; score it with a --task that has numbers, such as stsb"
                )
            read = load_file(file, text_column=text, label_column=label, pair_column=pair, labels=labels)
            return Task(file.stem, "accuracy", labels, pair is not None, str(file)), "all", read.examples
        data = load(self.task, data_dir=self.data)
        name = split or ("test" if data.test else "dev")
        if name not in ("train", "dev", "test") or not getattr(data, name):
            found = ", ".join(part for part in ("train", "dev", "test") if getattr(data, part))
            raise ValueError(f"--split is {name!r}, but {self.task} has: {found}")
        examples: Sequence[Example] = getattr(data, name)
        return data.task, name, examples

    def _columns(self) -> tuple[Path, str, str, str | None]:
        assert self.data is not None and self.text_column is not None and self.label_column is not None
        return self.data, self.text_column, self.label_column, self.pair_column


def _chunks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Cut a stream into lists."""
    iterator = iter(examples)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _answers(predictor: Predictor, chunk: list[Example], batch_size: int, paired: bool) -> Iterator[str]:
    """Predict a list of texts; yield one line of JSON each, numbers at full precision."""
    texts = [example.text for example in chunk]
    pairs = [example.pair or "" for example in chunk] if paired else None
    if predictor.is_regression:
        for row in predictor.logits(texts, pairs, batch_size=batch_size):
            yield json.dumps({"score": float(row[0])}) + "\n"
        return
    for row in predictor.probabilities(texts, pairs, batch_size=batch_size):
        probabilities = {label: float(value) for label, value in zip(predictor.labels, row, strict=True)}
        answer = {"label": predictor.labels[int(row.argmax())], "probabilities": probabilities}
        yield json.dumps(answer, ensure_ascii=False) + "\n"


def _encoder_origin(name: str, profile: str) -> str:
    """Say where the encoder would come from, without loading it."""
    if name == "embedded":
        from companion.models import embedded_folder

        try:
            return str(embedded_folder())
        except (FileNotFoundError, ValueError) as error:
            return f"not usable: {error}"
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return (
        "the hub, or its local cache"
        if profile == "full"
        else "nowhere: not a folder, and quick never asks the hub"
    )


def _versions() -> dict[str, str]:
    """Return the versions of what decides the results."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "companion": __version__}
    for name in ("torch", "transformers", "tokenizers", "onnxruntime", "onnx", "datasets"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> NoReturn:
    """Run the command line: 0 when all went well, 2 after a mistake, with one line that says what to do."""
    try:
        code = app(standalone_mode=False)
    except (ValueError, OSError) as error:
        _fail(_one_line(error))
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        message = getattr(error, "format_message", None)  # a mistake in the arguments
        if message is None:
            raise
        _fail(f"{_one_line(message())} Try: companion --help")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"companion: {message}", file=sys.stderr)
    sys.exit(code)


def _one_line(error: object) -> str:
    """Say an error in one line; an operating system's error with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _show(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    for name, value in report.items():
        text = f"{value:.4g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            text = ", ".join(
                f"{key} {item:.4g}" if isinstance(item, float) else f"{key} {item}"
                for key, item in value.items()
            )
        typer.echo(f"{name.replace('_', ' '):20} {text}")
