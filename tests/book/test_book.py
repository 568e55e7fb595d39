"""The built book, opened page by page in headless Chromium with the network blocked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import DESKTOP, ROOT, Visit, chromium, missing, move_curtains, new_tab, violations
from playwright.sync_api import Browser, Page, ViewportSize

from tools.book.notebooks import NOT_RUN

HTML = ROOT / "_build" / "html"
NOT_PAGES = {"genindex", "py-modindex", "search", "index"}
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.rglob("*.html")
    if "_static" not in path.parts and path.stem not in NOT_PAGES
)
WITH_CURTAINS = [
    page for page in PAGES if 'class="emlab-curtain"' in (HTML / page).read_text(encoding="utf-8")
]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
RAN = [page for page in CHAPTERS if NOT_RUN not in (HTML / page).read_text(encoding="utf-8")]
LONGEST_PAGE = 25_000  # pixels at the width of WINDOW
WINDOW = ViewportSize(width=1300, height=900)
SIDEWAYS = """() => [...document.querySelectorAll(
  'article pre, article .pst-scrollable-table-container, article .cell_output')]
  .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.scrollWidth} > ${e.clientWidth}: ${e.textContent.trim().slice(0, 60)}`)"""


@cache
def _names(path: str) -> set[str]:
    """Return the names that links can point to inside a page."""
    return set(re.findall(r'\bid="([^"]+)"', Path(path).read_text(encoding="utf-8")))


def _has_fragment(address: str) -> bool:
    parts = urlsplit(address)
    path = unquote(parts.path)
    return (
        not parts.fragment
        or not path.endswith(".html")
        or (unquote(parts.fragment) in _names(path))
    )


def grouped(pages: list[str]) -> list:
    """Return pages such that of several processes one has all tests of a page: it opens it once."""
    return [pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in pages]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def last(browser: Browser) -> Iterator[dict[str, Visit]]:
    """The page that is open, by name; the tests of a page follow one another (conftest.py)."""
    opened: dict[str, Visit] = {}
    yield opened
    for visited in opened.values():
        visited.page.context.close()


@pytest.fixture
def visit(browser: Browser, last: dict[str, Visit], request: pytest.FixtureRequest) -> Visit:
    """Return the page that the test is about, opened with the network blocked and typeset."""
    if request.param not in last:
        for visited in last.values():
            visited.page.context.close()
        last.clear()
        last[request.param] = _opened(browser, request.param)
    return last[request.param]


def _opened(browser: Browser, name: str) -> Visit:
    visited = new_tab(browser)
    visited.open(HTML / name)
    visited.page.evaluate("() => window.MathJax?.startup?.promise?.then(() => true)")
    return visited


def test_book_is_built() -> None:
    if not PAGES:
        missing("the book is not built; run `make book`")
    assert CHAPTERS
    texts = [(HTML / page).read_text(encoding="utf-8") for page in CHAPTERS]
    assert any('class="emlab-curtain"' in text for text in texts), "no chapter has a curtain"


@pytest.mark.parametrize("visit", grouped(PAGES), indirect=True)
def test_page_is_whole(visit: Visit) -> None:
    """No script fails, nothing leaves the machine, links lead somewhere, figures are described."""
    assert visit.requests == []
    assert visit.errors == []
    page = visit.page
    assert page.locator("article h1").count() == 1
    undescribed = page.eval_on_selector_all(
        "article img",
        "all => all.filter(i => !i.alt || i.alt.length < 5 || /\\.(png|svg|jpe?g)$/.test(i.alt))"
        ".map(i => i.outerHTML.slice(0, 200))",
    )
    assert undescribed == []
    broken = page.eval_on_selector_all(
        "article img", "all => all.filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200))"
    )
    assert broken == []
    targets = page.eval_on_selector_all(
        "a[href]", "all => all.map(a => a.href).filter(h => h.startsWith('file:'))"
    )
    gone = {t for t in targets if not Path(unquote(urlsplit(t).path)).exists()}
    assert gone == set()
    assert {t for t in targets if not _has_fragment(t)} == set()


@pytest.mark.parametrize("visit", grouped(PAGES), indirect=True)
def test_math_is_typeset(visit: Visit) -> None:
    sources = visit.page.locator("article .math").count()
    typeset = visit.page.locator("article .math mjx-container").count()
    assert typeset >= sources
    assert visit.page.locator("article mjx-merror").count() == 0
    text = visit.page.evaluate(
        "() => { const a = document.querySelector('article').cloneNode(true);"
        "a.querySelectorAll('pre, code, mjx-container').forEach(e => e.remove());"
        "return a.textContent }"
    )
    assert "$$" not in text
    assert "\\begin{" not in text


@pytest.mark.parametrize("visit", grouped(CHAPTERS), indirect=True)
def test_tables_are_tables(visit: Visit) -> None:
    text = visit.page.locator("article p").all_inner_texts()
    assert not [line for line in text if line.lstrip().startswith("| ")]


@contextmanager
def unfolded(page: Page) -> Iterator[None]:
    """Open every folded part of a page, and fold the same ones again."""
    page.evaluate(
        "document.querySelectorAll('details:not([open])')"
        ".forEach(d => { d.open = true; d.classList.add('unfolded'); })"
    )
    try:
        yield
    finally:
        page.evaluate(
            "document.querySelectorAll('details.unfolded')"
            ".forEach(d => { d.open = false; d.classList.remove('unfolded'); })"
        )


@pytest.mark.parametrize("visit", grouped(WITH_CURTAINS), indirect=True)
def test_curtains_move(visit: Visit) -> None:
    """The arrow keys move the edge that cuts the front image."""
    with unfolded(visit.page):
        assert move_curtains(visit.page) > 0


@pytest.mark.parametrize("visit", grouped(CHAPTERS), indirect=True)
def test_nothing_scrolls_sideways_and_the_page_ends(visit: Visit) -> None:
    """Code, tables and outputs fit the column; a chapter is read, not wound through."""
    visit.page.set_viewport_size(WINDOW)
    wide = visit.page.evaluate(SIDEWAYS)
    height = visit.page.evaluate("document.documentElement.scrollHeight")
    visit.page.set_viewport_size(DESKTOP)
    assert wide == []
    assert height <= LONGEST_PAGE


@pytest.mark.parametrize("visit", grouped(RAN), indirect=True)
def test_numbers_are_folded_and_can_be_searched(visit: Visit) -> None:
    """One line says how many numbers hold; the table opens, and shows the rows with a word."""
    page = visit.page
    table = page.locator("details.emlab-numbers")
    assert table.count() == 1
    assert "numbers were recorded in" in page.locator("article").inner_text()
    assert not table.locator("table").is_visible()
    table.locator("summary").press("Enter")
    rows = table.locator("tbody tr")
    names = rows.locator("td:first-child").all_inner_texts()
    table.get_by_role("searchbox").fill(names[-1])
    shown = [name for name, row in zip(names, rows.all(), strict=True) if row.is_visible()]
    assert names[-1] in shown
    assert len(shown) < len(names)
    table.get_by_role("searchbox").fill("")
    table.locator("summary").press("Enter")


@pytest.mark.parametrize("visit", grouped(RAN), indirect=True)
def test_chapter_shows_what_it_measured(visit: Visit) -> None:
    assert visit.page.locator("article .cell_output").count() > 0
    assert "Traceback (most recent call last)" not in visit.page.inner_text("article")


@pytest.mark.parametrize("visit", grouped(CHAPTERS), indirect=True)
def test_hidden_solutions_open_by_keyboard(visit: Visit) -> None:
    """Enter opens and closes what is folded: dropdowns, hidden code, solutions."""
    for summary in visit.page.locator("article details > summary").all():
        if not summary.is_visible():
            continue
        state = summary.evaluate("e => e.parentElement.open")
        summary.press("Enter")
        assert summary.evaluate("e => e.parentElement.open") is not state
        summary.press("Enter")
    for button in visit.page.locator("article button.toggle-button").all():
        if not button.is_visible():
            continue
        before = button.get_attribute("aria-expanded")
        button.press("Enter")
        assert button.get_attribute("aria-expanded") != before
        button.press("Enter")


@pytest.mark.parametrize("visit", grouped(PAGES), indirect=True)
def test_page_is_accessible(visit: Visit) -> None:
    """Axe finds no serious or critical violation, neither in light nor in dark colours."""
    page = visit.page
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
        found += violations(page, scheme)
    page.emulate_media(color_scheme="light")
    assert found == []


@pytest.mark.parametrize("visit", grouped(PAGES), indirect=True)
def test_page_fits_a_telephone(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 375, "height": 812})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
    visit.page.set_viewport_size(DESKTOP)


@pytest.mark.parametrize("visit", grouped(["book/intro.html"]), indirect=True)
def test_landing_page_shows_every_chapter(visit: Visit) -> None:
    page = visit.page
    assert page.locator(".emlab-hero-picture .emlab-curtain").count() == 1
    links = page.eval_on_selector_all(".emlab-chapter-title a", "all => all.map(a => a.href)")
    assert {Path(urlsplit(link).path).name for link in links} == {Path(c).name for c in CHAPTERS}
    facts = page.locator(".emlab-chapter-facts").all_inner_texts()
    assert len(facts) == len(CHAPTERS)
    assert all("to read" in text for text in facts)
    assert sum("ran in" in text for text in facts) >= len(RAN)
