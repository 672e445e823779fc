"""The zoo against the checks: which check finds which bug, in what time, and what people find without them.

    python benchmarks/debugging.py --out RESULTS.json [--only NAME ...] [--again CHECK ...] [--without-slow]

For each bug: all checks on the edited code, two baselines (overfit one batch + initial loss; the loss curve
alone, against clean runs with other seeds), and the held-out loss that one sees beside the honest one. Each
bug is written as soon as it is there: the same command run again goes on where it stopped, with the checks
that are new as well. After a check was changed, `--again` runs it on every bug, and replaces what was stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from store import Store

from companion.debugging import load_checks
from companion.debugging.checks import Check
from companion.debugging.zoo import BUGS, Bug, Configuration, named, subject_of
from companion.debugging.zoo.baselines import looks_different, taught_checks_alarm
from companion.debugging.zoo.matrix import by_check, matrix, share_detected, share_placed
from companion.debugging.zoo.measure import judged
from companion.debugging.zoo.results import Results, restored, stored


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    checks = [check for check in load_checks().values() if arguments.slow or not check.slow]
    results = Store(arguments.out, {"seeds": arguments.seeds, "epochs": arguments.epochs})
    bugs = [named(name) for name in arguments.only] if arguments.only else BUGS
    for bug in bugs:
        results.measured(bug.name, lambda bug=bug: measure(bug, checks, arguments, results))
        update(bug, checks, arguments.again, results)
    print(report(Results(results.rows)))


def parse() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, gone on with if it is there")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these bugs; default: all")
    parser.add_argument(
        "--again", nargs="+", metavar="CHECK", default=(), choices=sorted(load_checks()), help="these checks"
    )
    parser.add_argument("--seeds", type=int, default=3, help="clean runs that a curve is compared with")
    parser.add_argument("--epochs", type=int, default=8, help="of each run")
    parser.add_argument(
        "--without-slow", dest="slow", action="store_false", help="leave out checks that train"
    )
    return parser.parse_args()


def measure(
    bug: Bug, checks: Sequence[Check], arguments: argparse.Namespace, results: Store
) -> dict[str, Any]:
    """Return all that is known of one bug."""
    start = time.perf_counter()
    clean = [run["seen"] for run in clean_runs(bug.configuration, arguments, results)["runs"]]
    run = judged(bug, epochs=arguments.epochs)
    row = matrix([bug], checks)[0]
    return {
        "findings": [stored(finding) for finding in row.findings],
        "run": asdict(run),
        "clean": key_of(bug.configuration),
        "taught": taught_checks_alarm(subject_of(bug)),
        "curve": looks_different(run.seen, clean),
        "seconds": time.perf_counter() - start,
    }


def update(bug: Bug, checks: Sequence[Check], again: Sequence[str], results: Store) -> None:
    """Run the checks that a stored row lacks, or that are to run again; drop those that are gone."""
    kept = {restored(finding).check: finding for finding in results.rows[bug.name]["findings"]}
    wanted = [check for check in checks if check.name not in kept or check.name in again]
    if wanted or kept.keys() - load_checks().keys():
        found = kept | {finding.check: stored(finding) for finding in matrix([bug], wanted)[0].findings}
        findings = [found[name] for name in load_checks() if name in found]
        results.change(bug.name, lambda row: row | {"findings": findings})
        print(bug.name, "again:", ", ".join(check.name for check in wanted), flush=True)


def clean_runs(where: Configuration, arguments: argparse.Namespace, results: Store) -> dict[str, Any]:
    """Return runs of the right code in a configuration, one for each seed."""

    def runs() -> dict[str, Any]:
        start = time.perf_counter()
        found = [
            asdict(judged((), where, seed=seed, epochs=arguments.epochs)) for seed in range(arguments.seeds)
        ]
        return {"runs": found, "seconds": time.perf_counter() - start}

    return results.measured(key_of(where), runs)


def key_of(where: Configuration) -> str:
    return "right code/" + json.dumps(asdict(replace(where, because="")), sort_keys=True)


def report(results: Results) -> str:
    rows, taught, curve = results.rows, results.found_by("taught"), results.found_by("curve")
    lines = [f"{'bug':34} {'seen':>6} {'honest':>6} {'clean':>6}  verdict  curve taught  found by"]
    for row in rows:
        run, clean = results.losses[row.bug]
        verdict = "placed" if row.placed else "found" if row.detected else "MISSED"
        found = ", ".join(f"{problem.check} [{problem.component}]" for problem in row.problems[:3])
        lines.append(
            f"{row.bug:34} {nats(run.seen)} {nats(run.honest)} {nats(clean.seen)}  {verdict:7}  "
            f"{'seen' if row.bug in curve else '-':5} {'seen' if row.bug in taught else '-':6}  {found}"
        )
    lines += ["", f"{'check':44} bugs  alone  median seconds"]
    lines += [f"{row.check:44} {row.found:4d} {row.alone:6d} {row.seconds:10.3f}" for row in by_check(rows)]
    lines += [
        "",
        f"{len(rows)} bugs: {share_detected(rows):.1%} detected, "
        f"{share_placed(rows):.1%} in the right component",
        f"overfit one batch + initial loss alone: {len(taught) / len(rows):.1%}",
        f"the loss curve alone: {len(curve) / len(rows):.1%}",
        f"all checks of one model: {statistics.median(row.seconds for row in rows):.2f} s (median)",
    ]
    return "\n".join(lines)


def nats(loss: float | None) -> str:
    return "   nan" if loss is None else f"{loss:6.2f}"


if __name__ == "__main__":
    main()
