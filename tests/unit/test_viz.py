"""Figures share a grey range, know their scale, refuse what they cannot show, have alt text."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from emlab import viz
from emlab.errors import InputError
from emlab.io import Image
from emlab.viz.images import grey_ranges, length_text, make_panels, nice_length

CHROMIUM = Path("/usr/bin/chromium")
ALT = "A bright square with noise, and without."


@pytest.fixture
def pair():
    clean = np.zeros((40, 60), np.float32)
    clean[10:30, 20:40] = 1
    return clean + np.random.default_rng(0).normal(0, 0.3, clean.shape), clean


def drawn_limits(figure):
    return [axis.images[0].get_clim() for axis in figure.axes if axis.images]


def pictures(html):
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(PilImage.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_panels_share_one_grey_range_unless_told_otherwise(pair):
    images = {"noisy": pair[0], "clean": torch.from_numpy(pair[1])[None]}
    shared = drawn_limits(viz.show_images(images))
    assert shared[0] == shared[1]
    each = drawn_limits(viz.show_images(images, limits="each"))
    assert each[1] == (0, 1)
    assert each[0] != each[1]
    assert drawn_limits(viz.show_images(images, limits=(-1, 2))) == [(-1, 2)] * 2


def test_the_grey_range_is_stated_once(pair):
    figure = viz.show_images({"noisy": pair[0], "clean": pair[1]}, limits=(0, 1))
    texts = [item.get_text() for item in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    assert texts.count("grey range 0 to 1") == 1


def test_a_flat_image_can_be_shown():
    (limits,) = grey_ranges(make_panels({"flat": np.full((4, 4), 7.0)}), "each")
    assert limits[0] < 7 < limits[1]


@pytest.mark.parametrize(
    ("extent", "length", "text"),
    [(300, 100, "10 nm"), (299, 50, "5 nm"), (30, 10, "1 nm"), (9, 2, "2 Å"), (9e4, 2e4, "2 µm")],
)
def test_scale_bars_are_round_and_at_most_a_third_of_the_width(extent, length, text):
    assert nice_length(extent) == pytest.approx(length)
    assert length_text(nice_length(extent)) == text


def test_scale_bar_length_in_pixels_follows_the_image_own_pixel_size(pair):
    image = Image(pair[1], pixel_size_angstrom=2.0, path=None)
    figure = viz.show_images({"image": image})
    (bar,) = figure.axes[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(nice_length(2 * pair[1].shape[1]) / 2)
    assert len(viz.show_images({"image": pair[1]}).axes[0].lines) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": {}},
        {"images": np.zeros((4, 4))},
        {"images": {"x": np.zeros(4)}},
        {"images": {"x": np.zeros((2, 4, 4))}},
        {"images": {"x": np.zeros((0, 4))}},
        {"images": {"x": np.full((4, 4), np.nan)}},
        {"images": {"x": "picture"}},
        {"limits": (1, 0)},
        {"limits": "same"},
        {"columns": 0},
        {"pixel_size_angstrom": -1},
    ],
)
def test_unusable_input_is_one_clear_error(arguments):
    with pytest.raises(InputError):
        viz.show_images(**({"images": {"x": np.zeros((4, 4))}} | arguments))


def test_a_shown_figure_is_a_picture_with_its_description(pair):
    picture = viz.show(viz.show_images({"a": pair[0]}), alt='Noise, "quoted" & <angled>.')
    (pixels,) = pictures(picture._repr_html_())
    assert pixels.ndim == 3
    assert 'alt="Noise, &quot;quoted&quot; &amp; &lt;angled&gt;."' in picture._repr_html_()
    with pytest.raises(InputError, match="describes nothing"):
        viz.show(viz.show_images({"a": pair[0]}), alt="figure")


def test_a_pyplot_figure_is_closed_so_that_it_is_not_shown_twice():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    axis.plot([1, 2])
    viz.show(figure, "A line that rises.")
    assert not plt.fignum_exists(figure.number)


def test_the_style_gives_an_opaque_ground_and_the_palette():
    import matplotlib

    with matplotlib.rc_context():
        viz.use_style()
        assert matplotlib.rcParams["figure.facecolor"] == "white"
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0] == "#0072B2"


def test_a_curtain_holds_both_pictures_in_one_grey_range(pair):
    html = viz.curtain(*pair, labels=("noisy", "clean"), alt=ALT, limits=(0, 1)).data
    before, after = pictures(html)
    assert np.array_equal(after, np.round(pair[1] * 255))
    assert np.array_equal(before, np.round(np.clip(pair[0], 0, 1) * 255))
    assert "grey range 0 to 1" in html
    assert not re.search(r"https?:|src=\"(?!data:)|\bid=", html)


def test_a_large_curtain_is_binned_and_says_so():
    image = np.random.default_rng(0).random((1100, 1500))
    html = viz.curtain(image, 1 - image, alt=ALT).data
    assert pictures(html)[0].shape == (550, 750)
    assert "averaged over 2 x 2 pixels" in html


@pytest.mark.parametrize(
    "arguments",
    [
        {"after": np.zeros((4, 5))},
        {"labels": ("same", "same")},
        {"alt": ""},
        {"before": np.full((4, 4), np.inf)},
    ],
)
def test_a_curtain_refuses_what_it_cannot_compare(arguments):
    usable = {"before": np.zeros((4, 4)), "after": np.zeros((4, 4)), "alt": ALT}
    with pytest.raises(InputError):
        viz.curtain(**(usable | arguments))


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium to move the curtain in")
def test_curtains_move_in_a_browser_one_by_one_and_show_both_pictures_without_scripts(
    pair, tmp_path
):
    sync_api = pytest.importorskip("playwright.sync_api")
    curtains = "".join(viz.curtain(*pair, labels=("noisy", "clean"), alt=ALT).data for _ in "ab")
    page_path = tmp_path / "page.html"
    page_path.write_text(f"<!doctype html><body>{curtains}", encoding="utf-8")

    def cuts(page):
        shape = "e => getComputedStyle(e).clipPath.match(/([0-9.]+)%/)?.[1]"
        after = page.locator(".ec-after")
        return [float(after.nth(i).evaluate(shape) or -1) for i in range(2)]

    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(page_path.as_uri())
        sliders = page.get_by_role("slider")
        box = sliders.nth(0).bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] / 2, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 4, middle, steps=3)
        page.mouse.up()
        assert cuts(page) == [pytest.approx(25, abs=1.5), 50]
        sliders.nth(1).focus()
        page.keyboard.press("ArrowRight")
        assert cuts(page)[1] == 50.5
        still = browser.new_context(java_script_enabled=False).new_page()
        still.goto(page_path.as_uri())
        boxes = [still.locator("img").nth(i).bounding_box() for i in range(2)]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        assert not still.get_by_role("slider").first.is_visible()
        browser.close()
