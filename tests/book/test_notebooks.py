"""Notebooks are clean: no output that is not checked, short cells, listed, no measurement typed by hand.

Each rule is a function from a notebook to what it found; a test of its own proves that it can find something.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(
    path
    for folder in ("book", "solutions")
    for path in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
LONGEST_CELL = 15

# A measurement is a number with a unit of time, size, rate or share, a ratio, or a score with decimals.
NUMBER = r"(?<![\w.])[~≈]?\d(?:[\d,]*\d)?(?:\.\d+)?"
UNIT = (
    r"(?:\s?(?:x|×|%|‰)(?!\w)|\s?(?:percent|points?)\b"
    r"|\s?(?:ns|µs|us|ms|s|min|h|seconds?|milliseconds?|minutes?|hours?)\b"
    r"|\s?(?:[kKMGT]i?B|bytes|kilobytes|megabytes|gigabytes)\b"
    r"|\s?(?:\w+/s|\w+ (?:per|a|each) second)\b|\s?(?:[GMT]?FLOPS?|GFLOP/s|tok/s)\b"
    r"|\s?times\s(?:faster|slower|as|more|less|smaller|larger|the)\b)"
)
COUNTS = r"(?:two|three|four|five|six|seven|eight|nine|ten)"
WORDS = rf"\b(?:twice|half|{COUNTS}(?:fold|\stimes))\s(?:as|faster|slower|smaller|larger)\b"
QUALITY = r"\b(?:accuracy|F1|score|loss|AUC|correlation|speed-?up|error)\b"
SCORE = rf"{QUALITY}(?:\W+\w+){{0,4}}?\W+(?:0?\.\d+|\d+\.\d+)"
MEASUREMENT = re.compile(f"{NUMBER}{UNIT}|{WORDS}|{SCORE}", flags=re.IGNORECASE)

OTHER_PLOTS = (
    r"\b(?:matplotlib|pyplot|plt|seaborn|plotly)\b|\.savefig\(|\b(?:df|frame|table)\.(?:plot|hist)\b"
)


def prose(markdown: str) -> str:
    """Return what the author states: no code, formulas, roles, links, quotations or givens."""
    shown = r"(?!\{(?:note|tip|warning|admonition|dropdown))"
    text = re.sub(rf"^(`{{3,}}|~{{3,}}){shown}.*?^\1\s*$", "", markdown, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^\s*>.*$", "", text, flags=re.M)  # a claim, quoted
    text = re.sub(r"\[[^\]]*\]\{\.given\}", "", text)  # a given of the exercise or setting, not a measurement
    text = re.sub(r"\{(?!cite)[\w:-]+\}`[^`]*`", "GLUED", text)
    text = re.sub(r"(?<!\})(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)|https?://\S+|<[^>]+>", "", text)


def typed_measurements(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Find measurements in prose, except in a sentence that cites where the figure was published."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z*_(])|\n\s*\n|\n\s*[-*|] ", prose(cell.source)):
            if "{cite" not in sentence and (found := MEASUREMENT.search(sentence)):
                yield f"{found[0]!r} is typed in {' '.join(sentence.split())!r}: glue it, or cite its source"


def unchecked_outputs(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Find stored outputs that nbval does not compare, and traces of a run."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        checked = "nbval-check-output" in tags or "# NBVAL_CHECK_OUTPUT" in cell.source
        first = cell.source.splitlines()[0] if cell.source else "an empty cell"
        if cell.outputs and not checked:
            yield f"{first!r} stores outputs: strip them, or tag the cell nbval-check-output"
        if cell.execution_count is not None and not cell.outputs:
            yield f"{first!r} has an execution count without outputs"
        if cell.outputs and cell.execution_count is None:
            yield f"{first!r} has outputs without an execution count, which nbval refuses"


def long_cells(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Find code cells that do not fit on a screen."""
    for cell in notebook.cells:
        lines = cell.source.splitlines()
        if cell.cell_type == "code" and len(lines) > LONGEST_CELL:
            yield f"{lines[0]!r} has {len(lines)} lines, at most {LONGEST_CELL}: move logic into the package"


def foreign_figures(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Find figures that are not drawn with companion.plots, and images without a text alternative."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if found := re.search(OTHER_PLOTS, cell.source):
                yield f"{found[0]!r}: draw with companion.plots"
        elif found := re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"]+\")", cell.source):
            yield f"{found[0]!r}: an image without alt text"


