"""The zoo as tables for a page: all of their numbers come from stored results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby

from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import right_source
from companion.debugging.zoo.matrix import BugRow, by_check
from companion.debugging.zoo.measure import Judged

__all__ = ["bug_table", "check_table", "diff_of", "matrix_table"]

Losses = Mapping[str, tuple[Judged, Judged]]
"""By a bug's name: its run, and that of the right code in the same configuration."""


def bug_table(bugs: Sequence[Bug], rows: Iterable[BugRow] = (), losses: Losses | None = None) -> str:
    """Return a table of bugs: what one sees, what finds them, how to fix them.

    Parameters
    ----------
    bugs : sequence of Bug
    rows : iterable of BugRow
        What the checks said; "not measured" stands where a bug has no row.
    losses : mapping, optional
        By a bug's name: its run and the right code's. With them come columns for the loss that one sees and
        the honest one.

    Returns
    -------
    str
        HTML: a table with a caption, a heading for each column, each family and each bug.
    """
    said = {row.bug: row for row in rows}
    columns = ["Bug", "What one sees", "Caught by", "What to do", "Silent"]
    if losses is not None:
        columns += ["Seen loss (right code)", "Honest loss (right code)"]
    body = []
    for family, group in groupby(bugs, key=lambda bug: bug.family):
        body.append(
            f'<tr><th scope="rowgroup" colspan="{len(columns)}">{escape(family.capitalize())}</th></tr>'
        )
        for bug in group:
            cells = [bug.symptom, _caught(said.get(bug.name)), bug.fix, "yes" if bug.silent else "no"]
            if losses is not None:
                cells += _losses(losses.get(bug.name))
            shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            body.append(f'<tr id="bug-{bug.name}"><th scope="row">{escape(bug.title)}</th>{shown}</tr>')
    return _table(f"The bugs of the zoo: {len(bugs)}", columns, body)


def matrix_table(rows: Sequence[BugRow]) -> str:
    """Return the matrix of bugs by checks, without checks that found nothing.

    Returns
    -------
    str
        HTML. A cell says in words, for those who listen, what its sign shows.
    """
    checks = list(dict.fromkeys(finding.check for row in rows for finding in row.findings))
    found = {finding.check for row in rows for finding in row.findings if finding.is_problem}
    kept = [check for check in checks if check in found]
    body = []
    for row in rows:
        by_name = {finding.check: finding for finding in row.findings}
        cells = "".join(_cell(by_name[check].status if check in by_name else "ok") for check in kept)
        placed = "right place" if row.placed else "found" if row.detected else "missed"
        body.append(f'<tr><th scope="row">{escape(row.bug)}</th><td>{placed}</td>{cells}</tr>')
    detected, right = sum(row.detected for row in rows), sum(row.placed for row in rows)
    caption = (
        f"Which check finds which bug: {detected} of {len(rows)} found, "
        f"{right} of them in the right component; "
        f"{len(kept)} of {len(checks)} checks found something. A dot: this check found it. Grey: the check "
        "did not apply"
    )
    table = _table(caption, ["Bug", "Verdict", *kept], body)
    # Wider than any screen: it scrolls in a frame of its own, by keyboard too.
    frame = '<div class="zoo-matrix" role="region" aria-label="The matrix of bugs by checks" tabindex="0">'
    return f"{frame}\n{table}</div>\n"


def check_table(rows: Sequence[BugRow]) -> str:
    """Return a table of checks: how many bugs each finds, how many nobody else finds, and what it costs."""
    checks = sorted(by_check(rows), key=lambda check: -check.found)
    body = []
    for check in checks:
        cells = (str(check.found), str(check.alone), f"{check.seconds:.3f}")
        shown = "".join(f'<td class="text-right">{cell}</td>' for cell in cells)
        body.append(f'<tr><th scope="row">{escape(check.check)}</th>{shown}</tr>')
    columns = ["Check", "Bugs found", "Found by it alone", "Median seconds"]
    return _table(f"{len(checks)} checks on {len(rows)} bugs, one thread", columns, body)


def diff_of(bug: Bug) -> str:
    """Return a bug's edits as a diff: whole lines of the right code, and of what somebody wrote."""
    parts = []
    for edit in bug.edits:
        source = right_source(edit.file)
        start = source.index(edit.before)
        end = start + len(edit.before)
        first = source.rfind("\n", 0, start) + 1
        last = end if edit.before.endswith("\n") else source.find("\n", end) + 1
        before = source[first:last]
        after = source[first:start] + edit.after + source[end:last]
        lines = [f"-{line}" for line in before.splitlines()] + [f"+{line}" for line in after.splitlines()]
        parts.append("\n".join((f"# {edit.file}.py", *lines)))
    return "\n\n".join(parts)


def _caught(row: BugRow | None) -> str:
    if row is None:
        return "not measured"
    names = list(dict.fromkeys(problem.check for problem in row.problems))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"


def _losses(pair: tuple[Judged, Judged] | None) -> list[str]:
    if pair is None:
        return ["not measured"] * 2
    bug, right = pair
    return [f"{_nats(bug.seen)} ({_nats(right.seen)})", f"{_nats(bug.honest)} ({_nats(right.honest)})"]


def _nats(loss: float | None) -> str:
    return "not a number" if loss is None else f"{loss:.2f}"


def _cell(status: str) -> str:
    """Return a cell of the matrix: most of them say nothing, and a page of words for them would be heavy."""
    if status == "problem":
        words = '<span aria-hidden="true">●</span><span class="visually-hidden">found</span>'
        return f'<td class="found">{words}</td>'
    return "<td></td>" if status == "ok" else '<td class="silent"></td>'


def _table(caption: str, columns: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = "\n".join(body)
    return (
        f'<table class="zoo">\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"
    )
