r"""The flow's own equation, bent towards a measurement: a consistent guided ODE.

Here :math:`\tau` runs from 1 (noise) to 0 (image), :math:`x_\tau = (1-\tau)x_0 + \tau\epsilon` and
:math:`v = E[\epsilon - x_0 \mid x_\tau]`, so that :math:`\hat x_0 = x_\tau - \tau v`. Bayes' rule
adds the score of the measurement:

.. math:: v(x \mid y) = v(x) - \frac{\tau}{1-\tau}\nabla\log p(y \mid x_\tau), \qquad
          x_{\tau-d} = x_\tau - d\,v(x_\tau \mid y) .
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import LinearOperator
from emlab.priors.base import Prior
from emlab.solvers.contract import (
    NoiseSource,
    Progress,
    Samples,
    conjugate_gradients,
    normal,
)


@dataclass(frozen=True)
class GuidedFlowConfig:
    """Settings of `guided_flow`.

    Attributes
    ----------
    steps : int
        Euler steps. 500 bring a Gaussian posterior to about 1 %.
    iterations : int
        Conjugate-gradient iterations of a step, each one pass back through the network. Few are
        enough for a picture; a closed form takes more.
    tau_max : float
        Where to begin, below 1: at 1 itself the image has no weight.
    """

    steps: int = 500
    iterations: int = 3
    tau_max: float = 0.999

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or self.iterations < 1:
            raise InputError("guided flow needs steps >= 2 and iterations >= 1")
        if not 0 < self.tau_max < 1:
            raise InputError(f"tau_max must be between 0 and 1, got {self.tau_max}")


def guided_flow(
    prior: Prior,
    operator: LinearOperator,
    measurement: Tensor,
    noise: GaussianNoise,
    config: GuidedFlowConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Samples:
    r"""Draw images from the posterior of a measurement with white noise.

    The score of the measurement is that of a Gaussian whose moments the prior itself gives
    (moment matching, Rozet et al. 2024, eq. 12): mean :math:`A\hat x_0`, covariance
    :math:`A C A^\top + \sigma_y^2` with :math:`C = \mathrm{Cov}[x_0 \mid x_\tau]
    = \sigma^2\,\partial D/\partial x` at the relative noise :math:`\sigma = \tau/(1-\tau)`. With it

    .. math:: \hat x_0(y) = \hat x_0 + C A^\top (A C A^\top + \sigma_y^2)^{-1}(y - A\hat x_0),
              \qquad x_{\tau-d} = x_\tau + \frac{d}{\tau}\,(\hat x_0(y) - x_\tau),

    which is the equation above without its division by :math:`1-\tau`. Exact for every Gaussian
    prior as the steps and iterations grow. A `Solver`; a step is one pass through a differentiable
    prior of images and `iterations` back.

    Raises
    ------
    InputError
        The several priors of a volume, or noise that is not white.
    """
    if not hasattr(prior, "denoise") or not isinstance(noise, GaussianNoise):
        raise InputError("guided_flow restores images under white noise; use restore")
    size = (samples, *(measurement.shape if shape is None else shape))
    x = config.tau_max * normal(generator, 0, size, measurement)
    times = [config.tau_max * (1 - i / config.steps) for i in range(config.steps + 1)]
    trace = []
    for count, (tau, following) in enumerate(pairwise(times)):
        clean, misfit = conditional_mean(
            prior, operator, measurement, noise.sigma, x / (1 - tau), tau / (1 - tau),
            config.iterations,
        )  # fmt: skip
        trace.append(misfit)
        x = x + (tau - following) / tau * (clean - x)
        if progress is not None:
            progress(count + 1, config.steps)
    return Samples(x, config.steps * samples, trace)


def conditional_mean(
    prior: Prior,
    operator: LinearOperator,
    measurement: Tensor,
    noise_sigma: float,
    noisy: Tensor,
    sigma: float,
    iterations: int,
) -> tuple[Tensor, float]:
    """``E[x0 | noisy, measurement]`` with matched moments; also the misfit before, as an rms.

    `noisy` is ``(n, H, W)``, clean images under white noise `sigma`.
    """
    with torch.enable_grad():
        point = noisy.detach().requires_grad_(True)
        denoised = prior.denoise(point, sigma)

        def covariance(weights: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad((denoised * weights).sum(), point, retain_graph=True)
            return sigma**2 * pulled

        clean = denoised.detach()
        misfit = measurement - operator.A(clean)

        def evidence(residual: Tensor) -> Tensor:
            spread = operator.A(covariance(operator.A_adjoint(residual)))
            return spread + noise_sigma**2 * residual

        weights = conjugate_gradients(evidence, misfit, iterations, 1e-12)
        correction = covariance(operator.A_adjoint(weights))
    return clean + correction, misfit.square().mean().sqrt().item()
