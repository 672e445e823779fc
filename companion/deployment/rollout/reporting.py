"""What a rollout says about itself, as it goes over the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from companion.deployment.rollout.comparing import Agreement, wilson
from companion.deployment.rollout.guarding import SequentialTest
from companion.deployment.rollout.stages import Stage, Trial
from companion.deployment.rollout.timing import LatencyWindow
from companion.deployment.rollout.versions import ServedVersion
from companion.inference.intervals import Percentile

__all__ = [
    "AgreementReport",
    "GuardReport",
    "LatencyReport",
    "PercentileReport",
    "RolloutEvent",
    "RolloutStatus",
    "TrialReport",
    "VersionReport",
    "What",
    "latency_report",
    "trial_report",
    "version_report",
]

What = Literal["live", "loaded", "unloaded", "traffic", "promoted", "rolled back", "not resumed"]


class PercentileReport(BaseModel):
    """A percentile with its 95% interval, or the reason why there is none yet."""

    name: str = Field(description="Such as p99.")
    ms: float | None = Field(default=None, description="The estimate, in milliseconds.")
    low_ms: float | None = Field(default=None, description="Lower end of the 95% interval.")
    high_ms: float | None = Field(default=None, description="Upper end of the 95% interval.")
    reason: str | None = Field(default=None, description="Why there is no estimate.")


class LatencyReport(BaseModel):
    """How long the latest answers took."""

    count: int = Field(ge=0, description="Answers there ever were.")
    kept: int = Field(ge=0, description="The latest of them, which the percentiles are about.")
    percentiles: list[PercentileReport]


class VersionReport(BaseModel):
    """One loaded version."""

    version: str = Field(description="Its name in answers.")
    folder: str = Field(description="Where it came from, on the server.")
    running: int = Field(ge=0, description="Questions that it is answering now.")
    latency: LatencyReport = Field(description="Of the answers that clients got from it.")


class GuardReport(BaseModel):
    """One of the two tests that take a version back."""

    answers: int = Field(ge=0, description="Answers that were judged.")
    bad: int = Field(ge=0, description="How many of them were bad.")
    tolerated: float = Field(description="Share of bad answers that is tolerated.")
    unacceptable: float = Field(description="Share from which on the version is taken back soon.")
    false_alarm: float = Field(description="Probability of ever taking back a version that keeps to it.")
    stake: float = Field(ge=0, description="The evidence: at 1 / false_alarm the version is taken back.")


class AgreementReport(BaseModel):
    """How often two versions say the same."""

    compared: int = Field(ge=0, description="Questions that both answered.")
    agreed: int = Field(
        ge=0, description="Same label, and no probability or score further apart than tolerated."
    )
    same_label: int = Field(ge=0, description="Same label.")
    share: float | None = Field(default=None, description="Share that agreed.")
    low: float | None = Field(default=None, description="Lower end of its 95% interval (Wilson).")
    high: float | None = Field(default=None, description="Upper end of its 95% interval.")
    largest_difference: float = Field(description="Largest difference of two probabilities or scores.")
    mean_difference: float = Field(description="Mean over the questions of their largest difference.")


class TrialReport(BaseModel):
    """What was seen of the version on trial."""

    version: str
    answered: int = Field(ge=0, description="Questions that a client got its answer to.")
    replaced: int = Field(ge=0, description="Questions that another version answered, because it failed.")
    excused: int = Field(
        ge=0, description="How many of these it refused while the live version was busy too."
    )
    held_back: int = Field(ge=0, description="Questions kept from it: comparisons waited, or time was short.")
    shadowed: int = Field(ge=0, description="Copies of live questions that it was asked.")
    dropped: int = Field(ge=0, description="Copies that never ran, since the server started.")
    waiting: int = Field(ge=0, description="Copies that wait now.")
    uncompared: int = Field(ge=0, description="Its answers to which the live version gave none to compare.")
    errors: GuardReport
    disagreements: GuardReport
    agreement: AgreementReport
    shadow_latency: LatencyReport = Field(description="Of the copies, which run at low priority.")


class RolloutEvent(BaseModel):
    """Something that happened to a version."""

    at: str = Field(description="When, UTC, ISO 8601.")
    what: What
    version: str
    automatic: bool = Field(default=False, description="Whether nobody asked for it.")
    detail: str = ""


class RolloutStatus(BaseModel):
    """Which versions there are, who is asked, and what was seen."""

    stage: Literal["loading", "live", "candidate", "promoted"] = Field(
        default="loading",
        description="live: one version; candidate: a second on trial; promoted: the one before is kept.",
    )
    loading: str | None = Field(default=None, description="The folder that is being loaded.")
    live: VersionReport | None = None
    candidate: VersionReport | None = None
    previous: VersionReport | None = None
    canary: float = Field(
        default=0, ge=0, le=1, description="Share of the callers whom the candidate answers."
    )
    by_header: bool = Field(default=False, description="Whether the candidate answers requests that name it.")
    shadow: float = Field(
        default=0, ge=0, le=1, description="Share of the questions that are copied to the candidate."
    )
    trial: TrialReport | None = None
    events: list[RolloutEvent] = Field(description="The latest, oldest first.")
    warnings: list[str] = Field(description="What an operator has to know and may not have seen.")

    model_config = ConfigDict(json_schema_extra={"description": "The state of a rollout."})


def latency_report(window: LatencyWindow) -> LatencyReport:
    """Describe latencies."""
    found = [_percentile(percentile) for percentile in window.percentiles()]
    return LatencyReport(count=window.count, kept=window.kept, percentiles=found)


def _percentile(found: Percentile) -> PercentileReport:
    if found.estimate is None:
        return PercentileReport(name=found.name, reason=found.reason)
    value, low, high = (
        round(1000 * seconds, 3)
        for seconds in (found.estimate.value, found.estimate.low, found.estimate.high)
    )
    return PercentileReport(name=found.name, ms=value, low_ms=low, high_ms=high)


def version_report(version: ServedVersion | None) -> VersionReport | None:
    """Describe a version, if there is one."""
    if version is None:
        return None
    return VersionReport(
        version=version.name,
        folder=str(version.folder),
        running=version.running,
        latency=latency_report(version.latency),
    )


def trial_report(stage: Stage, *, dropped: int, waiting: int) -> TrialReport | None:
    """Describe what was seen of the version on trial, if there is one."""
    trial = stage.trial
    if trial is None:
        return None
    counts = ("answered", "replaced", "excused", "held_back", "shadowed", "uncompared")
    return TrialReport(
        version=trial.version.name,
        **{name: getattr(trial, name) for name in counts},
        dropped=dropped,
        waiting=waiting,
        errors=_guard(trial.guard.errors),
        disagreements=_guard(trial.guard.disagreements),
        agreement=_agreement(trial),
        shadow_latency=latency_report(trial.shadow_latency),
    )


def _guard(test: SequentialTest) -> GuardReport:
    return GuardReport(
        answers=test.answers,
        bad=test.bad,
        tolerated=test.tolerance.tolerated,
        unacceptable=test.tolerance.unacceptable,
        false_alarm=test.tolerance.false_alarm,
        stake=test.stake,
    )


def _agreement(trial: Trial) -> AgreementReport:
    found: Agreement = trial.agreement
    report = AgreementReport(
        compared=found.compared,
        agreed=found.agreed,
        same_label=found.same_label,
        largest_difference=found.largest,
        mean_difference=found.mean,
    )
    if found.compared:
        report.share = found.agreed / found.compared
        report.low, report.high = wilson(found.agreed, found.compared)
    return report
