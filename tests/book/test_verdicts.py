"""What the training pages conclude: nothing from runs that did not learn, nor from what chance explains."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from scipy.stats import spearmanr

from companion import artifacts, claims
from companion.claims import Verdict
from companion.claims.words import DOES_NOT_HOLD, HOLDS_HERE, NOT_MEASURABLE
from companion.training.tuning import Importance

ROOT = Path(__file__).parents[2]
PLATEAU = math.log(2)
RATES = [1e-4, 2e-4, 4e-4, 8e-4]


def run(page: str, names: dict[str, Any], *ids: str) -> dict[str, Any]:
    """Run cells of a page, by id, with these names."""
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / page, as_version=4).cells}
    for name in ids:
        exec(compile(cells[name], name, "exec"), names)
    return names


@pytest.fixture
def page(tmp_path: Path) -> dict[str, Any]:
    """Return the names that the verdicts of the training page use, with the page's own question."""
    judged: list[Verdict] = []

    def judge(*arguments: Any, **options: Any) -> Verdict:
        judged.append(claims.judge(*arguments, **options, home=tmp_path))
        return judged[-1]

    names = {
        "artifacts": SimpleNamespace(
            benchmark_rows=lambda name: {}, benchmark_stamp=artifacts.benchmark_stamp
        ),
        "claims": SimpleNamespace(judge=judge, claim=claims.claim),
        "display": lambda shown: None,
        "glue": lambda *_, **__: None,
        "judged": judged,
        "json": json,
        "math": math,
        "np": np,
        "pairwise": pairwise,
        "partial": partial,
        "spearmanr": spearmanr,
        "truth": np.array([0, 1] * 50),
        "seed": 0,
        "SEEDS": [0, 1],
        "RATES": RATES,
        "Path": Path,
    }
    return run("book/training.ipynb", names, "learned", "verdict")


def word(names: dict[str, Any]) -> str:
    verdict: Verdict = names["judged"][-1]
    return verdict.verdict


def test_the_question_counts_a_constant_and_a_run_beside_it_as_not_learned(page: dict[str, Any]) -> None:
    assert page["CONSTANT"] == pytest.approx(PLATEAU)
    assert not page["learned"](0.69) and not page["learned"](0.7) and not page["learned"](math.nan)
    assert page["learned"](0.4)


def batches(page: dict[str, Any], small: list[float], large: list[float]) -> str:
    own = [RATES[int(np.argmin(small))]] * 2
    run(
        "book/training.ipynb",
        page | {"own": own, "SIZES": [16, 32], "grid": {16: small, 32: large}},
        "training-040",
    )
    return word(page)


def test_scaling_gets_no_exponent_from_the_plateau_or_from_the_edge_of_a_grid(page: dict[str, Any]) -> None:
    assert batches(page, [0.6, 0.3, 0.4, 0.7], [0.7, 0.69, 0.693, 0.7]) == NOT_MEASURABLE
    assert batches(page, [0.6, 0.3, 0.4, 0.7], [0.3, 0.4, 0.5, 0.7]) == NOT_MEASURABLE
    assert batches(page, [0.6, 0.3, 0.4, 0.7], [0.6, 0.5, 0.4, 0.7]) == HOLDS_HERE
    assert batches(page, [0.6, 0.3, 0.4, 0.7], [0.6, 0.3, 0.4, 0.7]) == DOES_NOT_HOLD


def stored(page: dict[str, Any], *rows: dict[str, float]) -> dict[str, Any]:
    """Give the page these long runs, two seeds of each; what is not said is as in the others."""
    names = run("book/training.ipynb", page, "long-sweep", "long-sweep-rows", "winner")
    names["long_rows"] = [{**names["BASIC"], **row, "seed": seed} for row in rows for seed in (0, 1)]
    return names


def warm_up(page: dict[str, Any], ends: dict[float, float]) -> str:
    rows = [{"warmup": share, "accuracy": 1 - loss, "loss": loss} for share, loss in ends.items()]
    names = stored(page, *rows)
    run("book/training.ipynb", names | {"shares": names["only"]("warmup")}, "training-034")
    return word(page)


