"""Plots: readable on light and dark, told apart by every reader, and never without words."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from companion import plots
from companion.plots import PALETTE

ROOT = Path(__file__).parents[1]
ALT = "INT8 answers the most texts a second."
PAGES = (PALETTE.light.background, PALETTE.dark.background)

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def linear(colour: str) -> np.ndarray:
    """Return a colour as linear RGB, shape (3,)."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, blindness: np.ndarray) -> np.ndarray:
    """Return a colour in CIE L*a*b* as a reader with this blindness sees it."""
    rgb = np.clip(blindness @ linear(colour), 0, 1)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = matrix @ rgb / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def bars(**changes: object) -> plots.Plot:
    """Draw the usual comparison, with some arguments changed."""
    arguments: dict[str, object] = {
        "labels": ["PyTorch", "ONNX, INT8"],
        "values": [62.1, 240.0],
        "spreads": [(55, 70), (220, 260)],
        "unit": "texts per second",
        "highlight": "ONNX, INT8",
        "alt": ALT,
    }
    return plots.bars(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("theme", [PALETTE.light, PALETTE.dark], ids=["light", "dark"])
def test_every_text_colour_of_the_site_is_readable(theme: plots.Theme) -> None:
    for name in ("ink", "muted", "accent", "good", "partly", "bad"):
        for ground in (theme.background, theme.surface, theme.raised):
            assert contrast(getattr(theme, name), ground) >= 4.5, (name, ground)
    assert contrast(theme.background, theme.accent) >= 4.5, "the text of a filled button"


def test_series_stand_out_from_both_pages() -> None:
    for colour in (*PALETTE.series, PALETTE.neutral):
        for page in PAGES:
            assert contrast(colour, page) >= 3, (colour, page)


def test_ink_without_a_theme_reads_on_white_and_on_black() -> None:
    # No colour reaches 4.5 on white and on dark grey at once; on pages, the theme's own ink replaces it.
    for page in ("#ffffff", "#000000", *PAGES):
        assert contrast(PALETTE.ink, page) >= 4, page


@pytest.mark.parametrize("name", BLINDNESS)
def test_neighbouring_series_are_told_apart(name: str) -> None:
    seen = [lab(colour, BLINDNESS[name]) for colour in PALETTE.series]
    for first, second in pairwise(seen):
        assert np.linalg.norm(first - second) > 20
    for first, second in combinations(seen, 2):
        assert np.linalg.norm(first - second) > 10


def test_the_site_loads_this_palette() -> None:
    sheet = ROOT / "book" / "_static" / "palette.css"
    assert sheet.read_text(encoding="utf-8") == plots.css_variables(), (
        "write plots.css_variables() to palette.css"
    )


def test_the_style_sheet_names_no_colour_of_its_own() -> None:
    text = (ROOT / "book" / "_static" / "companion.css").read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w-])#[0-9a-fA-F]{3,8}\b(?=\s*[;,)}])|\brgba?\(|\bhsla?\(", text)
    variables = set(re.findall(r"^\s*--([\w-]+):", plots.css_variables(), flags=re.MULTILINE))
    assert {field.name for field in fields(PALETTE.light)} <= variables


def test_the_logo_is_drawn_in_the_palette() -> None:
    allowed = {*PALETTE.series, PALETTE.neutral}
    for name in ("logo.svg", "favicon.svg"):
        text = (ROOT / "book" / "_static" / name).read_text(encoding="utf-8")
        assert set(re.findall(r"#[0-9a-f]{6}", text)) <= allowed


def test_the_same_plot_is_the_same_bytes_and_another_shares_no_identifier() -> None:
    first, again, other = bars(), bars(), bars(values=[60.0, 230.0])
    assert first == again
    identifiers = [set(re.findall(r'\bid="([^"]+)"', plot.svg)) for plot in (first, other)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    for plot, own in zip((first, other), identifiers, strict=True):
        assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', plot.svg)) and all(
            (a or b) in own for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', plot.svg)
        )


def test_the_document_is_well_formed_and_says_no_date_and_styles_nothing_else() -> None:
    plot = bars()
    ElementTree.fromstring(plot.html())
    for unwanted in ("<metadata", "<style", "DejaVu", "<!DOCTYPE", "matplotlib v", "2026"):
        assert unwanted not in plot.svg


