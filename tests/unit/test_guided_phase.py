"""The guided sampler where the posterior is known: mean, variance and coverage."""

import pytest
import torch
from drawing import draw, generator
from weak_phase import WeakPhase

from emlab.errors import InputError
from emlab.metrics import coverage
from emlab.physics.counting import GaussianCounts, Poisson
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.priors import GaussianPrior
from emlab.priors.base import ScaledPrior
from emlab.solvers.denoiser_spread import (
    MeasuredSpread,
    WienerSpread,
    measure_spread,
    power_spectrum,
)
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase

SIZE = 8


def smooth(size=SIZE, std=0.05, length=1.5):
    """Stationary on the torus, so that `WienerSpread` is all that is to be known."""
    rows, columns = torch.fft.fftfreq(size).double(), torch.fft.rfftfreq(size).double()
    power = (-2 * (torch.pi * length) ** 2 * (rows[:, None] ** 2 + columns**2)).exp() + 1e-3
    kernel = torch.fft.irfft2(power, s=[size, size])
    power = power * std**2 / kernel[0, 0]
    kernel = torch.fft.irfft2(power, s=[size, size])
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    apart = (places[:, None] - places) % size
    covariance = kernel[apart[..., 0], apart[..., 1]]
    prior = GaussianPrior(torch.zeros(size, size).double(), (covariance + covariance.T) / 2)
    return prior, WienerSpread(power)


def lens(defocus):
    return ComplexCTF(300, 2.63, torch.tensor(defocus))


def posterior(prior, tangent, weights, pull):
    """Mean and covariance of each particle, linearised at zero: exact for the weak phase."""
    pixels = torch.eye(SIZE**2).double().reshape(-1, 1, SIZE, SIZE)
    matrices = tangent.A(pixels.expand(-1, weights.shape[0], -1, -1)).flatten(2).movedim(0, -1)
    prior_precision = (prior.basis / prior.variances) @ prior.basis.T
    means, covariances = [], []
    for matrix, weight, pulled in zip(matrices, weights.flatten(1), pull.flatten(1), strict=True):
        covariance = torch.linalg.inv(prior_precision + matrix.T @ (weight[:, None] * matrix))
        means.append((covariance @ matrix.T @ pulled).reshape(SIZE, SIZE))
        covariances.append(covariance)
    return torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("window", [SIZE, 12])
def test_weak_phases_of_two_particles_have_the_posterior_of_the_closed_form(window):
    prior, spread = smooth()
    instrument = WeakPhase(lens([9000.0, 20000.0]), torch.tensor([20.0, 60.0]), SIZE, window)
    noise = GaussianCounts(instrument.counts)
    truth = prior.sample(2, generator(3))
    measurement = noise.sample(instrument.A(truth), generator(4))
    found = guided_phase(
        prior, instrument, measurement, noise,
        GuidedPhaseConfig(steps=10, sigma_max=2.0, sigma_min=0.002, iterations=6), generator(),
        spread=spread, shape=(2, SIZE, SIZE), samples=160,
    )  # fmt: skip
    tangent = instrument.linearised(torch.zeros(2, SIZE, SIZE).double())
    weights = noise.curvature(tangent.expected)
    pull = noise.gradient(tangent.expected, measurement)
    mean, covariance = posterior(prior, tangent, weights, pull)
    variance = covariance.diagonal(dim1=-2, dim2=-1).reshape(2, SIZE, SIZE)
    assert ((found.mean - mean).square() / variance).mean().sqrt() < 0.15
    assert (found.spread.square() / variance).mean().item() == pytest.approx(1, abs=0.06)
    assert mean.square().mean() > 0.1 * truth.square().mean()
    # Directions that the lens leaves open keep the prior's variance, those that it shows do not.
    values, directions = torch.linalg.eigh(covariance)
    along = (found.images - found.mean).flatten(2).movedim(0, 1) @ directions
    torch.testing.assert_close(along.var(1) / values, torch.ones_like(values), atol=0.5, rtol=0)


