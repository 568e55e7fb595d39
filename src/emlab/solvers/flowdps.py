r"""FlowDPS: posterior sampling with a flow, in two published forms and corrected.

Time t runs from 0 (noise) to 1 (image), :math:`x_t = t x_1 + (1-t) x_0`. At each time

1. :math:`\hat x_1 = x_t + (1-t)v` and :math:`\hat x_0 = x_t - t v`;
2. a few gradient steps of :math:`\|y - A(x)\|` take :math:`\hat x_1` to :math:`\hat x_1(y)`,
   which enters with the weight of the noise,
   :math:`\tilde x_1 = t\,\hat x_1 + (1-t)\,\hat x_1(y)`;
3. at the next time :math:`t'`: :math:`x_{t'} = t'\tilde x_1 + (1-t')\,(\sqrt{t'}\,\hat x_0 +
   \sqrt{1-t'}\,\epsilon)`.

(Kim et al. 2025, algorithm 1 and public code; Zhang et al. 2025 print the squared norm in step 2,
:math:`x - \zeta_t \nabla\|y - A(x)\|^2`, their eq. 13.) The step knows nothing of the noise: of a
scalar Gaussian it follows the same share of the measurement, with the same spread, however noisy
that is. Corrected, step 2 is the mean of :math:`x_1` given :math:`x_t` *and* the counts, which is
Bayes' rule :math:`v(x|y) = v + \frac{1-t}{t}\nabla\log p(y|x_t)` (the sign of Zhang et al., eq. 11,
put right), :math:`\hat x_0` follows from it, and step 3 draws as much noise anew as the reverse
diffusion does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.counting import CountingNoise
from emlab.physics.exit_wave import Instrument
from emlab.priors.base import Prior
from emlab.solvers.contract import NoiseSource, Progress, Samples, normal, told
from emlab.solvers.denoiser_spread import Spread
from emlab.solvers.guided_phase import conditional


@dataclass(frozen=True)
class FlowDPSConfig:
    """Settings of `flowdps`.

    Attributes
    ----------
    steps : int
        Times; each is one network evaluation. 28 in the code of Kim et al., as are the next two.
    time_shift : float
        1: evenly spaced times; s: noise ``u -> s u / (1 + (s - 1) u)``, s = 3.
    gradient_steps : int
        Of the data term at each time, 3.
    step_size : float
        Of each: the image, in units of `scale`, moves by this times the gradient of the residual's
        norm, the residual in units of the counts without a specimen.
    squared_norm : bool
        Gradients are of the squared norm (Zhang et al., eq. 13, with one step size for their
        ``zeta_t``), not of the norm.
    corrected : bool
        See above; the three settings before have no part in it.
    iterations : int
        Conjugate gradients of the corrected data step.
    sigma_max : float
        Noise level of the start, in units of `scale`.
    scale : float
        Standard deviation of the images: :math:`x_0` is noise of as much.
    """

    steps: int = 28
    time_shift: float = 3.0
    gradient_steps: int = 3
    step_size: float = 5.0
    squared_norm: bool = False
    corrected: bool = False
    iterations: int = 4
    sigma_max: float = 1000.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 2 or self.gradient_steps < 1 or self.iterations < 1:
            raise InputError("FlowDPS needs steps >= 2, gradient_steps >= 1 and iterations >= 1")
        if self.step_size < 0 or min(self.time_shift, self.sigma_max, self.scale) <= 0:
            raise InputError(
                "FlowDPS needs step_size >= 0, and time_shift, sigma_max and scale > 0"
            )

    def independent(self, samples: int) -> int:
        """How many of so many samples are independent of each other: all."""
        return samples

    def times(self) -> list[float]:
        """Times from near 0 to 1."""
        even = [1 - i / self.steps for i in range(self.steps + 1)]
        shifted = [self.time_shift * u / (1 + (self.time_shift - 1) * u) for u in even]
        return [max(1 - noise, 1 / (1 + self.sigma_max)) for noise in shifted]


def flowdps(
    prior: Prior,
    operator: Instrument,
    measurement: Tensor,
    noise: CountingNoise,
    config: FlowDPSConfig,
    generator: torch.Generator | NoiseSource,
    *,
    shape: tuple[int, ...] | None = None,
    samples: int = 1,
    start: Tensor | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Samples:
    """Sample phases, for all particles and samples at once: a `Solver`.

    `operator`, `measurement`, `spread` and the trace are those of `guided_phase`. The published
    form makes no use of `noise` but for the trace; the corrected one needs a `spread`, else it is
    an `InputError`.
    """
    if config.corrected and spread is None:
        raise InputError("the corrected form needs the spread of the prior's answers")
    times = config.times()
    sensitivity = operator.sensitivity()
    size = (samples, *(measurement.shape if shape is None else shape))
    x = config.scale * normal(generator, 0, size, measurement)
    trace = []
    for step, (t, following) in told([*pairwise(times)], progress):
        sigma = config.scale * (1 - t) / t
        with torch.no_grad():
            answer = prior.denoise(x / t, sigma)
            if config.corrected and spread is not None:
                image, misfit = conditional(
                    operator, noise, measurement, answer, spread(sigma), sensitivity,
                    config.iterations,
                )  # fmt: skip
                rest = (x - t * image) / (1 - t)
                kept = (1 - following) / following * t / (1 - t)
            else:
                moved, misfit = _descend(operator, noise, measurement, answer, config)
                image = t * answer + (1 - t) * moved
                rest = (x - t * answer) / (1 - t)
                kept = following**0.5
        trace.append(misfit)
        fresh = config.scale * (1 - kept**2) ** 0.5 * normal(generator, step + 1, x.shape, x)
        x = following * image + (1 - following) * (kept * rest + fresh)
    return Samples(x, config.steps * x[..., 0, 0].numel(), trace)


def _descend(
    instrument: Instrument,
    noise: CountingNoise,
    measurement: Tensor,
    image: Tensor,
    config: FlowDPSConfig,
) -> tuple[Tensor, float]:
    """The gradient steps of the published form, and the misfit before them."""
    empty = instrument.counts.to(image)
    first, length = 0.0, config.scale**2 * config.step_size
    for step in range(config.gradient_steps):
        tangent = instrument.linearised(image)
        if step == 0:
            pull = noise.gradient(tangent.expected, measurement)
            first = (pull.square() / noise.curvature(tangent.expected)).mean().sqrt().item()
        misfit = (measurement - tangent.expected) / empty
        norm = misfit.square().sum((-2, -1), keepdim=True).sqrt().clamp_min(1e-12)
        misfit = 2 * misfit if config.squared_norm else misfit / norm
        image = image + length * tangent.A_adjoint(misfit / empty)
    return image, first
