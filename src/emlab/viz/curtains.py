"""Sliders of static pages, without a kernel: a curtain over two images, a strip of pictures."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emlab.errors import InputError
from emlab.viz.images import Limits, grey_ranges, make_panels
from emlab.viz.style import Markup, Picture, checked_alt, data_address

MAX_SIDE = 1024
MIN_WIDTH = 320
MAX_WIDTH = 720

# A range input lies over the pictures of a curtain with a thumb as tall as they are, so dragging,
# touch and arrow keys are the browser's own; its one handler sets a variable of its own curtain.
# That of a strip shows the picture of its number and hides the others. Nothing has an id, so any
# number of both share a page. A reader without scripts, or of paper, sees all pictures.
_STRIP_HANDLER = (
    "const f=this.closest('.emlab-strip').querySelectorAll('figure');"
    "f.forEach((g,i)=>g.toggleAttribute('data-off',i!=this.value));"
    "this.setAttribute('aria-valuetext',f[this.value].innerText)"
)


def curtain(
    before: Any,
    after: Any,
    labels: tuple[str, str] = ("before", "after"),
    alt: str = "",
    limits: Limits = "shared",
) -> Markup:
    """Lay two images of the same scene over each other, with a slider between them.

    Drag the line, or focus it with the Tab key and use the arrow keys. Without scripts, and on
    paper, both images stand side by side.

    Parameters
    ----------
    before, after
        Arrays or tensors (H, W) of the same shape, or `emlab.io.Image`.
    alt
        Description for a reader who cannot see them: what differs. At least ten characters.
    limits
        Grey range, as in `show_images`; stated below the images.

    Returns
    -------
    IPython.display.HTML
        Self-contained: PNG inside, no file, no request.

    Raises
    ------
    InputError
        Images that differ in shape, are not 2-D or have NaN; labels that are equal; no description.
    """
    if len(set(labels)) != 2:
        raise InputError(f"labels={labels!r}: give two different names")
    alt = html.escape(checked_alt(alt))
    panels = make_panels(dict(zip(labels, (before, after), strict=True)))
    shapes = [panel.pixels.shape for panel in panels]
    if shapes[0] != shapes[1]:
        raise InputError(f"before has shape {shapes[0]} and after {shapes[1]}; crop them alike")
    ranges = grey_ranges(panels, limits)
    factor = _binning(shapes[0])
    figures = [
        _figure(panel.pixels, grey, panel.label, alt, position)
        for panel, grey, position in zip(panels, ranges, ("before", "after"), strict=True)
    ]
    names = [html.escape(label) for label in labels]
    width = int(np.clip(shapes[0][1], MIN_WIDTH, MAX_WIDTH))
    small = " ec-small" if shapes[0][1] < width else ""
    slider = (
        f'<input type="range" min="0" max="100" step="0.5" value="50" autocomplete="off" '
        f'aria-label="Curtain: {names[0]} on the left, {names[1]} on the right" '
        "oninput=\"this.closest('.emlab-curtain').style.setProperty('--cut',this.value+'%')\">"
    )
    return Markup(
        f"<style>{_style('curtains')}</style>"
        f'<div class="emlab-curtain" role="group" aria-label="{alt}" style="--width:{width}px">'
        f'<div class="ec-box{small}">{"".join(figures)}{slider}</div>'
        f"<p>{_caption(ranges, names, factor)}</p></div>"
    )


def plain_picture(image: Any, alt: str, limits: Limits = "each") -> Picture:
    """One image pixel by pixel, without frame or scale; averaged down to 1024 pixels a side.

    Parameters
    ----------
    image
        Array or tensor (H, W), or `emlab.io.Image`.
    alt, limits
        As in `curtain`.

    Raises
    ------
    InputError
        As `curtain`.
    """
    (panel,) = make_panels({"image": image})
    (grey,) = grey_ranges([panel], limits)
    png, width, _ = _encoded(panel.pixels, grey)
    return Picture(png, checked_alt(alt), width)


@cache
def _style(name: str) -> str:
    return Path(__file__).with_name(f"{name}.css").read_text("utf-8")


def _figure(
    pixels: np.ndarray, grey: tuple[float, float], label: str, alt: str, position: str
) -> str:
    name = html.escape(label)
    png, width, height = _encoded(pixels, grey)
    return (
        f'<figure class="ec-{position}"><img src="{data_address(png)}" '
        f'alt="{name}: {alt}" width="{width}" height="{height}" draggable="false">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _caption(ranges: list[tuple[float, float]], names: list[str], factor: int) -> str:
    texts = [f"{low:.3g} to {high:.3g}" for low, high in ranges]
    same = ranges[0] == ranges[1]
    grey = f"grey range {texts[0]}" if same else f"grey ranges {texts[0]} and {texts[1]}"
    binned = f"; averaged over {factor} x {factor} pixels for display" if factor > 1 else ""
    return f"{names[0]} | {names[1]}: {grey}{binned}"


def _binning(shape: tuple[int, ...]) -> int:
    return -(-max(shape) // MAX_SIDE)


def _encoded(pixels: np.ndarray, grey: tuple[float, float]) -> tuple[bytes, int, int]:
    """PNG, width and height of pixels, averaged down to `MAX_SIDE`."""
    from PIL import Image

    factor = _binning(pixels.shape)
    if factor > 1:
        rows, columns = (size // factor for size in pixels.shape)
        cut = pixels[: rows * factor, : columns * factor]
        pixels = cut.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    low, high = grey
    bytes_ = np.round(np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(bytes_).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue(), pixels.shape[1], pixels.shape[0]


def strip(pictures: Mapping[str, Picture], alt: str, start: int = 0) -> Markup:
    """Pictures behind a slider, or side by side where scripts do not run.

    Parameters
    ----------
    pictures
        Caption to picture (`emlab.viz.show`), at least two, in the order of the slider.
    alt
        What changes along the strip. At least ten characters.

    Returns
    -------
    IPython.display.HTML
        Self-contained: PNG inside, no file, no request.

    Raises
    ------
    InputError
        Fewer than two pictures, a start that is none of them, or no description.
    """
    text = html.escape(checked_alt(alt))
    if len(pictures) < 2 or not 0 <= start < len(pictures):
        raise InputError("a strip takes at least two pictures, and starts at one of them")
    names = [html.escape(name) for name in pictures]
    figures = [
        _strip_figure(picture, name, shown=number == start)
        for number, (name, picture) in enumerate(zip(names, pictures.values(), strict=True))
    ]
    slider = (
        f'<input type="range" min="0" max="{len(pictures) - 1}" step="1" value="{start}" '
        f'autocomplete="off" aria-label="{names[0]} to {names[-1]}" '
        f'aria-valuetext="{names[start]}" oninput="{_STRIP_HANDLER}">'
    )
    width = max(picture.width for picture in pictures.values())
    return Markup(
        f"<style>{_style('strips')}</style>"
        f'<div class="emlab-strip" role="group" aria-label="{text}" '
        f'style="--width:{width}px"><div class="es-row">{"".join(figures)}</div>{slider}</div>'
    )


def _strip_figure(picture: Picture, name: str, *, shown: bool) -> str:
    return (
        f"<figure{'' if shown else ' data-off'}>"
        f'<img src="{data_address(picture.png)}" alt="{name}: {html.escape(picture.alt)}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
