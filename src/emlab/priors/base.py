"""The one interface of all priors: the posterior mean under white noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from emlab.errors import InputError


class Prior(Protocol):
    r"""Anything that knows :math:`E[x_0 \mid x_0 + \sigma\epsilon = x]`.

    Denoiser, score and noise prediction are one function said three ways (Tweedie):
    :math:`\nabla\log p_\sigma(x) = (D(x, \sigma) - x) / \sigma^2 = -\hat\epsilon / \sigma`.
    Variance-preserving diffusions and flows are the same family re-timed and re-scaled, so their
    networks are wrapped to answer this question too.
    """

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of clean images given ``x = clean + sigma * noise``.

        Parameters
        ----------
        x : Tensor
            ``(..., H, W)``.
        sigma : float or Tensor
            Standard deviation of the noise, in the units of `x`; broadcast against ``(...)``.
        """
        ...

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of the noisy images, same shape as `x`."""
        ...


class FromDenoiser(ABC):
    """A prior that knows its posterior mean; the score follows by Tweedie's formula."""

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of the noisy images; see `Prior.score`."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return (self.denoise(x, sigma) - x) / level.square()[..., None, None]

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""Velocity at points ``(..., H, W)`` of the straight path at times t in (0, 1).

        :math:`x_t = t\,x_1 + (1-t)\,x_0` from noise :math:`x_0` to an image :math:`x_1` is
        :math:`t` times the image under noise of :math:`\sigma = (1-t)/t`, so that
        :math:`v = E[x_1 - x_0 \mid x_t] = (D(x_t/t, \sigma) - x_t)/(1-t)`.
        """
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device)[..., None, None]
        sigma = ((1 - time) / time)[..., 0, 0]
        return (self.denoise(x / time, sigma) - x) / (1 - time)


class ScaledPrior:
    """A prior of ``(image - shift) / scale``, seen as a prior of the image.

    Parameters
    ----------
    prior : Prior
        In the units that it was trained in.
    scale : float
        What one unit is, positive, for example radians.
    shift : float
        The image where the prior sees zero.
    """

    def __init__(self, prior: Prior, scale: float, shift: float = 0.0) -> None:
        if not scale > 0:
            raise InputError(f"the scale of a prior must be positive, got {scale}")
        self.prior, self.scale, self.shift = prior, scale, shift

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        inner = self.prior.denoise((x - self.shift) / self.scale, sigma / self.scale)
        return self.scale * inner + self.shift

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Score; see `Prior.score`."""
        return self.prior.score((x - self.shift) / self.scale, sigma / self.scale) / self.scale


class EquivariantPrior(FromDenoiser):
    r"""A prior asked about a randomly flipped and turned image, its answer turned back.

    Tissue looks the same from all sides, a trained network's errors do not. Averaged over the
    steps of a sampler the random turn removes the part of the error that depends on orientation,
    at no cost (Terris et al. 2024, "Equivariant plug-and-play", algorithm 1).

    Parameters
    ----------
    prior : Prior
        Of images ``(..., H, W)`` of any shape.
    generator : torch.Generator
        Draws one of the eight flips and turns at every call.
    """

    def __init__(self, prior: Prior, generator: torch.Generator) -> None:
        self.prior = prior
        self.generator = generator

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        element = int(torch.randint(8, (), generator=self.generator))
        return turn_back(self.prior.denoise(turn(x, element), sigma), element)


def turn(x: Tensor, element: int) -> Tensor:
    """Element 0 to 7 of the symmetries of the square, applied to ``(..., H, W)``."""
    turned = torch.rot90(x, element % 4, (-2, -1))
    return turned.flip(-1) if element >= 4 else turned


def turn_back(x: Tensor, element: int) -> Tensor:
    """Undo `turn`."""
    unflipped = x.flip(-1) if element >= 4 else x
    return torch.rot90(unflipped, -(element % 4), (-2, -1))
