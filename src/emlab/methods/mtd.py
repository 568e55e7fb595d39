"""Multi-target detection: recover an image from one noisy field of rotated copies.

The method in four steps (`recover`): cut the field into patches, choose starting images by their
likelihood, run expectation-maximisation with a score prior, and bring the winner to the position
and orientation that the prior knows. The paper's algorithm is the second and third step with one
start, a single gradient step per iteration and no last step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab import models
from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.methods.estimate import Cost, Estimate
from emlab.physics.mtd import Rotations, cut_patches
from emlab.priors.base import Prior
from emlab.settings import read_config
from emlab.solvers.expectation_maximization import (
    EMConfig,
    ExpectationStep,
    approximate_em,
    estimate_noise,
)
from emlab.solvers.sampling import sample_prior

STARTS = ("uniform", "prior_mean", "prior_samples")
TYPICAL_DENSITY = 0.1
MOST_OCCUPIED = 0.95  # of the patches, in crowded fields
ORIENTATION_LEVELS = (0.4, 0.6, 0.9, 1.3)
ORIENTATION_DRAWS = 6
GAUSSIAN_MEDIAN = 0.6745  # median of |x| for x ~ N(0, 1)


@dataclass(frozen=True)
class Config:
    """How to recover an image of `size` x `size` pixels."""

    size: int  #: L
    rotations: int = 4  #: K
    #: ``"uniform"`` (white noise in [0, 1), the paper's), ``"prior_mean"`` or ``"prior_samples"``
    start: str = "uniform"
    starts: int = 1  #: starts to draw
    kept: int = 1  #: how many of them, chosen by likelihood, to iterate
    #: row and column of the centre of mass of the prior's images; the result is shifted there and
    #: turned upright; ``None``: left as it is
    centre: tuple[float, float] | None = None
    upright: str = ""  #: weights of a `TurnsNet` that tells which way is up; else the prior does
    refine: int = 0  #: further iterations of the best start, once aligned, on overlapping patches
    #: grids of patches per axis for `refine`, see `cut_patches`; copies that one grid cuts into
    #: pieces, too faint to be placed, are whole in another
    grids: int = 1
    memory_mb: float = 16.0  #: working memory of the E-step
    em: EMConfig = field(default_factory=EMConfig)  #: the iterations

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size < 2:
            raise InputError(f"size must be at least 2 pixels, got {self.size}")
        if self.start not in STARTS:
            raise InputError(f"unknown start {self.start!r}; choose one of {', '.join(STARTS)}")
        if not 1 <= self.kept <= self.starts:
            raise InputError(f"need 1 <= kept <= starts, got {self.kept} and {self.starts}")
        if self.refine < 0 or not 1 <= self.grids <= self.size:
            raise InputError(f"need refine >= 0 and grids in 1..{self.size}")


def load_config(name: str) -> Config:
    """Return ``[configs.NAME]`` of the method's settings, such as ``ours_mnist``."""
    table = read_config("mtd", name)
    em, centre = EMConfig(**table.pop("em")), tuple(table.pop("centre", ()))
    return Config(em=em, centre=centre or None, **table)


@dataclass(frozen=True, kw_only=True)
class Recovery(Estimate[Tensor]):
    """A recovered image ``(L, L)`` and how it came about."""

    log_likelihood: float  #: natural logarithm of the density of all patches at `image`
    #: gained over a field without any copy, in nats; pure noise gives some too, because the image
    #: was fitted to it: compare with `recover` on noise of the same size
    log_likelihood_gain: float
    occupancy: float  #: estimated probability that a patch sees part of a copy
    trace: Tensor  #: ``(iterations + 1, kept)``, log-likelihood of each start
    candidates: Tensor  #: ``(kept, L, L)``, where each start ended, before alignment


