"""Priors whose every answer is known: the yardsticks of the networks and the samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emlab.data.phantoms import gaussian_image_mean
from emlab.errors import InputError


class GaussianPrior:
    r"""Images distributed as :math:`N(\mu, \Sigma)`.

    Parameters
    ----------
    mean : Tensor
        ``(H, W)``.
    covariance : Tensor or float
        ``(H*W, H*W)``, or one variance for all pixels.
    """

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        if mean.ndim != 2:
            raise InputError(f"the mean must be an image (H, W), got shape {tuple(mean.shape)}")
        self.mean = mean
        size = mean.numel()
        if not isinstance(covariance, Tensor):
            covariance = covariance * torch.eye(size, dtype=mean.dtype, device=mean.device)
        if covariance.shape != (size, size):
            raise InputError(f"the covariance must be ({size}, {size}), got {covariance.shape}")
        if not torch.allclose(covariance, covariance.T, atol=1e-6 * float(covariance.abs().max())):
            raise InputError("the covariance is not symmetric")
        self.variances, self.basis = torch.linalg.eigh(covariance)
        if self.variances.min() < -1e-5 * self.variances.max():
            raise InputError("the covariance is not positive semi-definite")
        self.variances = self.variances.clamp(min=0)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        r"""Wiener filter :math:`\mu + \Sigma(\Sigma + \sigma^2)^{-1}(x - \mu)`."""
        noise = _variance(sigma, x)
        return self._filter(x, lambda variances: variances / (variances + noise)) + self.mean

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        r""":math:`-(\Sigma + \sigma^2)^{-1}(x - \mu)`; sigma = 0 is allowed."""
        noise = _variance(sigma, x)
        return -self._filter(x, lambda variances: 1 / (variances + noise))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``(n, H, W)`` images, the same on any machine: the root of a covariance is unique.

        Its eigenvectors are not: of equal variances every processor finds others.
        """
        white = torch.randn(n, *self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + self._filter(white.to(self.mean) + self.mean, torch.sqrt)

    def _filter(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        coefficients = (x - self.mean).flatten(-2) @ self.basis
        return ((coefficients * gain(self.variances)) @ self.basis.T).reshape(x.shape)


class GaussianMixturePrior:
    r"""Images (or points, as ``(..., 1, d)``) from :math:`\sum_j w_j N(\mu_j, s_j^2 I)`.

    Parameters
    ----------
    means : Tensor
        ``(J, H, W)``.
    stds : Tensor
        ``(J,)``, positive.
    weights : Tensor, optional
        ``(J,)``, positive; normalised here. Equal by default.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        if means.ndim != 3 or stds.shape != means.shape[:1]:
            raise InputError("a mixture needs means (J, H, W) and stds (J,)")
        self.means, self.stds = means, stds
        weights = torch.ones_like(stds) if weights is None else weights
        if (stds <= 0).any() or (weights <= 0).any():
            raise InputError("stds and weights of a mixture must be positive")
        self.log_weights = (weights / weights.sum()).log()

    def responsibilities(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior probability of each component, ``(..., J)``."""
        return self._log_joint(x, sigma).softmax(-1)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Log density of the images under noise `sigma`, ``(...)``."""
        return self._log_joint(x, sigma).logsumexp(-1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Each component's Wiener filter, weighted by its responsibility."""
        weight = self.responsibilities(x, sigma)[..., None, None]
        noise = _variance(sigma, x)
        gain = (self.stds.square() / (self.stds.square() + noise))[..., None, None]
        shrunk = self.means + gain * (x[..., None, :, :] - self.means)
        return (weight * shrunk).sum(-3)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of `log_density` with respect to the images; sigma = 0 is allowed."""
        weight = self.responsibilities(x, sigma)[..., None, None]
        total = (self.stds.square() + _variance(sigma, x))[..., None, None]
        return (weight * (self.means - x[..., None, :, :]) / total).sum(-3)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``(n, H, W)`` images."""
        probabilities = self.log_weights.exp().cpu()
        chosen = torch.multinomial(probabilities, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], generator=generator).to(self.means)
        chosen = chosen.to(self.means.device)
        return self.means[chosen] + self.stds[chosen][:, None, None] * noise

    def _log_joint(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        total = self.stds.square() + _variance(sigma, x)
        size = self.means[0].numel()
        distance = (x[..., None, :, :] - self.means).square().sum((-1, -2))
        normaliser = 0.5 * size * (2 * torch.pi * total).log()
        return self.log_weights - distance / (2 * total) - normaliser


def _variance(sigma: float | Tensor, x: Tensor) -> Tensor:
    """Noise variance with one axis more than `sigma`, ``(..., 1)``, or none if it is a number."""
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return level.square()[..., None] if level.ndim else level.square()


def gaussian_prior(device: torch.device | str = "cpu") -> GaussianPrior:
    """The exact prior of the paper's 5 x 5 images: known mean, unit variance, no correlation."""
    return GaussianPrior(torch.from_numpy(gaussian_image_mean()).to(device), 1.0)
