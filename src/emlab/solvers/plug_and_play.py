"""Plug-and-play restoration: a denoising step, a data step, and less noise every time.

`plug_and_play_flow` is the published scheme; `restore` replaces its gradient step on the data by
the exact minimiser and its time schedule by noise levels; `half_quadratic` draws no noise. All
restore volumes with a prior of planes when they are given the prior once for each slicing axis
(`across_axes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise, GaussianNoise
from emlab.physics.operators import LinearOperator
from emlab.priors.base import FromDenoiser, Prior
from emlab.solvers.contract import (
    NoiseSource,
    Progress,
    Samples,
    conjugate_gradients,
    normal,
    told,
    views_of,
)
from emlab.solvers.sampling import noise_levels


class PlanesPrior(FromDenoiser):
    """A prior of planes applied to volumes: every plane across one axis is one image.

    Parameters
    ----------
    prior : Prior
        Denoises ``(..., H, W)``.
    axis : int
        The axis that the planes are stacked along: -3 for xy, -2 for xz and -1 for yz planes.
    """

    def __init__(self, prior: Prior, axis: int) -> None:
        if axis not in (-3, -2, -1):
            raise InputError(f"planes are stacked along axis -3, -2 or -1, got {axis}")
        self.prior, self.axis = prior, axis

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of volumes ``(..., D, H, W)``, plane by plane."""
        return self.prior.denoise(x.movedim(self.axis, -3), sigma).movedim(-3, self.axis)


def across_axes(prior: Prior) -> tuple[PlanesPrior, PlanesPrior, PlanesPrior]:
    """The prior of planes for xy, xz and yz planes, in the order in which steps cycle."""
    return PlanesPrior(prior, -3), PlanesPrior(prior, -2), PlanesPrior(prior, -1)


@dataclass(frozen=True)
class PlugAndPlayConfig:
    """Settings of the published scheme.

    Attributes
    ----------
    steps : int
        Times between noise (t = 0) and data (t = 1).
    alpha : float
        Exponent of the data step's weight ``(1-t)**alpha``, in [0, 1].
    """

    steps: int = 100
    alpha: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or not 0 <= self.alpha <= 1:
            raise InputError("plug-and-play flow needs steps >= 1 and alpha in [0, 1]")


