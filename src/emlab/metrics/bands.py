"""Fourier bands: correlation in chosen coefficients, image by image, and averages over bands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.metrics.fourier import half_spectrum_multiplicity, radial_frequency
from emlab.metrics.image import Image, as_array, as_pair
from emlab.physics.micrograph import Micrograph


@dataclass(frozen=True)
class RingSums:
    """Sums over rings of two stacks of images, kept apart so that images can be resampled.

    Attributes
    ----------
    frequency : ndarray
        ``(rings,)`` in cycles per pixel, from the first ring beyond the mean to Nyquist.
    cross, first, second : ndarray
        ``(n, rings)``: real part of the cross spectrum, and both powers.
    """

    frequency: np.ndarray
    cross: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def correlation(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Fourier ring correlation ``(rings,)`` of some of the images; 0 for empty rings."""
        cross, first, second = (v[chosen].sum(0) for v in (self.cross, self.first, self.second))
        scale = np.sqrt(first * second)
        return np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)

    def limit(self, threshold: float = 0.5, chosen: np.ndarray | slice = slice(None)) -> float:
        """Frequency in cycles per pixel up to which the images correlate; see `falls_below`."""
        return falls_below(self.frequency, self.correlation(chosen), threshold)


def ring_sums(first: Image, second: Image, where: Image | None = None) -> RingSums:
    """Sums of the Fourier ring correlation, also in a part of the coefficients only.

    Parameters
    ----------
    first, second : ndarray or Tensor
        ``(n, H, W)``. No window: meant for objects that end before the border.
    where : ndarray or Tensor, optional
        ``(n, H, W // 2 + 1)`` booleans, coefficients of `rfft2` that count.

    Raises
    ------
    InputError
        Shapes that do not fit, or values that are not finite.
    """
    pair = as_pair(first, second, 2)
    if pair[0].ndim != 3:
        raise InputError(f"give stacks (n, H, W), not {pair[0].shape}")
    shape = pair[0].shape[-2:]
    inside = np.ones((shape[0], 1)) if where is None else as_array(where, 2)
    counted = half_spectrum_multiplicity(shape[-1]) * inside
    rings = np.rint(radial_frequency(shape) * min(shape)).astype(np.intp)
    kept = min(shape) // 2
    spectra = [np.fft.rfft2(image) for image in pair]
    products = [(spectra[0] * spectra[1].conj()).real, *(np.abs(s) ** 2 for s in spectra)]
    sums = [_by_ring(values * counted, rings, kept) for values in products]
    return RingSums(np.arange(1, kept + 1) / min(shape), *sums)


def falls_below(frequency: np.ndarray, correlation: np.ndarray, threshold: float = 0.5) -> float:
    """Frequency beyond its highest value at which a curve first falls below a threshold.

    Beginning at the highest value forgives what a defocused image lacks at low frequencies. 0 for
    a curve that is nowhere above, the last frequency for one that never falls.
    """
    peak = int(np.argmax(correlation))
    if correlation[peak] < threshold:
        return 0.0
    under = np.flatnonzero(correlation[peak:] < threshold)
    if not under.size:
        return float(frequency[-1])
    ring = peak + int(under[0])
    above, below = correlation[ring - 1 : ring + 1]
    left, right = frequency[ring - 1 : ring + 1]
    return float(left + (right - left) * (above - threshold) / (above - below))


