"""What is searched: ranges and options, and the unit cube they are mapped from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from companion.training.config import TrainingConfig

__all__ = ["Dimension", "Options", "Range", "SearchSpace", "Value", "fine_tuning_space"]

Value = bool | int | float | str

_FIELDS = {field.name for field in fields(TrainingConfig)}
_NOT_SEARCHED = {
    "seed": "it is varied by the validation, and chosen by nobody",
    "epochs": "the phases say how long a trial is",
    "max_steps": "the phases say how long a trial is",
    "evaluate_every": "the phases say how often a trial is evaluated",
}


@dataclass(frozen=True)
class Range:
    """A range of numbers.

    Attributes
    ----------
    low, high : int or float
        Both included.
    log : bool
        Whether equal ratios are equally likely, instead of equal differences.
    integer : bool
        Whether only whole numbers are taken.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty range, and a logarithm of zero."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the range goes from {self.low} to {self.high}: expected low < high, finite")
        if self.log and self.low <= 0:
            raise ValueError(f"the logarithmic range starts at {self.low}: expected a number above 0")

    def value(self, unit: float) -> Value:
        """Return the value at a place from 0, the low end, to 1, the high end."""
        if unit <= 0 or unit >= 1:  # exactly, which a logarithm and back is not
            found = self.low if unit <= 0 else self.high
        elif self.log:
            found = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            found = self.low + unit * (self.high - self.low)
        return round(found) if self.integer else float(found)

    def unit(self, value: Value) -> float:
        """Return the place of a value, the inverse of `value`."""
        number = float(value)
        if self.log:
            return (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (number - self.low) / (self.high - self.low)

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form of it."""
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def around(self, values: Sequence[Value]) -> Range:
        """Return the part that holds all `values`, with a margin of a tenth of it, at least 0.05."""
        places = [self.unit(value) for value in values]
        margin = max(0.05, 0.1 * (max(places) - min(places)))
        low = self.value(max(0.0, min(places) - margin))
        high = self.value(min(1.0, max(places) + margin))
        return replace(self, low=float(low), high=float(high)) if float(low) < float(high) else self


@dataclass(frozen=True)
class Options:
    """A few values, without an order.

    Attributes
    ----------
    values : tuple
        At least two.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        if len(set(self.values)) != len(self.values) or len(self.values) < 2:
            raise ValueError(f"the options are {self.values}: expected at least two, all different")

    def value(self, unit: float) -> Value:
        """Return the option at a place from 0 to 1; each has an equal share."""
        return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]

    def distribution(self) -> BaseDistribution:
        """Return Optuna's form of it."""
        return CategoricalDistribution(self.values)

    def around(self, values: Sequence[Value]) -> Options:
        """Return the options that occur in `values`; with fewer than two of them, all options."""
        left = tuple(option for option in self.values if option in values)
        return Options(left) if len(left) > 1 else self


Dimension = Range | Options


@dataclass(frozen=True)
class SearchSpace:
    """What is searched.

    Attributes
    ----------
    dimensions : mapping of str to Range or Options
        By name. The name of a field of `TrainingConfig` sets that field; any other, such as ``dropout``,
        reaches the run as one of `Candidate.extras`.

    Raises
    ------
    ValueError
        When it is empty, or names what a search decides itself: the length of trials, and the seed.
    """

    dimensions: Mapping[str, Dimension]

    def __post_init__(self) -> None:
        """Refuse what cannot be searched."""
        if not self.dimensions:
            raise ValueError("the search space is empty: expected at least one name with a Range or Options")
        for name in self.dimensions:
            if name in _NOT_SEARCHED:
                raise ValueError(f"the search space has {name!r}: leave it out, {_NOT_SEARCHED[name]}")

    def check(self, base: TrainingConfig) -> None:
        """Refuse a dimension with values that `TrainingConfig` refuses.

        Parameters
        ----------
        base : TrainingConfig
            Has the values of all other fields.

        Raises
        ------
        ValueError
            With the name of the dimension.
        """
        for name, dimension in self.dimensions.items():
            tried = dimension.values if isinstance(dimension, Options) else map(dimension.value, (0.0, 1.0))
            for value in tried:
                try:
                    self.applied(base, {name: value})
                except (TypeError, ValueError) as error:
                    raise ValueError(f"the search space of {name!r} has {value!r}: {error}") from error

    def at(self, point: Sequence[float]) -> dict[str, Value]:
        """Return the values at a point of the unit cube, of shape ``(dimensions,)``."""
        pairs = zip(self.dimensions.items(), point, strict=True)
        return {name: dimension.value(float(place)) for (name, dimension), place in pairs}

    def around(self, chosen: Sequence[Mapping[str, Value]]) -> SearchSpace:
        """Return the smallest space around chosen values, with a margin."""
        return SearchSpace(
            {
                name: dimension.around([values[name] for values in chosen])
                for name, dimension in self.dimensions.items()
            }
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's form of it."""
        return {name: dimension.distribution() for name, dimension in self.dimensions.items()}

    def alike(self, one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
        """Tell whether two configurations are nowhere farther apart than a twentieth of a range."""
        return all(
            one[name] == other[name]
            if isinstance(dimension, Options)
            else abs(dimension.unit(one[name]) - dimension.unit(other[name])) <= 0.05
            for name, dimension in self.dimensions.items()
        )

    def applied(self, base: TrainingConfig, values: Mapping[str, Value]) -> TrainingConfig:
        """Return `base` with those of the values that are its fields."""
        changes = {name: value for name, value in values.items() if name in _FIELDS}
        return replace(base, **changes)  # type: ignore[arg-type]

    def extras(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return those of the values that are no fields of `TrainingConfig`."""
        return {name: value for name, value in values.items() if name not in _FIELDS}


def fine_tuning_space() -> SearchSpace:
    """Return the five hyper-parameters of fine-tuning an encoder, in ranges wide enough to fail at both ends.

    Returns
    -------
    SearchSpace
    """
    return SearchSpace(
        {
            "learning_rate": Range(1e-6, 1e-2, log=True),
            "batch_size": Options((8, 16, 32, 64)),
            "warmup": Range(0.0, 0.3),
            "weight_decay": Range(0.0, 0.3),
            "dropout": Range(0.0, 0.4),
        }
    )