def plug_and_play_flow(
    prior: Prior | Sequence[Prior],
    operator: LinearOperator,
    measurement: Tensor,
    noise: object,
    config: PlugAndPlayConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""EM Generalist's flow sampler (no gradient through the network), a `Solver`.

    .. math:: z = x - (1-t)^\alpha A^\top(Ax - y), \quad
              \tilde z = t z + (1-t)\,\epsilon, \quad
              x \leftarrow \tilde z + (1-t)\,v(\tilde z, t) = E[x_1 \mid \tilde z].

    The operator has a norm of at most 1. Of several priors the first (xy planes, which the coarse
    axis leaves intact) takes no data step, as published.
    """
    views = views_of(prior)
    x = measurement.new_zeros((samples, *(measurement.shape if shape is None else shape)))
    trace = []
    for step, _ in told(range(config.steps), progress):
        t = step / config.steps
        misfit = operator.A(x) - measurement
        trace.append(misfit.square().mean().sqrt().item())
        if len(views) == 1 or step % len(views):
            x = x - (1 - t) ** config.alpha * operator.A_adjoint(misfit)
        t = max(t, 1e-3)
        noisy = x + (1 - t) / t * normal(generator, step, x.shape, x)
        x = views[step % len(views)].denoise(noisy, (1 - t) / t)
    return Samples(x, config.steps * samples, trace)


@dataclass(frozen=True)
class RestoreConfig:
    r"""Settings of `restore`.

    Attributes
    ----------
    steps : int
        Noise levels.
    sigma_max, sigma_min : float
        First and last level, in units of the image. The first need only drown what is wrong with
        the start, not the start itself.
    curvature : float
        Spacing of the levels, see `noise_levels`.
    trust : float
        Standard deviation of the prior's answer around the truth, as a share of the noise level;
        larger values follow the measurement sooner.
    iterations : int
        Conjugate-gradient iterations of a data step.
    """

    steps: int = 20
    sigma_max: float = 1.0
    sigma_min: float = 0.02
    curvature: float = 3.0
    trust: float = 0.3
    iterations: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise InputError("restoring needs steps >= 2 and 0 < sigma_min < sigma_max")
        if self.trust <= 0 or self.iterations < 1:
            raise InputError("restoring needs trust > 0 and iterations >= 1")


def restore(
    prior: Prior | Sequence[Prior],
    operator: LinearOperator,
    measurement: Tensor,
    noise: GaussianNoise | ColouredGaussianNoise,
    config: RestoreConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Plug-and-play restoration with an exact data step, a `Solver`.

    At each noise level :math:`\sigma`, with D the prior's denoiser and :math:`r` = trust
    :math:`\cdot\,\sigma`,

    .. math:: \hat x = \arg\min_x \|y - Ax\|_{C^{-1}}^2 + \|x - D(x_\sigma,\sigma)\|^2/r^2, \qquad
              x_{\sigma'} = \hat x + \sigma'\Big(\sqrt{1-f^2}\,\frac{x_\sigma-\hat x}{\sigma}
              + f\,\epsilon\Big), \qquad f^2 = 1 - \sigma'^2/\sigma^2 .

    The minimiser is that of half-quadratic splitting (Zhang et al. 2021, eq. 7), the way back to
    the next noise level that of Zhu et al. 2023 (DiffPIR, eq. 14) with the share f of fresh noise
    of the reverse diffusion: with f = 1, the published scheme's, samples spread too little.
    Without a start it begins at zero.
    """
    views = views_of(prior)
    levels = noise_levels(config.steps, config.sigma_max, config.sigma_min, config.curvature)
    x = measurement.new_zeros(measurement.shape if shape is None else shape)
    x = (x if start is None else start).expand(samples, *x.shape)
    x = x + levels[0] * normal(generator, 0, x.shape, x)
    trace = []
    for step, (sigma, following) in told([*pairwise(levels)], progress):
        denoised = views[step % len(views)].denoise(x, sigma)
        spread = (config.trust * sigma) ** 2
        estimate, misfit = data_step(
            operator, measurement, noise.precision, denoised, spread, config.iterations
        )
        trace.append(misfit)
        share = (1 - (following / sigma) ** 2) ** 0.5
        kept = (1 - share**2) ** 0.5 * (x - estimate) / sigma
        x = estimate + following * (kept + share * normal(generator, step + 1, x.shape, x))
    return Samples(x, config.steps * samples, trace)


def data_step(
    operator: LinearOperator,
    measurement: Tensor,
    precision: Callable[[Tensor], Tensor],
    image: Tensor,
    spread: float,
    iterations: int,
) -> tuple[Tensor, float]:
    r"""Minimise :math:`(y-Ax)^\top C^{-1}(y-Ax) + \|x - \mathrm{image}\|^2/\mathrm{spread}`.

    Conjugate gradients on the correction to `image`, each image of the batch with its own step
    lengths. Returns the minimiser and the root mean square misfit of `image` before the step.
    """
    misfit = measurement - operator.A(image)
    correction = conjugate_gradients(
        lambda x: x + spread * operator.A_adjoint(precision(operator.A(x))),
        spread * operator.A_adjoint(precision(misfit)),
        iterations,
        1e-10,
    )
    return image + correction, misfit.square().mean().sqrt().item()


@dataclass(frozen=True)
class HalfQuadraticConfig:
    """Settings of `half_quadratic`.

    Attributes
    ----------
    steps : int
        Denoising steps.
    sigma_max, sigma_min : float
        First and last noise level, in units of the image, geometrically spaced. The first is the
        error of the start, the last about that of the result.
    weight : float
        Trust in the denoiser against the measurement: its answer counts as accurate to
        ``sigma / sqrt(weight)``.
    iterations : int
        Conjugate-gradient iterations of a data step.
    last : str
        What is returned: ``"data"``, a last data step, so that the result agrees with the
        measurement; ``"prior"``, the last denoised image, where the measurement itself is noisy.
    """

    steps: int = 8
    sigma_max: float = 0.4
    sigma_min: float = 0.04
    weight: float = 0.23
    iterations: int = 20
    last: Literal["data", "prior"] = "data"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise InputError("half-quadratic splitting needs steps >= 2, 0 < sigma_min < sigma_max")
        if self.weight <= 0 or self.iterations < 1:
            raise InputError("half-quadratic splitting needs weight > 0 and iterations >= 1")


def half_quadratic(
    prior: Prior | Sequence[Prior],
    operator: LinearOperator,
    measurement: Tensor,
    noise: GaussianNoise | ColouredGaussianNoise,
    config: HalfQuadraticConfig,
    generator: object = None,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Restore one image by alternating between measurement and prior (Zhang et al. 2021, eq. 6).

    A `Solver` that draws nothing. At each level :math:`\sigma`, falling,

    .. math:: x \leftarrow \arg\min_x \|y - Ax\|_{C^{-1}}^2
              + \frac{\lambda}{\sigma^2}\|x - z\|^2, \qquad z \leftarrow D(x, \sigma) ,

    and, with ``last="data"``, a data step at the end. Of several priors the first is left out: the
    planes that it knows are those which the coarse axis leaves intact.

    Where a sampler draws the fine texture that the measurement leaves open, this averages it out.
    It is no posterior mean (its fixed points are a compromise of their own), but near enough to be
    the better estimate than the mean of a few samples, at a tenth of the evaluations.
    """
    if samples > 1:
        raise InputError(
            "half-quadratic splitting gives one estimate and draws no samples; take the "
            "configuration 'samples', or a RestoreConfig, for samples and their spread"
        )
    views = views_of(prior)[1:] or views_of(prior)
    z = measurement.new_zeros(measurement.shape if shape is None else shape)
    z = (z if start is None else start)[None]
    ratio = (config.sigma_min / config.sigma_max) ** (1 / (config.steps - 1))
    trace, spread = [], 1.0
    for step, _ in told(range(config.steps), progress):
        sigma = config.sigma_max * ratio**step
        spread = sigma**2 / config.weight
        x, misfit = data_step(operator, measurement, noise.precision, z, spread, config.iterations)
        trace.append(misfit)
        z = views[step % len(views)].denoise(x, sigma)
    if config.last == "data":
        z, _ = data_step(operator, measurement, noise.precision, z, spread, config.iterations)
    return Samples(z, config.steps, trace)
