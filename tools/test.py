"""Run every check: what `make test` calls.

Each step runs even when an earlier one failed; the exit status is 1 when any did. A notebook that passed is
not run again until it, or something that it depends on, has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "_build" / "test"

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import cache_key  # noqa: E402


@dataclass(frozen=True)
class Outcome:
    """How one step ended."""

    step: str
    passed: bool
    result: str
    seconds: float


def run(
    step: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, show: bool = False
) -> Outcome:
    """Run one step. Its output is shown while it runs when `show` is set, and otherwise only if it fails."""
    print(f"\n=== {step}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if show:
            print(line, end="", flush=True)
    passed = process.wait() == 0
    seconds = time.monotonic() - started
    if not passed and not show:
        print("".join(lines), end="")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    # pytest's closing line, or what a tool says last
    closing = re.fullmatch(r"=+ (.*?) =+", last)
    said = closing[1] if closing else last
    print(f"{'passed' if passed else 'FAILED'}: {said}", flush=True)
    return Outcome(step, passed, ("" if passed else "FAILED: ") + said, seconds)


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def pytest(step: str, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Run pytest as one step, and keep its times in a file of the step's name."""
    report = REPORTS / f"{re.sub(r'[^a-z0-9]+', '-', step)}.xml"
    report.unlink(missing_ok=True)
    return run(step, python("pytest", "-q", f"--junitxml={report}", *arguments), env=env, show=True)


def offline() -> dict[str, str]:
    """Return variables under which child processes cannot leave this machine, in the default profile."""
    if os.environ.get("COMPANION_PROFILE", "quick") != "quick":
        return {}
    paths = [str(ROOT / "tools" / "offline"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def check_code() -> list[Outcome]:
    scripts = Path(sys.executable).parent
    return [
        run("ruff check", python("ruff", "check", ".")),
        run("ruff format", python("ruff", "format", "--check", ".")),
        run("mypy", python("mypy", "--strict", "companion")),
        run("import contract", [str(scripts / "lint-imports")]),
    ]


def check_package() -> list[Outcome]:
    # Two tests run side by side: one thread each, or they fight for the same cores.
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **offline()}
    return [
        pytest("unit tests", "tests", "--ignore=tests/e2e", "-n", "2", env=threads),
        pytest("end-to-end tests", "tests/e2e", env=offline()),
    ]


def check_notebook(notebook: Path) -> Outcome:
    """Run a notebook under nbval, unless it passed before and all that it depends on is the same."""
    name = notebook.relative_to(ROOT).as_posix()
    key = hashlib.sha256(notebook.read_bytes() + cache_key.cache_key(ROOT).encode()).hexdigest()
    stamp = REPORTS / "notebooks" / f"{name.replace('/', '-')}.passed"
    if stamp.exists() and stamp.read_text() == key:
        print(f"\n=== {name}\nunchanged since it passed, not run again")
        return Outcome(name, True, "unchanged since it passed, not run again", 0.0)
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "--timeout=0"]
    outcome = pytest(name, *nbval, name, env={"COMPANION_PROGRESS": "0", **offline()})
    if outcome.passed:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)
    return outcome


def notebooks() -> list[Path]:
    found = [path for folder in ("book", "solutions") for path in (ROOT / folder).rglob("*.ipynb")]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def slowest(count: int) -> list[tuple[float, str]]:
    """Return the slowest tests of this run, with their seconds. Cells of notebooks are not tests."""
    times = []
    for step in ("unit-tests", "end-to-end-tests"):
        report = REPORTS / f"{step}.xml"
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                times.append((float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}"))
    return sorted(times, reverse=True)[:count]


def table(outcomes: Sequence[Outcome], total: float) -> str:
    """Lay out where the time went."""
    width = max(len(outcome.step) for outcome in outcomes)
    lines = ["", "=== slowest tests", *(f"{seconds:9.1f} s  {name}" for seconds, name in slowest(10))]
    lines += ["", "=== summary"]
    for outcome in outcomes:
        lines.append(f"{outcome.step:{width}}  {outcome.seconds:7.1f} s  {outcome.result}")
    failed = [outcome.step for outcome in outcomes if not outcome.passed]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "everything passed"
    lines.append(f"{'total':{width}}  {total:7.1f} s  {verdict}")
    return "\n".join(lines)


def main() -> int:
    started = time.monotonic()
    REPORTS.mkdir(parents=True, exist_ok=True)
    outcomes = [*check_code(), *check_package(), *(check_notebook(path) for path in notebooks())]
    print(table(outcomes, time.monotonic() - started))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
