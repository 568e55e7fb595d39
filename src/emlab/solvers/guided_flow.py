r"""The flow's own equation, bent towards a measurement: a consistent guided ODE.

Here :math:`\tau` runs from 1 (noise) to 0 (image), :math:`x_\tau = (1-\tau)x_0 + \tau\epsilon` and
:math:`v = E[\epsilon - x_0 \mid x_\tau]`, so that :math:`\hat x_0 = x_\tau - \tau v`. Bayes' rule
adds the score of the measurement:

.. math:: v(x \mid y) = v(x) - \frac{\tau}{1-\tau}\nabla\log p(y \mid x_\tau), \qquad
          x_{\tau-d} = x_\tau - d\,v(x_\tau \mid y) .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.operators import LinearOperator
from emlab.priors.base import Prior
from emlab.solvers.plug_and_play import Progress, Samples


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
    noise_sigma: float,
    config: GuidedFlowConfig,
    generator: torch.Generator,
    *,
    shape: tuple[int, ...],
    samples: int = 1,
    progress: Progress | None = None,
) -> Samples:
    r"""Draw images from the posterior of ``measurement = A(image) + noise_sigma * noise``.

    The score of the measurement is that of a Gaussian whose moments the prior itself gives
    (moment matching, Rozet et al. 2024, eq. 12): mean :math:`A\hat x_0`, covariance
    :math:`A C A^\top + \sigma_y^2` with :math:`C = \mathrm{Cov}[x_0 \mid x_\tau]
    = \sigma^2\,\partial D/\partial x` at the relative noise :math:`\sigma = \tau/(1-\tau)`. With it

    .. math:: \hat x_0(y) = \hat x_0 + C A^\top (A C A^\top + \sigma_y^2)^{-1}(y - A\hat x_0),
              \qquad x_{\tau-d} = x_\tau + \frac{d}{\tau}\,(\hat x_0(y) - x_\tau),

    which is the equation above without its division by :math:`1-\tau`. Exact for every Gaussian
    prior as the steps and iterations grow.

    Parameters
    ----------
    prior : Prior
        Differentiable.
    measurement : Tensor
        What `operator` returns for one image of `shape`.
    noise_sigma : float
        Standard deviation of the measurement's noise, positive.
    shape : tuple of int
        Of the image ``(H, W)``.
    samples : int
        Independent runs, computed as one batch.

    Returns
    -------
    Samples
        A step is one pass through the network and `iterations` back.

    Raises
    ------
    InputError
        A noise level that is not positive.
    """
    if not noise_sigma > 0:
        raise InputError(f"noise_sigma must be positive, got {noise_sigma}")
    x = torch.randn((samples, *shape), generator=generator, dtype=measurement.dtype)
    x = config.tau_max * x.to(measurement.device)
    times = [config.tau_max * (1 - i / config.steps) for i in range(config.steps + 1)]
    trace = []
    for count, (tau, following) in enumerate(pairwise(times)):
        clean, misfit = conditional_mean(
            prior, operator, measurement, noise_sigma, x / (1 - tau), tau / (1 - tau),
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

        weights = conjugate_gradients(evidence, misfit, iterations)
        correction = covariance(operator.A_adjoint(weights))
    return clean + correction, misfit.square().mean().sqrt().item()


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], target: Tensor, iterations: int
) -> Tensor:
    """Solve ``matrix(x) = target`` from zero, each item of the leading axis by itself.

    `matrix` is symmetric and positive; where rounding or a network makes it otherwise, the item
    keeps what it has.
    """
    dims = tuple(range(1, target.ndim))
    solution, residual, direction = torch.zeros_like(target), target, target
    power = residual.square().sum(dims, keepdim=True)
    enough = 1e-12 * power
    for _ in range(iterations):
        applied = matrix(direction)
        curvature = (direction * applied).sum(dims, keepdim=True)
        going = (curvature > 0) & (power > enough)
        if not going.any():
            break
        step = torch.where(going, power / curvature, 0.0)
        solution = solution + step * direction
        residual = residual - step * applied
        before, power = power, residual.square().sum(dims, keepdim=True)
        direction = residual + torch.where(going, power / before, 0.0) * direction
    return solution