def test_the_display_carries_the_alternative_text() -> None:
    plot = bars(alt='It is "fast" & <small>, as the chart shows.')
    root = ElementTree.fromstring(plot.html())
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'It is "fast" & <small>, as the chart shows.'
    bundle = plot._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/plain"] == plot.alt


def test_on_a_page_every_colour_is_the_pages_own() -> None:
    page = re.sub(r"var\([^()]*(\([^()]*\))?[^()]*\)", "", bars().html())
    assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", page)


def test_glue_stores_it() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        data, _ = shell.display_formatter.format(bars())
    finally:
        InteractiveShell.clear_instance()
    assert 'aria-label="' in data["text/html"]


@pytest.mark.parametrize("alt", ["", "   ", "speed chart"])
def test_a_plot_without_words_is_refused(alt: str) -> None:
    with pytest.raises(ValueError, match="alt text"):
        bars(alt=alt)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_an_axis_without_a_label_is_refused(axis: str) -> None:
    with plots.style():
        figure, axes = plots.figure()
        axes.plot([1, 2], [3, 4])
        axes.set(**{f"{other}label": "steps" for other in "xy" if other != axis})
    with pytest.raises(ValueError, match=f"the {axis} axis"):
        plots.show(figure, alt=ALT)


def test_ticks_that_are_words_need_no_label_and_logarithmic_ones_do() -> None:
    assert "INT8" in bars().svg  # the words hold a digit
    with plots.style():
        figure, axes = plots.figure()
        axes.plot([1, 1000], [3, 4])
        axes.set(xscale="log", ylabel="loss")
    with pytest.raises(ValueError, match="the x axis"):
        plots.show(figure, alt=ALT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1.0]}, "1 values"),
        ({"labels": [], "values": [], "spreads": None}, "0 labels"),
        ({"highlight": "nobody"}, "nobody"),
        ({"spreads": [(55, 60), (220, 260)]}, "outside its spread"),
        ({"spreads": [(55, 70)]}, "1 spreads"),
    ],
)
def test_bars_refuse_what_does_not_belong_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bars(**changes)


def test_bars_print_the_values() -> None:
    text = "".join(ElementTree.fromstring(bars(spreads=None).svg).itertext())
    assert "62.1" in text and "240" in text and "texts per second" in text
    assert "0.0123" in bars(values=[0.01234, 0.5], spreads=None).svg
    assert "1,235" in bars(values=[1234.5678, 5], spreads=None).svg


def test_lines_name_each_series_and_refuse_too_many() -> None:
    plot = plots.lines([1, 2], {"training": [3, 1], "dev": [3, 2]}, x_label="step", y_label="loss", alt=ALT)
    assert ">training<" in plot.svg and ">dev<" in plot.svg
    many = {str(index): [1, 2] for index in range(len(PALETTE.series) + 1)}
    with pytest.raises(ValueError, match="series found"):
        plots.lines([1, 2], many, x_label="step", y_label="loss", alt=ALT)
    with pytest.raises(ValueError, match="1 values, 2 expected"):
        plots.lines([1, 2], {"a": [1]}, x_label="step", y_label="loss", alt=ALT)


def test_names_at_the_ends_of_lines_do_not_run_into_each_other() -> None:
    ends = {"seed 0": 0.69, "seed 1": 0.7, "ln 2": 0.693, "far": 0.1}
    series = {name: [0.5, end] for name, end in ends.items()}
    plot = plots.lines([1, 2], series, x_label="rate", y_label="loss", alt=ALT)
    heights = {
        name: float(re.search(rf'y="([\d.]+)"[^>]*>{name}<', plot.svg)[1])  # type: ignore[index]
        for name in ends
    }
    places = sorted(heights.values())
    assert all(below - above >= 12 for above, below in pairwise(places)), heights
    # A higher value keeps the higher place; the figure counts from above.
    assert sorted(ends, key=lambda name: -ends[name]) == sorted(heights, key=lambda name: heights[name])


def test_nothing_is_left_behind() -> None:
    before = dict(mpl.rcParams)
    bars()
    assert dict(mpl.rcParams) == before
    code = (
        "import sys; from companion import plots; assert 'matplotlib' not in sys.modules;"
        "plots.bars(['a', 'b'], [1, 2], unit='seconds', alt='b takes twice as long');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