def recover(
    field: Tensor,
    config: Config,
    generator: torch.Generator,
    prior: Prior | None = None,
    sigma: float | None = None,
    starts: Tensor | None = None,
    density: float = TYPICAL_DENSITY,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Recovery:
    """Recover the image whose rotated copies are scattered over a field.

    Parameters
    ----------
    field : Tensor
        ``(N, N')``, both multiples of ``config.size``; background zero.
    prior : Prior, optional
        What images look like; required by some settings.
    sigma : float, optional
        Standard deviation of the noise in grey levels; estimated from the field when not given.
    starts : Tensor, optional
        ``(B, L, L)``, instead of those that `config` would draw.
    density : float
        Fraction of the field that copies cover, in (0, 1]: the starts that explain such a field
        best are kept.
    progress : callable, optional
        Called with the iteration and the log-likelihoods of the kept starts.

    Raises
    ------
    InputError
        `density` out of range, starts of another size, or no prior where the settings need one.
    """
    started = time.perf_counter()
    rotations = Rotations(config.rotations, config.size, field.dtype, field.device)

    def expectation_at(level: float | None, grids: int = 1) -> ExpectationStep:
        patches = cut_patches(field, config.size, grids)
        level = estimate_noise_level(field) if level is None else level
        covered = patches.numel() / field.numel()
        return ExpectationStep(patches, rotations, level, max(1.0, covered), config.memory_mb)

    expectation = expectation_at(sigma)
    if starts is None:
        starts = draw_starts(config, generator, prior, field.device)
    likely = likely_starts(expectation, starts.to(field), config.kept, density)
    search = approximate_em(expectation, likely, config.em, prior, progress)
    if sigma is None:
        sigma = estimate_noise(search.images, search.statistics, expectation)[search.best].item()
    final, best, last = search, search.best, expectation
    image = search.images[best]
    if config.centre is not None and prior is not None:
        told = config.centre, generator, config.rotations, config.upright
        image = align_to_prior(image, prior, *told)
    if config.refine:
        refining = replace(config.em, iterations=config.refine)
        last = expectation_at(sigma, config.grids)
        final = approximate_em(last, image[None], refining, prior)
        image, best = final.images[0], 0
    return Recovery(
        image=image,
        samples=image[None],
        noise_sigma=sigma,
        cost=Cost(time.perf_counter() - started, evaluations=search.trace.numel()),
        log_likelihood=final.log_likelihood[best].item(),
        log_likelihood_gain=final.log_likelihood[best].item() - last.log_likelihood_of_noise,
        occupancy=final.occupancy[best].item(),
        trace=search.trace,
        candidates=search.images,
    )


def draw_starts(
    config: Config,
    generator: torch.Generator,
    prior: Prior | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Starting images ``(config.starts, L, L)``, on the device of the prior."""
    shape = (config.starts, config.size, config.size)
    if config.start == "uniform":
        return torch.rand(shape, generator=generator).to(device)
    if prior is None:
        raise InputError(f"start {config.start!r} needs a prior; choose 'uniform' without one")
    if config.start == "prior_samples":
        return sample_prior(
            prior, shape, generator, steps=12, sigma_max=5.0, sigma_min=0.05, device=device
        )
    return prior.denoise(torch.zeros(1, *shape[1:], device=device), 1e4)


def likely_starts(
    expectation: ExpectationStep, starts: Tensor, kept: int, density: float = TYPICAL_DENSITY
) -> Tensor:
    r"""The `kept` of `starts` ``(B, L, L)`` that explain a field of that density best.

    A patch sees part of a copy where a corner lies within L - 1 pixels of its own: copies that
    cover a fraction rho occupy :math:`\rho\,(2 - 1/L)^2` of the patches.
    """
    check_density(density)
    if kept >= len(starts):
        return starts
    occupancy = min(density * (2 - 1 / expectation.size) ** 2, MOST_OCCUPIED)
    likely = [expectation.log_likelihood(group, occupancy) for group in starts.split(8)]
    return starts[torch.cat(likely).topk(kept).indices]


def check_density(density: float) -> None:
    """Raise an `InputError` for a fraction of the field that copies cannot cover."""
    if not 0 < density <= 1:
        raise InputError(f"density must be above 0 and at most 1, got {density}")


def estimate_noise_level(field: Tensor) -> float:
    """First guess of the noise: median absolute diagonal Haar detail, copies ignored."""
    even = field[: len(field) // 2 * 2, : field.shape[1] // 2 * 2]
    detail = (even[::2, ::2] - even[::2, 1::2] - even[1::2, ::2] + even[1::2, 1::2]) / 2
    level = detail.abs().median().item() / GAUSSIAN_MEDIAN
    if not level > 0:
        raise InputError("the field has no noise that could be estimated; is it constant?")
    return level


def align_to_prior(
    image: Tensor,
    prior: Prior,
    centre: tuple[float, float],
    generator: torch.Generator,
    rotations: int = 4,
    upright: str = "",
) -> Tensor:
    r"""Remove the shift and turn that the measurement cannot know.

    Each quarter turn that K = `rotations` leaves undetermined (all four if 4 divides K, two if
    only 2 does) is shifted by whole pixels to put its centre of mass on `centre`.
    Among them a network decides that tells turns (`upright`, see `Config`), or else the prior:
    :math:`\log p(F) = c - \frac12\int E\|\epsilon -
    \hat\epsilon(F + \sigma\epsilon, \sigma)\|^2\, d\ln\sigma^{-2}`, compared at a few noise levels
    with the same noise for all of them (pointwise form of Kong et al. 2023).
    """
    turns = [k for k in range(4) if k * rotations % 4 == 0]
    candidates = torch.stack([_shift_to(image.rot90(k), centre) for k in turns])
    if upright:
        likely = turns_network(upright, image.device)(candidates).log_softmax(1)
        return candidates[likely[:, 0].argmax()]
    cost = torch.zeros(len(turns), dtype=image.dtype, device=image.device)
    for sigma in ORIENTATION_LEVELS:
        shape = (ORIENTATION_DRAWS, 1, *image.shape)
        noise = torch.randn(shape, generator=generator, dtype=image.dtype).to(image.device)
        noisy = candidates + sigma * noise
        error = -sigma * prior.score(noisy, sigma) - noise
        cost += error.square().sum((-2, -1)).mean(0)
    return candidates[cost.argmin()]


@cache
def turns_network(name: str, device: torch.device) -> nn.Module:
    """The shipped network of a name that tells by how many quarter turns an image is turned."""
    return models.load(name, device)[0]


def _shift_to(image: Tensor, centre: tuple[float, float]) -> Tensor:
    mass = image.clamp(min=0)
    total = mass.sum().clamp(min=1e-12)
    size = len(image)
    steps = torch.arange(size, dtype=image.dtype, device=image.device)
    row = round(centre[0] - (mass.sum(1) @ steps / total).item())
    column = round(centre[1] - (mass.sum(0) @ steps / total).item())
    padded = functional.pad(image, (size,) * 4)
    return padded[size - row : 2 * size - row, size - column : 2 * size - column]