def test_warm_up_is_judged_when_the_claimed_one_learned(page: dict[str, Any]) -> None:
    assert warm_up(page, {0.0: 0.69, 0.06: 0.69, 0.3: 0.5}) == NOT_MEASURABLE
    assert warm_up(page, {0.0: 0.5, 0.06: 0.3, 0.3: 0.4}) == HOLDS_HERE
    assert warm_up(page, {0.0: 0.3, 0.06: 0.5, 0.3: 0.4}) == DOES_NOT_HOLD


def sizes(page: dict[str, Any], ends: dict[int, float]) -> list[str]:
    rows = [{"batch_size": size, "accuracy": 1 - loss, "loss": loss} for size, loss in ends.items()]
    run("book/training.ipynb", stored(page, *rows), "training-041", "training-batch-sizes")
    return [verdict.verdict for verdict in page["judged"][-3:]]


def test_batch_sizes_that_cannot_contradict_a_range_do_not_confirm_it(page: dict[str, Any]) -> None:
    assert sizes(page, {}) == [NOT_MEASURABLE] * 3
    assert sizes(page, {16: 0.3, 32: 0.4}) == [NOT_MEASURABLE] * 3
    assert sizes(page, {4: 0.4, 16: 0.3, 64: 0.4})[-1] == HOLDS_HERE
    assert sizes(page, {4: 0.3, 16: 0.4, 64: 0.5})[-1] == DOES_NOT_HOLD


def rates(page: dict[str, Any], *rows: tuple[float, float, float]) -> str:
    named = [{"rate": rate, "accuracy": accuracy, "loss": loss} for rate, accuracy, loss in rows]
    run("book/training.ipynb", stored(page, *named), "judge-lr-bert")
    return word(page)


def test_the_claimed_rates_are_judged_where_they_could_win(page: dict[str, Any]) -> None:
    assert rates(page) == NOT_MEASURABLE
    assert rates(page, (4e-4, 0.9, 0.3)) == NOT_MEASURABLE
    assert rates(page, (5e-5, 0.9, 0.3)) == NOT_MEASURABLE
    assert rates(page, (5e-5, 0.5, 0.69), (4e-4, 0.9, 0.3)) == NOT_MEASURABLE
    assert rates(page, (5e-5, 0.8, 0.4), (4e-4, 0.9, 0.3)) == DOES_NOT_HOLD
    assert rates(page, (5e-5, 0.95, 0.2), (4e-4, 0.9, 0.3)) == HOLDS_HERE


def knobs(width: float) -> Importance:
    names = ("learning_rate", "batch_size", "warmup", "weight_decay", "dropout")
    shares = dict(zip(names, (0.4, 0.3, 0.15, 0.1, 0.05), strict=True))
    spreads = {name: (share - width, share + width) for name, share in shares.items()}
    return Importance("fanova", shares, spreads, 44, "")


@pytest.mark.parametrize(("width", "expected"), [(0.02, HOLDS_HERE), (0.05, NOT_MEASURABLE)])
def test_an_order_of_knobs_needs_whiskers_that_do_not_touch(
    page: dict[str, Any], width: float, expected: str
) -> None:
    run("book/training.ipynb", page | {"fanova": knobs(width), "anova": knobs(width)}, "training-123")
    assert word(page) == expected


@pytest.mark.parametrize(("student", "expected"), [(0.865, "less"), (0.95, "more")])
def test_more_phrases_are_ahead_only_by_more_than_the_sample_moves(
    capsys: pytest.CaptureFixture[str], student: float, expected: str
) -> None:
    rows = {
        "retention/all terms": {"student": 0.858, "dev": 872},
        "retention/more phrases, without labels": {"student": student, "dev": 872},
    }
    run("solutions/distilbert.ipynb", {"long_runs": rows}, "plain-logits", "more-phrases-chance")
    assert f"ahead by {expected} than twice that" in capsys.readouterr().out
