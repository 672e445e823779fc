"""The colours of the project: one palette for the site and the plots."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Theme:
    """The colours of the site in one mode, as ``#rrggbb``.

    Attributes
    ----------
    background, surface, raised
        The page, a code cell or box on it, and a header row or hovered card.
    ink, muted, rule
        Text, secondary text, and hairlines.
    accent, good, partly, bad
        Links and the brand; and the three verdicts of a claim. All are readable as text on ``surface``.
    """

    background: str
    surface: str
    raised: str
    ink: str
    muted: str
    rule: str
    accent: str
    good: str
    partly: str
    bad: str


@dataclass(frozen=True)
class Palette:
    """All colours of the project.

    Attributes
    ----------
    light, dark
        The two modes of the site.
    series
        Colours of data, in order of use. Each has a contrast of at least 3 on both backgrounds, and any
        two neighbours stay apart for readers with deuteranopia or protanopia.
    neutral
        What is compared against: the baseline of a chart.
    ink, grid
        Text and hairlines of a plot where no theme is known: mid-tones that read on white and on black.
    """

    light: Theme
    dark: Theme
    series: tuple[str, ...]
    neutral: str
    ink: str
    grid: str


PALETTE = Palette(
    light=Theme(
        background="#fdfdfb",
        surface="#f5f6f3",
        raised="#ebeeea",
        ink="#1b242c",
        muted="#54606b",
        rule="#dcdfda",
        accent="#0b6a68",
        good="#1c6b3c",
        partly="#8f4a0c",
        bad="#a12a52",
    ),
    dark=Theme(
        background="#14181c",
        surface="#1c2227",
        raised="#262d33",
        ink="#e2e6e9",
        muted="#a4aeb7",
        rule="#343c44",
        accent="#62cbc5",
        good="#7fd09b",
        partly="#f0aa6b",
        bad="#f392b4",
    ),
    series=("#128a86", "#c9722a", "#6f79cf", "#c5557f", "#737345"),
    neutral="#87909a",
    ink="#757d86",
    grid="#868e97",
)


def css_variables(palette: Palette = PALETTE) -> str:
    """Return the palette as the style sheet that the site loads (``book/_static/palette.css``).

    Parameters
    ----------
    palette : Palette
        The colours to write.

    Returns
    -------
    str
        One rule a mode. ``--plot-ink`` and ``--plot-grid`` give inline plots the colours of their page.
    """
    data = {f"plot-{index}": colour for index, colour in enumerate(palette.series, start=1)}
    data["plot-neutral"] = palette.neutral
    rules = []
    for mode, theme in (("light", palette.light), ("dark", palette.dark)):
        names = {field.name: getattr(theme, field.name) for field in fields(theme)}
        names |= data | {"plot-ink": theme.ink, "plot-grid": theme.muted}
        body = "\n".join(f"  --{name}: {colour};" for name, colour in names.items())
        selector = ":root, html[data-theme=light]" if mode == "light" else "html[data-theme=dark]"
        rules.append(f"{selector} {{\n{body}\n}}\n")
    return "/* Written by companion.plots.css_variables(); a test keeps it so. */\n" + "\n".join(rules)
