"""What a semantic cache saves, what it costs, how often it is wrong, and whether it pays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from companion.inference.intervals import LEVEL, Estimate, proportion

__all__ = ["SemanticReport"]


@dataclass(frozen=True)
class SemanticReport:
    """The balance of a semantic cache over some questions.

    Every question pays for its vector and the search; only a hit gets the model's time back. So it pays where
    the share of hits is larger than the ratio of the two times, and nowhere else: a cache in front of a model
    that is no slower than the embedding can only lose.

    Attributes
    ----------
    questions : int
        That were looked up.
    hits : int
        That had a neighbour close enough.
    audited : int
        Hits that were put to the model as well: their time is not saved.
    false_hits : int
        Audited hits whose answer the model does not give.
    lookup_s : float or None
        Mean seconds to embed and search; None before the first.
    model_s : float or None
        Mean seconds of the model for one question; None before the first.
    budget : float
        The share of hits that may be false.
    off : str
        Why the cache does not answer; empty while it does.
    level : float
        Confidence level of the intervals.
    """

    questions: int
    hits: int
    audited: int
    false_hits: int
    lookup_s: float | None
    model_s: float | None
    budget: float
    off: str = ""
    level: float = LEVEL

    @property
    def hit_share(self) -> Estimate | None:
        """Share of the questions that hit; None before the first."""
        return proportion(self.hits, self.questions, level=self.level) if self.questions else None

    @property
    def false_share(self) -> Estimate | None:
        """Share of the audited hits that were false; None before the first."""
        return proportion(self.false_hits, self.audited, level=self.level) if self.audited else None

    @property
    def break_even(self) -> float | None:
        """The share of hits at which nothing is saved and nothing lost; above 1 it can never pay."""
        if self.lookup_s is None or not self.model_s:
            return None
        return self.lookup_s / self.model_s

    @property
    def saved_s(self) -> Estimate | None:
        """Seconds saved per question if no hit were audited, negative for a loss; None before they are known.

        The interval is that of the share of hits; the two times are taken as they are.
        """
        share = self.hit_share
        if share is None or self.lookup_s is None or self.model_s is None:
            return None
        value, low, high = (
            each * self.model_s - self.lookup_s for each in (share.value, share.low, share.high)
        )
        return Estimate(value, low, high)

    @property
    def spent_s(self) -> float:
        """Seconds spent on looking up, in all."""
        return self.questions * (self.lookup_s or 0.0)

    @property
    def won_s(self) -> float:
        """Seconds of the model that were not needed, in all."""
        return (self.hits - self.audited) * (self.model_s or 0.0)

    @property
    def keeps_budget(self) -> bool | None:
        """Whether the share of false hits is within the budget; None where the audits cannot tell."""
        share = self.false_share
        if share is None or share.low <= self.budget < share.high:
            return None
        return share.high <= self.budget

    @property
    def pays(self) -> bool | None:
        """Whether time is saved, by both ends of the interval, and the answers are not too often wrong."""
        if self.off or self.keeps_budget is False:
            return False
        saved = self.saved_s
        if saved is None or saved.low <= 0 < saved.high:
            return None
        return saved.low > 0

    @property
    def verdict(self) -> str:
        """Say whether it pays, and why."""
        if self.off:
            return f"no: it is off, {self.off}"
        if self.keeps_budget is False:
            return f"no: more than {self.budget:.2%} of its hits are false"
        if self.break_even is None or self.hit_share is None:
            return "not known: nothing was measured yet"
        needs = f"it needs more than {self.break_even:.1%} of hits and has {_percents(self.hit_share)}"
        if self.break_even >= 1:
            return f"no: looking up takes {self.break_even:.2f} times as long as the model"
        if self.pays is None:
            return f"not known: {needs}"
        return f"{'yes' if self.pays else 'no'}: {needs}"

    def text(self) -> str:
        """Write the balance in a few lines."""
        lines = [f"semantic cache: {self.verdict}"]
        if self.hit_share is not None:
            lines.append(f"  hits        {self.hits} of {self.questions}: {_percents(self.hit_share)}")
        if self.false_share is not None:
            lines.append(
                f"  false hits  {self.false_hits} of {self.audited} audited: {_percents(self.false_share)}"
            )
        if self.lookup_s is not None and self.model_s is not None:
            lines.append(
                f"  a question  {1000 * self.lookup_s:.2f} ms to look up, {1000 * self.model_s:.2f} ms to run"
            )
        if self.saved_s is not None:
            saved = self.saved_s
            lines.append(
                f"  saved       {1000 * saved.value:+.2f} ms a question "
                f"({1000 * saved.low:+.2f} to {1000 * saved.high:+.2f})"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the attributes, and what follows from them."""
        found = {
            name: None if (estimate := getattr(self, name)) is None else estimate.to_dict()
            for name in ("hit_share", "false_share", "saved_s")
        }
        own = {"break_even": self.break_even, "pays": self.pays, "verdict": self.verdict}
        return {**asdict(self), **found, **own}


def _percents(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
