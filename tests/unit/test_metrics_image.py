"""PSNR and SSIM are the published formulas, whatever container the pixels come in."""

import math

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.metrics.image import contrasts, psnr, ssim


def image(seed=0, shape=(24, 31)):
    return np.random.default_rng(seed).uniform(0, 255, shape)


def windowed_ssim(x, y, data_range):
    """Mean of equation 13 of Wang et al. (2004) over windows inside the image, one by one."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    weights = np.multiply.outer(weights, weights)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(5, x.shape[0] - 5):
        for column in range(5, x.shape[1] - 5):
            place = np.s_[row - 5 : row + 6, column - 5 : column + 6]
            mx, my = (weights * x[place]).sum(), (weights * y[place]).sum()
            vx, vy = (weights * (x[place] - mx) ** 2).sum(), (weights * (y[place] - my) ** 2).sum()
            both = (weights * (x[place] - mx) * (y[place] - my)).sum()
            top = (2 * mx * my + c1) * (2 * both + c2)
            values.append(top / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


@pytest.mark.parametrize(("sigma", "decibels"), [(25.5, 20.0), (2.55, 40.0)])
def test_psnr_of_an_error_of_a_tenth_of_the_range_is_20_decibels(sigma, decibels):
    signs = np.random.default_rng(1).choice([-1, 1], (24, 31))
    assert psnr(image() + sigma * signs, image(), 255) == pytest.approx(decibels)
    assert psnr(image() + sigma * signs, image(), 510) == pytest.approx(decibels + 6.0206, abs=1e-4)


def test_psnr_pools_the_error_of_a_stack_and_is_infinite_without_one():
    stack = np.stack([image(), image(1)])
    wrong = stack + np.array([0.0, 51.0])[:, None, None]
    assert psnr(wrong, stack, 255) == pytest.approx(10 * math.log10(25 * 2))
    assert psnr(stack, stack, 255) == math.inf


def test_integers_do_not_wrap_around():
    low, high = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert psnr(low, high, 255) == psnr(high, low, 255) == 0


def test_ssim_is_the_published_formula():
    truth, noisy = image(), image() + np.random.default_rng(2).normal(0, 60, (24, 31))
    assert ssim(noisy, truth, 255) == pytest.approx(windowed_ssim(noisy, truth, 255), abs=1e-9)
    assert ssim(truth, truth, 255) == pytest.approx(1)


def test_ssim_of_a_volume_sees_the_third_axis():
    """Shuffled slices: each still has its grey levels, their order is lost."""
    volume = np.repeat(image(0, (4, 16, 16)), 4, axis=0)
    assert ssim(volume, volume, 255) == pytest.approx(1)
    assert ssim(volume[::-1], volume, 255) < 0.2


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_tensors_and_arrays_give_the_same_number(metric):
    estimate, truth = torch.tensor(image(0), requires_grad=True), torch.tensor(image(1))
    assert metric(estimate, truth, 255) == metric(image(0), image(1), 255)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("estimate", "truth", "data_range", "message"),
    [
        (np.ones((20, 20)), np.ones((20, 21)), 1, "one shape"),
        (np.full((20, 20), np.nan), np.ones((20, 20)), 1, "NaN or infinity"),
        (np.ones((20, 20)), np.ones((20, 20)), 0, "data_range"),
        (np.ones((20, 20)), np.ones((20, 20)), math.nan, "data_range"),
        (np.ones((0, 0)), np.ones((0, 0)), 1, "at least one pixel"),
    ],
)
def test_comparisons_without_a_meaning_are_refused(metric, estimate, truth, data_range, message):
    with pytest.raises(InputError, match=message):
        metric(estimate, truth, data_range)


@pytest.mark.parametrize("shape", [(10, 40), (40,), (1, 20, 20, 20)])
def test_ssim_needs_an_image_or_a_volume_larger_than_its_window(shape):
    with pytest.raises(InputError, match=r"SSIM needs|2 or 3 axes"):
        ssim(np.ones(shape), np.ones(shape), 1)


def test_contrast_is_what_an_estimate_shows_of_the_truth_and_noise_does_not_raise_it():
    truth = np.stack([image(seed, (64, 64)) for seed in range(3)])
    noise = np.random.default_rng(3).normal(0, truth.std(), truth.shape)
    full, half, noisy = (contrasts(a, truth) for a in (truth - 7, truth / 2, truth + noise))
    assert full["contrast"] == pytest.approx(np.ones(3))
    assert half["contrast"] == pytest.approx(np.full(3, 0.5))
    assert half["michelson"] == pytest.approx(full["michelson"] / 2, rel=0.01)
    for name in full:
        assert noisy[name] == pytest.approx(full[name], rel=0.1)


def test_michelson_is_the_ratio_of_two_levels():
    levels = np.full((8, 8), 0.1)
    levels[2:5] = 0.3
    found = contrasts(levels + 5, levels)["michelson"]
    assert found == pytest.approx(0.2 / 0.4)
    with pytest.raises(InputError, match="without contrast"):
        contrasts(levels, np.ones((8, 8)))
