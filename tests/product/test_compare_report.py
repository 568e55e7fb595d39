"""emlab compare on a real micrograph, and its report in headless Chromium without network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, sync_playwright

from emlab import cli
from emlab.io import read_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOCAL = ("file:", "data:")
METHODS = ("tsm", "gaussian", "wiener")


@pytest.fixture(scope="module")
def report(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on 256 pixels of a micrograph of 300 kV, with the restored images beside it."""
    folder = tmp_path_factory.mktemp("ein Bericht é")
    source, out = mirror / "cryoem" / "fei_k2_crop2048.mrc", folder / "report.html"
    words = ["compare", source, "-o", out, "--window", 256, "--methods", ",".join(METHODS)]
    assert cli.main([*map(str, words), "--save", str(folder / "saved")]) == 0
    return out


@dataclass
class Visit:
    """An open report, with what it complained about and asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visit(report: Path) -> Iterator[Visit]:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no chromium")
    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        visited = Visit(context.new_page())

        def gate(route: Route) -> None:
            if route.request.url.startswith(LOCAL):
                route.continue_()
            else:
                visited.requests.append(route.request.url)
                route.abort()

        context.route("**/*", gate)
        page = visited.page
        page.on("pageerror", lambda error: visited.errors.append(str(error)))
        page.on("console", lambda m: visited.errors.append(m.text) if m.type == "error" else None)
        page.goto(report.as_uri())
        page.wait_for_load_state("load")
        yield visited
        browser.close()


def test_real_micrograph_is_compared_and_saved(report: Path) -> None:
    told = json.loads(report.with_suffix(".json").read_text())
    assert told["specimen"] == "particles"
    assert told["pixel_size_angstrom"] == pytest.approx(0.854, abs=0.002)
    assert [method["name"] for method in told["methods"]] == list(METHODS)
    for method in told["methods"]:
        numbers = method["numbers"]
        assert method["problem"] == ""
        assert 0.5 < numbers["residual"] < 1.3, "it took about the noise away"
        assert 0 <= numbers["blank_contrast"] < 1.5
        assert numbers["seconds"] > 0
    saved = read_image(report.parent / "saved" / "fei_k2_crop2048_tsm.mrc")
    assert saved.pixels.shape == (256, 256)
    assert saved.pixel_size_angstrom == pytest.approx(0.854, abs=0.002)


def test_report_asks_for_nothing_and_every_picture_is_whole(visit: Visit) -> None:
    assert visit.requests == []
    assert visit.errors == []
    pictures = visit.page.locator("img")
    assert pictures.count() >= 4 * len(METHODS)
    broken = "all => all.filter(i => !i.naturalWidth || !(i.alt.length > 9)).length"
    assert visit.page.eval_on_selector_all("img", broken) == 0
    assert visit.page.locator("h1").count() == 1
    lost = (
        "all => all.map(a => a.getAttribute('href')).filter(h => h.startsWith('#') && "
        "!document.getElementById(h.slice(1)))"
    )
    assert visit.page.eval_on_selector_all("a", lost) == []


def test_curtains_move_by_keyboard(visit: Visit) -> None:
    curtains = visit.page.locator(".emlab-curtain")
    assert curtains.count() == len(METHODS)
    for number in range(curtains.count()):
        front = curtains.nth(number).locator(".ec-after")
        before = front.evaluate("e => getComputedStyle(e).clipPath")
        slider = curtains.nth(number).locator("input[type=range]")
        slider.focus()
        for _ in range(10):
            slider.press("ArrowRight")
        assert before.startswith("inset(")
        assert front.evaluate("e => getComputedStyle(e).clipPath") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_fits_a_telephone_in_light_and_dark(visit: Visit, scheme: str) -> None:
    page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    brightness = (
        "name => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0)"
    )
    ground, text = (page.evaluate(brightness, name) for name in ("backgroundColor", "color"))
    assert (ground - text > 400) if scheme == "light" else (text - ground > 400)
    page.set_viewport_size({"width": 1280, "height": 900})
