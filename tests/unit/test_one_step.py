"""White noise is removed in one evaluation, and its uncertainty comes from the same network."""

import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors import GaussianMixturePrior, GaussianPrior
from emlab.solvers.one_step import (
    DiffuseBackConfig,
    OneStepConfig,
    diffuse_back,
    one_step,
    one_step_spread,
)

SIZE = 6


def smooth(size=SIZE, length=1.5, std=0.6):
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size)).double()
    distance = torch.cdist(places, places)
    covariance = std**2 * (-0.5 * (distance / length) ** 2).exp()
    return GaussianPrior(torch.full((size, size), 0.3).double(), covariance)


def exact_posterior(prior, measurement, sigma):
    """Mean and standard deviation from the joint covariance of image and measurement."""
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance)))
    mean = prior.mean + (gain @ (measurement - prior.mean).flatten()).reshape(measurement.shape)
    return mean, (covariance - gain @ covariance).diagonal().sqrt().reshape(measurement.shape)


def once(prior, measurement, sigma):
    noise = GaussianNoise(sigma)
    return one_step(prior, Identity(), measurement, noise, OneStepConfig()).images[0]


@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
def test_one_evaluation_is_the_exact_posterior_mean(sigma):
    prior, calls = smooth(), []

    class Counted:
        def denoise(self, x, level):
            calls.append(level)
            return prior.denoise(x, level)

    measurement = prior.sample(1, generator())[0] + sigma
    mean, _ = exact_posterior(prior, measurement, sigma)
    torch.testing.assert_close(once(Counted(), measurement, sigma), mean)
    assert calls == [sigma]


def test_no_other_estimate_has_a_smaller_error():
    prior, sigma = smooth(), 0.5
    truth = prior.sample(4000, generator())
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator(1), dtype=torch.float64)
    best = (once(prior, noisy, sigma) - truth).square().mean()
    _, std = exact_posterior(prior, noisy[0], sigma)
    assert best.item() == pytest.approx(std.square().mean().item(), rel=0.02)
    for wrong in (0.35, 0.7):
        assert (once(prior, noisy, wrong) - truth).square().mean() > 1.01 * best


@pytest.mark.parametrize("sigma", [0.1, 0.6])
def test_spread_is_the_exact_posterior_standard_deviation(sigma):
    prior = smooth()
    measurement = prior.sample(1, generator())[0]
    _, std = exact_posterior(prior, measurement, sigma)
    spread = one_step_spread(prior, measurement, sigma, generator(1), probes=2000)
    torch.testing.assert_close(spread, std, rtol=0.08, atol=0.0)


def test_spread_of_two_islands_knows_which_one_is_meant():
    islands = GaussianMixturePrior(torch.tensor([[[-1.0]], [[1.0]]]), torch.tensor([0.1, 0.1]))
    points = torch.tensor([[[0.0]], [[1.0]]])
    std = [one_step_spread(islands, y, 0.5, generator(), probes=1).item() for y in points]
    assert std[0] == pytest.approx(0.97, abs=0.03)
    assert std[1] < std[0] / 4


def test_spread_repeats_with_the_seed():
    prior, y = smooth(), torch.zeros(2, SIZE, SIZE).double()
    first, again, other = (one_step_spread(prior, y, 0.5, generator(s), 2) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not first.requires_grad


def test_levels_and_probes_that_make_no_sense_are_refused():
    y = torch.zeros(SIZE, SIZE).double()
    with pytest.raises(InputError, match="must be positive"):
        one_step_spread(smooth(), y, -1.0, generator())
    with pytest.raises(InputError, match="at least one probe"):
        one_step_spread(smooth(), y, 0.5, generator(), probes=0)


def test_diffusing_back_from_less_than_the_last_level_is_one_denoising():
    prior = GaussianPrior(torch.zeros(4, 4), 0.5)
    measurement = torch.ones(4, 4)
    drawn = diffuse_back(
        prior, Identity(), measurement, GaussianNoise(0.005), DiffuseBackConfig(), generator()
    )
    assert torch.equal(drawn.images[0], prior.denoise(measurement, 0.005))
