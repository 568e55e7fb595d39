"""Where the five must agree: a Gaussian prior, whose posterior mean is a Wiener filter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emlab.bench import Report
from emlab.physics.counting import GaussianCounts
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors import GaussianPrior
from emlab.runtime import make_generator
from emlab.solvers.denoiser_spread import WienerSpread
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase
from emlab.solvers.one_step import DiffuseBackConfig, diffuse_back
from emlab.solvers.tweedie import tweedie

SIZE, LENGTH, NOISE = 16, 2.0, 1.0
LABELS = {
    "tsm": "TSM: one step along the score",
    "generalist": "EM Generalist: mean of samples, diffused back",
    "flowdps": "FlowDPS: mean of samples, guided",
    "mtd": "MTD: gradient steps of a maximisation, one copy at a known place",
    "cellpose3": "Cellpose3's restorer with squared error: a filter fitted to pairs",
    "nothing": "the measurement itself",
}


@dataclass(frozen=True)
class Agreement:
    """Answers to one measurement, and the exact one.

    Attributes
    ----------
    truth, measurement, exact : Tensor
        ``(16, 16)``.
    deviation : float
        Posterior standard deviation, root mean square over pixels.
    answers : dict of str to Tensor
        By method.
    """

    truth: Tensor
    measurement: Tensor
    exact: Tensor
    deviation: float
    answers: dict[str, Tensor]

    def distance(self, method: str) -> float:
        """From the exact answer, root mean square, in posterior standard deviations."""
        return float((self.answers[method] - self.exact).square().mean().sqrt()) / self.deviation

    def record(self, report: Report) -> None:
        """Record ``agreement.METHOD``."""
        for name in self.answers:
            report.value(f"agreement.{name}", self.distance(name), note="posterior deviations")

    def markdown(self) -> str:
        """A row a method."""
        lines = ["| solver | distance from the exact posterior mean |", "|---|---|"]
        return "\n".join(
            lines + [f"| {LABELS[name]} | {self.distance(name):.4f} |" for name in self.answers]
        )


def agree(samples: int, pairs: int, seed: int) -> Agreement:
    """Give every solver the same Gaussian prior, the same white noise and the same measurement.

    Parameters
    ----------
    samples : int
        Drawn by the samplers, whose means are compared.
    pairs : int
        Of clean and noisy images that the filter is fitted to.
    """
    power = _power()
    prior, generator = stationary_prior(power), make_generator(seed)
    truth = prior.sample(1, generator)[0]
    noise = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    y = truth + NOISE * noise
    variance = power * NOISE**2 / (power + NOISE**2)
    weight = torch.full_like(variance, 2.0)
    weight[:, 0] = weight[:, -1] = 1.0
    deviation = float((variance * weight).sum() / SIZE**2) ** 0.5
    answers = {
        "tsm": tweedie(prior, y, NOISE),
        "generalist": diffuse_back(
            prior, Identity(), y, GaussianNoise(NOISE), DiffuseBackConfig(25, 0.01), generator,
            samples=samples,
        ).mean,
        "flowdps": guided_phase(
            prior, _Identity(), y, GaussianCounts(NOISE**2),
            GuidedPhaseConfig(steps=12, sigma_max=20.0, sigma_min=0.02), generator,
            samples=samples, spread=WienerSpread(power),
        ).mean,
        "mtd": _ascend(prior, y),
        "cellpose3": _fitted(prior, y, pairs, generator),
        "nothing": y,
    }  # fmt: skip
    return Agreement(truth, y, prior.denoise(y, NOISE), deviation, answers)


def stationary_prior(power: Tensor) -> GaussianPrior:
    """Gaussian images on the torus of a power spectrum ``(n, n // 2 + 1)``."""
    n = power.shape[0]
    kernel = torch.fft.irfft2(power, s=[n, n])
    places = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    apart = (places[:, None] - places) % n
    covariance = kernel[apart[..., 0], apart[..., 1]]
    return GaussianPrior(torch.zeros(n, n).double(), (covariance + covariance.T) / 2)


def _power() -> Tensor:
    """Unit variance, alike over `LENGTH` pixels."""
    rows, columns = torch.fft.fftfreq(SIZE).double(), torch.fft.rfftfreq(SIZE).double()
    power = (-2 * (np.pi * LENGTH) ** 2 * (rows[:, None] ** 2 + columns**2)).exp() + 1e-3
    return power / torch.fft.irfft2(power, s=[SIZE, SIZE])[0, 0]


class _Identity:
    """The instrument that shows the specimen as it is."""

    counts = torch.tensor(0.0)

    class _Tangent:
        def __init__(self, image: Tensor) -> None:
            self.expected = image

        def A(self, image: Tensor) -> Tensor:
            return image

        def A_adjoint(self, measurement: Tensor) -> Tensor:
            return measurement

    def A(self, image: Tensor) -> Tensor:
        return image

    def linearised(self, image: Tensor) -> _Identity._Tangent:
        return self._Tangent(image)

    def sensitivity(self) -> Tensor:
        return torch.full((SIZE, SIZE // 2 + 1), 1.0 / NOISE**2, dtype=torch.float64)


def _ascend(prior: GaussianPrior, y: Tensor, steps: int = 4000, step: float = 2e-3) -> Tensor:
    """Along the gradient of likelihood and prior: their maximum is the posterior mean here."""
    x = torch.zeros_like(y)
    for _ in range(steps):
        x = x + step * ((y - x) / NOISE**2 + prior.score(x, 0.05))
    return x


def _fitted(prior: GaussianPrior, y: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """The linear filter of least squared error on pairs, one gain a frequency."""
    clean = prior.sample(pairs, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    wanted, given = torch.fft.rfft2(clean), torch.fft.rfft2(clean + NOISE * noise)
    gain = (wanted * given.conj()).sum(0).real / given.abs().square().sum(0)
    return torch.fft.irfft2(gain * torch.fft.rfft2(y), s=y.shape)
