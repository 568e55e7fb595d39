r"""Blind deblurring: the image and the kernel that blurred it, in turns.

Noise levels fall as in `restore`. At each, with the kernel k of the moment,

1. the prior denoises, :math:`\hat x = D(x_\sigma, \sigma)`;
2. the kernel is refined on :math:`\|\nabla(y - k * \hat x)\|^2`, non-negative and of sum 1;
3. the data step moves :math:`\hat x` towards the measurement and noise returns.

Kernels are mixtures of centred defocus discs of whole radii, which is every round kernel that falls
outwards. (The published kernel is free: many more numbers than one small image can tell.)

The kernel is fitted to what the *prior* makes of the noisy image, before the data step. Fitted
after it, "no blur at all" explains every measurement (Levin et al. 2009); before it,
:math:`E[y \mid x_\sigma] = k * D(x_\sigma, \sigma)` holds for the true kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Blur, defocus_kernel
from emlab.priors.base import Prior
from emlab.solvers import solver_of
from emlab.solvers.contract import Progress, Samples, normal, told
from emlab.solvers.plug_and_play import HalfQuadraticConfig, RestoreConfig, data_step
from emlab.solvers.sampling import noise_levels


@dataclass(frozen=True)
class BlindConfig:
    """Settings of `blind_deblur`.

    Attributes
    ----------
    size : int
        Odd side of the kernel, 33 as published.
    steps : int
        Noise levels of the search; each is one network evaluation.
    sigma_max, sigma_min : float
        First and last level of the search, in units of the image.
    memory : float
        Weight of earlier levels in the refinement, in [0, 1): 0 forgets them.
    trust : float
        As in `RestoreConfig`, for the search.
    window : int
        The kernel is searched for on a central square of at most this side, in pixels.
    restoration : HalfQuadraticConfig or RestoreConfig
        How the image is restored once the kernel is found: one image near the posterior mean, or
        samples.
    """

    size: int = 33
    steps: int = 40
    sigma_max: float = 1.0
    sigma_min: float = 0.04
    memory: float = 0.7
    trust: float = 0.3
    window: int = 256
    restoration: HalfQuadraticConfig | RestoreConfig = field(
        default_factory=lambda: HalfQuadraticConfig(steps=8, sigma_max=0.4, sigma_min=0.03)
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size < 3 or self.size % 2 == 0:
            raise InputError(f"a kernel has an odd side of 3 pixels or more, not {self.size}")
        if self.steps < 2 or not 0 < self.sigma_min < self.sigma_max:
            raise InputError("the search needs steps >= 2 and 0 < sigma_min < sigma_max")
        if not 0 <= self.memory < 1:
            raise InputError(f"memory must be in [0, 1), got {self.memory}")
        if self.trust <= 0 or self.window < 2:
            raise InputError("the search needs trust > 0 and a window of at least 2 pixels")


def blind_deblur(
    prior: Prior,
    measurement: Tensor,
    noise: GaussianNoise,
    config: BlindConfig,
    generator: torch.Generator,
    *,
    samples: int = 1,
    progress: Progress | None = None,
) -> tuple[Samples, Tensor]:
    """Find the kernel, then restore the image with it.

    Parameters
    ----------
    measurement : Tensor
        ``(H, W)``, blurred and noisy, in the prior's units.
    samples : int
        Restored images to draw, with a `RestoreConfig`; the kernel is the same for all.

    Returns
    -------
    Samples
        As from the restoration; the evaluations count those of the search.
    Tensor
        The kernel ``(size, size)``.
    """
    if measurement.ndim != 2 or min(measurement.shape) < config.size:
        raise InputError(
            f"a kernel of {config.size} pixels needs one image (H, W) at least as large, "
            f"got {tuple(measurement.shape)}; choose a smaller odd size"
        )
    if samples > 1 and isinstance(config.restoration, HalfQuadraticConfig):
        raise InputError("half-quadratic splitting draws no samples; choose a RestoreConfig")
    total = config.steps + config.restoration.steps

    def after(before: int) -> Progress | None:
        return progress and (lambda done, _: progress(before + done, total))

    kernel = estimate_kernel(prior, measurement, noise, config, generator, after(0))
    found = solver_of(config.restoration)(
        prior, Blur(kernel), measurement, noise, config.restoration, generator,
        samples=samples, start=measurement, progress=after(config.steps),
    )  # fmt: skip
    return Samples(found.images, found.evaluations + config.steps, found.trace), kernel


def estimate_kernel(
    prior: Prior,
    measurement: Tensor,
    noise: GaussianNoise,
    config: BlindConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> Tensor:
    """Kernel ``(size, size)`` of one image; see `blind_deblur`.

    The levels' equations are added up, each divided by its own residual and by `memory` for every
    level since. The fit is convex and comes before the first data step: no start needs choosing.
    """
    y = _centre(measurement, config.window)
    atoms = kernel_atoms(config.size).to(y)
    blurs = [Blur(atom) for atom in atoms]
    weights = torch.full_like(atoms[:, 0, 0], 1 / len(atoms))
    gram, target = torch.zeros_like(torch.outer(weights, weights)), torch.zeros_like(weights)
    levels = noise_levels(config.steps, config.sigma_max, config.sigma_min, 3.0)
    x = y[None] + levels[0] * normal(generator, 0, (1, *y.shape), y)
    for step, (sigma, following) in told([*pairwise(levels)], progress):
        with torch.no_grad():
            denoised = prior.denoise(x, sigma)
        blurred, seen = _slopes(denoised[0], y, blurs, config.size)
        products, match = blurred @ blurred.T, blurred @ seen
        fit = fit_on_simplex(products, match, weights)
        residual = (seen - fit @ blurred).square().sum() + 2 * noise.sigma**2 * len(seen)
        gram = config.memory * gram + products / residual
        target = config.memory * target + match / residual
        weights = fit_on_simplex(gram, target, weights)
        kernel = (weights[:, None, None] * atoms).sum(0)
        spread = (config.trust * sigma) ** 2
        estimate, _ = data_step(Blur(kernel), y, noise.precision, denoised, spread, 10)
        x = estimate + following * normal(generator, step + 1, x.shape, x)
    return kernel


def kernel_atoms(size: int) -> Tensor:
    """Discs ``(m, size, size)`` of sum 1, the narrowest first."""
    discs = [defocus_kernel(float(radius)) for radius in range(size // 2 + 1)]
    return torch.stack([functional.pad(disc, ((size - len(disc)) // 2,) * 4) for disc in discs])


def fit_on_simplex(gram: Tensor, target: Tensor, start: Tensor, iterations: int = 100) -> Tensor:
    """Minimise ``w gram w / 2 - target w`` over weights that are non-negative and sum to 1.

    Accelerated projected gradient (Beck and Teboulle 2009, with constant step).
    """
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    weights = ahead = start
    momentum = 1.0
    for _ in range(iterations):
        moved = project_on_simplex(ahead - step * (gram @ ahead - target))
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / grown * (moved - weights)
        weights, momentum = moved, grown
    return weights


def project_on_simplex(values: Tensor) -> Tensor:
    """The nearest vector ``(m,)`` that is non-negative and sums to 1 (Duchi et al. 2008)."""
    ordered = values.sort(descending=True).values
    ranks = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    excess = (ordered.cumsum(0) - 1) / ranks
    return (values - excess[(ordered > excess).sum() - 1]).clamp_min(0)


def _slopes(image: Tensor, y: Tensor, blurs: Sequence[Blur], size: int) -> tuple[Tensor, Tensor]:
    """Differences between neighbours of the blurred images ``(m, n)``, and of `y`.

    Slopes forgive a prior that is unsure of brightness and shading, which only the widest kernels
    could explain. A margin as wide as the kernel reaches (at most a quarter of the image) is left
    out: what lies beyond the edge is not known.
    """
    height, width = y.shape
    margin = min(size // 2, height // 4, width // 4)
    rows, columns = slice(margin, height - margin), slice(margin, width - margin)
    blurred = torch.stack([blur.A(image)[rows, columns] for blur in blurs])
    both = torch.cat([blurred, y[None, rows, columns]])
    slopes = torch.cat([both.diff(dim=1).flatten(1), both.diff(dim=2).flatten(1)], dim=1)
    return slopes[:-1], slopes[-1]


def _centre(image: Tensor, side: int) -> Tensor:
    """The central square of at most this side."""
    top, left = (max(0, (length - side) // 2) for length in image.shape)
    return image[top : top + side, left : left + side]
