"""The model card, written from a report alone: every number and name on it is in ``training.json``."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from companion.training.sharing.reports import TrainingReport

__all__ = [
    "CONFIDENCE",
    "DATASET_TYPE",
    "hub_metric",
    "inert",
    "label_rows",
    "model_card",
    "one_line",
    "wilson",
]

CONFIDENCE = 0.95
DATASET_TYPE = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
"""What the hub takes as ``dataset.type`` in a model index."""

_HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# What could begin a span, a cell, a heading or a link; brackets, dollars and backslashes as entities, because
# the hub and others read \\( \\[ and $ as formulas before they read Markdown.
_INERT = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "*_`~|#:@"},
        **{letter: f"&#{ord(letter)};" for letter in "\\[]$&<>"},
    }
)
_SNIPPET = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForSequenceClassification.from_pretrained({place})
inputs = tokenizer({texts}, truncation=True, padding=True, return_tensors="pt")
with torch.inference_mode():
    {answer}"""


def model_card(report: TrainingReport, *, repo_id: str | None = None) -> str:
    """Write the README.md of a hub repository.

    Parameters
    ----------
    report : TrainingReport
    repo_id : str, optional
        Where the model will be. Without it the example loads from the current folder.

    Returns
    -------
    str
        Front matter in YAML, then Markdown. What is not known is left out.
    """
    from huggingface_hub import ModelCard

    sections = [_what(report), _results(report), _training(report), _limits(report), _use(report, repo_id)]
    body = "\n\n".join(sections)
    return str(ModelCard(f"---\n{_front_matter(report)}\n---\n\n{body}\n"))


def inert(text: str) -> str:
    """Make a name plain text in Markdown: one line, no markup, no HTML, no links, no table cells.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        It renders as the name itself.
    """
    escaped = one_line(text).translate(_INERT)
    return re.sub(r"(?i)(?<=www)\.", "&#46;", escaped)  # GitHub's Markdown links what begins with www.


def one_line(text: str) -> str:
    """Replace line breaks and control characters, the invisible ones included, by single spaces."""
    visible = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return " ".join(visible.split())


def hub_metric(name: str) -> str:
    """Return the hub's name of one of our metrics."""
    return _HUB_METRICS.get(name, name)


def label_rows(report: TrainingReport) -> tuple[str, ...]:
    """Return the rows of the card's table of labels."""
    return tuple(_row((str(index), inert(label))) for index, label in enumerate(report.labels))


