"""Fourier correlations find the frequency at which two images of known spectra stop agreeing."""

import math

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.metrics.fourier import (
    Curve,
    apodisation,
    fourier_ring_correlation,
    fourier_shell_correlation,
)

METHODS = {2: fourier_ring_correlation, 3: fourier_shell_correlation}
SHAPES = {2: (256, 200), 3: (64, 64, 72)}


def coloured(amplitude, shape, seed):
    """Periodic Gaussian noise with a given amplitude at each frequency (cycles per pixel)."""
    white = np.random.default_rng(seed).normal(size=shape)
    axes = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    return np.fft.ifftn(np.fft.fftn(white) * amplitude(radius)).real


def noise(shape, seed):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("cutoff", [0.15, 0.3])
def test_the_cutoff_of_low_passed_noise_is_its_resolution(axes, cutoff):
    """Signal up to the cutoff only; the window smears it by less than two rings."""
    signal = coloured(lambda f: f < cutoff, SHAPES[axes], 0)
    pair = [signal + 0.4 * noise(SHAPES[axes], seed) for seed in (1, 2)]
    curve = METHODS[axes](*pair, pixel_size_nm=4.0)
    step = 1 / min(SHAPES[axes])
    for threshold in (0.5, 1 / 7):
        found = 4.0 / curve.resolution_nm(threshold)
        assert found == pytest.approx(cutoff, abs=2 * step)
    inside = curve.frequency * 4.0 < cutoff - 2 * step
    mean = np.average(curve.correlation[inside], weights=curve.counts[inside])
    assert mean == pytest.approx(1 / 1.16, abs=0.03)
    assert abs(curve.correlation[curve.frequency * 4.0 > cutoff + 2 * step].mean()) < 0.05


@pytest.mark.parametrize("axes", [2, 3])
def test_the_crossing_is_where_signal_and_noise_are_as_strong_as_the_threshold_says(axes):
    """Signal power exp(-f^2 / 2 s^2) x 9 in noise of power 1: correlation S / (S + 1)."""
    shape, width = SHAPES[axes], 0.12
    signal = coloured(lambda f: 3 * np.exp(-(f**2) / (4 * width**2)), shape, 0)
    curve = METHODS[axes](signal + noise(shape, 1), signal + noise(shape, 2))
    for threshold, power in ((0.5, 1), (1 / 7, 1 / 6)):
        crossing = width * math.sqrt(2 * math.log(9 / power))
        assert 1 / curve.resolution_nm(threshold) == pytest.approx(crossing, rel=0.08)
    power = 9 * np.exp(-(curve.frequency**2) / (2 * width**2))
    deviation = np.abs(curve.correlation - power / (power + 1))[5:]
    assert deviation.mean() < 0.05


def test_against_the_truth_the_correlation_is_the_square_root_of_the_one_between_halves():
    signal = coloured(lambda f: f < 0.25, (200, 200), 0)
    halves = [signal + noise((200, 200), seed) for seed in (1, 2)]
    inside = slice(10, 45)
    half = fourier_ring_correlation(*halves, window="none").correlation[inside].mean()
    full = fourier_ring_correlation(halves[0], signal, window="none").correlation[inside].mean()
    assert half == pytest.approx(0.5, abs=0.03)
    assert full == pytest.approx(math.sqrt(half), abs=0.02)


def test_one_image_agrees_with_itself_to_the_last_ring_and_disagrees_with_its_negative():
    curve = fourier_ring_correlation(noise((40, 51), 0), 3 * noise((40, 51), 0) + 7)
    np.testing.assert_allclose(curve.correlation, 1)
    assert curve.resolution_nm() == 2
    assert len(curve.frequency) == 20
    opposite = fourier_ring_correlation(noise((40, 51), 0), -noise((40, 51), 0))
    np.testing.assert_allclose(opposite.correlation, -1)
    assert opposite.resolution_nm() == math.inf


def test_independent_images_do_not_agree():
    curve = fourier_ring_correlation(noise((128, 128), 0), noise((128, 128), 1))
    assert np.abs(curve.correlation[5:]).mean() < 0.1
    # a Hann window leaves fewer independent coefficients than the ring has
    assert curve.correlation[20:].std() < 3 / np.sqrt(curve.counts[20:].mean())


