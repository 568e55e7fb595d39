r"""Noise of the detector: draw it, and say how likely a measurement is.

Each model has ``sample(clean, generator)``, ``log_likelihood(mean, measurement)``, summed over
the pixels of each image ``(..., H, W)``, and ``gradient``, its derivative with respect to `mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from emlab.errors import InputError


class Noise(Protocol):
    """What a solver needs of the detector."""

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return a measurement whose expectation is the clean one."""

    def log_likelihood(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the log-likelihood, summed over the last two axes."""

    def gradient(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the derivative of the log-likelihood by the mean."""


class GaussianNoise:
    r"""White noise, :math:`y = m + \sigma n`.

    Parameters
    ----------
    sigma : float
        Standard deviation in the units of the image, positive.
    """

    def __init__(self, sigma: float) -> None:
        if not 0 < sigma < math.inf:
            raise InputError(f"sigma must be positive, got {sigma}")
        self.sigma = sigma

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return the image with noise added."""
        return clean + self.sigma * _white(clean, generator)

    def log_likelihood(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the log-likelihood, summed over the last two axes."""
        misfit = ((measurement - mean) / self.sigma).square()
        return -0.5 * (misfit + math.log(2 * math.pi * self.sigma**2)).sum((-2, -1))

    def gradient(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the misfit over the variance."""
        return (measurement - mean) / self.sigma**2

    def precision(self, residual: Tensor) -> Tensor:
        r""":math:`C^{-1} r`: the residual over the variance."""
        return residual / self.sigma**2

    def curvature(self, mean: Tensor) -> Tensor:
        """Return the Fisher information of each pixel, one over the variance."""
        return torch.full_like(mean, 1 / self.sigma**2)


class ColouredGaussianNoise:
    r"""Stationary correlated noise, :math:`y = m + n`, :math:`n \sim N(0, C)`.

    The covariance :math:`C = F^{-1} \mathrm{diag}(P) F` is diagonal in Fourier space, so the noise
    wraps around the edges of the image.

    Parameters
    ----------
    power_spectrum : Tensor or callable
        P, positive: ``(H, W // 2 + 1)`` in the layout of `torch.fft.rfft2`, or a function that
        gives it for a shape, such as `NoiseSpectrum`. Its mean over all frequencies is the
        variance; white noise has ``sigma ** 2`` everywhere.

    Raises
    ------
    InputError
        A spectrum that is not positive, or, when applied, one of another shape than the image's.
    """

    def __init__(self, power_spectrum: Tensor | Callable[[tuple[int, ...]], Tensor]) -> None:
        self.power_spectrum = power_spectrum
        self._known: dict[tuple[int, ...], Tensor] = {}  # by shape: solvers ask in every step
        if isinstance(power_spectrum, Tensor):
            _check_spectrum(power_spectrum)

    def spectrum(self, shape: tuple[int, ...]) -> Tensor:
        """P of images ``(..., H, W)``: ``(H, W // 2 + 1)``."""
        if isinstance(self.power_spectrum, Tensor):
            power = self.power_spectrum
        else:
            sides = tuple(shape[-2:])
            if sides not in self._known:
                self._known[sides] = self.power_spectrum(sides)
                _check_spectrum(self._known[sides])
            power = self._known[sides]
        if power.shape != (shape[-2], shape[-1] // 2 + 1):
            raise InputError(
                f"the spectrum {tuple(power.shape)} does not fit the image {tuple(shape)}: it "
                "must be (H, W // 2 + 1)"
            )
        return power

    def colour(self, white: Tensor) -> Tensor:
        r""":math:`C^{1/2} w`: noise of this spectrum from white noise."""
        return self._filter(white, 0.5)

    def whiten(self, residual: Tensor) -> Tensor:
        r""":math:`C^{-1/2} r`: white with unit variance if the residual is this noise."""
        return self._filter(residual, -0.5)

    def precision(self, residual: Tensor) -> Tensor:
        r""":math:`C^{-1} r`."""
        return self._filter(residual, -1.0)

    def sample(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Return the image with correlated noise added."""
        return clean + self.colour(_white(clean, generator))

    def log_likelihood(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return the log-likelihood, summed over the last two axes."""
        residual = measurement - mean
        logs = (2 * math.pi * self.spectrum(tuple(residual.shape)).to(residual)).log()
        twice = logs[:, 1 : (residual.shape[-1] + 1) // 2].sum()  # columns that rfft2 leaves out
        return -0.5 * (self.whiten(residual).square().sum((-2, -1)) + logs.sum() + twice)

    def gradient(self, mean: Tensor, measurement: Tensor) -> Tensor:
        """Return :math:`C^{-1}` times the misfit."""
        return self.precision(measurement - mean)

    def _filter(self, image: Tensor, exponent: float) -> Tensor:
        gain = self.spectrum(tuple(image.shape)).to(image).pow(exponent)
        return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=list(image.shape[-2:]))


def _white(like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return noise.to(like.device)


def _check_spectrum(power: Tensor) -> None:
    if not torch.isfinite(power).all() or power.min() <= 0:
        raise InputError("a noise spectrum must be positive at every frequency")
