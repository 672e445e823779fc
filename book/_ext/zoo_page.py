"""The zoo of bugs as a page: each bug with its edit, and what the stored run of the benchmark found."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

RESULTS = "benchmarks/results/debugging.json"


class _FromResults(SphinxDirective):
    """A part of the page that is written from the stored results."""

    def results(self):
        """Read the results, and have the page written again when they or the zoo change."""
        from companion.debugging.zoo import results as reader

        path = Path(self.env.srcdir) / RESULTS
        for source in (path, *Path(reader.__file__).parent.glob("*.py")):
            self.env.note_dependency(str(source))
        return reader.read_results(path)


class ZooVerdict(_FromResults):
    """`{zoo-verdict}`: the shares, with date and machine."""

    def run(self) -> list[nodes.Node]:
        """Return one paragraph."""
        from companion.debugging.zoo.matrix import share_detected, share_placed

        found = self.results()
        count = len(found.rows)
        taught, curve = len(found.found_by("taught")), len(found.found_by("curve"))
        text = (
            f"Of {count} bugs the doctor finds {share_detected(found.rows):.0%} and puts "
            f"{share_placed(found.rows):.0%} in the right component. Overfitting one batch and looking at "
            f"the initial loss find {taught}, the loss curve alone {curve}. "
            f"Measured from {found.dates[0]} to {found.dates[1]} on {', '.join(found.machines)}."
        )
        return [nodes.paragraph(text=text)]


class ZooBugs(_FromResults):
    """`{zoo-bugs}`: the table of all bugs."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        from companion.debugging.zoo import BUGS
        from companion.debugging.zoo.page import bug_table

        found = self.results()
        html = bug_table(BUGS, found.rows, found.losses)
        frame = '<div class="zoo-matrix" role="region" aria-label="The bugs" tabindex="0">'
        return [nodes.raw("", f"{frame}{html}</div>", format="html")]


class ZooMatrix(_FromResults):
    """`{zoo-matrix}`: bugs by checks."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        from companion.debugging.zoo.page import matrix_table

        return [nodes.raw("", matrix_table(self.results().rows), format="html")]


class ZooChecks(_FromResults):
    """`{zoo-checks}`: what each check finds and costs."""

    def run(self) -> list[nodes.Node]:
        """Return a table."""
        from companion.debugging.zoo.page import check_table

        return [nodes.raw("", check_table(self.results().rows), format="html")]


class ZooEdits(SphinxDirective):
    """`{zoo-edits}`: what somebody wrote in place of the right lines, bug by bug."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each family, with one folded block for each bug."""
        from companion.debugging.zoo import BUGS
        from companion.debugging.zoo.page import diff_of

        result: list[nodes.Node] = []
        for family, bugs in groupby(BUGS, key=lambda bug: bug.family):
            section = nodes.section(ids=[f"edits-{family}"], names=[f"edits-{family}"])
            section += nodes.title(text=family.capitalize())
            for bug in bugs:
                section += nodes.raw("", f"<details><summary>{bug.title}</summary>", format="html")
                section += nodes.literal_block("", diff_of(bug), language="diff")
                section += nodes.paragraph(text=f"{bug.why} {bug.fix}")
                section += nodes.raw("", "</details>", format="html")
            result.append(section)
        return result


DIRECTIVES = {
    "zoo-verdict": ZooVerdict,
    "zoo-bugs": ZooBugs,
    "zoo-matrix": ZooMatrix,
    "zoo-checks": ZooChecks,
    "zoo-edits": ZooEdits,
}
