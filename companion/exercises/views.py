"""How results, hints and progress look: as HTML in the site's own boxes and tables, and as plain text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion.exercises.records import Hint, Progress, StepResult

# The boxes of the claims: their marks tell a state apart without its colour.
_BOXES = {"passed": "claim-holds", "failed": "claim-does-not-hold", "not done yet": ""}
_MARKS = {"passed": "✓", "failed": "✗", "not done yet": "?"}


def result_text(result: StepResult) -> str:
    """Lay a result out in lines."""
    lines = [f"{_MARKS[result.status]} {result.step}: {result.status}. {result.says}"]
    lines += [f"  tried: {what}" for what in result.tried]
    for item in result.evidence:
        mark = "✓" if item.passed else "✗"
        lines.append(f"  {mark} {item.what}: expected {item.expected}, found {item.found}")
    lines += [f"  note: {remark}" for remark in result.remarks]
    if result.printed:
        lines += ["  it printed:", *(f"  | {line}" for line in result.printed.splitlines())]
    if result.next_hint:
        lines.append(f"  {result.next_hint}")
    return "\n".join(lines)


def result_html(result: StepResult) -> str:
    """Draw a result as a box with a table of what was compared."""
    box = _BOXES[result.status]
    parts = [
        f'<p class="claim-verdict">{escape(result.status)}</p>',
        f'<p class="claim-says">{escape(result.title)}: {escape(result.says)}</p>',
    ]
    if result.evidence:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("", "Compared", "Expected", "Found"))
        body = "".join(
            f"<tr><td>{'✓ right' if item.passed else '✗ wrong'}</td><td>{escape(item.what)}</td>"
            f"<td>{escape(item.expected)}</td><td>{escape(item.found)}</td></tr>"
            for item in result.evidence
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if result.tried:
        parts.append(f'<p class="claim-measured">Tried: {escape("; ".join(result.tried))}.</p>')
    parts += [f'<p class="claim-measured">{escape(remark)}</p>' for remark in result.remarks]
    if result.printed:
        parts.append(f'<p class="claim-measured">It printed:</p><pre>{escape(result.printed)}</pre>')
    if result.next_hint:
        parts.append(f'<p class="claim-measured">{escape(result.next_hint)}</p>')
    label = escape(f"{result.step}: {result.status}")
    return f'<div class="claim-box {box}" role="note" aria-label="{label}">{"".join(parts)}</div>'


def hint_html(hint: Hint) -> str:
    """Draw a hint as a box."""
    label = escape(f"Hint {hint.number} of {hint.of} for {hint.step}")
    return (
        f'<div class="claim-box" role="note" aria-label="{label}"><p class="claim-verdict">{label}</p>'
        f'<p class="claim-says">{escape(hint.text)}</p></div>'
    )


def progress_text(progress: Progress) -> str:
    """Lay progress out in lines."""
    width = max(len(name) for name, *_ in progress.rows)
    return "\n".join(
        f"{_MARKS[status]} {name:{width}}  {status:12}  checks {checks}, hints {hints}  {title}"
        for name, title, status, checks, hints in progress.rows
    )


def progress_html(progress: Progress) -> str:
    """Draw progress as a table."""
    names = ("Step", "What", "State", "Checks", "Hints")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(title)}</td>'
        f"<td>{_MARKS[status]} {escape(status)}</td><td>{checks}</td><td>{hints}</td></tr>"
        for name, title, status, checks, hints in progress.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
