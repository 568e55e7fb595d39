r"""Sampling by following the score from pure noise to an image.

With noise level :math:`\sigma` falling to zero the probability-flow equation is
:math:`dx/d\sigma = -\sigma\,\nabla\log p_\sigma(x)`; adding fresh noise along the way gives the
reverse diffusion. A measurement adds the gradient of its own likelihood to the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import LinearOperator
from emlab.priors.base import Prior
from emlab.solvers.contract import NoiseSource, Progress, Samples, normal, told


def noise_levels(
    steps: int, sigma_max: float, sigma_min: float, curvature: float = 7.0
) -> list[float]:
    """`steps` levels from `sigma_max` down to `sigma_min`, denser near the end, then 0."""
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise InputError("sampling needs at least 2 steps and 0 < sigma_min < sigma_max")
    high, low = sigma_max ** (1 / curvature), sigma_min ** (1 / curvature)
    levels = [(high + i / (steps - 1) * (low - high)) ** curvature for i in range(steps)]
    return [*levels, 0.0]


def sample_prior(
    prior: Prior,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    steps: int = 20,
    sigma_max: float = 10.0,
    sigma_min: float = 0.02,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw images from a prior by the probability-flow equation (Heun's second-order steps).

    Parameters
    ----------
    shape : tuple of int
        ``(n, H, W)``.
    steps : int
        Noise levels; two denoisings each.
    sigma_max : float
        First level; well above the spread of the images.

    Returns
    -------
    Tensor
        ``(n, H, W)``.
    """
    levels = noise_levels(steps, sigma_max, sigma_min)
    x = sigma_max * torch.randn(shape, generator=generator, dtype=dtype).to(device)
    for sigma, following in pairwise(levels):
        slope = -sigma * prior.score(x, sigma)
        moved = x + (following - sigma) * slope
        if following > 0:
            slope = (slope - following * prior.score(moved, following)) / 2
            moved = x + (following - sigma) * slope
        x = moved
    return x


@dataclass(frozen=True)
class PosteriorConfig:
    """Settings of `sample_posterior`.

    Attributes
    ----------
    prior_std : float
        Standard deviation of a pixel under the prior.
    steps : int
        Noise levels.
    sigma_max, sigma_min : float
        First and last of them, in units of the image.
    """

    prior_std: float = 1.0
    steps: int = 200
    sigma_max: float = 10.0
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prior_std <= 0:
            raise InputError(f"prior_std must be positive, got {self.prior_std}")
        noise_levels(self.steps, self.sigma_max, self.sigma_min)


def sample_posterior(
    prior: Prior,
    operator: LinearOperator,
    measurement: Tensor,
    noise: GaussianNoise,
    config: PosteriorConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Draw images from the posterior of a measurement with white noise.

    Reverse diffusion with the prior's score plus a likelihood score that accounts for what the
    denoiser does not know (pseudo-inverse guidance, Song et al. 2023): with
    :math:`r^2 = \sigma^2 s^2/(\sigma^2+s^2)` the spread of :math:`x_0` around its denoised mean
    and :math:`D` the denoiser,

    .. math:: \nabla_x \log p(y\mid x) \approx J_D^\top A^\top
              (r^2 A A^\top + \sigma_y^2)^{-1}(y - A D(x)) .

    Exact for a white Gaussian prior of standard deviation ``prior_std`` = s. A `Solver` for
    operators with ``A A^T = 1`` on what they measure (identity, mask, crop).
    """
    levels = noise_levels(config.steps, config.sigma_max, config.sigma_min)
    size = (samples, *(measurement.shape if shape is None else shape))
    x = config.sigma_max * normal(generator, 0, size, measurement)
    trace = []
    for count, (sigma, following) in told([*pairwise(levels)], progress):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            denoised = prior.denoise(x, sigma)
            spread = sigma**2 * config.prior_std**2 / (sigma**2 + config.prior_std**2)
            misfit = (measurement - operator.A(denoised)).detach()
            weighed = misfit / (spread + noise.sigma**2)
            pulled = (operator.A(denoised) * weighed).sum()
            guidance = torch.autograd.grad(pulled, x)[0]
        trace.append(misfit.square().mean().sqrt().item())
        score = (denoised.detach() - x.detach()) / sigma**2 + guidance
        fresh = normal(generator, count + 1, size, x)
        removed = sigma**2 - following**2
        added = (following**2 * removed / sigma**2) ** 0.5
        x = x.detach() + removed * score + added * fresh
    return Samples(x, config.steps * samples, trace)
