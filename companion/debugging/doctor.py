"""The doctor: runs the checks that apply, and says what to repair first."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

import torch
from tqdm import tqdm

from companion.debugging import checks as package
from companion.debugging.checks.registry import CHECKS, Check
from companion.debugging.finding import Family, Finding
from companion.debugging.ordering import ordered
from companion.debugging.report import Diagnosis
from companion.debugging.subject import Subject, seeded
from companion.settings import get_settings

__all__ = ["diagnose", "load_checks"]


def load_checks() -> dict[str, Check]:
    """Import all modules of `companion.debugging.checks`, and return all checks by name.

    Returns
    -------
    dict of str to companion.debugging.checks.Check
        Those that were defined elsewhere with `companion.debugging.checks.registry` are among them.
    """
    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return dict(CHECKS)


def diagnose(
    subject: Subject | Mapping[str, Subject],
    *,
    families: Iterable[Family] | None = None,
    slow: bool = True,
    only: Iterable[str] | None = None,
    checks: Iterable[Check] | None = None,
) -> Diagnosis:
    """Look at a model and what surrounds it.

    Parameters
    ----------
    subject : Subject or mapping of str to Subject
        Several subjects are the parts of one model, such as the encoder and the decoder of a T5: their
        findings name the part.
    families : iterable of {"data", "model", "training", "dynamics"}, optional
        Run only the checks of these.
    slow : bool
        Whether to run the checks that train.
    only : iterable of str, optional
        Run only the checks of these names.
    checks : iterable of companion.debugging.checks.Check, optional
        Choose from these instead of from all that `load_checks` returns.

    Returns
    -------
    Diagnosis
        An error that the subject's code raises under a check is a problem of its own, and does not stop the
        others. A check that fails by itself did not apply. Neither the subject nor torch's random state is
        changed.

    Raises
    ------
    ValueError
        When there is no such check or family, or no check is left.
    """
    start = time.perf_counter()
    parts = {"": subject} if isinstance(subject, Subject) else dict(subject)
    if len(parts) == 1:  # nothing to tell apart
        parts = {"": next(iter(parts.values()))}
    chosen = _chosen(
        load_checks() if checks is None else {item.name: item for item in checks}, families, only
    )
    jobs = [(part, item) for part in parts for item in chosen]
    findings = []
    progress = get_settings().progress
    with _old_objects_left_alone():
        for part, item in tqdm(jobs, desc="diagnose", unit="check", leave=False, disable=not progress):
            findings.append(_of_part(_run(item, parts[part], slow), part))
    problems, follows = ordered(findings)
    return Diagnosis(tuple(findings), problems, time.perf_counter() - start, follows)


def _chosen(
    available: Mapping[str, Check], families: Iterable[Family] | None, only: Iterable[str] | None
) -> Sequence[Check]:
    """Return the checks to run, in their order; refuse names that nothing has."""
    chosen = list(available.values())
    if families is not None:
        wanted = set(families)
        if odd := wanted - set(get_args(Family)):
            raise ValueError(
                f"there is no family {sorted(odd)[0]!r}, expected some of: {', '.join(get_args(Family))}"
            )
        chosen = [item for item in chosen if item.family in wanted]
    if only is not None:
        names = {name.replace("_", " ").replace("-", " ") for name in only}
        for name in sorted(names - available.keys()):
            near = get_close_matches(name, available, n=3, cutoff=0.4) or sorted(available)
            raise ValueError(f"there is no check {name!r}; near it: {', '.join(near)}")
        chosen = [item for item in chosen if item.name in names]
    if not chosen:
        raise ValueError("no check is left to run: choose other families or names")
    return chosen


def _run(item: Check, subject: Subject, slow: bool) -> Finding:
    """Run a check: seeded, so that its finding does not depend on which checks ran before."""
    if item.slow and not slow:
        skipped = item.not_applicable("it trains, and slow checks were left out")
        return replace(skipped, family=item.family)
    with seeded(0), torch.enable_grad():
        return item(subject)


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Spare the garbage collector what was there before: hundreds of models come and go beside it.

    Libraries hold half a million objects that live as long as the process. Walking them again and again
    was a tenth of the time that the fast checks take.
    """
    mine = gc.get_freeze_count() == 0  # else somebody else froze them, and unfreezes
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _of_part(finding: Finding, part: str) -> Finding:
    """Say in a finding which part of the model it is about."""
    if not part:
        return finding
    return replace(finding, where=f"{part}: {finding.where}" if finding.where else part)
