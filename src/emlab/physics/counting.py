r"""Counting electrons: likelihoods of expected counts, and units for particles without any.

Each likelihood has ``sample``, ``log_likelihood`` (summed over the pixels of an image),
``gradient`` with respect to the expected counts, and ``curvature``, the information that one pixel
holds about its expectation (Fisher's, :math:`E[-\ell'']`, always positive).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import Noise

FEWEST = 1e-3  # expected counts below this are taken as this: no wave is exactly dark


class CountingNoise(Noise, Protocol):
    """A likelihood that also says how much one pixel tells."""

    def curvature(self, mean: Tensor) -> Tensor:
        """Return the Fisher information of each pixel about its mean."""


class Poisson:
    r"""Independent electrons, :math:`\ell = y\ln\lambda - \lambda - \ln y!`."""

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draw counts, whole numbers in the dtype of `clean`, which must not be negative."""
        if bool((clean < 0).any()):
            raise InputError("expected counts must not be negative; use ExitWave")
        counts = torch.poisson(clean.to(generator.device), generator=generator)
        return counts.to(clean)

    def log_likelihood(self, mean: Tensor, measurement: Tensor) -> Tensor:
        r"""Return :math:`\ell`, summed over the last two axes."""
        rate = mean.clamp_min(FEWEST)
        return (measurement * rate.log() - rate - torch.lgamma(measurement + 1)).sum((-2, -1))

    def gradient(self, mean: Tensor, measurement: Tensor) -> Tensor:
        r"""Return :math:`d\ell/d\lambda = y/\lambda - 1`."""
        return measurement / mean.clamp_min(FEWEST) - 1

    def curvature(self, mean: Tensor) -> Tensor:
        r"""Return the Fisher information :math:`1/\lambda`."""
        return 1 / mean.clamp_min(FEWEST)