@pytest.mark.parametrize("noise", [Poisson(), GaussianCounts(280.0)])
def test_coverage_of_electrons_through_the_exit_wave(noise):
    prior, spread = smooth(16, 0.15, 2.0)
    instrument = ExitWave(lens([15000.0] * 6), 280 / 2.63**2, 16)
    truth = prior.sample(6, generator(5))
    measurement = Poisson().sample(instrument.A(truth), generator(6))
    config = GuidedPhaseConfig(steps=10, sigma_max=5.0, sigma_min=0.005)
    found = guided_phase(
        prior, instrument, measurement, noise, config, generator(), spread=spread,
        shape=(6, 16, 16), samples=20,
    )  # fmt: skip
    assert 0.85 < coverage(found.images, truth) < 0.95
    error = (found.mean - truth).square().mean() / truth.square().mean()
    assert error < 0.45
    assert found.trace[-1] == pytest.approx(1, abs=0.06)


def test_opposite_samples_meet_in_the_posterior_mean_and_are_samples():
    """With a Gaussian prior and weak phases both hold exactly; few samples then tell the mean."""
    prior, spread = smooth(SIZE, 0.01)
    instrument = ExitWave(lens([12000.0]), 400.0, SIZE)
    measurement = Poisson().sample(instrument.A(prior.sample(1, generator(3))), generator(4))

    def run(samples, antithetic, seed):
        config = GuidedPhaseConfig(
            steps=6, sigma_max=1.0, sigma_min=0.002, iterations=8, antithetic=antithetic
        )
        return guided_phase(
            prior, instrument, measurement, Poisson(), config, generator(seed), spread=spread,
            shape=(1, SIZE, SIZE), samples=samples,
        ).images  # fmt: skip

    many = run(200, False, 1)
    pair = run(2, True, 2)
    typical = many.std(0).mean()
    assert (pair.mean(0) - many.mean(0)).std() < 0.15 * typical
    assert (run(2, False, 2).mean(0) - many.mean(0)).std() > 0.5 * typical
    assert ((pair[0] - pair[1]).std() / 2 / typical - 1).abs() < 0.2
    assert run(5, True, 3).shape[0] == 5
    config = GuidedPhaseConfig(antithetic=True)
    assert [config.independent(n) for n in (1, 2, 5, 10)] == [1, 1, 3, 5]


def test_measured_spread_of_a_gaussian_prior_is_wieners():
    prior, exact = smooth(16, 0.3, 1.0)
    images = prior.sample(400, generator())
    levels = [0.05, 0.1, 0.2, 0.4, 0.8]
    measured = measure_spread(prior, images, levels, generator(1))
    for sigma in (0.02, 0.1, 0.28, 0.8, 5.0):
        ratio = measured(sigma) / exact(sigma)
        assert ratio.mean() == pytest.approx(1, abs=0.25)
    torch.testing.assert_close(measured(0.2), exact(0.2), rtol=0.75, atol=2e-4)
    torch.testing.assert_close(power_spectrum(images), exact.power, rtol=0.3, atol=0.02)


def test_a_scaled_prior_is_the_prior_of_scaled_images():
    prior, _ = smooth(SIZE, 1.0)
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    known = GaussianPrior(torch.full((SIZE, SIZE), 0.5).double(), 0.04 * covariance)
    scaled, x = ScaledPrior(prior, 0.2, 0.5), draw(3, SIZE, SIZE)
    torch.testing.assert_close(scaled.denoise(x, 0.1), known.denoise(x, 0.1))
    torch.testing.assert_close(scaled.score(x, 0.1), known.score(x, 0.1), rtol=1e-4, atol=1e-4)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="sigma_min"):
        GuidedPhaseConfig(sigma_max=0.01, sigma_min=0.1)
    with pytest.raises(InputError, match="iterations"):
        GuidedPhaseConfig(iterations=0)
    with pytest.raises(InputError, match="power spectrum"):
        WienerSpread(torch.zeros(4, 3))
    with pytest.raises(InputError, match="rising"):
        MeasuredSpread(torch.tensor([0.2, 0.1]), torch.ones(2, 4, 3))
    with pytest.raises(InputError, match="positive"):
        ScaledPrior(smooth()[0], 0.0)
