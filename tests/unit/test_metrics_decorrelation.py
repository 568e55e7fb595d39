"""Decorrelation analysis reads the end of a known spectrum from one image."""

import math

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.metrics.fourier import decorrelation_resolution


def spectrum_of(gain, shape=(256, 256), noise=0.05, seed=0):
    """Noise filtered by a gain of the frequency to unit variance, plus weak white noise."""
    white = np.random.default_rng(seed).normal(size=shape)
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    image = np.fft.ifft2(np.fft.fft2(white) * gain(radius)).real
    return image / image.std() + noise * np.random.default_rng(seed + 100).normal(size=shape)


def blurred(sigma, **keywords):
    return spectrum_of(lambda f: np.exp(-2 * (math.pi * sigma * f) ** 2), **keywords)


@pytest.mark.parametrize("shape", [(256, 256), (150, 301)])
@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.3, 0.4])
def test_a_sharp_cutoff_is_found(shape, cutoff):
    """To one step of frequency of the shorter side."""
    image = spectrum_of(lambda f: f < cutoff, shape)
    found = 1 / decorrelation_resolution(image, 1)
    assert found == pytest.approx(cutoff, abs=1 / min(shape))


@pytest.mark.parametrize("noise", [0, 0.01, 0.1])
def test_resolution_is_linear_in_the_width_of_a_blur(noise):
    """A factor of eight in width, no offset: 2.45 standard deviations of the Gaussian."""
    sigmas = np.array([1, 1.5, 2, 3, 4, 6, 8])
    images = (blurred(sigma, noise=noise, shape=(512, 512)) for sigma in sigmas)
    found = np.array([decorrelation_resolution(image, 1) for image in images])
    np.testing.assert_allclose(found, 2.45 * sigmas, rtol=0.06)
    slope, offset = np.polyfit(sigmas, found, 1)
    assert np.corrcoef(sigmas, found)[0, 1] > 0.999
    assert slope == pytest.approx(2.45, rel=0.03)
    assert abs(offset) < 0.25


@pytest.mark.parametrize(("sigma", "published_code"), [(2, 5.064), (3, 7.608), (4, 9.916)])
def test_it_agrees_with_another_implementation(sigma, published_code):
    """What nanopyx 2.1.5 gives for these very images."""
    assert decorrelation_resolution(blurred(sigma), 1) == pytest.approx(published_code, rel=0.04)


def test_grey_levels_do_not_matter_and_the_unit_is_nanometres():
    image = blurred(3)
    one = decorrelation_resolution(image, 1)
    assert decorrelation_resolution(torch.tensor(40 * image + 100), 4) == pytest.approx(4 * one)
    assert decorrelation_resolution(image.T, 1) == pytest.approx(one)


def test_white_noise_has_no_cutoff():
    assert decorrelation_resolution(np.random.default_rng(0).normal(size=(128, 128)), 1) == math.inf


def test_uneven_illumination_does_not_pass_for_resolution():
    """A strong slope alone dominates the spectrum; the high-passed images still find the end."""
    slope = np.add.outer(np.arange(256), np.arange(256)) / 20
    assert decorrelation_resolution(blurred(2) + slope, 1) == pytest.approx(4.97, rel=0.04)


@pytest.mark.parametrize(
    ("image", "pixel_size_nm", "message"),
    [
        (np.ones((64, 64)), 1, "constant"),
        (blurred(2)[:31], 1, "32 pixels"),
        (blurred(2)[None], 1, "2 axes"),
        (blurred(2), -1, "pixel size"),
        (np.full((64, 64), np.nan), 1, "NaN"),
    ],
)
def test_what_has_no_resolution_is_refused(image, pixel_size_nm, message):
    with pytest.raises(InputError, match=message):
        decorrelation_resolution(image, pixel_size_nm)
