"""The built site: links that lead somewhere, nothing loaded from elsewhere, readable for everyone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

LANDING, FLAGSHIP = "book/index.html", "book/five-minutes.html"
CHAPTER = "book/training.html"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# The elements that stick out of the window, for the message of a failing test.
WIDEST = """[...document.querySelectorAll('body *')]
    .filter(element => element.getBoundingClientRect().right > window.innerWidth)
    .slice(0, 3).map(element => element.outerHTML.slice(0, 120))"""


@dataclass
class Page(HTMLParser):
    """What the crawler needs to know about one page."""

    path: Path
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    headings: int = 0
    language: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, loaded files, identifiers, images and headings."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in {"script", "img", "source", "iframe"} and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev", "index", "search"}:
            self.loaded.append(values.get("href", ""))
        if tag == "img" or values.get("role") == "img":
            self.images.append(values | {"tag": tag})
        self.headings += tag == "h1"
        if tag == "html":
            self.language = values.get("lang", "")

    @cached_property
    def known(self) -> set[str]:
        """The identifiers that a link can name."""
        return {"", *self.ids}


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return every page of the site."""
    found = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts]
    return {path.resolve(): Page(path) for path in found}


def broken_links(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Yield every link and loaded file inside the site that leads nowhere."""
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            address, anchor = urldefrag(link)
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.relative_to(site.resolve())}: {link} is not a file"
            elif target in pages and unquote(anchor) not in pages[target].known:
                yield f"{path.relative_to(site.resolve())}: {link} names no part of the page"


def test_links_and_anchors_resolve(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 10
    assert not list(broken_links(site, pages))


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html"></a><a href="#y"></a><a href="#x"></a>')
    found = list(broken_links(tmp_path, {(tmp_path / "a.html").resolve(): Page(tmp_path / "a.html")}))
    assert len(found) == 2


def test_no_page_names_a_file_elsewhere_to_load(pages: dict[Path, Page]) -> None:
    for page in pages.values():
        outside = [address for address in page.loaded if urlsplit(address).netloc]
        assert not outside, page.path
        assert "unpkg.com" not in page.path.read_text(encoding="utf-8")


def test_pages_have_a_language_one_heading_and_named_images(pages: dict[Path, Page]) -> None:
    for page in pages.values():
        text = page.path.read_text(encoding="utf-8")
        if 'http-equiv="Refresh"' in text:
            continue  # the root, which only leads to the landing page
        assert page.language == "en", page.path
        # The theme adds a heading of its own to the printed page.
        printed = text.partition('id="jb-print-docs-body"')[2].partition("<article")[0].count("<h1")
        assert page.headings - printed == 1, page.path
        for image in page.images:
            assert image.get("alt", image.get("aria-label", "")).strip(), (page.path, image)
        repeated = {name for name in page.ids if page.ids.count(name) > 1}
        assert not repeated, (page.path, repeated)


def test_figures_keep_their_words_across_pages(pages: dict[Path, Page], site: Path) -> None:
    for name in (LANDING, FLAGSHIP):
        images = pages[(site / name).resolve()].images
        assert any(len(image.get("aria-label", "").split()) > 3 for image in images), name


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a free port of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(mode, size) for mode in ("light", "dark") for size in SIZES], ids="-".join)
def variant(request: pytest.FixtureRequest, browser: Any) -> Iterator[tuple[str, Any]]:
    """Return the variant's name, and a browser context in its mode and size."""
    mode, size = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    context.add_init_script(
        f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')"
    )
    yield f"{mode}-{size}", context
    context.close()


def open_page(context: Any, url: str) -> tuple[Any, list[str]]:
    """Open a page, and note what goes wrong: errors, and requests that leave this machine."""
    page = context.new_page()
    wrong: list[str] = []
    page.on(
        "console",
        lambda message: wrong.append(message.text) if message.type in {"error", "warning"} else None,
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("request", lambda request: wrong.append(request.url) if leaves(request.url) else None)
    page.goto(url)
    return page, wrong


def leaves(url: str) -> bool:
    """Tell whether a request leaves this machine."""
    parts = urlsplit(url)
    return parts.scheme not in {"data", "blob"} and parts.hostname != "127.0.0.1"


@pytest.mark.browser
def test_every_page_fits_and_loads_nothing_from_elsewhere(
    browser: Any, address: str, site: Path, pages: dict[Path, Page]
) -> None:
    context = browser.new_context()
    for path in pages:
        name = path.relative_to(site.resolve()).as_posix()
        if 'http-equiv="refresh"' in path.read_text(encoding="utf-8").lower():
            continue  # it leaves for the landing page at once
        page, wrong = open_page(context, urljoin(address, name))
        for mode in ("light", "dark"):
            page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
            for width, height in SIZES.values():
                page.set_viewport_size({"width": width, "height": height})
                overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert overflow <= 0, (name, mode, width, page.evaluate(WIDEST))
        page.close()
        assert not wrong, (name, wrong)
    context.close()


# Of code cells, memory ladders and captions: what has more to show than it has room for.
CUT = """() => [...document.querySelectorAll('div.cell_input pre, .memory-ladder, .memory-ladder caption')]
    .filter(element => element.scrollWidth > element.clientWidth + 1)
    .map(element => [element.className || element.tagName, element.scrollWidth, element.clientWidth])"""
EIGHTY = """() => {
    const block = document.querySelector('div.cell_input pre')
    const line = document.createElement('span')
    line.textContent = 'x'.repeat(80)
    block.append(line)
    const needed = line.getBoundingClientRect().width
    const style = getComputedStyle(block)
    return block.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - needed
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1439, 1440])
def test_a_line_of_80_columns_fits_beside_the_lists(browser: Any, address: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page, _ = open_page(context, urljoin(address, CHAPTER))
    page.evaluate("document.fonts.ready")
    assert page.evaluate(EIGHTY) >= 0
    assert not page.evaluate(CUT)
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", [LANDING, FLAGSHIP])
def test_screenshots_are_kept(variant: tuple[str, Any], address: str, site: Path, name: str) -> None:
    page, _ = open_page(variant[1], urljoin(address, name))
    page.evaluate("document.fonts.ready")
    folder = site.parent / "screenshots"
    folder.mkdir(exist_ok=True)
    file = folder / f"{Path(name).stem}-{variant[0]}.png"
    page.screenshot(path=file, full_page=True)
    assert file.stat().st_size > 20_000
    fonts = page.evaluate(
        "[...document.fonts].filter(font => font.status === 'loaded').map(font => font.family)"
    )
    assert any("Inter" in family for family in fonts)


@pytest.mark.browser
@pytest.mark.parametrize("name", [LANDING, FLAGSHIP])
def test_nothing_keeps_readers_out(variant: tuple[str, Any], address: str, name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, _ = open_page(variant[1], urljoin(address, name))
    violations = [v for v in axe.run(page).response["violations"] if v["impact"] in {"serious", "critical"}]
    assert not violations, [(v["id"], [node["html"][:160] for node in v["nodes"][:4]]) for v in violations]


@pytest.mark.browser
def test_the_keyboard_reaches_the_text_first(variant: tuple[str, Any], address: str) -> None:
    page, _ = open_page(variant[1], urljoin(address, LANDING))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
