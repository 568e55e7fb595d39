r"""Approximate expectation-maximisation with a score prior.

Each iteration asks the E-step where the copies are, then moves the image. Four M-steps:

``gradient``
    :math:`F + \mu(\nabla Q + \gamma_\tau s(F))`, the paper's single step
``closed_form``
    the maximiser of Q: weighted sum of patches over their visibility
``map``
    one Newton-like step on :math:`Q + \gamma\log p`, exact for a white Gaussian prior
``proximal``
    the posterior mean given the aligned patches: average, then denoise at the noise level that the
    average still has (plug-and-play)

with :math:`\nabla Q = \sigma^{-2} \sum_k R_k^\top (n_k - d_k \circ R_k F)` from the E-step's
numerators n and denominators d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.rotations import Rotations
from emlab.priors.base import Prior
from emlab.solvers.expectation_step import ExpectationStep, Statistics

M_STEPS = ("gradient", "closed_form", "map", "proximal")


@dataclass(frozen=True)
class EMConfig:
    """Settings of `approximate_em`.

    Attributes
    ----------
    iterations : int
        Largest number of iterations.
    m_step : str
        ``"gradient"``, ``"closed_form"``, ``"map"`` or ``"proximal"``.
    step_size : float
        mu of the gradient step.
    prior_weight : float
        gamma; for ``proximal`` the factor on the noise variance handed to the denoiser.
    prior_schedule : str
        ``"constant"`` or ``"linear"`` (gamma grows from 0 at the first to its value at the last
        iteration, as the paper does on MNIST).
    score_sigma : float
        Noise level at which the score is taken by ``gradient`` and ``map``. The paper's t = 0.01
        is 0.0446; a score of clean images takes 0.
    prior_precision : float
        Curvature of the negative log prior assumed by ``map``: 1/variance of a pixel.
    learn_occupancy : bool
        Estimate how often a patch sees a copy (exact M-step) instead of assuming all shifts equal.
    tolerance : float
        Stop when no image changes by more than this fraction of its norm. 0: never.
    """

    iterations: int = 100
    m_step: str = "closed_form"
    step_size: float = 1e-3
    prior_weight: float = 1.0
    prior_schedule: str = "constant"
    score_sigma: float = 0.0446
    prior_precision: float = 1.0
    learn_occupancy: bool = True
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, got {self.iterations}")
        if self.m_step not in M_STEPS:
            raise InputError(f"unknown m_step {self.m_step!r}; choose one of {', '.join(M_STEPS)}")
        if self.prior_schedule not in ("constant", "linear"):
            raise InputError("prior_schedule must be 'constant' or 'linear'")
        for name in ("step_size", "prior_precision"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("prior_weight", "score_sigma", "tolerance"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")

    def prior_weight_at(self, iteration: int) -> float:
        """gamma of iteration 0, 1, ..."""
        if self.prior_schedule == "constant":
            return self.prior_weight
        return self.prior_weight * iteration / max(1, self.iterations - 1)


@dataclass(frozen=True)
class EMResult:
    """Estimates of all starts.

    Attributes
    ----------
    images : Tensor
        ``(B, L, L)``, one per start.
    log_likelihood : Tensor
        ``(B,)`` float64, of the final images.
    trace : Tensor
        ``(iterations + 1, B)`` float64, log-likelihood before each iteration and at the end.
    occupancy : Tensor
        ``(B,)``, estimated probability that a patch sees part of a copy.
    statistics : Statistics
        E-step at the final images.
    """

    images: Tensor
    log_likelihood: Tensor
    trace: Tensor
    occupancy: Tensor
    statistics: Statistics

    @property
    def best(self) -> int:
        """Index of the start with the largest likelihood."""
        return int(self.log_likelihood.argmax())


def approximate_em(
    expectation: ExpectationStep,
    starts: Tensor,
    config: EMConfig,
    prior: Prior | None = None,
    progress: Callable[[int, Tensor], None] | None = None,
) -> EMResult:
    """Run expectation-maximisation from each start.

    Parameters
    ----------
    starts : Tensor
        ``(B, L, L)``.
    prior : Prior, optional
        Needed by ``map`` and ``proximal``; ``gradient`` uses it if given.
    progress : callable, optional
        Called with the iteration and the log-likelihoods ``(B,)``.
    """
    size = expectation.size
    if starts.ndim != 3 or starts.shape[1:] != (size, size) or not torch.isfinite(starts).all():
        raise InputError(f"starts must be finite and (B, {size}, {size}), got {starts.shape}")
    if prior is None and config.m_step in ("map", "proximal"):
        raise InputError(
            f"m_step {config.m_step!r} needs a prior; choose 'closed_form' without one"
        )
    images = starts.clone()
    occupancy: Tensor | None = None
    trace = []
    for iteration in range(config.iterations):
        statistics = expectation(images, occupancy)
        trace.append(statistics.log_likelihood)
        if progress is not None:
            progress(iteration, statistics.log_likelihood)
        before = images
        images = maximization_step(images, statistics, expectation, config, iteration, prior)
        if config.learn_occupancy:
            occupancy = statistics.occupancy
        change = (images - before).flatten(1).norm(dim=1)
        if (change < config.tolerance * before.flatten(1).norm(dim=1)).all():
            break
    statistics = expectation(images, occupancy)
    trace.append(statistics.log_likelihood)
    return EMResult(
        images, statistics.log_likelihood, torch.stack(trace), statistics.occupancy, statistics
    )


def maximization_step(
    images: Tensor,
    statistics: Statistics,
    expectation: ExpectationStep,
    config: EMConfig,
    iteration: int = 0,
    prior: Prior | None = None,
) -> Tensor:
    """New images ``(B, L, L)`` from the E-step's statistics; see the module's docstring."""
    rotations, variance = expectation.rotations, expectation.sigma**2
    weight = config.prior_weight_at(iteration)
    if config.m_step == "gradient":
        step = likelihood_gradient(images, statistics, rotations, variance)
        if prior is not None:
            step = step + weight * prior.score(images, config.score_sigma)
        return images + config.step_size * step
    if config.m_step == "map":
        assert prior is not None
        gradient = likelihood_gradient(images, statistics, rotations, variance)
        gradient = gradient + weight * prior.score(images, config.score_sigma)
        visibility = aligned_visibility(statistics, rotations)
        return images + gradient / (visibility / variance + weight * config.prior_precision)
    average, visibility = aligned_average(images, statistics, rotations)
    if config.m_step == "closed_form":
        return average
    assert prior is not None
    left = expectation.sigma * (weight / visibility.mean((-2, -1)).clamp(min=0.1)).sqrt()
    return prior.denoise(average, left.clamp(min=1e-4))


def likelihood_gradient(
    images: Tensor, statistics: Statistics, rotations: Rotations, variance: float
) -> Tensor:
    r"""Gradient of Q, which is also that of the log-likelihood, ``(B, L, L)``."""
    residual = statistics.numerator - statistics.denominator * rotations.A(images)
    return rotations.A_adjoint(residual) / variance


def aligned_visibility(statistics: Statistics, rotations: Rotations) -> Tensor:
    """How often each pixel was seen, ``(B, L, L)``: the diagonal that bounds Q's curvature."""
    spread = rotations.A(torch.ones_like(statistics.denominator[:, 0]))
    return rotations.A_adjoint(statistics.denominator * spread)


def aligned_average(
    images: Tensor, statistics: Statistics, rotations: Rotations
) -> tuple[Tensor, Tensor]:
    """Maximiser of Q and the visibility of its pixels, both ``(B, L, L)``.

    Exact for quarter turns, where Q is diagonal. With interpolated rotations it is the maximiser
    of a diagonal lower bound that touches Q at `images`, so the likelihood still cannot fall.
    Pixels that no patch has seen keep their value.
    """
    visibility = aligned_visibility(statistics, rotations)
    gradient = likelihood_gradient(images, statistics, rotations, 1.0)
    return images + gradient / visibility.clamp(min=1e-6), visibility


def estimate_noise(images: Tensor, statistics: Statistics, expectation: ExpectationStep) -> Tensor:
    """Maximum-likelihood standard deviation of the noise given the E-step, ``(B,)``."""
    stack = expectation.rotations.A(images)
    fit = (statistics.denominator * stack - 2 * statistics.numerator) * stack
    pixels = expectation.count * expectation.size**2 / expectation.coverage
    energy = expectation.energy / expectation.coverage
    return ((energy + fit.sum((-3, -2, -1))) / pixels).clamp(min=0).sqrt()