def wilson(accuracy: float, n: int) -> tuple[float, float] | None:
    """Return the Wilson score interval of an accuracy.

    Parameters
    ----------
    accuracy : float
        Share of right answers, from 0 to 1.
    n : int
        Number of answers.

    Returns
    -------
    tuple of two floats, or None
        Bounds that hold with probability 0.95, or None when the accuracy is no share of `n` answers.

    References
    ----------
    .. [1] Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
       American Statistical Association 22, 1927.
    """
    from scipy.stats import binomtest

    right = round(accuracy * n)
    if not (0 <= right <= n and math.isclose(right / n, accuracy, abs_tol=1e-9)):
        return None
    interval = binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _front_matter(report: TrainingReport) -> str:
    """Return the YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    dataset = re.sub(r"[^\w.]+", "-", report.task, flags=re.ASCII).strip("-.") or "dataset"
    measured = report.measured
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=dataset,
            dataset_name=one_line(report.task) or dataset,
            dataset_split="dev",
            metric_type=hub_metric(name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in (measured.metrics if measured else {}).items()
    ]
    return ModelCardData(
        language=list(report.language) or None,
        license=report.license,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=report.base_model if report.base_on_hub else None,
        metrics=[result.metric_type for result in results] or None,
        model_name=(one_line(report.name) or "model") if results else None,
        eval_results=results or None,
    ).to_yaml()


def _what(report: TrainingReport) -> str:
    reads = "two texts" if report.paired else "one text"
    answers = f"one of {len(report.labels)} labels" if report.labels else "a number"
    lines = [
        f"# {inert(report.name)}",
        "",
        f"{inert(report.architecture)} with {report.parameters:,} parameters, fine-tuned from "
        f"{inert(report.base_model)} on the task {inert(report.task)}. It reads {reads} and answers with "
        f"{answers}.",
    ]
    if report.labels:
        lines += ["", *_head("index", "label"), *label_rows(report)]
    made = [("weights", report.weights_sha256), ("weights of the base model", report.base_sha256)]
    lines += ["", *(f"- SHA-256 of the {what}: {digest}" for what, digest in made if digest)]
    return "\n".join([*lines, "- Written from the records in training.json, which hold every number here."])


def _results(report: TrainingReport) -> str:
    lines = ["## Results", ""]
    measured, n = report.measured, report.dev_examples
    if measured is None:
        lines += ["These weights were not evaluated."]
    else:
        on = f" on {n:,} development examples of {inert(report.task)}" if n else ""
        lines += [
            f"Measured after step {measured.step:,}{on}:",
            "",
            *_head("metric", "value", "95 % interval"),
        ]
        bounds = {}
        if n and "accuracy" in measured.metrics:
            bounds["accuracy"] = wilson(measured.metrics["accuracy"], n)
        for name, value in measured.metrics.items():
            found = bounds.get(name)
            interval = f"{found[0]:.4f} to {found[1]:.4f}" if found else ""
            lines += [_row((inert(name), f"{value:.4f}", interval))]
        if any(bounds.values()):
            lines += [
                "",
                "The interval is Wilson's score interval: it says how far another sample of as many ",
            ]
            lines[-1] += "examples could move the value, not how far another training run could."
        if report.ece is not None:
            bins = f" in {report.ece_bins} bins" if report.ece_bins else ""
            lines += ["", f"Expected calibration error{bins}: {report.ece:.4f}."]
    if len(report.evaluations) > 1:
        names = list(dict.fromkeys(name for done in report.evaluations for name in done.metrics))
        lines += ["", "All evaluations of the run:", "", *_head("step", *map(inert, names))]
        for done in report.evaluations:
            values = (f"{done.metrics[name]:.4f}" if name in done.metrics else "" for name in names)
            lines += [_row((f"{done.step:,}", *values))]
    return "\n".join(lines)


def _training(report: TrainingReport) -> str:
    since = f" since step {report.resumed_from:,}, where it was resumed" if report.resumed_from else ""
    rate, loss = report.examples_per_second, report.final_loss
    facts = {
        "training examples": f"{report.train_examples:,}",
        "optimizer steps": f"{report.steps:,}",
        "loss of the last batch": "" if loss is None else f"{loss:.4f}",
        "seeds": ", ".join(map(str, report.seeds)),
        f"time{since}": f"{report.seconds:.1f} s",
        "training speed": "" if rate is None else f"{rate:.1f} examples/s",
        "precision": inert(report.precision),
        "device": inert(report.device),
        "processes": "" if report.processes is None else str(report.processes),
        "machine": "; ".join(f"{inert(name)} {inert(str(v))}" for name, v in report.machine.items()),
        "packages": "; ".join(f"{inert(name)} {inert(v)}" for name, v in report.packages.items()),
        "date": inert(report.date),
    }
    lines = ["## Training", "", *_head("fact", "value")]
    lines += [_row(fact) for fact in facts.items() if fact[1]]
    if report.config:
        lines += ["", *_head("hyper-parameter", "value")]
        lines += [_row((inert(name), inert(str(value)))) for name, value in report.config.items()]
    return "\n".join(lines)


def _limits(report: TrainingReport) -> str:
    """Say what follows from the records, and nothing else."""
    limits, measured = [], report.measured
    if report.max_length is not None:
        limits.append(f"Texts longer than {report.max_length:,} tokens are cut there.")
    if report.labels:
        limits.append(
            f"It answers every text with one of its {len(report.labels)} labels, even where none fits."
        )
    if measured is not None:
        limits.append(f"It was measured on development examples of {inert(report.task)} and on nothing else.")
        value = measured.metrics.get(report.metric)
        others = [done.metrics[report.metric] for done in report.evaluations if report.metric in done.metrics]
        if len(others) > 1 and measured.step < report.steps and value == max(others):
            limits.append(
                f"The kept weights have the highest {inert(report.metric)} of {len(others)} evaluations on "
                "the same examples: a value chosen for being high tends to be too high."
            )
        if "f1" in measured.metrics and len(report.labels) > 1:
            limits.append(f"f1 is that of the label {inert(report.labels[1])}.")
    if len(set(report.seeds)) == 1:
        limits.append("The values come from one seed: how much they vary between seeds was not measured.")
    if report.labels and report.ece is None:
        limits.append("Whether its probabilities can be trusted (its calibration) was not measured.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


def _use(report: TrainingReport, repo_id: str | None) -> str:
    texts = '["First text."], ["Second text."]' if report.paired else '["A text."]'
    answer = "values = model(**inputs).logits[:, 0]"
    columns = ""
    if report.labels:
        answer = "probabilities = model(**inputs).logits.softmax(dim=-1)"
        columns = f"\nlabels = {list(report.labels)!a}  # the columns"
    place = ascii(repo_id or ".")
    code = _SNIPPET.format(place=place, texts=texts, answer=answer) + columns
    where = "" if repo_id else "In a copy of this folder:\n\n"
    return f"## Use\n\n{where}```python\n{code}\n```"


def _head(*names: str) -> Sequence[str]:
    return _row(names), _row("---" for _ in names)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