RULES: list[Callable[[nbformat.NotebookNode], Iterator[str]]] = [
    typed_measurements,
    unchecked_outputs,
    long_cells,
    foreign_figures,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_notebook_is_clean(path: Path, rule: Callable[[nbformat.NotebookNode], Iterator[str]]) -> None:
    found = list(rule(nbformat.read(path, as_version=4)))
    assert not found, "\n".join(found)


def excerpts(markdown: str, folder: Path) -> Iterator[str]:
    """Return the excerpts of Python files that begin at a function and end before what follows it."""
    for path, options in re.findall(r"```\{literalinclude\} (\S+\.py)\n(.*?)```", markdown, flags=re.S):
        start = re.search(r':start-at: "(def .*?)"', options)
        end = re.search(r':end-before: "(.*?)"', options)
        if start and end:
            text = (folder / path).read_text(encoding="utf-8")
            yield text[text.index(start[1]) :].partition(end[1])[0]


def test_an_excerpt_of_a_function_ends_where_the_function_ends() -> None:
    found = [
        (path.name, excerpt)
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for excerpt in excerpts(cell.source, path.parent)
    ]
    assert found, "the debugging page shows a check as it runs"
    for name, excerpt in found:
        assert len(ast.parse(excerpt).body) == 1, f"{name} shows more than a function:\n{excerpt}"


def listed(toc: object) -> Iterator[str]:
    """Yield every file and pattern of a table of contents."""
    if isinstance(toc, dict):
        for key, value in toc.items():
            if key in {"root", "file", "glob"}:
                yield value
            else:
                yield from listed(value)
    elif isinstance(toc, list):
        for entry in toc:
            yield from listed(entry)


def test_the_table_of_contents_lists_every_page_and_only_what_exists() -> None:
    names = set(listed(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))
    pages = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for suffix in ("md", "ipynb")
        for folder in ("book", "solutions")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        if "_static" not in path.parts and ".ipynb_checkpoints" not in path.parts
    }
    assert {name for name in names if "*" not in name} == pages


def test_landing_and_setup_pages_type_no_measurement_either() -> None:
    for path in (ROOT / "book").rglob("*.md"):
        notebook = notebook_with(nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8")))
        assert not list(typed_measurements(notebook)), path


def notebook_with(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a notebook with these cells."""
    return nbformat.v4.new_notebook(cells=list(cells))


@pytest.mark.parametrize(
    "text",
    [
        "INT8 is 3.2x faster.",
        "INT8 is 3 × faster.",
        "It reached 87 % on the test set.",
        "It reached 87% on the test set.",
        "A request takes 12 ms.",
        "Training took 158 seconds.",
        "We saw 1,240 examples/s on this machine.",
        "We saw 1240 texts per second.",
        "The accuracy is about 0.91 here.",
        "It is twice as fast.",
        "It is 4 times faster.",
        "The folder takes 24 MB.",
        "- a list entry with a gain of 5 points",
        ":::{note}\nIt took 9 minutes.\n:::",
        "It was fast {cite}`x2020`. Ours is 3.2x faster.",
    ],
)
def test_a_typed_measurement_is_found(text: str) -> None:
    assert list(typed_measurements(notebook_with(nbformat.v4.new_markdown_cell(text))))


@pytest.mark.parametrize(
    "text",
    [
        "INT8 is {glue:text}`int8-speedup:s` times faster.",
        "Use `timeout=30 s` or:\n\n```python\nsleep(3)  # 3 s\n```",
        "{cite:t}`sanh2019distilbert` report a model that is 60% faster.",
        "> Dynamic INT8 is 2x to 4x faster on a CPU.",
        "The scale is $s = \\max |x| / 127$ for 8 bits and 2 layers.",
        "BERT has 12 layers and 768 dimensions, batch size 32, in 2019.",
        "Answer within [50 ms]{.given}, the limit of the exercise.",
        "Section 3 shows SST-2 and INT8; see step 4.",
        "[a link](https://example.org/3x-faster)",
    ],
)
def test_what_is_no_typed_measurement_is_left_alone(text: str) -> None:
    assert not list(typed_measurements(notebook_with(nbformat.v4.new_markdown_cell(text))))


def test_unchecked_outputs_are_found() -> None:
    output = nbformat.v4.new_output("stream", text="1")
    bad = nbformat.v4.new_code_cell("print(1)", outputs=[output], execution_count=1)
    good = nbformat.v4.new_code_cell(
        "print(1)", outputs=[output], execution_count=1, metadata={"tags": ["nbval-check-output"]}
    )
    stale = nbformat.v4.new_code_cell("x = 1", execution_count=4)
    uncounted = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(1)", outputs=[output])
    assert list(unchecked_outputs(notebook_with(bad)))
    assert not list(unchecked_outputs(notebook_with(good)))
    assert list(unchecked_outputs(notebook_with(stale)))
    assert list(unchecked_outputs(notebook_with(uncounted)))


def test_a_long_cell_is_found() -> None:
    assert list(long_cells(notebook_with(nbformat.v4.new_code_cell("x = 1\n" * 16))))
    assert not list(long_cells(notebook_with(nbformat.v4.new_code_cell("x = 1\n" * 15))))


@pytest.mark.parametrize(
    "source", ["import matplotlib.pyplot as plt", "plt.show()", "df.plot()", "f.savefig('x')"]
)
def test_a_foreign_figure_is_found(source: str) -> None:
    assert list(foreign_figures(notebook_with(nbformat.v4.new_code_cell(source))))


def test_an_image_without_words_is_found() -> None:
    assert list(foreign_figures(notebook_with(nbformat.v4.new_markdown_cell("![](x.png)"))))
    assert not list(foreign_figures(notebook_with(nbformat.v4.new_markdown_cell("![A road](x.png)"))))


def test_an_unlisted_file_would_be_found() -> None:
    toc = {"root": "book/index", "parts": [{"chapters": [{"file": "a", "sections": [{"glob": "b/*"}]}]}]}
    assert list(listed(toc)) == ["book/index", "a", "b/*"]