def band_averages(images: Image, rings: int = 8, sectors: int = 4) -> np.ndarray:
    r"""Unitary Fourier coefficients averaged over bands: real numbers, linear in the image.

    A band is a ring's sector. The phase of a coefficient is counted from the image's centre, where
    the object is: neighbouring coefficients then add up instead of cancelling.

    Parameters
    ----------
    images : ndarray or Tensor
        ``(..., H, W)``.
    rings : int
        From the mean, which no band holds, to Nyquist.
    sectors : int
        Of half a turn.

    Returns
    -------
    ndarray
        ``(..., rings * sectors, 2)``: real and imaginary parts.
    """
    values = as_array(images, 2)
    height, width = values.shape[-2:]
    if rings < 1 or sectors < 1:
        raise InputError("band averages need at least one ring and one sector")
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns) + np.pi / 2
    ring = np.ceil(radius * 2 * rings).astype(int) - 1
    sector = np.minimum((angle / np.pi * sectors).astype(int), sectors - 1)
    inside = (ring >= 0) & (ring < rings)
    band = (ring * sectors + sector)[inside]
    member = (band[:, None] == np.arange(rings * sectors)).astype(float)
    member /= np.maximum(member.sum(0), 1)
    turn = np.exp(2j * np.pi * (rows * (height // 2) + columns * (width // 2)))
    mean = (np.fft.rfft2(values, norm="ortho") * turn)[..., inside] @ member
    return np.stack([mean.real, mean.imag], axis=-1)


def _by_ring(values: np.ndarray, rings: np.ndarray, kept: int) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(rings.ravel(), row, minlength=kept + 1)[1 : kept + 1] for row in flat]
    return np.array(sums)


BANDS_ANGSTROM = {
    "80_40": (80.0, 40.0),
    "40_25": (40.0, 25.0),
    "25_16": (25.0, 16.0),
    "16_10": (16.0, 10.0),
}
RADIUS_ANGSTROM, BACKGROUND_ANGSTROM = 70.0, 100.0
WHOLE_ANGSTROM = (80.0, 10.0)


def band_pass(image: Tensor, pixel_size_angstrom: float, band: tuple[float, float]) -> Tensor:
    """An image ``(H, W)`` between two resolutions in angstrom, edges half a ring wide."""
    height, width = image.shape
    rows = torch.fft.fftfreq(height, pixel_size_angstrom)[:, None]
    frequency = torch.hypot(rows, torch.fft.rfftfreq(width, pixel_size_angstrom))
    low, high = 1 / band[0], 1 / band[1]
    if not 0 < low < high:
        raise InputError(f"a band is (coarse, fine) in angstrom, got {band}")
    soft = 0.1 * (high - low)
    gain = torch.sigmoid((frequency - low) / soft) * torch.sigmoid((high - frequency) / soft)
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=image.shape)


def band_correlations(
    denoised: Tensor | np.ndarray,
    micrograph: Micrograph,
    bands: dict[str, tuple[float, float]] = BANDS_ANGSTROM,
) -> dict[str, float]:
    """Correlation with the particles' image within 70 A of them, a band at a time, and the mean.

    The image is that of the particles alone: ice, background, carbon and crystals, which a denoiser
    should take away, are no truth. A smooth low-pass hardly moves these: within a band it only
    scales. Two things do: knowledge of what particles look like, and a filter that follows the
    rings of the lens, for at its zeros a band holds noise alone (a Wiener filter gains that way).

    Parameters
    ----------
    denoised : Tensor or ndarray
        ``(H, W)`` of the micrograph's shape, any grey range.
    bands : dict of str to (float, float)
        Coarse and fine resolution of each in angstrom.

    Returns
    -------
    dict of str to float
        By band (the keys of `bands`), and ``mean``.

    Raises
    ------
    InputError
        Another shape, or a micrograph without particles.
    """
    image, inside = _judged(denoised, micrograph), micrograph.mask(RADIUS_ANGSTROM)
    found = {}
    for name, band in bands.items():
        pair = [
            band_pass(values, micrograph.pixel_size_angstrom, band)[inside].double()
            for values in (image, micrograph.particles)
        ]
        pair = [values - values.mean() for values in pair]
        scale = (pair[0].square().sum() * pair[1].square().sum()).sqrt()
        found[name] = float((pair[0] * pair[1]).sum() / scale) if scale > 0 else 0.0
    return found | {"mean": sum(found.values()) / len(found)}


def suppression(denoised: Tensor | np.ndarray, micrograph: Micrograph) -> float:
    """Power within 70 A of particles over that beyond 100 A of all, 80 to 10 A, in decibels.

    `InputError` as `band_correlations`.
    """
    image = band_pass(_judged(denoised, micrograph), micrograph.pixel_size_angstrom, WHOLE_ANGSTROM)
    here = image[micrograph.mask(RADIUS_ANGSTROM)].square().mean()
    there = image[~micrograph.mask(BACKGROUND_ANGSTROM)].square().mean()
    return float(10 * torch.log10(here / there.clamp_min(1e-30)))


def _judged(denoised: Tensor | np.ndarray, micrograph: Micrograph) -> Tensor:
    image = torch.as_tensor(np.asarray(denoised), dtype=torch.float32)
    if image.shape != micrograph.noisy.shape:
        raise InputError(f"the denoised image is {tuple(image.shape)}, the micrograph is not")
    if not micrograph.mask(RADIUS_ANGSTROM).any():
        raise InputError("there are no particles to judge by; take a micrograph that has some")
    return image - image.mean()  # the edges of a band let some of it through
