r"""Wiener filter with a learned spectrum: the smallest complete method, to be replaced by yours.

1. Prior: images are stationary and Gaussian; their power spectrum :math:`S(k)` is fitted.
2. Microscope: white noise, :math:`y = x + \sigma n`.
3. Solver: the posterior mean,
   :math:`\hat x = m + F^{-1}\big[\tfrac{S}{S + \sigma^2}\, F(y - m)\big]` (Wiener 1949).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emlab.errors import InputError

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """How the prior is fitted.

    Attributes
    ----------
    bins : int
        Rings of spatial frequency in which the spectrum is averaged, at least 2.
    """

    bins: int = 24

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise InputError(f"a spectrum needs at least 2 rings, got {self.bins}; use 24")


@dataclass(frozen=True)
class SpectralPrior:
    """Mean grey level, and power in each ring of frequency from 0 to the corner of the plane."""

    mean: float
    power: NDArray[np.float64]


def train(images: Grey, config: Config | None = None) -> SpectralPrior:
    """Fit the prior to clean images ``(n, H, W)``, none of which may be a test image."""
    if images.ndim != 3 or not np.isfinite(images).all():
        raise InputError(f"training needs finite images (n, H, W), got shape {images.shape}")
    rings = (config or Config()).bins
    mean = float(images.mean())
    power = np.abs(np.fft.fft2(images - mean, norm="ortho")) ** 2
    ring = _rings(images.shape[1:], rings)
    sums = np.bincount(ring.ravel(), power.mean(0).ravel(), rings)
    return SpectralPrior(mean, sums / np.maximum(np.bincount(ring.ravel(), minlength=rings), 1))


def restore(noisy: Grey, prior: SpectralPrior, sigma: float) -> Grey:
    """Posterior mean of an image ``(H, W)``.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, in grey levels, positive.

    Raises
    ------
    InputError
        Not one finite image, or no positive sigma.
    """
    if noisy.ndim != 2 or not np.isfinite(noisy).all():
        raise InputError(f"restore takes one finite image (H, W), got shape {noisy.shape}")
    if not sigma > 0:
        raise InputError(f"the noise needs a positive standard deviation, got {sigma}")
    power = power_at(prior, noisy.shape)
    shrunk = np.fft.fft2(noisy - prior.mean) * power / (power + sigma**2)
    return (prior.mean + np.fft.ifft2(shrunk).real).astype(np.float32)


def power_at(prior: SpectralPrior, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The prior's power at every frequency of an image ``(H, W)``, laid out as `numpy.fft.fft2`."""
    return prior.power[_rings(shape, len(prior.power))]


def _rings(shape: tuple[int, ...], rings: int) -> NDArray[np.intp]:
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    return np.minimum(radius / np.hypot(0.5, 0.5) * rings, rings - 1).astype(np.intp)
