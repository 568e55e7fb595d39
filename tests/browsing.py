"""Headless Chromium for tests: tabs that reach only what they may, and what axe says of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
AXE = ROOT / ".programs" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOCAL = ("file:", "data:", "blob:", "about:")
PATIENCE_MS = 240_000  # on a machine that does much else
DESKTOP = ViewportSize(width=1280, height=900)
RUN_AXE = """async ([values, type]) => {
  const result = await axe.run(document, {runOnly: {type, values}, resultTypes: ['violations']});
  return result.violations
    .filter(v => ['serious', 'critical'].includes(v.impact))
    .flatMap(v => v.nodes.slice(0, 5).map(n => [v.id, ...n.target, n.html.slice(0, 99)].join(' ')));
}"""
# A colour that is still fading to the other theme's is neither the one nor the other.
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"


@dataclass
class Visit:
    """A tab, with what its page complained about and asked for in vain."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        """Open a file and let nothing on it move by itself."""
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("load")
        self.page.add_style_tag(content=STILL)


def missing(reason: str) -> NoReturn:
    """Skip; under CI=true, where everything has been built and installed, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser."""
    if CHROMIUM is None:
        missing("chromium is not installed")
    arguments = ["--no-sandbox", "--disable-gpu"]
    with (
        sync_playwright() as started,
        started.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser,
    ):
        yield browser


def new_tab(
    browser: Browser, viewport: ViewportSize = DESKTOP, allowed: str | tuple[str, ...] = LOCAL
) -> Visit:
    """Return an empty tab in which addresses that begin otherwise are out of reach."""
    context = browser.new_context(viewport=viewport)
    context.set_default_timeout(PATIENCE_MS)
    visit = Visit(context.new_page())

    def gate(route: Route) -> None:
        if route.request.url.startswith(allowed):
            route.continue_()
        else:
            visit.requests.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
    return visit


def violations(page: Page, scheme: str) -> list[str]:
    """Serious and critical ones that axe finds; in the dark scheme of colours, all that differs."""
    if not AXE.is_file():
        missing("axe-core is not there; run `make axe`")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    everything = [["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "tag"]
    return page.evaluate(RUN_AXE, everything if scheme == "light" else [["color-contrast"], "rule"])


def move_curtains(page: Page) -> int:
    """Move the edge of every curtain by the arrow keys; returns how many there are."""
    curtains = page.locator(".emlab-curtain")
    for number in range(curtains.count()):
        front = curtains.nth(number).locator(".ec-after")
        before = front.evaluate("e => getComputedStyle(e).clipPath")
        slider = curtains.nth(number).locator("input[type=range]")
        slider.focus()
        for _ in range(20):
            slider.press("ArrowRight")
        assert before.startswith("inset(")
        assert front.evaluate("e => getComputedStyle(e).clipPath") != before
    return curtains.count()
