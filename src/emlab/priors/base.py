"""The one interface of all priors: the posterior mean under white noise."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor


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
