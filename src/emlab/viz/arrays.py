"""Turn what a caller has (array, tensor, Image) into checked panels with a grey range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from emlab.errors import InputError

Limits = Literal["shared", "each"] | tuple[float, float]
TAIL_PERCENT = 0.1


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
    return Panel(label, pixels, _pixel_size(label, own if own is not None else pixel_size))


def _pixel_size(label: str, size: Any) -> tuple[float, float] | None:
    if size is None:
        return None
    values = np.atleast_1d(np.asarray(size, dtype=float)).ravel()
    if values.size > 3 or not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(
            f"{label!r}: pixel size {size!r} must be positive, one number or one an axis"
        )
    return float(values[-2] if values.size > 1 else values[0]), float(values[-1])


def _range(pixels: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(pixels, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    if low == high:
        low, high = float(pixels.min()), float(pixels.max())
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)
