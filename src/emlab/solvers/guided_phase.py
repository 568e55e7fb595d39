r"""Posterior sampling with an instrument that is not linear: pseudo-inverse guided, re-sampled.

At each noise level, with D the prior's denoiser and C the covariance of the truth around its
answer,

1. linearise the instrument, :math:`A(x) \approx A(D) + J(x - D)`;
2. draw :math:`x_0` from the Gaussian of mean D and covariance C given the counts, whose
   precision is :math:`C^{-1} + J^\top W J`, W the information of each pixel;
3. go to the next level, :math:`x_{\sigma'} \sim p(x_{\sigma'} \mid x_\sigma, x_0)`.

For a stationary Gaussian prior and a linear instrument step 2 is exact, and so is the result,
whatever the number of steps; the covariance of any other prior is no spectrum, and the draw is an
approximation. The mean of step 2 is the pseudo-inverse guidance of Song et al. 2023 (eq. 7) with
their :math:`r_t^2` a spectrum. No derivative of the network is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.counting import CountingNoise
from emlab.physics.exit_wave import Instrument
from emlab.priors.base import Prior
from emlab.solvers.contract import Progress, Samples, conjugate_gradients, told
from emlab.solvers.denoiser_spread import Spread
from emlab.solvers.sampling import noise_levels

Normal = Callable[[tuple[int, ...], Tensor], Tensor]  # numbers of a shape, on another's device


@dataclass(frozen=True)
class GuidedPhaseConfig:
    """Settings of `guided_phase`.

    Attributes
    ----------
    steps : int
        Noise levels; each is one network evaluation.
    sigma_max, sigma_min : float
        First and last level, in radians. The first drowns the images of the prior.
    curvature : float
        Spacing of the levels, see `noise_levels`.
    iterations : int
        Conjugate gradients of a draw, preconditioned in Fourier space.
    antithetic : bool
        Samples in pairs of opposite noise (antithetic variates, Hammersley and Morton 1956). Each
        is a sample as good as any, but the two err to opposite sides, so that their mean is nearer
        to the posterior mean than that of two independent ones. See `independent`.
    """

    steps: int = 28
    sigma_max: float = 3.0
    sigma_min: float = 0.01
    curvature: float = 5.0
    iterations: int = 4
    antithetic: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise InputError("the guided sampler needs steps >= 2 and 0 < sigma_min < sigma_max")
        if self.iterations < 1:
            raise InputError("the guided sampler needs iterations >= 1")

    def independent(self, samples: int) -> int:
        """How many of so many samples, the first ones, are independent of each other."""
        return (samples + 1) // 2 if self.antithetic else samples


def guided_phase(
    prior: Prior,
    operator: Instrument,
    measurement: Tensor,
    noise: CountingNoise,
    config: GuidedPhaseConfig,
    generator: torch.Generator,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Samples:
    """Draw phases from their posterior, for all particles and samples at once: a `Solver`.

    Parameters
    ----------
    prior : Prior
        In radians (`ScaledPrior`).
    operator : Instrument
        Such as `ExitWave`, of one particle or n.
    measurement : Tensor
        Counts ``(H, W)`` or ``(n, H, W)``.
    samples : int
        Draws: independent ones, or a first half that is, and its opposites (`antithetic`).
    spread : Spread
        Variance of the truth around the prior's answer; an `InputError` without.

    Returns
    -------
    Samples
        The trace is the root mean square of the misfit in standard deviations of the noise, 1
        where the prior's answers explain the counts.
    """
    if spread is None:
        raise InputError("guided_phase needs the spread of the prior's answers")
    size = (samples, *(measurement.shape if shape is None else shape))
    normal = _normal_numbers(generator, config.antithetic)
    x = config.sigma_max * normal(size, measurement)
    sensitivity = operator.sensitivity()
    levels = noise_levels(config.steps, config.sigma_max, config.sigma_min, config.curvature)
    trace = []
    for _, (sigma, following) in told([*pairwise(levels)], progress):
        with torch.no_grad():
            denoised = prior.denoise(x, sigma)
            clean, misfit = conditional(
                operator, noise, measurement, denoised, spread(sigma), sensitivity,
                config.iterations, normal,
            )  # fmt: skip
        trace.append(misfit)
        kept = (following / sigma) ** 2
        fresh = following * (1 - kept) ** 0.5 * normal(x.shape, x)
        x = (1 - kept) * clean + kept * x + fresh
    return Samples(x, config.steps * x[..., 0, 0].numel(), trace)


def conditional(
    instrument: Instrument,
    noise: CountingNoise,
    measurement: Tensor,
    centre: Tensor,
    variance: Tensor,
    sensitivity: Tensor,
    iterations: int,
    normal: Normal | None = None,
) -> tuple[Tensor, float]:
    r"""Images of known centre and stationary variance, given counts: their mean, or a draw.

    With :math:`x = \mathrm{centre} + C^{1/2}z` and the instrument linearised at the centre the
    mean solves :math:`(1 + C^{1/2}J^\top W J C^{1/2})\,z = C^{1/2}J^\top\ell'`; a draw adds to the
    right-hand side noise of the covariance of the left-hand side (Papandreou and Yuille 2010).

    Parameters
    ----------
    centre : Tensor
        ``(..., h, w)``.
    variance, sensitivity : Tensor
        ``(..., h, w // 2 + 1)``, see `Spread` and `ExitWave.sensitivity`.
    normal : callable, optional
        Source of standard normal numbers for a draw; without it the mean is returned.

    Returns
    -------
    Tensor
        ``(..., h, w)``.
    float
        Root mean square misfit of the centre in standard deviations of the noise.
    """
    root, sensitivity = variance.to(centre).sqrt(), sensitivity.to(centre)
    tangent = instrument.linearised(centre)
    weights = noise.curvature(tangent.expected)
    pull = noise.gradient(tangent.expected, measurement)
    misfit = (pull.square() / weights).mean().sqrt().item()
    if normal is not None:
        pull = pull + weights.sqrt() * normal(pull.shape, pull)
    target = filtered(tangent.A_adjoint(pull), root)
    if normal is not None:
        target = target + normal(target.shape, target)
    level = weights.mean((-2, -1), keepdim=True)
    inverse = 1 / (1 + root.square() * level * sensitivity)
    z = conjugate_gradients(
        lambda x: x + filtered(tangent.A_adjoint(weights * tangent.A(filtered(x, root))), root),
        target,
        iterations,
        dims=(-2, -1),
        precondition=lambda residual: filtered(residual, inverse),
    )
    return centre + filtered(z, root), misfit


def filtered(image: Tensor, gain: Tensor) -> Tensor:
    """Images times a real gain in the Fourier space of `torch.fft.rfft2`."""
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=list(image.shape[-2:]))


def _normal_numbers(generator: torch.Generator, antithetic: bool) -> Normal:
    """Independent numbers, or such whose second half along the first axis mirrors the first."""

    def numbers(shape: tuple[int, ...], like: Tensor) -> Tensor:
        first = (shape[0] + 1) // 2 if antithetic else shape[0]
        drawn = torch.randn((first, *shape[1:]), generator=generator, dtype=like.dtype)
        return torch.cat([drawn, -drawn[: shape[0] - first]]).to(like.device)

    return numbers
