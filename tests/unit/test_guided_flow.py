"""The guided flow equation against Gaussian posteriors, without Monte Carlo error.

On a Gaussian prior the flow is an affine map of its starting noise: the posterior's mean is where
it takes the centre, and its covariance what it makes of the unit vectors.
"""

import pytest
import torch

from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise, GaussianNoise
from emlab.physics.operators import Downsample, Identity
from emlab.priors import GaussianMixturePrior, GaussianPrior
from emlab.solvers.guided_flow import GuidedFlowConfig, guided_flow

SIZE, NOISE = 5, 0.2


class RowBlur:
    """Each pixel becomes the mean of itself and its neighbours above and below."""

    weights = (torch.ones(SIZE, SIZE).tril(1).triu(-1) / 3).double()

    def A(self, image):
        return self.weights @ image

    def A_adjoint(self, measurement):
        return self.weights.T @ measurement


OPERATORS = {
    "denoise": Identity(),
    "blur": RowBlur(),
    "decimate": Downsample(5, axes=(-1,), mode="decimate"),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(length=1.5, std=0.6):
    places = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
    covariance = std**2 * (-0.5 * (torch.cdist(places, places) / length) ** 2).exp()
    covariance += 0.01 * torch.eye(SIZE**2).double()
    return GaussianPrior(torch.full((SIZE, SIZE), 0.3).double(), covariance)


def measure(prior, operator):
    clean = operator.A(prior.sample(1, generator(1))[0])
    noise = torch.randn(clean.shape, generator=generator(2), dtype=torch.float64)
    return clean + NOISE * noise


def exact_posterior(prior, operator, measurement):
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    pixels = torch.eye(SIZE**2).double().reshape(-1, SIZE, SIZE)
    matrix = operator.A(pixels).flatten(1).T
    evidence = matrix @ covariance @ matrix.T + NOISE**2 * torch.eye(len(matrix))
    gain = torch.linalg.solve(evidence, matrix @ covariance).T
    mean = prior.mean + (gain @ (measurement - operator.A(prior.mean)).flatten()).reshape(
        SIZE, SIZE
    )
    return mean, covariance - gain @ matrix @ covariance


def affine_map(prior, operator, measurement, config, monkeypatch):
    """Mean and covariance of the samples, from the centre and every unit vector."""
    starts = torch.cat([torch.zeros(1, SIZE**2), torch.eye(SIZE**2)]).double()
    starts = starts.reshape(-1, SIZE, SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *_, **__: starts)
        ends = guided_flow(
            prior, operator, measurement, GaussianNoise(NOISE), config, generator(),
            shape=(SIZE, SIZE), samples=len(starts),
        ).images.flatten(1)  # fmt: skip
    columns = (ends[1:] - ends[0]).T
    return ends[0].reshape(SIZE, SIZE), columns @ columns.T


@pytest.mark.parametrize("task", OPERATORS)
def test_mean_and_covariance_are_those_of_the_exact_posterior(task, monkeypatch):
    prior, operator = smooth(), OPERATORS[task]
    measurement = measure(prior, operator)
    mean, covariance = exact_posterior(prior, operator, measurement)
    config = GuidedFlowConfig(steps=500, iterations=9)
    found, spread = affine_map(prior, operator, measurement, config, monkeypatch)
    assert (found - mean).norm() < 0.01 * mean.norm()
    assert (spread - covariance).norm() < 0.015 * covariance.norm()
    ratio = spread.diagonal() / covariance.diagonal()
    assert ratio.mean().item() == pytest.approx(1, abs=0.015)


def test_fewer_steps_are_further_from_it(monkeypatch):
    prior, operator = smooth(), OPERATORS["denoise"]
    measurement = measure(prior, operator)
    _, covariance = exact_posterior(prior, operator, measurement)
    errors = []
    for steps in (20, 100):
        config = GuidedFlowConfig(steps=steps, iterations=9)
        _, spread = affine_map(prior, operator, measurement, config, monkeypatch)
        errors.append((spread - covariance).norm().item())
    assert errors[0] > 3 * errors[1]


def test_samples_keep_both_islands_that_the_measurement_allows():
    islands = GaussianMixturePrior(
        torch.tensor([[[-1.0, -1.0]], [[1.0, 1.0]]]), torch.tensor([0.2, 0.2])
    )
    drawn = guided_flow(
        islands, Identity(), torch.tensor([[0.1, 0.1]]), GaussianNoise(1.0),
        GuidedFlowConfig(100, 2), generator(), samples=2000,
    ).images  # fmt: skip
    right = (drawn.mean((1, 2)) > 0).float().mean().item()
    exact = torch.tensor(0.2 / (0.04 + 1.0) * 2).sigmoid().item()
    assert right == pytest.approx(exact, abs=0.06)
    assert (drawn.abs() - 1).abs().mean() < 0.25


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"iterations": 0}, {"tau_max": 1.0}, {"tau_max": 0.0}]
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        GuidedFlowConfig(**options)


def test_volumes_and_coloured_noise_are_refused():
    prior, y = smooth(), torch.zeros(SIZE, SIZE).double()
    coloured = ColouredGaussianNoise(torch.ones(SIZE, SIZE // 2 + 1))
    for priors, noise in (([prior] * 3, GaussianNoise(1.0)), (prior, coloured)):
        with pytest.raises(InputError, match="white noise"):
            guided_flow(priors, Identity(), y, noise, GuidedFlowConfig(), generator())
