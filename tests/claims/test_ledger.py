"""The ledger is complete and makes sense; the lookup helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from companion.claims import claim, ledger
from companion.claims.records import between, parse, with_unit

IDS = [
    "size-power-law",
    "bert-large-gain",
    "gpt2-sizes",
    "pretrain-vs-finetune-cost",
    "pretrained-vs-tfidf",
    "finetune-10k-cost",
    "scratch-10k-cost",
    "gpt2-medium-finetune",
    "lr-bert",
    "lr-gpt",
    "lr-pretraining",
    "lr-linear-scaling",
    "warmup-share",
    "batch-ranges",
    "accumulation-equivalence",
    "log-interval",
    "keep-three",
    "grad-norm-total",
    "grad-norm-layers",
    "seq-quadratic",
    "amp-memory-speed",
    "checkpointing-guide",
    "checkpointing-card",
    "memory-rule",
    "loader-workers",
    "streaming-start",
    "fsdp-1b",
    "hp-order",
    "temperature-1-5",
    "entropy-collapse",
    "overfit-one-batch",
    "bug-dropout",
    "bug-lr",
    "bug-padding",
    "loss-not-decreasing",
    "nan-clip",
    "fp16-inference",
    "int8-ptq",
    "int8-qat",
    "kv-cache",
    "compile-guide",
    "tensorrt",
    "fp8-torchao",
    "batch-32-vs-1",
    "onnx-extra",
    "distil-quantize",
    "distilbert-size-speed",
    "hardware-table",
    "bert-pretraining-cost",
    "finetune-search-cost",
    "onprem-break-even",
    "spot-discount",
    "v100-throughput",
    "bert-tokens",
    "gpt2-medium-time",
    "v100-serving",
    "generation-serving",
    "api-break-even",
    "utilisation-batching",
    "cache-30",
    "cache-60",
    "autoscale-saving",
    "startup-load-100x",
    "process-pool-batch",
    "dynamic-batching-3x",
    "mean-misleads",
    "canary-share",
    "utilisation-80",
    "ranking-int8-distil",
]
CHAPTERS = [
    "selection",
    "training",
    "debugging",
    "inference",
    "cost",
    "deployment",
    "exercises",
    "case-studies",
]
QUANTITIES = [pytest.param(entry, q, id=q.id) for entry in ledger() for q in entry.quantities]


def test_every_claim_of_the_sources_is_there_once():
    assert len(set(IDS)) == 69
    assert sorted(entry.id for entry in ledger()) == sorted(IDS)


def test_the_ledger_is_read_once():
    assert ledger() is ledger()


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.id) for entry in ledger()])
def test_a_claim_can_be_understood_alone(entry):
    assert entry.chapter in CHAPTERS
    assert re.fullmatch(r"[A-Z].{30,}\.", entry.says), entry.says
    assert bool(entry.published) == bool(entry.published_source)
    assert claim(entry.id) is entry


@pytest.mark.parametrize(("entry", "quantity"), QUANTITIES)
def test_a_quantity_is_bounded(entry, quantity):
    assert quantity.id == entry.id or re.fullmatch(rf"{entry.id}\.[a-z0-9-]+", quantity.id)
    assert quantity.low is not None or quantity.high is not None
    if quantity.low is not None and quantity.high is not None:
        assert quantity.low <= quantity.high
    assert quantity.what
    assert quantity.unit == quantity.unit.strip()
    assert claim(quantity.id) is entry


@pytest.mark.parametrize(("entry", "quantity"), QUANTITIES)
def test_bounds_that_are_not_ours_stand_in_the_claim(entry, quantity):
    """Each bound's figure is in the text; rounding of a single figure (117M) counts as being there."""
    if quantity.ours:
        return
    text = entry.says.replace(",", "").replace("1.5B", "1500M").replace("halves", "50")
    figures = {float(figure) for figure in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)}
    words = {"1": "one", "2": "two", "64": "64"}
    for bound in (quantity.low, quantity.high):
        if bound is None:
            continue
        stated = any(abs(figure - bound) <= 0.05 * max(figure, 1e-9) for figure in figures)
        assert stated or words.get(f"{bound:g}", "-") in text, (bound, text)


def test_some_known_figures():
    assert (claim("int8-ptq").quantities[0].low, claim("int8-ptq").quantities[0].high) == (2, 4)
    assert claim("utilisation-80").quantities[0].high is None
    assert claim("int8-qat").quantity("int8-qat.accuracy").high == 0.5
    assert claim("gpt2-sizes").quantities[0].anywhere
    assert not claim("int8-ptq").quantities[0].anywhere
    assert not claim("memory-rule").quantity("memory-rule.peak").anywhere
    assert claim("distilbert-size-speed").quantity("distilbert-size-speed.parameters").anywhere


def test_unknown_id_gives_close_ones():
    with pytest.raises(ValueError, match=r"no claim 'int8-pqt': did you mean .*int8-ptq"):
        claim("int8-pqt")
    with pytest.raises(ValueError, match=r"no claim 'zzzzzz'.*lists them all"):
        claim("zzzzzz")
    with pytest.raises(
        ValueError, match=r"no claim 'int8-ptq\.speed', expected one of: int8-ptq, int8-ptq\.acc"
    ):
        claim("int8-ptq.speed")


GOOD = {
    "id": "a",
    "chapter": "cost",
    "source": "guide",
    "how": "measure",
    "says": "A.",
    "numbers": [{"what": "w", "low": 1}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": "guess"}, "how is 'guess'"),
        ({"source": "blog"}, "source is 'blog'"),
        ({"id": "a.b"}, "has a dot"),
        ({"numbers": []}, "expected the first without a name"),
        ({"numbers": [{"what": "w", "name": "n", "low": 1}]}, "expected the first without a name"),
        ({"numbers": [{"what": "w", "low": 1}, {"what": "w", "low": 1}]}, "all distinct"),
        ({"numbers": [{"what": "w"}]}, "no bound"),
        ({"numbers": [{"what": "w", "low": 2, "high": 1}]}, "expected low <= high"),
        ({"numbers": [{"what": "w", "low": float("nan")}]}, "expected finite"),
    ],
)
def test_a_ledger_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        parse({"claim": [GOOD | change]})


def test_a_repeated_id_is_refused():
    with pytest.raises(ValueError, match="claim a: the id is used twice"):
        parse({"claim": [GOOD, GOOD]})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.0, "x", "2x"),
        (2.345, "x", "2.35x"),
        (0.0, "%", "0%"),
        (99.96, "%", "100%"),
        (116.5, "M", "116.5M"),
        (12288.4, "dollars", "12,288 dollars"),
        (1e-5, "", "1e-5"),
        (2.5e-5, "", "2.5e-5"),
        (-3.2e-4, "points", "-3.2e-4 points"),
        (3e10, "tokens", "3e+10 tokens"),
        (0.25, "", "0.25"),
    ],
)
def test_numbers_are_written_for_people(value, unit, text):
    assert with_unit(value, unit) == text


def test_bounds_are_written_for_people():
    assert between(2, 4, "x") == "2x to 4x"
    assert between(None, 5, "steps") == "at most 5 steps"
    assert between(None, 0, "%") == "at most 0%"
    assert between(95, None, "%") == "at least 95%"
    assert between(64, 64, "days") == "64 days"


def test_the_ledger_travels_with_the_package():
    import companion.claims

    assert (Path(companion.claims.__file__).parent / "ledger.toml").is_file()