def test_apodisation_removes_the_agreement_of_borders():
    """A common slope jumps from border to border, which is no detail of the specimen."""
    slope = np.add.outer(np.arange(128), np.arange(128)) * 0.5
    pair = [slope + noise((128, 128), seed) for seed in (0, 1)]
    high = slice(40, None)
    assert fourier_ring_correlation(*pair, window="none").correlation[high].mean() > 0.3
    assert fourier_ring_correlation(*pair).correlation[high].mean() < 0.1


def test_rings_hold_every_coefficient_once():
    counts = {}
    for shape in ((32, 32), (31, 31)):
        curve = fourier_ring_correlation(noise(shape, 0), noise(shape, 1))
        axis = np.fft.fftfreq(shape[0]) * shape[0]
        radius = np.rint(np.hypot(*np.meshgrid(axis, axis)))
        counts[shape] = [(radius == ring).sum() for ring in range(1, shape[0] // 2 + 1)]
        np.testing.assert_array_equal(curve.counts, counts[shape])


def test_units_are_nanometres():
    signal = coloured(lambda f: f < 0.2, (128, 128), 0)
    pair = [signal + 0.1 * noise((128, 128), seed) for seed in (1, 2)]
    one, four = (fourier_ring_correlation(*pair, pixel_size_nm=size) for size in (1.0, 4.0))
    assert four.resolution_nm() == pytest.approx(4 * one.resolution_nm())
    np.testing.assert_allclose(4 * four.frequency, one.frequency)


def test_a_stack_pools_its_images():
    """Chance agreement shrinks as the square root of the number of images."""
    pair = [noise((16, 64, 64), seed) for seed in (3, 4)]
    pooled = fourier_ring_correlation(*pair)
    singles = [fourier_ring_correlation(*images) for images in zip(*pair, strict=True)]
    np.testing.assert_array_equal(pooled.frequency, singles[0].frequency)
    chance = np.mean([single.correlation[10:] ** 2 for single in singles])
    assert np.mean(pooled.correlation[10:] ** 2) == pytest.approx(chance / 16, rel=0.6)


def test_the_crossing_is_read_between_rings():
    curve = Curve(np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.7, 0.3]), np.ones(3), 1.0)
    assert curve.resolution_nm(0.5) == pytest.approx(1 / 0.25)
    assert curve.resolution_nm(0.8) == pytest.approx(1 / 0.15)
    assert curve.resolution_nm(0.1) == 2
    assert curve.resolution_nm(0.95) == math.inf


def test_windows_are_symmetric_and_between_zero_and_one():
    for name in ("hann", "none"):
        window = apodisation((9, 16), name)
        assert window.shape == (9, 16)
        np.testing.assert_allclose(window, window[::-1, ::-1])
        assert window.min() >= 0
        assert window.max() <= 1
    assert apodisation((9, 16), "none").min() == 1
    assert apodisation((64,), reach=4)[4:60].min() > 0.99 > apodisation((64,))[20]


def test_tensors_are_taken():
    pair = [noise((16, 16), seed) for seed in (0, 1)]
    tensors = fourier_ring_correlation(*map(torch.tensor, pair))
    np.testing.assert_array_equal(tensors.correlation, fourier_ring_correlation(*pair).correlation)


@pytest.mark.parametrize(
    ("first", "second", "keywords", "message"),
    [
        (np.eye(8), np.eye(9), {}, "one shape"),
        (np.eye(3), np.eye(3), {}, "at least 4"),
        (np.eye(8), np.ones((8, 8)), {}, "constant image"),
        (np.eye(8), np.eye(8), {"window": "welch"}, "hann or none"),
        (np.eye(8), np.eye(8), {"pixel_size_nm": 0}, "pixel size"),
        (np.eye(8)[0], np.eye(8)[0], {}, "at least 2 axes"),
    ],
)
def test_what_cannot_be_correlated_is_refused(first, second, keywords, message):
    with pytest.raises(InputError, match=message):
        fourier_ring_correlation(first, second, **keywords)


def test_a_threshold_is_between_zero_and_one():
    with pytest.raises(InputError, match="threshold"):
        fourier_ring_correlation(np.eye(8), np.eye(8)).resolution_nm(1.5)
