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

from companion import claims
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


def warm_up(page: dict[str, Any], ends: dict[float, list[float]]) -> str:
    run("book/training.ipynb", page | {"SHARES": [0.0, 0.06, 0.3], "ends": ends}, "training-034")
    return word(page)


def test_warm_up_is_judged_when_every_run_learned(page: dict[str, Any]) -> None:
    assert warm_up(page, {0.0: [0.69, 0.7], 0.06: [0.69, 0.69], 0.3: [0.5, 0.6]}) == NOT_MEASURABLE
    assert warm_up(page, {0.0: [0.5, 0.5], 0.06: [0.3, 0.3], 0.3: [0.4, 0.4]}) == HOLDS_HERE
    assert warm_up(page, {0.0: [0.3, 0.3], 0.06: [0.5, 0.5], 0.3: [0.4, 0.4]}) == DOES_NOT_HOLD


def test_batch_sizes_that_cannot_contradict_a_range_do_not_confirm_it(page: dict[str, Any]) -> None:
    run("book/training.ipynb", page, "training-041")
    assert [verdict.verdict for verdict in page["judged"]] == [NOT_MEASURABLE] * 3


def rates(page: dict[str, Any], *rows: tuple[float, float, float]) -> str:
    names = run("book/training.ipynb", page, "long-sweep")
    names["long_rows"] = [
        {"rate": rate, "seed": seed, "accuracy": accuracy, "loss": loss}
        for rate, accuracy, loss in rows
        for seed in (0, 1)
    ]
    run("book/training.ipynb", names, "judge-lr-bert")
    return word(names)


def test_the_claimed_rates_are_judged_where_they_could_win(page: dict[str, Any]) -> None:
    assert rates(page) == NOT_MEASURABLE
    assert rates(page, (4e-4, 0.9, 0.3)) == NOT_MEASURABLE
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
    names = {"find_results": lambda: rows}
    run("solutions/distilbert.ipynb", names, "plain-logits", "more-phrases-chance")
    assert f"ahead by {expected} than twice that" in capsys.readouterr().out
