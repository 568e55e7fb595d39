r"""Sampling by following the score from pure noise to an image.

With noise level :math:`\sigma` falling to zero the probability-flow equation is
:math:`dx/d\sigma = -\sigma\,\nabla\log p_\sigma(x)`; adding fresh noise along the way gives the
reverse diffusion. A measurement adds the gradient of its own likelihood to the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import LinearOperator
from emlab.priors.base import Prior
from emlab.priors.diffusion import DDPMSchedule, DDPMView
from emlab.solvers.contract import NoiseSource, Progress, Samples, normal, told, views_of


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


@dataclass(frozen=True)
class DPSConfig:
    """Settings of `dps`.

    Attributes
    ----------
    steps : int
        Sampling steps, at most those of `schedule`. With a stride of k (``steps = T/k``) every
        pull is k times as long, so that the pulls add up to what they are with all steps.
    step_size : float
        gamma, not negative: the length of a pull on one patch. 0 samples the prior.
    patch : int or None
        Side in pixels of the patch that `step_size` is meant for. The pull is divided by the
        squared misfit, which grows with the image; on another size gamma is scaled by
        pixels/patch^2, so that every pixel is pulled as in the published 128. None: the image
        itself is the patch, whatever its size.
    schedule : DDPMSchedule
        Noise levels; T = 1000 steps by default.
    """

    steps: int = 1000
    step_size: float = 15.0
    patch: int | None = 128
    schedule: DDPMSchedule = field(default_factory=DDPMSchedule)

    def __post_init__(self) -> None:
        check_fields(self)
        self.schedule.spaced(self.steps)
        if not self.step_size >= 0:
            raise InputError(f"step_size must not be negative, got {self.step_size}")
        if self.patch is not None and self.patch < 1:
            raise InputError("patch is a side in pixels; None takes each image as one patch")

    def pull(self, pixels: int) -> float:
        """gamma of one sampling step on an image of so many pixels."""
        size = 1.0 if self.patch is None else pixels / self.patch**2
        return self.step_size * size * self.schedule.steps / self.steps


def dps(
    prior: Prior | Sequence[Prior],
    operator: LinearOperator,
    measurement: Tensor,
    noise: object,
    config: DPSConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Draw restored images by diffusion posterior sampling (Chung et al. 2023, algorithm 1).

    As EM Generalist publishes it for its DDPM prior: each step denoises, pulls the noisy image
    towards the measurement by a gradient *through* the network, and takes one ancestral step with
    the noise predicted before the pull. With :math:`\hat\epsilon` that noise, :math:`\hat x_0` the
    image that it leaves and :math:`r = y - A\hat x_0`, each image of the batch by itself,

    .. math:: x_k \leftarrow x_k - \frac{\gamma}{\|r\|}\nabla_{x_k}\|r\|, \qquad
              x_{k-1} \sim p(x_{k-1} \mid x_k, \hat\epsilon),

    the latter with the posterior variance of Ho et al. 2020 (eq. 7). The step length knows nothing
    of the noise: gamma alone decides how closely the measurement is followed. A `Solver`; of
    several priors the first takes no pull, as in `plug_and_play_flow`.
    """
    views = [DDPMView(each, config.schedule) for each in views_of(prior)]
    size = (samples, *(measurement.shape if shape is None else shape))
    x = normal(generator, 0, size, measurement)
    gamma = config.pull(x[0].numel())
    trace = []
    visited = config.schedule.spaced(config.steps)
    for count, (step, following) in told([*pairwise([*visited, -1])], progress):
        view = views[count % len(views)]
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            epsilon = view.epsilon(x, step)
            misfit = measurement - operator.A(view.clean(x, step, epsilon))
            length = misfit.flatten(1).norm(dim=1).clamp_min(1e-12)
            (pull,) = torch.autograd.grad(length.log().sum(), x)
        trace.append(misfit.detach().square().mean().sqrt().item())
        x = x.detach()
        if len(views) == 1 or count % len(views):
            x = x - gamma * pull
        fresh = normal(generator, count + 1, x.shape, x)
        x = ancestral_step(view, x, epsilon.detach(), step, following, fresh)
    return Samples(x, config.steps * samples, trace)


def ancestral_step(
    view: DDPMView, x: Tensor, epsilon: Tensor, step: int, following: int, fresh: Tensor
) -> Tensor:
    """Draw the image at step `following` (-1: the clean image) given `x` and its noise at `step`.

    Ho et al. 2020, eq. 6 and 7, for steps that need not be neighbours; `fresh` is standard normal.
    """
    table = view.schedule.alpha_bar
    here, there = table[step].item(), table[following].item() if following >= 0 else 1.0
    kept = here / there
    left = (1 - there) / (1 - here)
    mean = there**0.5 * (1 - kept) / (1 - here) * view.clean(x, step, epsilon)
    return mean + kept**0.5 * left * x + (left * (1 - kept)) ** 0.5 * fresh
