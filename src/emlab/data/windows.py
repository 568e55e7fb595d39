"""Particle images on another grid: resampled in Fourier space, centred, cropped or padded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emlab.data.metadata import Particles
from emlab.errors import InputError


def resample(particles: Particles, pixel_size_angstrom: float, box: int) -> Particles:
    """Bring particles to other pixels and another window, each at the centre of its window.

    Parameters
    ----------
    particles : Particles
        Where their shifts are known, the images are moved by these first (periodically).
    pixel_size_angstrom : float
        Wanted; the nearest that an even number of pixels across the image gives is used.
    box : int
        Side of the window in pixels, even. What lies beyond an image gets its mean.

    Returns
    -------
    Particles
        With the pixel size that was reached, and without shifts.

    Raises
    ------
    InputError
        An odd box, or a pixel size that is not positive.
    """
    if box < 2 or box % 2 or pixel_size_angstrom <= 0:
        raise InputError("particles are resampled to an even box and a positive pixel size")
    side = particles.images.shape[-1]
    width = side * particles.pixel_size_angstrom
    target = max(2, 2 * round(width / pixel_size_angstrom / 2))
    shifts = particles.shifts_angstrom
    moved = np.zeros((len(particles), 2)) if shifts is None else -shifts
    images = fourier_resize(particles.images, target, moved / particles.pixel_size_angstrom)
    return replace(
        particles,
        images=centre_window(images, box),
        pixel_size_angstrom=width / target,
        shifts_angstrom=None,
    )


def fourier_resize(
    images: NDArray[np.float32], side: int, shifts: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    """Images ``(n, H, H)`` on `side` even pixels across the same width, moved by (x, y) pixels.

    Values are kept: finer ones are band-limited away, not summed. Pixel ``H // 2`` stays the
    centre.
    """
    height = images.shape[-1]
    frequency = np.fft.fftfreq(height)
    spectrum = np.fft.fft2(images)
    start = height // 2 - (np.zeros((len(images), 2)) if shifts is None else shifts)
    x, y = (np.exp(2j * np.pi * frequency * start[:, [axis]]) for axis in (0, 1))
    kept = min(side, height)
    half = (kept - 1) // 2
    rows = np.r_[0 : half + 1, -half:0]
    new = np.zeros((len(images), side, side), complex)
    new[:, rows[:, None], rows] = (spectrum * y[:, :, None] * x[:, None])[:, rows[:, None], rows]
    turn = np.exp(-2j * np.pi * np.fft.fftfreq(side) * (side // 2))
    values = np.fft.ifft2(new * turn[:, None] * turn).real * (side / height) ** 2
    return values.astype(np.float32)


def centre_window(images: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """The middle `box` pixels of square images, padded with each image's mean."""
    side = images.shape[-1]
    if box > side:
        wide = np.broadcast_to(images.mean((1, 2), keepdims=True), (len(images), box, box)).copy()
        start = box // 2 - side // 2
        wide[:, start : start + side, start : start + side] = images
        return wide
    start = side // 2 - box // 2
    return images[:, start : start + box, start : start + box].copy()
