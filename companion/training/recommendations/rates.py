"""Which learning rates suit a model of a given kind and size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["BRACKETS", "LARGE_DECODER", "Bracket", "Kind", "RateRange", "learning_rate_range", "written"]

Kind = Literal["encoder", "decoder", "pretraining"]

# From this many parameters a decoder counts as large: those that Touvron et al. 2023 fine-tune have 7 to 70
# billion, those of Radford et al. 2018 a tenth of one.
LARGE_DECODER = 10**9


@dataclass(frozen=True)
class Bracket:
    """Learning rates that somebody found good at one model size.

    Attributes
    ----------
    parameters : int
    low, high : float
        Ends of the range, for batches of 16 to 32 when fine-tuning and of 256 when pre-training.
    source : str
        Who found it.
    """

    parameters: int
    low: float
    high: float
    source: str


# One list a kind, small models first. Between two sizes the ends are interpolated on logarithmic axes; beyond
# the outermost size they stay: nobody whom we could cite has measured there.
BRACKETS: dict[Kind, tuple[Bracket, ...]] = {
    "encoder": (
        Bracket(
            22_700_000,
            1e-4,
            2e-4,
            "measured in this project on the embedded encoder of 6 layers and 384 dimensions; Turc et al. "
            "2019 search compact BERTs up to 3e-4",
        ),
        Bracket(
            110_000_000,
            1e-5,
            5e-5,
            "Devlin et al. 2019 search 2e-5 to 5e-5, Liu et al. 2019 1e-5 to 3e-5; claim lr-bert",
        ),
    ),
    "decoder": (Bracket(117_000_000, 2e-5, 1e-4, "Radford et al. 2018 take 6.25e-5; claim lr-gpt"),),
    "pretraining": tuple(
        # Devlin et al. 2019 pre-train at 1e-4; Brown et al. 2020, table 2.1, lower the rate as models grow.
        Bracket(
            parameters, min(1e-4, high), high, "Devlin et al. 2019, Brown et al. 2020; claim lr-pretraining"
        )
        for parameters, high in (
            (125_000_000, 6e-4),
            (350_000_000, 3e-4),
            (760_000_000, 2.5e-4),
            (1_300_000_000, 2e-4),
            (2_700_000_000, 1.6e-4),
            (6_700_000_000, 1.2e-4),
            (13_000_000_000, 1e-4),
            (175_000_000_000, 6e-5),
        )
    ),
}


@dataclass(frozen=True)
class RateRange:
    """Learning rates to expect for a model.

    Attributes
    ----------
    low, high : float
    reasons : tuple of str
        Where the range comes from, the correction for size included.
    """

    low: float
    high: float
    reasons: tuple[str, ...]


def learning_rate_range(kind: Kind, parameters: int) -> RateRange:
    """Return the learning rates that suit a kind of training and a size of model.

    Small encoders need more than the published 1e-5 to 5e-5, which were found on models of 110M parameters
    and above. The correction is the straight line on logarithmic axes between the two brackets of
    :data:`BRACKETS`, separately for each end.

    Parameters
    ----------
    kind : {"encoder", "decoder", "pretraining"}
        Fine-tuning an encoder, fine-tuning a decoder, or pre-training either.
    parameters : int
        Of the whole model, embeddings included.

    Returns
    -------
    RateRange

    Raises
    ------
    ValueError
        If the kind is unknown, or `parameters` is no plausible count.
    """
    if kind not in get_args(Kind):
        expected = ", ".join(repr(known) for known in get_args(Kind))
        raise ValueError(f"kind is {kind!r}, expected one of {expected}")
    if not isinstance(parameters, int) or parameters < 1000:
        raise ValueError(
            f"parameters is {parameters!r}, expected the count itself, a whole number of at least 1000: "
            "110 million are 110_000_000, not 110"
        )
    brackets = BRACKETS[kind]
    below = max((b for b in brackets if b.parameters <= parameters), key=_size, default=brackets[0])
    above = min((b for b in brackets if b.parameters >= parameters), key=_size, default=brackets[-1])
    low, high = (_between(below, above, parameters, end) for end in ("low", "high"))
    return RateRange(low, high, _why(kind, parameters, below, above, low, high))


def _size(bracket: Bracket) -> int:
    return bracket.parameters


def _between(below: Bracket, above: Bracket, parameters: int, end: str) -> float:
    """Interpolate one end of the range on logarithmic axes, to two digits."""
    start, stop = getattr(below, end), getattr(above, end)
    if below.parameters == above.parameters:
        return float(start)
    share = math.log(parameters / below.parameters) / math.log(above.parameters / below.parameters)
    return float(f"{start * (stop / start) ** share:.1e}")


def written(rate: float) -> str:
    """Write a learning rate with at most three digits, as papers do: 5e-5."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').removesuffix('.')}e{int(exponent)}"


def _why(
    kind: Kind, parameters: int, below: Bracket, above: Bracket, low: float, high: float
) -> tuple[str, ...]:
    """Say where a range comes from."""
    sources = "; ".join(dict.fromkeys((below.source, above.source)))
    size = f"{parameters / 1e6:,.1f}M parameters"
    reasons = [f"learning rate: {written(low)} to {written(high)} for {kind}, {size} ({sources})"]
    smallest, largest = BRACKETS[kind][0], BRACKETS[kind][-1]
    if kind == "encoder" and parameters < largest.parameters:
        reasons.append(
            f"size correction: the published {written(largest.low)} to {written(largest.high)} is for "
            f"{largest.parameters / 1e6:.0f}M parameters and above; smaller encoders need more, "
            f"{written(smallest.low)} to {written(smallest.high)} at {smallest.parameters / 1e6:.1f}M, where "
            f"3e-4 sometimes stays on the plateau of a two-class loss at ln 2 ({largest.source}; measured in "
            "this project)"
        )
    if parameters < smallest.parameters:
        reasons.append(
            f"size correction: below {smallest.parameters / 1e6:.1f}M parameters the range is kept as it is; "
            "smaller models probably stand more, so run a range test (no source)"
        )
    if kind == "decoder" and parameters >= LARGE_DECODER:
        reasons.append(
            "size correction: models of 7B to 70B were fine-tuned at 2e-5 with batches of 64, so start at "
            "the lower end (Touvron et al. 2023)"
        )
    return tuple(reasons)
