"""Images side by side, with one grey range and scale bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from emlab.errors import InputError
from emlab.io import axes_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Limits = Literal["shared", "each"] | tuple[float, float]
TAIL_PERCENT = 0.1
PAGE_WIDTH_INCHES = 7.5


def show_images(
    images: Mapping[str, Any],
    limits: Limits = "shared",
    pixel_size_angstrom: Any = None,
    columns: int | None = None,
) -> Figure:
    """Show labelled images in a grid.

    The grey range is stated once below the figure, or below each panel when panels differ. A scale
    bar, of a round length of at most a third of the width, appears where the pixel size is known.
    The figure is not registered with pyplot, pass it to `emlab.viz.show`; unusable images or limits
    are an `InputError`.

    Parameters
    ----------
    images
        Label to image: array or tensor (H, W), or an `emlab.io.Image`.
    limits
        ``"shared"``: one grey range for all (comparable quantities); ``"each"``: one per panel;
        ``(low, high)``: these values are black and white; the best choice beside strong noise,
        which stretches a shared range.
    pixel_size_angstrom
        For images that do not bring their own: a number or (row, column).
    columns
        Panels per row; default: as many as there are images, at most 4.
    """
    from matplotlib.figure import Figure

    panels = make_panels(images, pixel_size_angstrom)
    ranges = grey_ranges(panels, limits)
    if columns is not None and columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    columns = min(columns or 4, len(panels))
    rows = -(-len(panels) // columns)
    width = min(PAGE_WIDTH_INCHES, 2.6 * columns)
    tallest = max(panel.pixels.shape[0] / panel.pixels.shape[1] for panel in panels)
    height = rows * (width / columns * tallest + 0.32) + 0.25
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel, grey in zip(axes, panels, ranges, strict=False):
        axis.imshow(panel.pixels, cmap="gray", vmin=grey[0], vmax=grey[1], interpolation="nearest")
        axis.set_title(panel.label, fontsize=9, loc="left")
        axis.set_axis_off()
        if limits == "each":
            axis.text(0, -0.03, _range_text(grey), transform=axis.transAxes, va="top", fontsize=7)
        _draw_scale_bar(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if limits != "each":
        figure.supxlabel(_range_text(ranges[0]), fontsize=7, x=0.01, ha="left")
    return figure


def _range_text(grey: tuple[float, float]) -> str:
    return f"grey range {grey[0]:.3g} to {grey[1]:.3g}"


def _draw_scale_bar(axis: Axes, panel: Panel) -> None:
    if panel.pixel_size is None:
        return
    from matplotlib.patheffects import withStroke

    height, width = panel.pixels.shape
    length = nice_length(width * panel.pixel_size[1])
    left, row = 0.04 * width - 0.5, 0.95 * height - 0.5
    outline = [withStroke(linewidth=3.6, foreground="black")]
    ends = (left, left + length / panel.pixel_size[1])
    axis.plot(ends, (row, row), "w-", lw=2.4, solid_capstyle="butt", path_effects=outline)
    axis.annotate(
        length_text(length),
        (left, row),
        (0, 3),
        textcoords="offset points",
        color="white",
        fontsize=7.5,
        path_effects=[withStroke(linewidth=1.6, foreground="black")],
    )
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


@dataclass(frozen=True)
class Panel:
    """One image to show: label, pixels (H, W), angstrom per pixel (row, column) or None."""

    label: str
    pixels: np.ndarray
    pixel_size: tuple[float, float] | None


def make_panels(images: Mapping[str, Any], pixel_size_angstrom: Any = None) -> list[Panel]:
    """Check images and return them as panels.

    Parameters
    ----------
    images
        Label to image: array or tensor (H, W), leading axes of length 1 allowed, or an
        `emlab.io.Image`, which brings its own pixel size.
    pixel_size_angstrom
        Pixel size of images without their own: a number, or one per axis (the last two count).

    Raises
    ------
    InputError
        No image; a shape that is not one 2-D image; NaN or infinite pixels; a bad pixel size.
    """
    if not isinstance(images, Mapping) or not images:
        raise InputError(
            'give the images with their labels, such as {"measurement": y, "truth": x}'
        )
    return [_panel(str(label), item, pixel_size_angstrom) for label, item in images.items()]


def grey_ranges(panels: list[Panel], limits: Limits) -> list[tuple[float, float]]:
    """Return the grey range (black, white) of each panel.

    ``"shared"`` takes the pixels of all panels together, ``"each"`` of one at a time, without the
    darkest and brightest 0.1 percent; a pair is used as it is.
    """
    if isinstance(limits, str) and limits in ("shared", "each"):
        if limits == "each":
            return [_range(panel.pixels) for panel in panels]
        return [_range(np.concatenate([panel.pixels.ravel() for panel in panels]))] * len(panels)
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError) as problem:
        raise InputError(f'limits={limits!r}: use "shared", "each" or (low, high)') from problem
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"limits={limits!r}: low must be below high, and both finite")
    return [(low, high)] * len(panels)


def nice_length(extent: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is at most a third of an extent."""
    target = extent / 3
    power = 10.0 ** math.floor(math.log10(target))
    return max(step * power for step in (1, 2, 5) if step * power <= target * (1 + 1e-9))


def length_text(angstrom: float) -> str:
    """Return a length with the unit that suits it: angstrom, nanometre or micrometre."""
    if angstrom >= 1e4:
        return f"{angstrom / 1e4:g} µm"
    return f"{angstrom / 10:g} nm" if angstrom >= 10 else f"{angstrom:g} Å"


def _panel(label: str, item: Any, pixel_size: Any) -> Panel:
    own = getattr(item, "pixel_size_angstrom", None)
    content = getattr(item, "pixels", item)
    if hasattr(content, "detach"):
        content = content.detach().cpu().float().numpy()
    try:
        pixels = np.asarray(content, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise InputError(f"{label!r} is not an image: {problem}") from problem
    shape = pixels.shape
    if pixels.ndim < 2 or math.prod(shape[:-2]) != 1 or 0 in shape:
        raise InputError(f"{label!r} has shape {shape}; give one image of shape (H, W) per label")
    pixels = pixels.reshape(shape[-2:])
    if not np.isfinite(pixels).all():
        raise InputError(f"{label!r} has NaN or infinite pixels; mask or replace them first")
    sizes = axes_sizes(pixel_size if own is None else own, 3)
    return Panel(label, pixels, None if sizes is None else sizes[1:])


def _range(pixels: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(pixels, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    if low == high:
        low, high = float(pixels.min()), float(pixels.max())
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)
