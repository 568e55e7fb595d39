r"""A prior that sees depth: the posterior mean of a plane given its neighbours, and without them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emlab.checks import check_fields
from emlab.errors import InputError

REFERENCE_ANGSTROM = 100.0  # pixel sizes are told as octaves from this one


@dataclass(frozen=True)
class DepthMatching:
    r"""Regress the clean middle plane of a noisy stack, with the Gaussian answer built in.

    For data of mean m and standard deviation s the best *linear* estimate of the middle plane
    :math:`x` from itself is :math:`m + s^2 (x-m)/r^2` with :math:`r^2 = \sigma^2 + s^2`. The
    network F learns what that leaves, a target of unit variance at every level (Karras et al.
    2022, table 1):

    .. math:: D(x, \sigma) = m + \frac{s^2}{r}\,u + \frac{\sigma s}{r}\,F(u, \ln\sigma/4),
              \quad u = (x - m)/r .

    The loss is F's squared error; :math:`\sigma` is log-normal, folded into its range, so that
    most steps go to the levels that restorers ask for. In `alone` of the stacks the middle plane
    stands alone, in a sixth one or two planes are missing on one side, as at a volume's end.

    Attributes
    ----------
    mean, std : float
        Of the images.
    sigma_min, sigma_max : float
        Range of noise levels; beyond it the network is told the nearest.
    sigma_median, sigma_spread : float
        Median of the noise levels, and standard deviation of their logarithm.
    alone : float
        Share of stacks without neighbours.
    nameless : float
        Share of stacks whose pixel size the network is not told.
    """

    mean: float = 0.0
    std: float = 0.3
    sigma_min: float = 0.02
    sigma_max: float = 3.0
    sigma_median: float = 0.35
    sigma_spread: float = 0.9
    alone: float = 0.4
    nameless: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.std <= 0 or not 0 < self.sigma_min < self.sigma_median < self.sigma_max:
            raise InputError("depth needs std > 0 and 0 < sigma_min < sigma_median < sigma_max")
        if not (0 <= self.alone <= 1 and 0 <= self.nameless <= 1 and self.sigma_spread > 0):
            raise InputError("depth needs alone and nameless in [0, 1] and sigma_spread > 0")

    def __call__(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of stacks ``(n, planes + 1, H, W)`` whose last plane is the pixel size in octaves."""
        clean, octaves = batch[:, :-1], batch[:, -1, 0, 0]
        count, planes = clean.shape[:2]
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        drawn = torch.randn(count, generator=generator) * self.sigma_spread
        drawn = low + (drawn + math.log(self.sigma_median) - low).abs()
        sigma = (high - (high - drawn).abs()).exp().to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        present = self._draw_present(count, planes, generator).to(clean.device)
        nameless = torch.rand(count, generator=generator).to(clean.device) < self.nameless
        octaves = octaves.masked_fill(nameless, math.nan)
        noisy = clean + sigma[:, None, None, None] * noise
        middle = clean[:, planes // 2]
        estimate = self.denoise(model, noisy, sigma, octaves, present)
        weight = (sigma.square() + self.std**2) / (sigma * self.std).square()
        return (weight[:, None, None] * (estimate - middle).square()).mean()

    def _draw_present(self, count: int, planes: int, generator: torch.Generator) -> Tensor:
        """Which planes there are ``(count, planes)``; the middle one always is."""
        offset = torch.arange(planes) - planes // 2
        kind, side, reach = torch.rand(3, count, 1, generator=generator)
        end = torch.where(side < 0.5, offset, -offset) <= (reach * (planes // 2)).floor()
        present = torch.where(kind < self.alone + 1 / 6, end, torch.ones_like(end))
        return torch.where(kind < self.alone, offset == 0, present)

    def denoise(
        self, model: nn.Module, stack: Tensor, sigma: Tensor, octaves: Tensor, present: Tensor
    ) -> Tensor:
        """Clean middle planes ``(n, H, W)`` of stacks ``(n, planes, H, W)``; see `DepthUNet`."""
        level = sigma[:, None, None]
        radius = torch.sqrt(level.square() + self.std**2)
        scaled = (stack - self.mean) / radius[:, None]
        told = sigma.clamp(self.sigma_min, self.sigma_max).log() / 4
        learned = model(scaled, told, octaves / 4, present).float()
        linear = self.std**2 * scaled[:, stack.shape[1] // 2]
        return self.mean + (linear + level * self.std * learned) / radius
