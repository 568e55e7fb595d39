"""emlab compare on a real micrograph, and its report in headless Chromium without network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import DESKTOP, Visit, chromium, move_curtains, new_tab, violations

from emlab.app import cli
from emlab.io import read_image

METHODS = ("tsm", "gaussian", "wiener")


@pytest.fixture(scope="module")
def report(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on 256 pixels of a micrograph of 300 kV, with the restored images beside it."""
    folder = tmp_path_factory.mktemp("ein Bericht é")
    source, out = mirror / "cryoem" / "fei_k2_crop2048.mrc", folder / "report.html"
    words = ["compare", source, "-o", out, "--window", 256, "--methods", ",".join(METHODS)]
    assert cli.main([*map(str, words), "--save", str(folder / "saved")]) == 0
    return out


@pytest.fixture(scope="module")
def visit(report: Path) -> Iterator[Visit]:
    with chromium() as browser:
        visited = new_tab(browser)
        visited.open(report)
        yield visited


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
    assert move_curtains(visit.page) == len(METHODS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_fits_a_telephone_in_light_and_dark(visit: Visit, scheme: str) -> None:
    page = visit.page
    page.set_viewport_size({"width": 375, "height": 812})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    brightness = (
        "name => getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0)"
    )
    ground, text = (page.evaluate(brightness, name) for name in ("backgroundColor", "color"))
    assert (ground - text > 400) if scheme == "light" else (text - ground > 400)
    page.set_viewport_size(DESKTOP)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_accessible(visit: Visit, scheme: str) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    assert violations(visit.page, scheme) == []
