"""A real micrograph without truth: cut in two halves that share the specimen and not the noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.chapters.compare.study import BAND_ANGSTROM
from emlab.chapters.tsm.cases import at_pixel
from emlab.chapters.tsm.peers import LABELS, Method
from emlab.errors import InputError
from emlab.metrics import Interval, fourier_ring_correlation, mean_interval, paired_difference

Image = NDArray[np.float32]


def halves(image: Image) -> tuple[Image, Image]:
    """Two images ``(H // 2, W // 2)``: means of the pixels on either diagonal of each 2 x 2 square.

    Both halves have their pixels' centres in the middle of the squares, so they are in register;
    counting noise of a pixel is in one of them only.

    Raises
    ------
    InputError
        Not an image (H, W) of at least 4 pixels a side.
    """
    if image.ndim != 2 or min(image.shape) < 4:
        raise InputError(f"halves are cut from an image (H, W), got shape {image.shape}")
    height, width = (side // 2 * 2 for side in image.shape)
    a, b = image[:height:2, :width:2], image[1:height:2, 1:width:2]
    c, d = image[:height:2, 1:width:2], image[1:height:2, :width:2]
    return ((a + b) / 2).astype(np.float32), ((c + d) / 2).astype(np.float32)


@dataclass(frozen=True)
class Halves:
    """Ring correlations of the halves of a micrograph, window by window.

    Attributes
    ----------
    image : dict of str to ndarray
        By method, what it made of the first half.
    with_raw, with_itself : dict of str to ndarray
        By method, ``(windows,)`` mean correlation between 80 and 10 A of its first half with the
        *raw* second half, and with its own second half.
    pixel_size_angstrom : float
    """

    image: dict[str, Image]
    with_raw: dict[str, NDArray[np.float64]]
    with_itself: dict[str, NDArray[np.float64]]
    pixel_size_angstrom: float

    def gain(self, method: str) -> Interval:
        """Paired gain over raw of the correlation with the raw second half."""
        return paired_difference(self.with_raw[method], self.with_raw["raw"])

    def markdown(self) -> str:
        """A row a method."""
        lines = [
            "| method | one half cleaned, the other raw | gain over raw | both halves cleaned |",
            "|---|---|---|---|",
        ]
        for name in self.image:
            gain = self.gain(name)
            lines.append(
                f"| {LABELS[name]} | {self.with_raw[name].mean():.4f} "
                f"| {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] "
                f"| {self.with_itself[name].mean():.3f} |"
            )
        return "\n".join(lines)

    def record(self, report: Report) -> None:
        """Record ``halves.with_raw.METHOD``, ``halves.gain.METHOD``, ``halves.itself.METHOD``."""
        for name in self.image:
            n = len(self.with_raw[name])
            report.value(f"halves.with_raw.{name}", *mean_interval(self.with_raw[name]), n=n)
            report.value(f"halves.itself.{name}", *mean_interval(self.with_itself[name]), n=n)
            if name != "raw":
                note = "95 % bootstrap interval over windows of one micrograph"
                report.value(f"halves.gain.{name}", *self.gain(name), note=note, n=n)


def split(
    image: Image, pixel_size_angstrom: float, methods: Mapping[str, Method], across: int = 3
) -> Halves:
    """Clean both halves of a micrograph with every method.

    Parameters
    ----------
    image : ndarray
        ``(H, W)`` at a pixel size of at most 1.3 A, so that the halves are as fine as the
        networks want them (2.63 A).
    across : int
        Windows along each side.

    Raises
    ------
    InputError
        Pixels that are too large.
    """
    if pixel_size_angstrom > 1.32:
        raise InputError("halves need pixels of at most 1.3 A; take a finer micrograph")
    raw = [at_pixel(half, 2 * pixel_size_angstrom) for half in halves(image)]
    pixel = 2 * pixel_size_angstrom * image.shape[0] / 2 / raw[0].shape[0]
    made = {name: method(raw).images for name, method in methods.items()}
    with_raw = {name: _windows(each[0], raw[1], pixel, across) for name, each in made.items()}
    itself = {name: _windows(each[0], each[1], pixel, across) for name, each in made.items()}
    return Halves({name: each[0] for name, each in made.items()}, with_raw, itself, pixel)


def _windows(first: Image, second: Image, pixel: float, across: int) -> NDArray[np.float64]:
    side = min(first.shape) // across
    found = []
    for row in range(across):
        for column in range(across):
            place = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            curve = fourier_ring_correlation(first[place], second[place], pixel / 10)
            period = 10 / curve.frequency
            kept = (period <= BAND_ANGSTROM[0]) & (period >= BAND_ANGSTROM[1])
            found.append(curve.correlation[kept].mean())
    return np.array(found)
