r"""The E-step of multi-target detection: all patches, shifts and rotations at once.

A patch P of L x L pixels sees the part of a copy that falls inside it: P = C T_s Z R_k F + noise,
where Z pads the image to 2L x 2L with zeros, T_s shifts it cyclically and C crops the first L x L
pixels. The (2L)^2 shifts include 4L - 1 that leave the patch empty. With the visible energy
:math:`e_{ks} = \|C T_s Z R_k F\|^2` the log posterior of a state is, up to a constant,

.. math:: \log w_{dks} = \frac{\langle P_d, C T_s Z R_k F\rangle - e_{ks}/2}{\sigma^2}
          + \log\rho_s .

All inner products are one batch of FFTs of 2L x 2L; so are the sums over shifts that the M-step
needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from emlab.errors import InputError
from emlab.physics.rotations import Rotations

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

    def __call__(self, images: Tensor, occupancy: Tensor | float | None = None) -> Statistics:
        """Run the E-step.

        Parameters
        ----------
        images : Tensor
            ``(B, L, L)``, current estimates (several starts share the patches).
        occupancy : Tensor or float, optional
            Prior probability that a patch sees part of a copy, in (0, 1), one for all or ``(B,)``.
            All visible shifts share it equally, the empty ones share the rest. Default: all
            shifts equal.
        """
        shape = (len(images), self.rotations.count)
        visits = images.new_zeros(*shape, *self.grid)
        spectra = self.box.new_zeros(*shape, *self.box.shape)
        log_likelihood = images.new_full((len(images),), self.constant, dtype=torch.float64)
        for chunk, weights, inverse, log_evidence in self._posteriors(images, occupancy):
            log_likelihood += log_evidence.sum(0)
            spectra += rfft2(weights).mul_((chunk * inverse).conj()).sum(0)
            visits += weights.mul_(inverse).sum(0)
        empty = (visits.sum(1) * self.empty).sum((-2, -1)) / self.count
        visibility = rfft2(visits).conj() * self.box
        crop = (..., slice(self.size), slice(self.size))
        return Statistics(
            numerator=irfft2(spectra.conj(), self.grid)[crop] / self.coverage,
            denominator=irfft2(visibility, self.grid)[crop].clamp(min=0) / self.coverage,
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
