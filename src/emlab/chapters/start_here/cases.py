"""What the first chapter is made of: priors, instruments and answers that are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from emlab.errors import InputError
from emlab.physics.operators import Mask
from emlab.priors import GaussianMixturePrior, GaussianPrior, Prior
from emlab.priors.objectives import VPSchedule
from emlab.training import Loss, TrainingConfig, train

NORMAL_90 = 1.6448536


def two_heights() -> GaussianMixturePrior:
    """A prior of one number, as ``(n, 1, 1)``: a carbon film is either thin or thick."""
    means = torch.tensor([-1.0, 1.2]).reshape(2, 1, 1)
    return GaussianMixturePrior(means, torch.tensor([0.25, 0.5]), torch.tensor([0.4, 0.6]))


def three_islands() -> GaussianMixturePrior:
    """A prior of two numbers, as ``(n, 1, 2)``: three kinds of specimen, unequally common."""
    means = torch.tensor([[[-1.0, 1.2]], [[-0.7, -1.1]], [[1.3, 0.2]]])
    stds, weights = torch.tensor([0.3, 0.45, 0.35]), torch.tensor([0.3, 0.4, 0.3])
    return GaussianMixturePrior(means, stds, weights)


def smooth_images(size: int, correlation: float) -> GaussianPrior:
    """Gaussian images of unit variance whose pixels are alike over `correlation` pixels."""
    axis = torch.arange(size, dtype=torch.float32)
    where = torch.cartesian_prod(axis, axis)
    covariance = torch.exp(-torch.cdist(where, where).square() / (2 * correlation**2))
    return GaussianPrior(torch.zeros(size, size), covariance + 1e-3 * torch.eye(size**2))


def measure(mask: Mask, image: Tensor, noise_sigma: float, generator: torch.Generator) -> Tensor:
    """What a mask sees of an image, with white noise on the pixels that it sees."""
    return mask.A(image + noise_sigma * torch.randn(image.shape, generator=generator).to(image))


def gaussian_posterior(
    prior: GaussianPrior, mask: Mask, measurement: Tensor, noise_sigma: float
) -> tuple[Tensor, Tensor]:
    r"""Exact posterior mean and standard deviation of every pixel, both ``(H, W)``.

    .. math:: \mu + G(y - A\mu),\quad \Sigma - G A \Sigma,\quad
              G = \Sigma A^\top (A\Sigma A^\top + \sigma_y^2)^{-1} .
    """
    seen = mask.mask.flatten().bool()
    covariance = ((prior.basis * prior.variances) @ prior.basis.T).double()
    inner = covariance[seen][:, seen] + noise_sigma**2 * torch.eye(int(seen.sum())).double()
    gain = torch.linalg.solve(inner, covariance[seen]).T
    misfit = (measurement - prior.mean).flatten()[seen].double()
    mean = prior.mean.flatten() + gain @ misfit
    variance = covariance.diagonal() - (gain * covariance[:, seen]).sum(1)
    shape = prior.mean.shape
    return mean.float().reshape(shape), variance.clamp(min=0).sqrt().float().reshape(shape)


def coverage(samples: Tensor, mean: Tensor, std: Tensor) -> float:
    """Share of the exact posterior N(mean, std^2) inside the central 90 % of samples, (n, H, W)."""
    low, high = (torch.quantile(samples, q, dim=0) for q in (0.05, 0.95))
    inside = torch.special.ndtr((high - mean) / std) - torch.special.ndtr((low - mean) / std)
    return inside.mean().item()


def coverage_with_wrong_noise(prior_std: float, noise_sigma: float, assumed: float) -> float:
    """Exact coverage of 90 % intervals of a white Gaussian prior that trust a wrong noise level."""
    gain = prior_std**2 / (prior_std**2 + assumed**2)
    claimed = assumed * math.sqrt(gain)
    true = math.sqrt(((1 - gain) * prior_std) ** 2 + (gain * noise_sigma) ** 2)
    return math.erf(NORMAL_90 * claimed / true / math.sqrt(2))


class PointNetwork(nn.Module):
    """Four linear layers for points of two numbers in the image layout ``(..., 1, 2)``."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        sides = [3, hidden, hidden, hidden]
        inner = [(nn.Linear(*pair), nn.SiLU()) for pair in pairwise(sides)]
        self.layers = nn.Sequential(*chain(*inner), nn.Linear(hidden, 2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map points ``(n, ..., 2)`` and a scalar each, ``(n,)``, to points."""
        return self.layers(torch.cat([x.reshape(-1, 2), condition[:, None]], 1)).reshape(x.shape)


def train_on_points(
    network: nn.Module, loss: Loss, points: Tensor, steps: int, seed: int
) -> nn.Module:
    """Train on points ``(n, 1, 2)`` and return the network with its averaged weights."""
    config = TrainingConfig(steps, 512, 3e-3, 50, precision="float32", seed=seed)
    result = train(network, loss, points, config, progress=False)
    network.load_state_dict(result.weights)
    return network.eval()


def relative_rms(estimate: Tensor, exact: Tensor) -> float:
    """``|estimate - exact| / |exact|`` over all entries."""
    return ((estimate - exact).norm() / exact.norm()).item()


def _noisy_points(exact: GaussianMixturePrior, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = exact.sample(4000, generator)
    return x + sigma * torch.randn(x.shape, generator=generator)


def score_error(
    score: Callable[[Tensor, float], Tensor], exact: GaussianMixturePrior, sigma: float
) -> float:
    """Relative error of a score function where the noisy points of level `sigma` are."""
    x = _noisy_points(exact, sigma)
    with torch.no_grad():
        return relative_rms(score(x, sigma), exact.score(x, sigma))


def contour_level(exact: GaussianMixturePrior, sigma: float) -> float:
    """Log density above which 99 % of the noisy points of level `sigma` lie."""
    return exact.log_density(_noisy_points(exact, sigma), sigma).quantile(0.01).item()


class ExactVelocity(nn.Module):
    """The velocity that flow matching would find for a known prior: for `FlowPrior`."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity at points x ``(n, 1, D)`` and times t ``(n,)`` below 1."""
        time = t.reshape(-1, *[1] * (x.ndim - 1))
        denoised = self.prior.denoise((x / time)[:, 0], (1 - t) / t)[:, None]
        return (denoised - x) / (1 - time)


class ExactDiffusion(nn.Module):
    """What a variance-preserving network would learn of a known prior: for `VPPrior`."""

    def __init__(self, prior: Prior, schedule: VPSchedule) -> None:
        super().__init__()
        self.prior, self.schedule = prior, schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return minus the noise expected in points x ``(n, 1, D)`` at times t ``(n,)``."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        scale = alpha.reshape(-1, *[1] * (x.ndim - 1))
        level = sigma.reshape(scale.shape)
        return (scale * self.prior.denoise((x / scale)[:, 0], sigma / alpha)[:, None] - x) / level


def grid(half_width: float, n: int) -> Tensor:
    """Points ``(n, n, 1, 2)`` of a square; the first axis is the second coordinate, upwards."""
    axis = torch.linspace(-half_width, half_width, n)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([columns, rows], dim=-1)[..., None, :]


def log_posterior_on_grid(
    prior: GaussianMixturePrior, points: Tensor, first: float, noise_sigma: float
) -> Tensor:
    """Log posterior, up to a constant, of points whose first coordinate was measured."""
    misfit = (points[..., 0, 0] - first) / noise_sigma
    return prior.log_density(points) - misfit.square() / 2


def exact_shares(prior: GaussianMixturePrior, first: float, noise_sigma: float) -> Tensor:
    """Posterior probability of each island once the first coordinate was measured, ``(J,)``."""
    variance = prior.stds.square() + noise_sigma**2
    distance = (first - prior.means[:, 0, 0]).square()
    return (prior.log_weights - distance / (2 * variance) - variance.log() / 2).softmax(0)


def largest_share_error(samples: Tensor, prior: GaussianMixturePrior, exact: Tensor) -> float:
    """Largest difference between the islands' shares of samples and their exact ones."""
    found = prior.responsibilities(samples, 0.0).mean(0)
    return (found - exact).abs().max().item()


def psnr(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of images ``(n, H, W)`` with peak 1, one value each."""
    return -10 * np.log10(np.square(images - truth).mean(axis=(1, 2)))


def tune(
    method: Callable[[np.ndarray, float], np.ndarray],
    strengths: tuple[float, ...],
    noisy: np.ndarray,
    truth: np.ndarray,
) -> float:
    """Return the strength with the best mean PSNR on tuning images ``(n, H, W)``."""
    return max(strengths, key=lambda strength: psnr(method(noisy, strength), truth).mean())


def energy_distance(first: Tensor, second: Tensor) -> float:
    r"""Energy distance :math:`2E|x-y| - E|x-x'| - E|y-y'|` of points ``(n, 1, 2)``, first 1000.

    Zero for equal distributions; finite sets scatter around it.
    """
    x, y = first[:1000].flatten(1), second[:1000].flatten(1)
    pairs = len(x) * (len(x) - 1), len(y) * (len(y) - 1)
    within = torch.cdist(x, x).sum() / pairs[0] + torch.cdist(y, y).sum() / pairs[1]
    return (2 * torch.cdist(x, y).mean() - within).item()


def compare_posteriors(
    exact: Sequence[tuple[Tensor, Tensor]], drawn: Sequence[Tensor]
) -> dict[str, list[float]]:
    """Samples ``(n, H, W)`` of images beside their exact posteriors (mean, deviation): a score.

    Root mean square error of the mean in posterior deviations, ratio of variances, `coverage`.
    """
    all_of = [(samples, *known) for samples, known in zip(drawn, exact, strict=True)]
    errors = [((x.mean(0) - mean) / std).square().mean().sqrt() for x, mean, std in all_of]
    return {
        "mean_error": [error.item() for error in errors],
        "variance_ratio": [(x.var(0) / std.square()).mean().item() for x, _, std in all_of],
        "coverage": [coverage(*one) for one in all_of],
    }


def spread_out(images: np.ndarray, n: int) -> np.ndarray:
    """Return `n` images evenly spaced over all of them, so that every class is there."""
    if not 1 <= n <= len(images):
        raise InputError(f"there are {len(images)} images; {n} cannot be taken from them")
    return images[np.linspace(0, len(images) - 1, n).round().astype(int)]


def posterior_mean_gaps(priors: Mapping[str, Prior], sigma: float, seed: int) -> dict[str, float]:
    """Root mean square gaps between posterior means of islands under noise `sigma`.

    Keys are ``"a - b"`` for every pair of priors, and ``"identity - b"`` for the last one, b,
    against the noisy points themselves; values are in units of the spread of the islands.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = three_islands().sample(4000, generator)
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    with torch.no_grad():
        means = {name: prior.denoise(noisy, sigma) for name, prior in priors.items()}
    pairs = [*combinations(means, 2), ("identity", list(means)[-1])]
    means["identity"] = noisy
    return {
        f"{a} - {b}": ((means[a] - means[b]).square().mean().sqrt() / clean.std()).item()
        for a, b in pairs
    }
