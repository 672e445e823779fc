"""Makes candidates from one traced graph, and judges each by the same evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from companion.artifacts.staging import remove
from companion.data import Example
from companion.inference.exporting import Precision, Traced, feeds_of, write_folder
from companion.inference.manifest import state_quality
from companion.inference.optimizing.choosing import refusal
from companion.inference.optimizing.evidence import Yardstick
from companion.inference.optimizing.record import Tried
from companion.inference.predictor import OnnxPredictor
from companion.inference.quantization.schemes import Rows, weights_of
from companion.inference.quantization.sensitivity import fewest_kept, sensitivities

__all__ = ["Workshop"]

_SENSED = 32
"""Texts that each layer's sensitivity is measured on: it orders the layers, the gate decides."""


@dataclass(frozen=True)
class Workshop:
    """What candidates are made from, and where.

    Attributes
    ----------
    traced : Traced
    evidence : Yardstick
    calibration : tuple of Example
        May be empty: then ``int8-fixed`` cannot be made.
    max_drop : float
    accept_undecided : bool
    threads : int
    scratch : Path
        Gets one folder for each candidate, by its name.
    progress : callable
        Gets a line at the beginning of each step.
    """

    traced: Traced
    evidence: Yardstick
    calibration: tuple[Example, ...]
    max_drop: float
    accept_undecided: bool
    threads: int
    scratch: Path
    progress: Callable[[str], None]

    def attempt(self, precision: Precision, *, name: str = "", keep: tuple[str, ...] = ()) -> Tried:
        """Make a candidate's folder, judge it, and write the judgement into its manifest.

        Parameters
        ----------
        precision : {"int8", "int8-fixed", "int8-weights", "int4-weights", "fp32"}
        name : str
            Default: the precision.
        keep : tuple of str
            Matrices and tables that stay in float32.
        """
        name, of = name or precision, len(weights_of(self.traced.fused)) if keep else 0
        kept = f", {len(keep)} of {of} weights in float32" if keep else ""
        self.progress(f"{name}{kept}: made, and judged on {len(self.evidence.examples):,} examples")
        try:
            model = self.traced.to_onnx(precision, calibration=self.calibration, keep=keep)
        except ValueError as error:
            return Tried(name, precision, keep, of, refused=f"it cannot be made: {error}")
        folder = self.scratch / name
        remove(folder)
        folder.mkdir()
        classifier, reference = self.traced.classifier, self.evidence.reference
        manifest = write_folder(folder, model, classifier, precision=precision, reference=reference)
        quality, gate = self.evidence.judge(OnnxPredictor(folder, threads=self.threads), self.max_drop)
        state_quality(folder, quality)
        return Tried(
            name=name,
            precision=precision,
            kept=keep,
            of=of,
            bytes=sum(file.stat().st_size for file in folder.iterdir()),
            quality=quality,
            gate=gate,
            moved_by_batch=manifest.check.moved_by_batch,
            refused=refusal(quality, gate, accept_undecided=self.accept_undecided),
        )

    def mixed(self) -> Tried:
        """Keep as few weights of ``int8`` in float32 as it takes to pass, the most sensitive first."""
        self.progress("int8-mixed: each weight narrowed alone, to see which one costs the most")
        texts = (self.calibration or self.evidence.examples)[:_SENSED]
        feeds = list(feeds_of(self.traced.classifier, texts))
        order = tuple(one.weight for one in sensitivities(self.traced.fused, feeds, Rows()))
        made: dict[tuple[str, ...], Tried] = {}

        def acceptable(keep: tuple[str, ...]) -> bool:
            if not keep:
                return False  # that is int8 itself, which was refused
            made[keep] = self.attempt("int8", name="int8-mixed", keep=keep)
            return made[keep].refused is None

        keep = fewest_kept(order, acceptable)
        if keep is None:
            return made[order]
        last = next(reversed(made))
        return made[keep] if keep == last else self.attempt("int8", name="int8-mixed", keep=keep)
