"""Reads the quality record of a manifest, and does not believe it: numbers that cannot be are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from companion.inference.intervals import Estimate, check_level
from companion.inference.quality.record import Calibration, ClassQuality, Quality

__all__ = ["quality_from"]

_BOUNDS = {"accuracy": (0, 1), "f1": (0, 1), "matthews": (-1, 1), "pearson": (-1, 1)}
_METHODS = ("Tango score interval", "paired bootstrap")
_ROUNDING = 1e-9


def quality_from(data: Any, *, labels: Sequence[str], is_regression: bool) -> Quality:
    """Make a `Quality` of what `Quality.to_dict` made, and check that its numbers fit each other.

    Parameters
    ----------
    data : Any
        What JSON held.
    labels : sequence of str
        Of the model that it is about.
    is_regression : bool
        Whether that model predicts a number.

    Returns
    -------
    Quality

    Raises
    ------
    ValueError
        When a key is missing or unknown, a number is out of its range, or two numbers contradict each other.
    """
    known = _keys(data, Quality, "quality")
    metric = known["metric"]
    if metric not in _BOUNDS:
        raise ValueError(f"quality.metric is {metric!r}, expected one of {', '.join(_BOUNDS)}")
    if known["method"] not in _METHODS:
        raise ValueError(f"quality.method is {known['method']!r}, expected one of {', '.join(_METHODS)}")
    if is_regression != (metric == "pearson"):
        kind = "a number" if is_regression else "labels"
        raise ValueError(f"quality.metric is {metric!r}, but the model predicts {kind}")
    examples = _count(known, "examples", least=1)
    low, high = _BOUNDS[metric]
    for name in ("reference", "candidate"):
        _number(known[name], f"quality.{name}", low, high)
    _number(known["level"], "quality.level", 0, 1)
    check_level(known["level"])
    widest = high - low
    quality = Quality(
        **known
        | {
            "task": _text(known["task"], "quality.task"),
            "drop": _estimate(known["drop"], "quality.drop", -widest, widest),
            "flips": None if is_regression else _estimate(known["flips"], "quality.flips", 0, 1),
            "classes": _classes(known["classes"], () if is_regression else labels),
            "calibration": None if is_regression else _calibration(known["calibration"]),
            "resamples": _optional_count(known, "resamples"),
            "seed": _optional_count(known, "seed"),
            "only_reference_right": _disagreement(known, "only_reference_right", is_regression),
            "only_candidate_right": _disagreement(known, "only_candidate_right", is_regression),
        }
    )
    if is_regression and any(known[name] for name in ("flips", "classes", "calibration")):
        raise ValueError("quality has flips, classes or a calibration, but the model predicts a number")
    _agree(quality, examples)
    return quality


def _agree(quality: Quality, examples: int) -> None:
    """Refuse numbers that contradict each other."""
    found = quality.drop.value
    if abs(quality.reference - quality.candidate - found) > _ROUNDING:
        raise ValueError(
            f"quality.drop is {found:g}, but {quality.reference:g} and {quality.candidate:g} differ by "
            f"{quality.reference - quality.candidate:g}"
        )
    if quality.only_reference_right is None or quality.only_candidate_right is None:
        return
    disagreements = quality.only_reference_right + quality.only_candidate_right
    if disagreements > examples:
        raise ValueError(f"quality counts {disagreements} disagreements in {examples} examples")
    if quality.metric == "accuracy":
        counted = (quality.only_reference_right - quality.only_candidate_right) / examples
        if abs(counted - found) > _ROUNDING:
            raise ValueError(f"quality.drop is {found:g}, but the counted disagreements give {counted:g}")
    total = sum(item.examples for item in quality.classes)
    if total != examples:
        raise ValueError(f"quality.classes hold {total} examples, but quality.examples is {examples}")


def _classes(data: Any, labels: Sequence[str]) -> tuple[ClassQuality, ...]:
    if not isinstance(data, list | tuple):
        raise ValueError(f"quality.classes is {data!r}, expected a list")
    read = [_keys(item, ClassQuality, "quality.classes") for item in data]
    names = [item["label"] for item in read]
    if labels and names != list(labels):
        raise ValueError(f"quality.classes are {names}, but the labels are {list(labels)}")
    return tuple(_class(item, f"quality.classes[{item['label']!r}]") for item in read)


def _class(known: dict[str, Any], where: str) -> ClassQuality:
    examples = _count(known, "examples", where=where)
    names = ("reference", "candidate", "drop", "flips")
    if absent := [name for name in names if (known[name] is None) != (examples == 0)]:
        raise ValueError(f"{where}.{absent[0]} is {known[absent[0]]!r}, but there are {examples} examples")
    if not examples:
        return ClassQuality(**known)
    for name in ("reference", "candidate"):
        _number(known[name], f"{where}.{name}", 0, 1)
    drop = _estimate(known["drop"], f"{where}.drop", -1, 1)
    return ClassQuality(**known | {"drop": drop, "flips": _estimate(known["flips"], f"{where}.flips", 0, 1)})


def _calibration(data: Any) -> Calibration:
    known = _keys(data, Calibration, "quality.calibration")
    for name, value in known.items():
        _number(value, f"quality.calibration.{name}", 0, 1 if name.startswith("ece") else 2)
    return Calibration(**known)


def _estimate(data: Any, where: str, low: float, high: float) -> Estimate:
    known = _keys(data, Estimate, where)
    for name, value in known.items():
        _number(value, f"{where}.{name}", low, high)
    if not known["low"] <= known["value"] <= known["high"]:
        raise ValueError(
            f"{where} is {known['value']:g} between {known['low']:g} and {known['high']:g}, "
            "expected an interval around its value"
        )
    return Estimate(**known)


def _keys(data: Any, kind: type[Any], where: str) -> dict[str, Any]:
    """Return a mapping with exactly the fields of a dataclass."""
    names = [field.name for field in fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, expected a mapping with {', '.join(names)}")
    for problem, odd in (("lacks", set(names) - data.keys()), ("has the unknown", data.keys() - set(names))):
        if odd:
            raise ValueError(f"{where} {problem} {', '.join(sorted(odd))}")
    return dict(data)


def _number(value: Any, where: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}, expected a number from {low:g} to {high:g}")
    if not low - _ROUNDING <= value <= high + _ROUNDING:
        raise ValueError(f"{where} is {value:g}, expected a number from {low:g} to {high:g}")


def _count(known: dict[str, Any], name: str, *, least: int = 0, where: str = "quality") -> int:
    value = known[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where}.{name} is {value!r}, expected a whole number of at least {least}")
    return value


def _optional_count(known: dict[str, Any], name: str) -> int | None:
    return None if known[name] is None else _count(known, name)


def _disagreement(known: dict[str, Any], name: str, is_regression: bool) -> int | None:
    if is_regression and known[name] is not None:
        raise ValueError(f"quality.{name} is {known[name]!r}, but the model predicts a number")
    return None if is_regression else _count(known, name)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r}, expected text")
    return value
