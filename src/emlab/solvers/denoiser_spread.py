r"""What a prior does not know after denoising: the spread of the truth around its answer.

A guided sampler weighs the prior's answer :math:`D(x_\sigma, \sigma)` against a measurement. The
covariance of :math:`x_0` given :math:`x_\sigma` that it needs is taken as stationary, a variance
for each frequency: all of it for a stationary Gaussian prior, the average for any other.
Variances are those of white noise of the same strength, ``|rfft2|^2 / (H W)``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.priors.base import Prior

SMALLEST = 1e-12  # of the largest variance: nothing is known exactly


class Spread(Protocol):
    """Variance of each frequency ``(H, W // 2 + 1)`` around the prior's answer at a level."""

    def __call__(self, sigma: float) -> Tensor: ...


class WienerSpread:
    r"""That of a stationary Gaussian prior of power P: :math:`\sigma^2 P/(\sigma^2 + P)`.

    Parameters
    ----------
    power : Tensor
        ``(H, W // 2 + 1)``, not negative.
    """

    def __init__(self, power: Tensor) -> None:
        if not bool((power >= 0).all()) or not float(power.max()) > 0:
            raise InputError("a power spectrum is not negative, and not zero everywhere")
        self.power = power.clamp_min(SMALLEST * float(power.max()))

    def __call__(self, sigma: float) -> Tensor:
        return sigma**2 * self.power / (sigma**2 + self.power)


class MeasuredSpread:
    """Measured at some levels, interpolated on logarithms between them.

    Below the first level the variance falls with the square of the level, above the last it stays.

    Parameters
    ----------
    levels : Tensor
        ``(L,)`` rising noise levels.
    variances : Tensor
        ``(L, H, W // 2 + 1)``, positive.
    """

    def __init__(self, levels: Tensor, variances: Tensor) -> None:
        if len(levels) != len(variances) or not bool((levels.diff() > 0).all()):
            raise InputError("a measured spread needs rising levels and one spectrum for each")
        self.levels = levels
        self.variances = variances.clamp_min(SMALLEST * float(variances.max()))

    def __call__(self, sigma: float) -> Tensor:
        first = float(self.levels[0])
        if sigma < first:
            return self.variances[0] * (sigma / first) ** 2
        logs = self.levels.log()
        place = torch.tensor(sigma, dtype=logs.dtype).log().clamp_max(float(logs[-1]))
        right = int(torch.searchsorted(logs, place).clamp(1, len(logs) - 1))
        share = (place - logs[right - 1]) / (logs[right] - logs[right - 1])
        return self.variances[right - 1] ** (1 - share) * self.variances[right] ** share


def power_spectrum(images: Tensor) -> Tensor:
    """Mean power of images ``(n, H, W)`` about zero, the same all around each ring.

    Returns
    -------
    Tensor
        ``(H, W // 2 + 1)``.
    """
    height, width = images.shape[-2:]
    power = torch.fft.rfft2(images).abs().square().mean(0) / (height * width)
    rows = torch.fft.fftfreq(height, 1 / height, device=power.device)
    columns = torch.arange(width // 2 + 1, device=power.device)
    rings = torch.hypot(rows[:, None] * width / min(height, width), columns[None, :] + 0.0)
    rings = rings.round().long()
    total = power.new_zeros(int(rings.max()) + 1).index_add(0, rings.flatten(), power.flatten())
    return (total / rings.flatten().bincount())[rings]


def measure_spread(
    prior: Prior, images: Tensor, levels: list[float], generator: torch.Generator
) -> MeasuredSpread:
    """How far a prior's answers lie from images that it was not trained on.

    Parameters
    ----------
    images : Tensor
        ``(n, H, W)``, tens of them.
    levels : list of float
        Rising noise levels, in the units of the images.
    """
    variances = []
    for sigma in levels:
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
        with torch.no_grad():
            variances.append(power_spectrum(images - prior.denoise(images + sigma * noise, sigma)))
    return MeasuredSpread(torch.tensor(levels, dtype=images.dtype), torch.stack(variances).cpu())
