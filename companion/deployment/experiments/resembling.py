"""What similar texts are worth: a semantic cache put to the test before it may answer."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from companion.deployment.answering import Answer
from companion.deployment.caching import (
    HashedWords,
    HitBudget,
    StateEncoder,
    Trial,
    certify,
    opposites,
    replay,
    variants,
)
from companion.deployment.caching.certificate import TRAFFIC
from companion.inference.predictor import OnnxPredictor

__all__ = ["resembled"]

_TIMED = 64
_TURNED = ("negation", "antonym")


def resembled(
    folder: Path,
    texts: Sequence[str],
    *,
    stored: int = 500,
    repeats: float = 0.3,
    budget: float = 0.05,
    seed: int = 0,
) -> dict[str, Any]:
    """Replay traffic with reworded repeats against a cache that looks for similar texts.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        All different, none of them trained on. The first `stored` are in the cache, the rest are asked.
    stored : int
    repeats : float
        Share of the questions that are a stored text in other words.
    budget : float
        The share of hits that may be wrong, and of opposites that may be let through.
    seed : int

    Returns
    -------
    dict
        For each embedding function: the certificate in words; hits, false hits and opposites let through at
        a row of thresholds; the hits that the certificate allows, in percent of the questions; the seconds of
        a look and of the model.
    """
    model = OnnxPredictor(folder, threads=1)
    kept, fresh = list(texts[:stored]), list(texts[stored:])
    rng = random.Random(f"resembled/{seed}")
    again = [rng.choice(found).text for text in kept if (found := variants(text, seed=seed))]
    count = min(len(fresh), round(len(again) * (1 - repeats) / repeats))
    asked = fresh[:count] + again[: round(count * repeats / (1 - repeats))]
    turned = [found.text for text in kept for found in opposites(text, seed=seed, kinds=_TURNED)]
    answers = {text: answer for text, answer in _answered(model, [*kept, *asked, *turned])}
    pairs = [[(text, answers[text]) for text in some] for some in (kept, asked, turned)]
    model_s = _timed(lambda text: model.logits([text]), asked)
    embedders: dict[str, HashedWords | StateEncoder] = {
        "hashed words": HashedWords(),
        "the model's first layer": StateEncoder(folder, norm=2, threads=1),
    }
    told: dict[str, Any] = {}
    for name, embed in embedders.items():
        trials = replay(pairs[0], pairs[1], embed)
        trials += replay(pairs[0], pairs[2], embed, kind="opposites")
        certificate = certify(
            trials,
            HitBudget(budget, budget),
            embedder=embed.name,
            model_version=model.manifest.model_version,
        )
        told[name] = {
            "certificate": certificate.text(),
            "allowed": 100 * certificate.hit_share,
            "curve": _curve(trials),
            "look_s": _timed(embed, asked),
        }
    return {"embedders": told, "asked": len(asked), "repeats": repeats, "model_s": model_s, "budget": budget}


def _answered(model: OnnxPredictor, texts: Sequence[str]) -> list[tuple[str, Answer]]:
    version = model.manifest.model_version
    rows = model.probabilities(texts).tolist()
    return [(text, Answer(tuple(row), model.labels, version)) for text, row in zip(texts, rows, strict=True)]


def _curve(trials: Sequence[Trial]) -> list[dict[str, float]]:
    """Count at thresholds from strict to loose what would be answered, and how much of it wrongly."""
    ordinary = [trial for trial in trials if trial.kind == TRAFFIC]
    against = [trial for trial in trials if trial.kind != TRAFFIC and not trial.right]
    levels = np.quantile([trial.similarity for trial in ordinary], np.linspace(0.98, 0.3, 24))
    curve = []
    for level in levels:
        hits = [trial for trial in ordinary if trial.similarity >= level]
        curve.append(
            {
                "threshold": float(level),
                "hits": len(hits) / len(ordinary),
                "false": sum(not trial.right for trial in hits) / max(1, len(hits)),
                "opposites": sum(trial.similarity >= level for trial in against) / max(1, len(against)),
            }
        )
    return curve


def _timed(call: Any, texts: Sequence[str]) -> float:
    """Return the median seconds of a call."""
    seconds = []
    for text in texts[:_TIMED]:
        begun = time.perf_counter()
        call(text)
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))
