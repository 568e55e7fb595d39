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

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.mtd import Rotations
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors.base import Prior
from emlab.solvers.contract import normal
from emlab.solvers.one_step import DiffuseBackConfig, diffuse_back

SMALLEST_LOG_WEIGHT = -60.0  # exp(-60) is still a normal float32; denormals are slow


@dataclass(frozen=True)
class Statistics:
    """What the M-step needs of the posterior over states, for B images at once.

    Attributes
    ----------
    numerator, denominator : Tensor
        ``(B, K, L, L)``: weighted sums of the patches, and of their visibility, in the frame of
        each rotated image.
    log_likelihood : Tensor
        ``(B,)``, natural logarithm of the density of all patches.
    occupancy : Tensor
        ``(B,)``, mean posterior probability that a patch sees some part of a copy.
    """

    numerator: Tensor
    denominator: Tensor
    log_likelihood: Tensor
    occupancy: Tensor


class ExpectationStep:
    """Posterior over shifts and rotations of every patch, summed into M-step statistics.

    Parameters
    ----------
    patches : Tensor
        ``(D, L, L)``, see `emlab.physics.mtd.cut_patches`.
    rotations : Rotations
        The K rotations of an L x L image, same dtype and device as the patches.
    sigma : float
        Standard deviation of the noise, positive.
    coverage : float
        How many times the patches cover each pixel of the field, at least 1. Statistics and
        likelihood are divided by it: with overlapping grids they are averages over grids (a
        composite likelihood), not new data.
    memory_mb : float
        Bound on the working memory beyond the patches' spectra; patches are processed in chunks
        of that size (at least one patch). Results do not depend on it beyond rounding; the small
        default keeps a chunk in the processor's cache.
    """

    def __init__(
        self,
        patches: Tensor,
        rotations: Rotations,
        sigma: float,
        coverage: float = 1.0,
        memory_mb: float = 16.0,
    ) -> None:
        if not (sigma > 0 and math.isfinite(sigma)):
            raise InputError(f"sigma must be positive, got {sigma}; estimate it from the field")
        if not memory_mb > 0 or not coverage >= 1:
            raise InputError("memory_mb must be positive and coverage at least 1")
        size = rotations.size
        if patches.ndim != 3 or patches.shape[1:] != (size, size):
            raise InputError(f"patches must be (D, {size}, {size}), got {tuple(patches.shape)}")
        self.rotations, self.sigma = rotations, sigma
        self.coverage, self.memory_mb = coverage, memory_mb
        self.size, self.count = size, len(patches)
        self.grid = (2 * size, 2 * size)
        self.spectra = rfft2(patches, self.grid)
        self.box = rfft2(torch.ones_like(patches[0]), self.grid)
        self.energy = patches.double().square().sum().item()
        noise_constant = patches.numel() * math.log(2 * math.pi * sigma**2)
        self.constant = -0.5 * (self.energy / sigma**2 + noise_constant)
        self.empty = torch.zeros(self.grid, dtype=torch.bool, device=patches.device)
        self.empty[size, :] = True
        self.empty[:, size] = True

    @property
    def log_likelihood_of_noise(self) -> float:
        """Log-likelihood if there is no copy at all."""
        return self.constant / self.coverage

    def uniform_occupancy(self) -> float:
        """Occupancy that equal probability of all (2L)^2 shifts implies, as the paper assumes."""
        return 1 - self.empty.double().mean().item()

    def __call__(
        self,
        images: Tensor,
        occupancy: Tensor | float | None = None,
        assignment: Literal["soft", "hard"] | torch.Generator = "soft",
    ) -> Statistics:
        """Run the E-step on images ``(B, L, L)``; several starts share the patches.

        `occupancy` is the prior probability that a patch sees part of a copy, in (0, 1), one for
        all or ``(B,)``. All visible shifts share it equally, the empty ones the rest; by default
        all are equal. `assignment`: ``"soft"``, each patch weighs all its states; ``"hard"``, it is
        given to its likeliest one, where all empty shifts are one; a generator, to one drawn by its
        weight.
        """
        shape = (len(images), self.rotations.count)
        visits = images.new_zeros(*shape, *self.grid)
        spectra = self.box.new_zeros(*shape, *self.box.shape)
        log_likelihood = images.new_full((len(images),), self.constant, dtype=torch.float64)
        for chunk, weights, inverse, log_evidence in self._posteriors(images, occupancy):
            if assignment != "soft":
                weights, inverse = self._one_state(weights, assignment), torch.ones_like(inverse)
            log_likelihood += log_evidence.sum(0)
            spectra += rfft2(weights).mul_((chunk * inverse).conj()).sum(0)
            visits += weights.mul_(inverse).sum(0)
        empty = (visits.sum(1) * self.empty).sum((-2, -1)) / self.count
        visibility = rfft2(visits).conj() * self.box
        crop = (..., slice(self.size), slice(self.size))
        numerator = irfft2(spectra.conj(), self.grid)[crop]
        denominator = irfft2(visibility, self.grid)[crop].clamp(min=0)
        if assignment != "soft":  # counts; what was not seen is rounding
            numerator, denominator = numerator * (denominator > 0.5), denominator.round()
        return Statistics(
            numerator=numerator / self.coverage,
            denominator=denominator / self.coverage,
            log_likelihood=log_likelihood / self.coverage,
            occupancy=1 - empty.clamp(0, 1),
        )

    def log_likelihood(self, images: Tensor, occupancy: Tensor | float | None = None) -> Tensor:
        """Log-likelihood ``(B,)`` that the E-step would return, in about half of its time."""
        total = images.new_full((len(images),), self.constant, dtype=torch.float64)
        for *_, log_evidence in self._posteriors(images, occupancy):
            total += log_evidence.sum(0)
        return total / self.coverage

    def expected_patches(self, image: Tensor, occupancy: float | None = None) -> Tensor:
        """Posterior mean of the noise-free patches ``(D, L, L)`` if `image` is the truth."""
        spectra = rfft2(self.rotations.A(image[None]), self.grid)
        expected = []
        for _, weights, inverse, _ in self._posteriors(image[None], occupancy):
            placed = (rfft2(weights) * inverse * spectra).sum((1, 2))
            expected.append(irfft2(placed, self.grid)[:, : self.size, : self.size])
        return torch.cat(expected)

    def _posteriors(
        self, images: Tensor, occupancy: Tensor | float | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """By chunk: patch spectra, weights ``(d, B, K, 2L, 2L)``, 1/their sum, log evidence."""
        stack = self.rotations.A(images)
        spectra = rfft2(stack, self.grid).conj() / self.sigma**2
        energy = irfft2(rfft2(stack.square(), self.grid).conj() * self.box, self.grid)
        bias = self._log_state_prior(occupancy, len(images))[:, None] - energy / (2 * self.sigma**2)
        templates = len(images) * self.rotations.count
        for patches in self.spectra.split(self._chunk_size(templates, images.element_size())):
            chunk = patches[:, None, None]
            log_weights = irfft2(chunk * spectra, self.grid).add_(bias)
            top = log_weights.amax((-3, -2, -1), keepdim=True)
            weights = log_weights.sub_(top).clamp_(min=SMALLEST_LOG_WEIGHT).exp_()
            total = weights.sum((-3, -2, -1), keepdim=True)
            log_evidence = (top.double() + total.double().log()).flatten(1)
            yield chunk, weights, total.reciprocal(), log_evidence

    def _one_state(self, weights: Tensor, assignment: str | torch.Generator) -> Tensor:
        """All weight of each patch on its likeliest state, or on one that a generator draws."""
        flat = weights.flatten(0, 1).flatten(1)
        if isinstance(assignment, torch.Generator):
            chosen = flat.cpu().multinomial(1, generator=assignment).to(flat.device)
        else:
            empty = self.empty.flatten().repeat(self.rotations.count)
            nothing = (flat * empty).sum(1, keepdim=True)
            chosen = torch.where(empty, nothing, flat).argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, chosen, 1.0).reshape(weights.shape)

    def _log_state_prior(self, occupancy: Tensor | float | None, batch: int) -> Tensor:
        """Log probability of each shift and rotation, ``(batch, 2L, 2L)``."""
        value = self.uniform_occupancy() if occupancy is None else occupancy
        occupied = torch.as_tensor(value, dtype=torch.float64).expand(batch).clamp(1e-9, 1 - 1e-9)
        states = self.empty.numel()
        n_empty = int(self.empty.sum())
        turns = self.rotations.count
        table = torch.where(
            self.empty,
            ((1 - occupied) / (n_empty * turns))[:, None, None].to(self.empty.device),
            (occupied / ((states - n_empty) * turns))[:, None, None].to(self.empty.device),
        )
        return table.log().to(self.spectra.real.dtype)

    def _chunk_size(self, templates: int, element_size: int) -> int:
        bytes_per_patch = 12 * templates * self.empty.numel() * element_size
        return max(1, min(self.count, int(self.memory_mb * 2**20 / bytes_per_patch)))


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
    assignment : str
        Of the E-step: ``"soft"`` or ``"hard"``, each patch given to its likeliest state.
    tolerance : float
        Stop when no image changes by more than this fraction of its norm. 0: never.
    """

    iterations: int = 100
    m_step: Literal["gradient", "closed_form", "map", "proximal"] = "closed_form"
    step_size: float = 1e-3
    prior_weight: float = 1.0
    prior_schedule: str = "constant"
    score_sigma: float = 0.0446
    prior_precision: float = 1.0
    learn_occupancy: bool = True
    assignment: Literal["soft", "hard"] = "soft"
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, got {self.iterations}")
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
        statistics = expectation(images, occupancy, config.assignment)
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
    statistics = expectation(images, occupancy, config.assignment)
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
    if config.m_step in ("gradient", "map"):
        gradient = likelihood_gradient(images, statistics, rotations, variance)
        if prior is not None:
            gradient = gradient + weight * prior.score(images, config.score_sigma)
        if config.m_step == "gradient":
            return images + config.step_size * gradient
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


def sample_images(
    expectation: ExpectationStep,
    starts: Tensor,
    prior: Prior,
    occupancy: float,
    sweeps: int,
    generator: torch.Generator,
    config: DiffuseBackConfig | None = None,
) -> Tensor:
    r"""Draw images from their posterior given the patches: a Gibbs sampler, one chain a start.

    Each sweep draws a state of every patch given the image, then the image given the states (data
    augmentation, Tanner and Wong 1987). A pixel seen d times is measured with noise of variance
    :math:`\sigma^2/d`; a closed-form step that adds what is missing to one level for all pixels,

    .. math:: z = F + \frac{\sigma^2\nabla Q(F)}{d_{\max}} + \rho\sqrt{1 - d/d_{\max}}\,\epsilon,
              \qquad \rho = \sigma/\sqrt{d_{\max}},

    leaves white noise, off which `diffuse_back` draws the image (Wu et al. 2024). Exact for quarter
    turns and patches that do not overlap, with an exact score and many diffusion steps; sigma and
    `occupancy` are taken as known. A chain hardly leaves the mode that it starts in.

    Parameters
    ----------
    starts : Tensor
        ``(B, L, L)``.
    prior : Prior
        Its noise levels reach from rho down to ``config.sigma_min``.
    occupancy : float
        Probability that a patch sees part of a copy, in (0, 1).
    sweeps : int
        At least 1; the first of them still remember the start.
    config : DiffuseBackConfig, optional
        Steps of the reverse diffusion.

    Returns
    -------
    Tensor
        ``(sweeps, B, L, L)``.

    Raises
    ------
    InputError
        No sweep, or an occupancy out of range.
    """
    if sweeps < 1 or not 0 < occupancy < 1:
        raise InputError(f"need sweeps >= 1 and occupancy in (0, 1), got {sweeps}, {occupancy}")
    rotations, images, drawn = expectation.rotations, starts, []
    config = DiffuseBackConfig() if config is None else config
    for _ in range(sweeps):
        statistics = expectation(images, occupancy, generator)
        seen = aligned_visibility(statistics, rotations)
        most = seen.max().clamp(min=1)
        rho = expectation.sigma / most.item() ** 0.5
        fresh = rho * (1 - seen / most).clamp(min=0).sqrt() * normal(generator, 0, seen.shape, seen)
        noisy = images + likelihood_gradient(images, statistics, rotations, most.item()) + fresh
        white = GaussianNoise(rho)
        images = diffuse_back(prior, Identity(), noisy, white, config, generator).images[0]
        drawn.append(images)
    return torch.stack(drawn)
