"""Every solver through the one contract, against the Gaussian posterior known in closed form."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from drawing import generator
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise, GaussianNoise
from emlab.physics.operators import Blur, Identity, gaussian_kernel
from emlab.priors import GaussianPrior
from emlab.solvers import ONE_ESTIMATE, SOLVERS, Samples, solver_of
from emlab.solvers.contract import conjugate_gradients
from emlab.solvers.denoiser_spread import WienerSpread
from emlab.solvers.flowdps import FlowDPSConfig
from emlab.solvers.guided_phase import GuidedPhaseConfig
from emlab.solvers.one_step import DiffuseBackConfig, IterationConfig, OneStepConfig
from emlab.solvers.plug_and_play import HalfQuadraticConfig, PlugAndPlayConfig, RestoreConfig
from emlab.solvers.sampling import DPSConfig, PosteriorConfig

SIZE, STD = 8, 0.6


class Direct(Identity):
    """The image itself is measured, and it is its own derivative."""

    counts, expected = torch.ones(()), torch.zeros(())

    def linearised(self, image):
        found = type(self)()
        found.expected = found.A(image)
        return found

    def sensitivity(self):
        return torch.ones(SIZE, SIZE // 2 + 1)


class Smeared(Direct):
    """A periodic blur, which is linear and stationary."""

    rows, columns = torch.fft.fftfreq(SIZE).double(), torch.fft.rfftfreq(SIZE).double()
    gain = (-2 * (torch.pi * 0.8) ** 2 * (rows[:, None] ** 2 + columns**2)).exp()

    def A(self, image):
        return torch.fft.irfft2(torch.fft.rfft2(image) * self.gain, s=[SIZE, SIZE])

    A_adjoint = A


def power_of(length):
    """Spectrum of images of standard deviation `STD`, alike over so many pixels; 0: white."""
    rows, columns = torch.fft.fftfreq(SIZE).double(), torch.fft.rfftfreq(SIZE).double()
    power = (-2 * (torch.pi * length) ** 2 * (rows[:, None] ** 2 + columns**2)).exp() + 1e-3
    return power * STD**2 / torch.fft.irfft2(power, s=[SIZE, SIZE])[0, 0]


def gaussian(length):
    """Stationary Gaussian images on the torus, of mean zero: samplers begin there."""
    kernel = torch.fft.irfft2(power_of(length), s=[SIZE, SIZE])
    places = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE))
    apart = (places[:, None] - places) % SIZE
    covariance = kernel[apart[..., 0], apart[..., 1]]
    return GaussianPrior(torch.zeros(SIZE, SIZE).double(), (covariance + covariance.T) / 2)


@dataclass
class Case:
    """A solver's settings, what it is good for, and how near it must come.

    `error` bounds the mean's distance in posterior deviations, `spread` the ratio of the samples'
    deviation to the exact one; None: the solver draws nothing.
    """

    config: Any
    error: float
    spread: tuple[float, float] | None
    operator: Any = field(default_factory=Smeared)
    length: float = 1.5
    sigma: float = 0.2
    options: dict = field(default_factory=dict)

    def run(self, samples=200, seed=0, **options) -> tuple[Samples, Tensor, Tensor]:
        """What is found, and mean and standard deviation of the exact posterior."""
        prior, noise = gaussian(self.length), GaussianNoise(self.sigma)
        measurement = noise.sample(self.operator.A(prior.sample(1, generator(1))[0]), generator(2))
        covariance = (prior.basis * prior.variances) @ prior.basis.T
        pixels = torch.eye(SIZE**2).double().reshape(-1, SIZE, SIZE)
        matrix = self.operator.A(pixels).flatten(1).T
        evidence = matrix @ covariance @ matrix.T + self.sigma**2 * torch.eye(SIZE**2)
        gain = torch.linalg.solve(evidence, matrix @ covariance).T
        mean = (gain @ measurement.flatten()).reshape(SIZE, SIZE)
        std = (covariance - gain @ matrix @ covariance).diagonal().sqrt().reshape(SIZE, SIZE)
        found = solver_of(self.config)(
            prior, self.operator, measurement, noise, self.config, generator(seed),
            samples=1 if self.spread is None else samples, **self.options, **options,
        )  # fmt: skip
        return found, mean, std


SPREAD = {"spread": WienerSpread(power_of(1.5))}
CASES = {
    "one step": Case(OneStepConfig(), 1e-6, None, Direct()),
    "diffused back": Case(DiffuseBackConfig(100, 0.003), 0.12, (0.95, 1.05), Direct()),
    "half quadratic": Case(HalfQuadraticConfig(sigma_min=0.05, weight=1.0), 0.25, None),
    "restore": Case(RestoreConfig(40, 5.0, trust=1.0), 0.4, (0.75, 1.05)),
    "pseudo-inverse": Case(PosteriorConfig(STD, 300), 0.12, (0.93, 1.05), Direct(), 0.0),
    "guided phase": Case(
        GuidedPhaseConfig(10, 20.0, 0.005, iterations=8), 0.12, (0.95, 1.05), options=SPREAD
    ),
    "FlowDPS corrected": Case(
        FlowDPSConfig(corrected=True, iterations=8), 0.12, (0.65, 0.85), options=SPREAD
    ),
    # As published, which know nothing of the noise: their mean is on the way, their spread off.
    "plug and play": Case(PlugAndPlayConfig(alpha=0.3), 0.5, (0.35, 0.6)),
    "FlowDPS published": Case(FlowDPSConfig(step_size=0.4), 1.8, (1.5, 2.0)),
    "DPS": Case(DPSConfig(200, 1.0, None), 1.6, (0.6, 1.1)),
    "score iteration": Case(IterationConfig(a=0.2, b=0.0), 0.3, None, Direct()),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_and_spread_are_those_of_the_gaussian_posterior(name):
    case = CASES[name]
    found, mean, std = case.run()
    error = ((found.mean - mean) / std).square().mean().sqrt()
    assert error < case.error
    assert error < 0.7 * (mean / std).square().mean().sqrt()  # what the prior's mean is off
    if case.spread is None:
        assert found.images.shape == (1, SIZE, SIZE)
    else:
        ratio = (found.spread.square().mean() / std.square().mean()).sqrt()
        assert case.spread[0] < ratio < case.spread[1]


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_images_and_bookkeeping(name):
    case, seen = CASES[name], []
    runs = [
        case.run(samples=3, seed=seed, progress=lambda *at: seen.append(at))[0]
        for seed in (1, 1, 2)
    ]
    first, again, other = runs
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.images, other.images) == (case.spread is None)
    assert first.images.dtype == torch.float64
    assert not first.images.requires_grad
    steps = getattr(case.config, "steps", 1)
    assert first.evaluations == steps * len(first.images)
    assert len(first.trace) in (0, steps)
    assert seen in ([], 3 * [(k, steps) for k in range(1, steps + 1)])
    torch.testing.assert_close(first.mean, first.images.sum(0) / len(first.images))
    assert (first.spread == 0).all() == (len(first.images) == 1)


def test_every_solver_has_its_case():
    assert {type(case.config) for case in CASES.values()} == set(SOLVERS)
    alone = {type(case.config) for case in CASES.values() if case.spread is None}
    assert alone == set(ONE_ESTIMATE)
    with pytest.raises(InputError, match="no solver's configuration"):
        solver_of(3)


@pytest.mark.parametrize("name", ["one step", "diffused back"])
def test_what_takes_off_white_noise_refuses_anything_else(name):
    case = CASES[name]
    solver, y = solver_of(case.config), torch.zeros(SIZE, SIZE)
    coloured = ColouredGaussianNoise(torch.ones(SIZE, SIZE // 2 + 1))
    for operator, noise in (
        (Blur(gaussian_kernel(0.8, 5)), GaussianNoise(0.1)),
        (Direct(), coloured),
    ):
        with pytest.raises(InputError, match="white noise off an image"):
            solver(gaussian(0.0), operator, y, noise, case.config, generator())


def test_half_quadratic_splitting_draws_no_samples():
    with pytest.raises(InputError, match="draws no samples"):
        Case(HalfQuadraticConfig(), 1.0, (1.0, 1.0)).run()


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_solve_each_item_by_itself(preconditioned):
    factor = torch.randn(3, 5, 5, generator=generator(), dtype=torch.float64)
    matrices = factor @ factor.mT + 0.5 * torch.eye(5)
    target = torch.randn(3, 5, generator=generator(1), dtype=torch.float64)
    target[1] = 0
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    options = {"precondition": lambda residual: residual / diagonal} if preconditioned else {}
    solved = conjugate_gradients(
        lambda x: (matrices @ x[..., None])[..., 0], target, 20, 1e-20, **options
    )
    torch.testing.assert_close(solved, torch.linalg.solve(matrices, target))
