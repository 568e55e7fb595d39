r"""From a score to a denoised image: one step of Tweedie's formula, or the published iteration.

.. math:: \hat y = x + \sigma_n^2\, s(x)

is the posterior mean when s is the score of the noisy images. The published iteration repeats

.. math:: x \leftarrow x + (a + b\,x)^2\, s(x)

with the score of one noise level. For an exact score white noise of standard deviation
:math:`\sigma_n` is multiplied by :math:`1 - a^2/\sigma_n^2` each time: it grows without bound where
:math:`a^2 > 2\sigma_n^2`, and is at best shrunk towards the prior's mode, not its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors.base import Prior
from emlab.solvers.contract import Progress, Samples, told

PAPER_NOISE = 0.338  # noise at which a = .5 has the gain -1.19


@dataclass(frozen=True)
class IterationConfig:
    """Settings of `iterate`.

    Attributes
    ----------
    a, b : float
        Of the step a + b x, in the units in which the noise has the standard deviation `noise`.
    noise : float
        Standard deviation of the noise that the image is scaled to first.
    """

    a: float = 0.5
    b: float = 0.01
    steps: int = 5
    noise: float = PAPER_NOISE

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or self.a <= 0 or self.noise <= 0:
            raise InputError("the iteration needs steps >= 1, a > 0 and noise > 0")

    @property
    def gain(self) -> float:
        """What white noise is multiplied by in each step, with an exact score and b = 0."""
        return 1 - (self.a / self.noise) ** 2


def tweedie(prior: Prior, x: Tensor, sigma: float) -> Tensor:
    """One step: posterior mean of images ``(..., H, W)`` with noise `sigma`."""
    if not sigma > 0:
        raise InputError(f"the noise level must be positive, got {sigma}; estimate it first")
    with torch.no_grad():
        return x + sigma**2 * prior.score(x, sigma)


def iterate(
    prior: Prior,
    operator: Identity,
    measurement: Tensor,
    noise: GaussianNoise,
    config: IterationConfig,
    generator: object = None,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    """The published iteration on images under white noise: a `Solver` that draws nothing."""
    x, unit = measurement, config.noise / noise.sigma
    with torch.no_grad():
        for _ in told(range(config.steps), progress):
            # The score of scaled images is that of the images over the scale.
            score = prior.score(x, noise.sigma) / unit
            x = x + (config.a + config.b * unit * x).square() * score / unit
    return Samples(x[None], config.steps)
