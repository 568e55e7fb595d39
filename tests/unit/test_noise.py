"""Noise models against densities written out in full; estimators on noise that is known."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from drawing import generator

from emlab import data
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise, GaussianNoise
from emlab.physics.noise_estimation import (
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
    noise_correlation,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def smooth_spectrum(sigma=1.0, width=0.2, ratio=1.0):
    """Gaussian fall-off; at this width neighbours correlate by about 0.45 in both directions."""
    y = torch.fft.fftfreq(32, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(32, dtype=torch.float64)
    power = (-0.5 * ((y / width).square() + (x * ratio / width).square())).exp() + 0.01
    unit = NoiseSpectrum(power)
    return unit.scaled(sigma / unit.sigma)


def random_spectrum(height, width):
    """A positive spectrum with no symmetry but the one that real images have."""
    return torch.fft.rfft2(normal(height, width, seed=3)).abs() / math.sqrt(height * width) + 0.1


MODELS = {
    "white": GaussianNoise(0.7),
    "coloured even": ColouredGaussianNoise(random_spectrum(6, 8)),
    "coloured odd": ColouredGaussianNoise(smooth_spectrum(0.6)),
}


def model_shape(name):
    return (5, 7) if name == "coloured odd" else (6, 8)


# Every model


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_log_likelihood_by_finite_differences(name):
    model, shape = MODELS[name], model_shape(name)
    mean, measurement = normal(*shape), normal(*shape, seed=1)
    gradient = model.gradient(mean, measurement)
    for k in range(4):
        direction, step = normal(*shape, seed=10 + k), 1e-5
        ahead = model.log_likelihood(mean + step * direction, measurement)
        behind = model.log_likelihood(mean - step * direction, measurement)
        slope = float(ahead - behind) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_each_image_of_a_batch_has_its_own_likelihood(name):
    model, shape = MODELS[name], model_shape(name)
    mean, measurement = normal(2, 3, *shape), normal(2, 3, *shape, seed=1)
    value = model.log_likelihood(mean, measurement)
    assert value.shape == (2, 3)
    assert float(value[1, 2]) == pytest.approx(float(model.log_likelihood(mean, measurement)[1, 2]))
    alone = model.log_likelihood(mean[1, 2], measurement[1, 2])
    assert float(value[1, 2]) == pytest.approx(float(alone))
    assert torch.allclose(
        model.gradient(mean, measurement)[1, 2], model.gradient(mean[1, 2], measurement[1, 2])
    )


@pytest.mark.parametrize("name", MODELS)
def test_samples_repeat_with_the_seed_and_keep_the_dtype(name):
    model, clean = MODELS[name], torch.zeros(model_shape(name))
    first = model.sample(clean, generator(4))
    assert torch.equal(first, model.sample(clean, generator(4)))
    assert not torch.equal(first, model.sample(clean, generator(5)))
    assert first.dtype == torch.float32
    assert float(clean.abs().max()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_the_true_mean_is_the_likeliest_on_average(name):
    """Score of zero expectation: the likelihood fits the samples."""
    model, clean = MODELS[name], torch.full((2000, *model_shape(name)), 40.0).double()
    gradient = model.gradient(clean, model.sample(clean, generator()))
    error = gradient.mean(0) / (gradient.std(0) / math.sqrt(2000))
    assert float(error.abs().max()) < 4.5
    assert float(error.square().mean()) == pytest.approx(1, abs=0.6)


# White


def test_white_log_likelihood_is_that_of_the_normal_distribution():
    mean, measurement = normal(4, 5), normal(4, 5, seed=1)
    expected = torch.distributions.Normal(mean, 0.7).log_prob(measurement).sum()
    value = GaussianNoise(0.7).log_likelihood(mean, measurement)
    assert float(value) == pytest.approx(float(expected))


def test_white_samples_have_their_standard_deviation():
    noise = GaussianNoise(25.5).sample(torch.full((200, 200), 100.0), generator()) - 100
    assert float(noise.std()) == pytest.approx(25.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.5)
    assert max(map(abs, noise_correlation(noise))) < 0.02


# Coloured


def circulant(power, height, width):
    """Covariance matrix of periodic noise with this spectrum, from its definition."""
    covariance = torch.fft.irfft2(power, s=[height, width])
    rows, columns = (
        grid.flatten()
        for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    return covariance[(rows[:, None] - rows) % height, (columns[:, None] - columns) % width]


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 5), (7, 6)])
def test_coloured_likelihood_is_the_dense_multivariate_normal(shape):
    model = ColouredGaussianNoise(smooth_spectrum(1.3, ratio=2.0))
    mean, measurement = normal(*shape), normal(*shape, seed=1)
    dense = circulant(model.spectrum(shape).double(), *shape)
    distribution = torch.distributions.MultivariateNormal(mean.flatten(), dense)
    expected = float(distribution.log_prob(measurement.flatten()))
    assert float(model.log_likelihood(mean, measurement)) == pytest.approx(expected)
    precision = torch.linalg.solve(dense, (measurement - mean).flatten()).reshape(shape)
    assert torch.allclose(model.precision(measurement - mean), precision)


def test_coloured_noise_of_a_flat_spectrum_is_white():
    mean, measurement = normal(6, 8), normal(6, 8, seed=1)
    flat, white = ColouredGaussianNoise(torch.full((6, 5), 0.49)), GaussianNoise(0.7)
    value = float(flat.log_likelihood(mean, measurement))
    assert value == pytest.approx(float(white.log_likelihood(mean, measurement)))
    assert torch.allclose(flat.gradient(mean, measurement), white.gradient(mean, measurement))
    assert torch.allclose(flat.sample(mean, generator()), white.sample(mean, generator()))


def test_whitening_undoes_the_colour():
    spectrum = smooth_spectrum(12.0)
    assert spectrum.correlation == pytest.approx((0.45, 0.45), abs=0.01)
    model = ColouredGaussianNoise(spectrum)
    noise = model.sample(torch.zeros(200, 220).double(), generator())
    assert float(noise.std()) == pytest.approx(12, rel=0.03)
    assert noise_correlation(noise) == pytest.approx(spectrum.correlation, abs=0.02)
    white = model.whiten(noise)
    assert float(white.std()) == pytest.approx(1, rel=0.02)
    assert max(map(abs, noise_correlation(white))) < 0.02
    assert torch.allclose(model.colour(white), noise)
    assert torch.allclose(model.whiten(white), model.precision(noise))


def test_the_right_spectrum_is_likelier_than_white_noise():
    spectrum = smooth_spectrum(12.0)
    noise = ColouredGaussianNoise(spectrum).sample(torch.zeros(96, 96).double(), generator())
    zero = torch.zeros_like(noise)
    coloured = ColouredGaussianNoise(spectrum).log_likelihood(zero, noise)
    assert float(coloured) > float(GaussianNoise(12.0).log_likelihood(zero, noise)) + 1000


def test_a_spectrum_must_fit_the_image_and_be_positive():
    with pytest.raises(InputError, match="does not fit"):
        ColouredGaussianNoise(torch.ones(8, 5)).precision(torch.zeros(9, 8))
    for bad in (torch.zeros(8, 5), torch.full((8, 5), math.inf)):
        with pytest.raises(InputError, match="positive at every frequency"):
            ColouredGaussianNoise(bad)
        with pytest.raises(InputError, match="positive at every frequency"):
            NoiseSpectrum(bad)
    with pytest.raises(InputError, match="rfft2"):
        NoiseSpectrum(torch.ones(8, 8))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_noise_of_no_width_is_refused(sigma):
    with pytest.raises(InputError, match="positive"):
        GaussianNoise(sigma)


def test_spectra_are_interpolated_to_any_image():
    spectrum = smooth_spectrum(3.0, ratio=2.0)
    assert torch.allclose(spectrum((32, 32)), spectrum.power)
    finer = spectrum((64, 96))
    assert finer.shape == (64, 49)
    assert torch.allclose(finer[::2, ::3], spectrum.power)
    assert torch.allclose(finer[1, 0], spectrum.power[:2, 0].mean())
    assert torch.allclose(finer[-1, 0], spectrum.power[[-1, 0], 0].mean())
    flat = NoiseSpectrum(torch.full((32, 17), 4.0))
    assert flat.sigma == pytest.approx(2)
    assert torch.allclose(flat((3, 45, 51)), torch.full((45, 26), 4.0))
    assert flat.scaled(3.0).sigma == pytest.approx(6)


# Estimation


def test_correlation_of_neighbours_is_told_by_direction():
    noise = normal(120, 120)
    assert noise_correlation(noise[1:] + noise[:-1]) == pytest.approx((0.5, 0.0), abs=0.03)
    assert noise_correlation(noise[:, 1:] + noise[:, :-1] + 9) == pytest.approx((0, 0.5), abs=0.03)
    with pytest.raises(InputError, match="constant"):
        noise_correlation(torch.ones(8, 8))


@cache
def phantom():
    return torch.from_numpy(neuropil((256, 256), 3)).double()


@pytest.mark.parametrize(
    ("sigma", "tolerance"), [(6.4, 0.10), (12.75, 0.04), (25.5, 0.03), (63.75, 0.03)]
)
def test_white_noise_is_found_on_the_phantom(sigma, tolerance):
    noisy = GaussianNoise(sigma).sample(phantom(), generator())
    assert estimate_noise_sigma(noisy) == pytest.approx(sigma, rel=tolerance)
    spectrum = estimate_noise_spectrum(noisy)
    assert spectrum.sigma == pytest.approx(sigma, rel=1.7 * tolerance)
    assert max(spectrum.correlation) < 0.16 if sigma < 10 else max(spectrum.correlation) < 0.06
    assert float(noisy.std()) > 1.05 * sigma


@pytest.mark.parametrize(("sigma", "tolerance"), [(12.75, 0.06), (25.5, 0.04), (63.75, 0.04)])
def test_coloured_noise_is_found_on_the_phantom(sigma, tolerance):
    truth = smooth_spectrum(sigma)
    noisy = ColouredGaussianNoise(truth).sample(phantom(), generator())
    found = estimate_noise_spectrum(noisy)
    assert found.sigma == pytest.approx(sigma, rel=tolerance)
    assert found.correlation == pytest.approx(truth.correlation, abs=0.04)
    error = (found.power.double() / truth.power).log()
    assert float(error.abs().median()) < 0.2
    assert abs(float(error.median())) < 0.08


def test_noise_that_differs_between_the_axes_is_told_apart():
    truth = smooth_spectrum(20.0, ratio=1.4)
    found = estimate_noise_spectrum(ColouredGaussianNoise(truth).sample(phantom(), generator()))
    assert truth.correlation[1] > truth.correlation[0] + 0.15
    assert found.correlation == pytest.approx(truth.correlation, abs=0.05)


@pytest.mark.parametrize("size", [64, 96, 160])
def test_pure_noise_is_all_noise(size):
    white = 5 * normal(4, size, size)
    assert estimate_noise_sigma(white) == pytest.approx(5, rel=0.03)
    truth = smooth_spectrum(5.0)
    coloured = ColouredGaussianNoise(truth).sample(torch.zeros_like(white), generator())
    found = estimate_noise_spectrum(coloured)
    assert found.sigma == pytest.approx(5, rel=0.06)
    assert found.correlation == pytest.approx(truth.correlation, abs=0.06)


def test_white_level_of_coloured_noise_is_not_its_sigma():
    """Why there are two estimators: the highest frequencies know little of coloured noise."""
    noisy = ColouredGaussianNoise(smooth_spectrum(25.0)).sample(phantom(), generator())
    assert estimate_noise_sigma(noisy) < 0.7 * estimate_noise_spectrum(noisy).sigma


def test_estimates_follow_the_grey_scale_and_take_arrays():
    noisy = GaussianNoise(20.0).sample(phantom(), generator())
    sigma = estimate_noise_sigma(noisy)
    assert estimate_noise_sigma(0.01 * noisy - 3) == pytest.approx(0.01 * sigma, rel=1e-6)
    assert estimate_noise_sigma(noisy.numpy()) == pytest.approx(sigma)
    stored = (noisy.clamp(0, 255) * 256).numpy().astype(">u2")
    assert estimate_noise_sigma(stored) == pytest.approx(256 * sigma, rel=0.02)


def test_drift_of_the_grey_level_is_not_noise():
    noisy = GaussianNoise(10.0).sample(phantom(), generator())
    drift = torch.linspace(0, 400, 256, dtype=torch.float64)[:, None]
    assert estimate_noise_sigma(noisy + drift) == pytest.approx(
        estimate_noise_sigma(noisy), rel=0.01
    )


def test_noise_that_varies_over_the_field_is_averaged():
    sigma = torch.linspace(5, 40, 256, dtype=torch.float64)
    found = estimate_noise_spectrum(phantom() + sigma * normal(256, 256))
    assert found.sigma == pytest.approx(float(sigma.square().mean().sqrt()), rel=0.08)


def test_filled_borders_are_not_taken_for_silence():
    noisy = GaussianNoise(20.0).sample(phantom(), generator())
    noisy[:, :150] = 0
    assert estimate_noise_sigma(noisy) == pytest.approx(20, rel=0.06)


def test_images_without_an_answer_are_refused():
    assert estimate_noise_sigma(torch.full((80, 80), 3.0)) == 0
    with pytest.raises(InputError, match="constant"):
        estimate_noise_spectrum(torch.full((80, 80), 0.1))
    with pytest.raises(InputError, match="at least 64 pixels"):
        estimate_noise_sigma(torch.rand(63, 200))
    with pytest.raises(InputError, match="NaN"):
        estimate_noise_spectrum(np.full((80, 80), np.nan))


# Real images


@pytest.fixture(scope="module")
def tissue(mirror):
    return torch.from_numpy(data.load("flyem_validation_train")["volume"][165].astype(np.float64))


@pytest.mark.parametrize("sigma", [12.75, 25.5])
def test_white_noise_is_found_on_tissue(tissue, sigma):
    """The clean slice has noise of its own, which adds in quadrature."""
    own = estimate_noise_sigma(tissue)
    assert own < 6
    noisy = GaussianNoise(sigma).sample(tissue, generator())
    assert estimate_noise_sigma(noisy) == pytest.approx(math.hypot(sigma, own), rel=0.04)


@pytest.mark.parametrize("sigma", [12.75, 25.5])
def test_coloured_noise_is_found_on_tissue(tissue, sigma):
    own, truth = estimate_noise_spectrum(tissue), smooth_spectrum(sigma)
    found = estimate_noise_spectrum(ColouredGaussianNoise(truth).sample(tissue, generator()))
    expected = NoiseSpectrum(truth.power + own.power.double())
    assert found.sigma == pytest.approx(expected.sigma, rel=0.06)
    assert found.correlation == pytest.approx(expected.correlation, abs=0.05)


def test_real_pair_has_the_noise_that_the_noisy_image_tells(mirror):
    """The residual also holds the noise of the clean partner and what registration left."""
    noisy, clean = (
        data.load("brain_sem_pair")[key].astype(np.float64) for key in ("noisy", "clean")
    )
    found = estimate_noise_spectrum(noisy)
    residual = torch.from_numpy(noisy - clean)
    assert found.sigma == pytest.approx(float(residual.std()), rel=0.1)
    assert found.correlation == pytest.approx(noise_correlation(residual), abs=0.07)
    whitened = ColouredGaussianNoise(found).whiten(residual - residual.mean())
    assert float(whitened.std()) == pytest.approx(1, abs=0.15)
    assert max(map(abs, noise_correlation(whitened))) < 0.1


def test_real_field_is_nearly_white(mirror):
    field = data.load("brain_sem_fullfield")["noisy"].astype(np.float64)
    found = estimate_noise_spectrum(field)
    assert max(map(abs, found.correlation)) < 0.05
    assert estimate_noise_sigma(field) == pytest.approx(found.sigma, rel=0.03)
    assert found.sigma < 0.85 * field.std()
