r"""The diffusion of the DDPM papers as one more way to time and scale the same noisy images.

A Gaussian path mixes image and noise, :math:`x = a\,x_0 + b\,\epsilon`. Divided by :math:`a` it is
the image under noise of standard deviation :math:`\sigma = b/a`, which is all that a `Prior` is
asked for. Two paths therefore meet wherever their :math:`\sigma` agree, and differ by a factor:

==================  ========================  =========================  =======================
path                a                         b                          sigma
==================  ========================  =========================  =======================
noise added         1                         sigma                      sigma
flow, time t        t                         1 - t                      (1 - t)/t
DDPM, step k        sqrt(alpha_bar_k)         sqrt(1 - alpha_bar_k)      sqrt(1/alpha_bar_k - 1)
==================  ========================  =========================  =======================

A network trained on one path is exact on all of them: `DDPMView` lets a sampler of the DDPM kind
use any prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.priors.base import Prior


def flow_time(sigma: float | Tensor) -> float | Tensor:
    """Time t of the straight path (0 noise, 1 data) where the relative noise is `sigma` >= 0."""
    return 1 / (1 + sigma)


@dataclass(frozen=True)
class DDPMSchedule:
    """Noise schedule of Ho et al. 2020 (eq. 4): beta rises linearly over the steps.

    Steps count from 0, the least noise, to ``steps - 1``.

    Attributes
    ----------
    steps : int
        T, at least 2.
    beta_first, beta_last : float
        Variance that the first and the last step add, in (0, 1).
    """

    steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or not 0 < self.beta_first <= self.beta_last < 1:
            raise InputError("a DDPM schedule needs steps >= 2, 0 < beta_first <= beta_last < 1")

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Share of the image's variance left after each step, ``(steps,)`` float64."""
        beta = torch.linspace(self.beta_first, self.beta_last, self.steps, dtype=torch.float64)
        return (1 - beta).cumprod(0)

    @cached_property
    def sigma(self) -> Tensor:
        """Noise relative to the image at each step, ``(steps,)`` float64, rising."""
        return (1 / self.alpha_bar - 1).sqrt()

    def step_at(self, sigma: float | Tensor) -> Tensor:
        """Fractional step of relative noise `sigma`, clipped to the schedule's ends, float64.

        Between two steps log sigma is taken as linear; at a step the answer is that step.
        """
        level = torch.as_tensor(sigma, dtype=torch.float64).cpu().log()
        table = self.sigma.log()
        right = torch.searchsorted(table, level.contiguous()).clamp(1, self.steps - 1)
        low, high = table[right - 1], table[right]
        return right - 1 + ((level - low) / (high - low)).clamp(0, 1)

    def spaced(self, count: int) -> list[int]:
        """`count` steps from the last to step 0, evenly spaced."""
        if not 2 <= count <= self.steps:
            raise InputError(f"choose between 2 and {self.steps} sampling steps, not {count}")
        return torch.linspace(self.steps - 1, 0, count).round().int().tolist()


class DDPMView:
    """Any prior, seen by a sampler that walks a DDPM schedule. Differentiable if the prior is."""

    def __init__(self, prior: Prior, schedule: DDPMSchedule | None = None) -> None:
        self.prior = prior
        self.schedule = schedule or DDPMSchedule()

    def epsilon(self, x: Tensor, step: int) -> Tensor:
        r"""Expected noise in ``x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise``.

        Parameters
        ----------
        x : Tensor
            ``(..., H, W)`` on the DDPM path.
        step : int
            0 (least noise) to ``schedule.steps - 1``.

        Returns
        -------
        Tensor
            Same shape: :math:`-\\sigma` times the score at :math:`x/\\sqrt{\\bar\\alpha}`.
        """
        sigma = self.schedule.sigma[step].item()
        return -sigma * self.prior.score(x / self.schedule.alpha_bar[step].sqrt().item(), sigma)

    def clean(self, x: Tensor, step: int, epsilon: Tensor) -> Tensor:
        """The image that `epsilon` leaves of `x`: ``(x - sqrt(1 - alpha_bar) epsilon)/...``."""
        share = self.schedule.alpha_bar[step].item()
        return (x - (1 - share) ** 0.5 * epsilon) / share**0.5