class GaussianCounts:
    """Many electrons: normal noise of a known variance, for counts that need not be whole.

    Parameters
    ----------
    variance : float or Tensor
        Of each pixel, positive; broadcasts against the counts. The expected counts without any
        specimen are a good one.
    """

    def __init__(self, variance: float | Tensor) -> None:
        self.variance = torch.as_tensor(variance)
        if not bool((self.variance > 0).all()):
            raise InputError("the variance of the counts must be positive")

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return the counts with noise added."""
        white = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return clean + self.variance.to(clean).sqrt() * white.to(clean.device)

    def log_likelihood(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the log-likelihood, summed over the last two axes."""
        variance = self.variance.to(mean)
        misfit = (measurement - mean).square() / variance
        return -0.5 * (misfit + (2 * math.pi * variance).log()).sum((-2, -1))

    def gradient(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the derivative of the log-likelihood by the mean."""
        return (measurement - mean) / self.variance.to(mean)

    def curvature(self, mean: Tensor) -> Tensor:
        """Return the Fisher information, one over the variance."""
        return (1 / self.variance.to(mean)).expand_as(mean)


def fit_gain_offset(expected: Tensor, measurement: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares gain and offset of ``measurement = gain * expected + offset``.

    Parameters
    ----------
    expected, measurement : Tensor
        ``(..., H, W)``. The gain is negative where the contrast was inverted.

    Returns
    -------
    gain, offset : Tensor
        ``(..., 1, 1)``.

    Raises
    ------
    InputError
        An expectation without contrast.
    """
    mean, level = expected.mean((-2, -1), keepdim=True), measurement.mean((-2, -1), keepdim=True)
    centred = expected - mean
    power = centred.square().sum((-2, -1), keepdim=True)
    if bool((power == 0).any()):
        raise InputError("gain and offset cannot be told from an expected image without contrast")
    gain = (centred * measurement).sum((-2, -1), keepdim=True) / power
    return gain, level - gain * mean


def counts_from_normalised(
    images: Tensor, counts_per_pixel: float | Tensor, radius: float, *, inverted: bool = True
) -> Tensor:
    r"""Give extracted particles, normalised to background 0 +- 1, the units of counts.

    Where there is no particle the mean is N and the noise :math:`\sqrt N`, so that
    :math:`y = N \mp \sqrt N (z - \bar z)/s` with mean and standard deviation of the background.

    Parameters
    ----------
    images : Tensor
        ``(..., H, W)``.
    counts_per_pixel : float or Tensor
        N, dose times pixel area, positive; broadcasts.
    radius : float
        The background is what lies further than this from the centre, in pixels.
    inverted : bool
        Matter is bright, as in most particle stacks.

    Raises
    ------
    InputError
        A circle that leaves too little background, or a background without noise.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - height / 2
    columns = torch.arange(width, device=images.device) - width / 2
    outside = torch.hypot(rows[:, None], columns[None, :]) > radius
    if int(outside.sum()) < 16:
        raise InputError(
            f"a radius of {radius:g} pixels leaves no background in {height} x {width}"
        )
    background = images[..., outside]
    level, noise = background.mean(-1), background.std(-1)
    if bool((noise == 0).any()) or not bool(noise.isfinite().all()):
        raise InputError("a particle image has no noise around the particle; check the stack")
    counts = torch.as_tensor(counts_per_pixel).to(images)
    sign = -1 if inverted else 1
    scaled = (images - level[..., None, None]) / noise[..., None, None]
    return counts + sign * counts.sqrt() * scaled


@dataclass(frozen=True)
class Detector:
    """Efficiency and blur of a detector, both of parabolic shape.

    The defaults are near those of a K2 Summit that counts at 300 kV (Ruskin et al. 2013, J.
    Struct. Biol. 184, 385).

    Attributes
    ----------
    dqe_zero, dqe_nyquist : float
        Detective quantum efficiency at zero and at the physical Nyquist frequency, in (0, 1].
    ntf_nyquist : float
        Transfer of the noise at the physical Nyquist frequency, in (0, 1]; 1 is white noise.
    binning : float
        How many physical pixels a pixel of the image is wide (Fourier cropping), at least 1.
    """

    dqe_zero: float = 0.85
    dqe_nyquist: float = 0.35
    ntf_nyquist: float = 0.85
    binning: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.dqe_nyquist <= self.dqe_zero <= 1 or not 0 < self.ntf_nyquist <= 1:
            raise InputError("a detector needs 0 < dqe_nyquist <= dqe_zero <= 1, ntf_nyquist <= 1")
        if self.binning < 1:
            raise InputError(f"the binning must be at least 1, got {self.binning}")

    def efficiency(self, shape: tuple[int, ...]) -> Tensor:
        """Detective quantum efficiency ``(H, W // 2 + 1)`` in the layout of `torch.fft.rfft2`."""
        return self.dqe_zero - (self.dqe_zero - self.dqe_nyquist) * self._square(shape)

    def noise_transfer(self, shape: tuple[int, ...]) -> Tensor:
        """Noise transfer function in the layout of `efficiency`, 1 at zero."""
        return 1 - (1 - self.ntf_nyquist) * self._square(shape)

    def modulation_transfer(self, shape: tuple[int, ...]) -> Tensor:
        """Modulation transfer function in the layout of `efficiency`, 1 at zero."""
        relative = self.efficiency(shape) / self.dqe_zero
        return relative.sqrt() * self.noise_transfer(shape)

    def expected(self, counts: Tensor) -> Tensor:
        """Image without shot noise of ``counts`` incident electrons a pixel, ``(..., H, W)``."""
        transfer = self.dqe_zero * self.modulation_transfer(counts.shape)
        return _filtered(counts, transfer)

    def sample(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an image.

        Parameters
        ----------
        counts : Tensor
            ``(..., H, W)`` electrons a pixel that arrive on average, not negative.

        Raises
        ------
        InputError
            Negative expected counts.
        """
        if bool((counts < 0).any()):
            raise InputError("expected counts must not be negative")
        relative = (self.efficiency(counts.shape) / self.dqe_zero).sqrt()
        rate = _filtered(counts, self.dqe_zero * relative).clamp_min(0)
        found = Poisson().sample(rate, generator)
        return _filtered(found, self.noise_transfer(counts.shape))

    def _square(self, shape: tuple[int, ...]) -> Tensor:
        """Squared frequency in units of the physical Nyquist frequency, at most 1."""
        height, width = shape[-2:]
        rows = torch.fft.fftfreq(height, 0.5)[:, None]
        columns = torch.fft.rfftfreq(width, 0.5)
        return ((rows.square() + columns.square()) / self.binning**2).clamp(max=1)


def _filtered(images: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(images) * transfer.to(images)
    return torch.fft.irfft2(spectrum, s=images.shape[-2:])
