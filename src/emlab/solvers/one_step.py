r"""Images under white noise: denoising in one network evaluation, and the published iteration.

A measurement :math:`y = x_0 + \sigma\epsilon` is a point of the prior's own path, at the time where
its noise is :math:`\sigma`. The best estimate in the mean square is the posterior mean there, which
is the very question that the network was trained to answer, by Tweedie's formula :math:`\hat y = x
+ \sigma^2 s(x)`; and its derivative is the posterior's covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors.base import Prior
from emlab.solvers.contract import NoiseSource, Progress, Samples, normal, told


@dataclass(frozen=True)
class OneStepConfig:
    """Settings of `one_step`: nothing to choose."""


def one_step(
    prior: Prior,
    operator: Identity,
    measurement: Tensor,
    noise: GaussianNoise,
    config: OneStepConfig,
    generator: object = None,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    """Posterior mean ``E[x0 | y]`` of images under white noise: a `Solver` that draws nothing."""
    sigma = _level(operator, noise)
    with torch.no_grad():
        return Samples(prior.denoise(measurement, sigma)[None], 1)


def one_step_spread(
    prior: Prior, measurement: Tensor, sigma: float, generator: torch.Generator, probes: int = 32
) -> Tensor:
    r"""Posterior standard deviation of every pixel, without drawing a sample.

    The posterior covariance is :math:`\sigma^2\,\partial D/\partial y` (Tweedie's second formula);
    its diagonal is the mean of :math:`w \odot J^\top w` over random signs w (Bekas et al. 2007).

    Parameters
    ----------
    prior, measurement
        Differentiable; ``(..., H, W)`` in its units.
    sigma : float
        Standard deviation of its white noise, positive.
    probes : int
        Random signs; the error of a variance falls with their square root.

    Returns
    -------
    Tensor
        Same shape as `measurement`.
    """
    if not sigma > 0:
        raise InputError(f"the noise level must be positive, got {sigma}; estimate it first")
    if probes < 1:
        raise InputError(f"the spread needs at least one probe, got {probes}")
    with torch.enable_grad():
        y = measurement.detach().requires_grad_(True)
        denoised = prior.denoise(y, sigma)
        total = torch.zeros_like(measurement)
        for _ in range(probes):
            coins = torch.randint(2, y.shape, generator=generator).to(y)
            signs = 2 * coins - 1
            (pulled,) = torch.autograd.grad((denoised * signs).sum(), y, retain_graph=True)
            total += signs * pulled
    return sigma * (total / probes).clamp_min(0).sqrt()


@dataclass(frozen=True)
class DiffuseBackConfig:
    """Settings of `diffuse_back`.

    Attributes
    ----------
    steps : int
        Noise levels, geometrically spaced from that of the measurement.
    sigma_min : float
        Last level; what is finer than it is averaged.
    """

    steps: int = 25
    sigma_min: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or self.sigma_min <= 0:
            raise InputError("diffusing back needs steps >= 2 and sigma_min > 0")


def diffuse_back(
    prior: Prior,
    operator: Identity,
    measurement: Tensor,
    noise: GaussianNoise,
    config: DiffuseBackConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Draw from the posterior of an image under white noise: the reverse diffusion from *there*.

    A noisy image already is a point of the diffusion, so no likelihood is needed; with D the
    denoiser and :math:`\sigma' < \sigma` (Ho et al. 2020, eq. 7, in noise levels)

    .. math:: x \leftarrow D + \frac{\sigma'^2}{\sigma^2}(x - D)
              + \sigma'\sqrt{1 - \sigma'^2/\sigma^2}\,\epsilon .

    A `Solver`. From a level below `sigma_min` the answer is a single denoising.
    """
    sigma = _level(operator, noise)
    ratio = min(1.0, config.sigma_min / sigma) ** (1 / (config.steps - 1))
    levels = [sigma * ratio**step for step in range(config.steps)] if ratio < 1 else [sigma]
    x = measurement.expand(samples, *measurement.shape)
    for step, (level, following) in told([*pairwise([*levels, 0.0])], progress):
        clean, kept = prior.denoise(x, level), (following / level) ** 2
        fresh = normal(generator, step, x.shape, x)
        x = clean + kept * (x - clean) + following * (1 - kept) ** 0.5 * fresh
    return Samples(x, len(levels) * samples)


def _level(operator: object, noise: object) -> float:
    if not isinstance(operator, Identity) or not isinstance(noise, GaussianNoise):
        raise InputError(
            "this solver takes white noise off an image and nothing else; choose half_quadratic "
            "or restore for other instruments and other noise"
        )
    return noise.sigma


PAPER_NOISE = 0.338  # noise at which a = .5 has the gain -1.19


@dataclass(frozen=True)
class IterationConfig:
    """Settings of `iterate`.

    Attributes
    ----------
    a, b : float
        Of the step a + b x, in the units in which the noise has the standard deviation `noise`.
    noise : float
        Standard deviation of the noise that the image is scaled to first.
    """

    a: float = 0.5
    b: float = 0.01
    steps: int = 5
    noise: float = PAPER_NOISE

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or self.a <= 0 or self.noise <= 0:
            raise InputError("the iteration needs steps >= 1, a > 0 and noise > 0")


def tweedie(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """One step: posterior mean of images ``(..., H, W)`` with noise `sigma`."""
    if not sigma > 0:
        raise InputError(f"the noise level must be positive, got {sigma}; estimate it first")
    with torch.no_grad():
        return x + sigma**2 * prior.score(x, sigma)


def iterate(
    prior: Prior,
    operator: Identity,
    measurement: Tensor,
    noise: GaussianNoise,
    config: IterationConfig,
    generator: object = None,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""The published iteration on images under white noise: a `Solver` that draws nothing.

    It repeats :math:`x \leftarrow x + (a + b\,x)^2\, s(x)` with the score of one noise level. For
    an exact score white noise of standard deviation :math:`\sigma_n` is multiplied by :math:`1 -
    a^2/\sigma_n^2` each time: it grows without bound where :math:`a^2 > 2\sigma_n^2`, and is at
    best shrunk towards the prior's mode, not its mean.
    """
    x, unit = measurement, config.noise / noise.sigma
    with torch.no_grad():
        for _ in told(range(config.steps), progress):
            # The score of scaled images is that of the images over the scale.
            score = prior.score(x, noise.sigma) / unit
            x = x + (config.a + config.b * unit * x).square() * score / unit
    return Samples(x[None], config.steps)
