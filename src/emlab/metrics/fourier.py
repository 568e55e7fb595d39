"""Up to which frequency two images agree: Fourier ring and Fourier shell correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from emlab.errors import InputError
from emlab.metrics.arrays import Image, as_pair

TUKEY_EDGE = 0.25  # share of a side over which a Tukey window rises, and falls


@dataclass(frozen=True)
class Curve:
    """Correlation of two images, ring by ring.

    Attributes
    ----------
    frequency : ndarray
        ``(rings,)`` in 1/nm; ring 0 (the mean) is left out, the last ring is at or just below the
        Nyquist frequency.
    correlation : ndarray
        ``(rings,)`` in [-1, 1].
    counts : ndarray
        ``(rings,)`` Fourier coefficients in each ring, both halves of the spectrum.
    """

    frequency: np.ndarray
    correlation: np.ndarray
    counts: np.ndarray
    pixel_size_nm: float

    def resolution_nm(self, threshold: float = 0.5) -> float:
        """Period in nm at which the correlation first falls below a threshold.

        Read between two rings on the straight line. Two pixels (the Nyquist limit, an upper bound
        of the resolution) if the curve stays above, infinity if it begins below.

        Parameters
        ----------
        threshold : float
            Inside (0, 1); .5 and 1/7 are customary.

        Raises
        ------
        InputError
            A threshold outside (0, 1).
        """
        if not 0 < threshold < 1:
            raise InputError(f"the threshold must lie between 0 and 1, got {threshold}")
        below = np.flatnonzero(self.correlation < threshold)
        if not below.size:
            return 2 * self.pixel_size_nm
        ring = int(below[0])
        if ring == 0:
            return math.inf
        above, under = self.correlation[ring - 1 : ring + 1]
        left, right = self.frequency[ring - 1 : ring + 1]
        return float(1 / (left + (right - left) * (above - threshold) / (above - under)))


def fourier_ring_correlation(
    first: Image, second: Image, pixel_size_nm: float = 1.0, window: str = "hann"
) -> Curve:
    r"""Fourier ring correlation (Saxton and Baumeister, 1982).

    .. math:: \mathrm{FRC}(r) = \frac{\mathrm{Re}\sum_{k \in r} F_1(k) \overline{F_2(k)}}
              {\sqrt{\sum_{k \in r} |F_1(k)|^2 \sum_{k \in r} |F_2(k)|^2}}

    Each image has its mean removed and is apodised, because the jump between opposite borders of
    an image correlates with that of the other image at every frequency.

    Parameters
    ----------
    first, second : ndarray or Tensor
        ``(..., H, W)``, any value range; the sums run over all images of a stack, whose rings are
        as wide as one frequency step of the shorter side.
    window : {"hann", "tukey", "none"}
        Apodisation along each axis. Tukey rises over a quarter of each side.

    Raises
    ------
    InputError
        Different shapes, sides below 4 pixels, an unknown window, an image without contrast,
        values that are not finite, or a pixel size that is not positive.
    """
    return _correlate(first, second, 2, pixel_size_nm, window)


def fourier_shell_correlation(
    first: Image, second: Image, pixel_size_nm: float = 1.0, window: str = "hann"
) -> Curve:
    """Fourier shell correlation of volumes ``(..., D, H, W)`` with cubic voxels.

    Otherwise as `fourier_ring_correlation` (Harauz and van Heel, 1986).
    """
    return _correlate(first, second, 3, pixel_size_nm, window)


def apodisation(shape: tuple[int, ...], window: str = "hann") -> np.ndarray:
    """Window of an image: the product of one window per axis, in [0, 1].

    Parameters
    ----------
    shape : tuple of int
        Sides in pixels.
    window : {"hann", "tukey", "none"}

    Raises
    ------
    InputError
        An unknown window.
    """
    if window not in ("hann", "tukey", "none"):
        raise InputError(f"choose the window hann, tukey or none instead of {window!r}")
    edge = {"hann": 0.5, "tukey": TUKEY_EDGE, "none": 0.0}[window]
    product = np.ones(())
    for size in shape:
        place = (np.arange(size) + 0.5) / size
        distance = np.minimum(place, 1 - place)
        rise = np.sin(np.pi / 2 * np.minimum(distance / edge, 1)) ** 2 if edge else np.ones(size)
        product = product[..., None] * rise
    return product


def radial_frequency(shape: tuple[int, ...]) -> np.ndarray:
    """Distance from zero of each frequency of ``rfftn``, in cycles per pixel."""
    axes = [*map(np.fft.fftfreq, shape[:-1]), np.fft.rfftfreq(shape[-1])]
    squared = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))
    return np.sqrt(squared)


def half_spectrum_multiplicity(size: int) -> np.ndarray:
    """How often each coefficient along the last axis of ``rfftn`` stands in ``fftn``: 1 or 2."""
    multiplicity = np.full(size // 2 + 1, 2.0)
    multiplicity[0] = 1
    if size % 2 == 0:
        multiplicity[-1] = 1
    return multiplicity


def _correlate(first: Image, second: Image, axes: int, pixel_size_nm: float, window: str) -> Curve:
    if not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise InputError(f"the pixel size must be a positive number of nm, got {pixel_size_nm}")
    pair = as_pair(first, second, axes)
    shape = pair[0].shape[-axes:]
    if min(shape) < 4:
        raise InputError(f"a Fourier correlation needs sides of at least 4 pixels, got {shape}")
    last = tuple(range(-axes, 0))
    weights = apodisation(shape, window)
    rings = np.rint(radial_frequency(shape) * min(shape)).astype(np.intp)
    multiplicity = half_spectrum_multiplicity(shape[-1])
    kept = np.arange(1, min(shape) // 2 + 1)

    def total(values: np.ndarray) -> np.ndarray:
        summed = values.reshape(-1, *values.shape[-axes:]).sum(axis=0) * multiplicity
        return np.bincount(rings.ravel(), summed.ravel())[kept]

    spectra = []
    for image in pair:
        centred = image - image.mean(axis=last, keepdims=True)
        if np.ptp(centred) == 0:
            raise InputError("a constant image has no Fourier correlation: pass one with contrast")
        spectra.append(np.fft.rfftn(centred * weights, axes=last))
    cross = total((spectra[0] * spectra[1].conj()).real)
    powers = total(np.abs(spectra[0]) ** 2) * total(np.abs(spectra[1]) ** 2)
    correlation = np.where(powers > 0, cross / np.sqrt(np.where(powers > 0, powers, 1)), 0.0)
    counts = total(np.ones(spectra[0].shape))
    return Curve(kept / (min(shape) * pixel_size_nm), correlation, counts, float(pixel_size_nm))
