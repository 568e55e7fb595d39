"""Bands, calibration checks and resampling: known answers."""

import numpy as np
import pytest

from emlab import metrics
from emlab.errors import InputError
from emlab.metrics.bands import band_averages, falls_below, ring_sums
from emlab.metrics.calibration import auc, crps, rank_deviation, ranks
from emlab.metrics.intervals import bootstrap, paired_ratio

RNG = np.random.default_rng


def test_ring_sums_are_those_of_the_ring_correlation():
    truth = RNG(0).normal(size=(3, 16, 16))
    noisy = truth + RNG(1).normal(size=truth.shape)
    sums = ring_sums(noisy, truth)
    curve = metrics.fourier_ring_correlation(noisy, truth, 1.0, window="none")
    np.testing.assert_allclose(sums.correlation(), curve.correlation, atol=1e-10)
    np.testing.assert_allclose(sums.frequency, curve.frequency)
    one = metrics.fourier_ring_correlation(noisy[1], truth[1], 1.0, window="none")
    np.testing.assert_allclose(sums.correlation(np.array([1, 1])), one.correlation, atol=1e-10)


def test_only_chosen_coefficients_count():
    truth = RNG(0).normal(size=(4, 16, 16))
    spectrum = np.fft.rfft2(truth)
    hidden = np.zeros(spectrum.shape, bool)
    hidden[:, :, 3:6] = True
    spectrum[hidden] *= -1
    wrong = np.fft.irfft2(spectrum, s=(16, 16))
    inside = ring_sums(wrong, truth, hidden).correlation()
    outside = ring_sums(wrong, truth, ~hidden).correlation()
    assert inside[4:7] == pytest.approx(-1)
    assert inside[0] == 0
    assert outside[:6] == pytest.approx(1)


def test_a_limit_is_read_beyond_the_highest_value():
    frequency = np.array([0.1, 0.2, 0.3, 0.4])
    assert falls_below(frequency, np.array([0.2, 0.9, 0.6, 0.4])) == pytest.approx(0.35)
    assert falls_below(frequency, np.array([0.2, 0.4, 0.3, 0.1])) == 0
    assert falls_below(frequency, np.array([0.9, 0.8, 0.7, 0.6])) == 0.4


def test_band_averages_count_phases_from_the_centre_and_are_linear():
    point = np.zeros((16, 16))
    point[8, 8] = 16.0
    found = band_averages(point, rings=4)
    np.testing.assert_allclose(found[..., 0], 1, atol=1e-12)
    np.testing.assert_allclose(found[..., 1], 0, atol=1e-12)
    first, second = RNG(0).normal(size=(2, 16, 16))
    np.testing.assert_allclose(
        band_averages(2 * first - second), 2 * band_averages(first) - band_averages(second)
    )
    np.testing.assert_allclose(band_averages(first + 3), band_averages(first), atol=1e-12)


def test_crps_of_calibrated_samples_does_not_depend_on_their_number():
    drawn = RNG(0).normal(size=(10, 40_000))
    truth = RNG(1).normal(size=40_000)
    for count in (2, 10):  # E|x - y| - E|x - x'| / 2 = 1 / sqrt(pi)
        assert crps(drawn[:count], truth).mean() == pytest.approx(np.pi**-0.5, abs=0.01)
    assert crps(0.5 * drawn, truth).mean() > 0.6
    np.testing.assert_allclose(crps(drawn[:1], truth), np.abs(drawn[0] - truth))


def test_ranks_are_even_for_calibrated_samples_only():
    drawn, truth = RNG(0).normal(size=(9, 20_000)), RNG(1).normal(size=20_000)
    assert rank_deviation(ranks(drawn, truth), 9) < 0.01
    assert rank_deviation(ranks(0.3 * drawn, truth), 9) > 0.15
    assert rank_deviation(ranks(drawn + 1, truth), 9) > 0.3
    with pytest.raises(InputError, match="between 0 and 2"):
        rank_deviation(np.array([3]), 2)


def test_auc_is_the_chance_to_be_told_apart():
    assert auc(np.arange(5), np.arange(5) + 10) == 1
    assert auc(np.arange(5), np.arange(5)) == 0.5
    shifted = auc(RNG(0).normal(size=2000), RNG(1).normal(1, 1, 2000))
    assert shifted == pytest.approx(0.76, abs=0.02)


def test_a_ratio_of_pairs_is_surer_than_its_parts():
    second = RNG(0).uniform(1, 3, 60)
    first = 0.5 * second + RNG(1).normal(0, 0.01, 60)
    ratio = paired_ratio(first, second)
    assert ratio.low < 0.5 < ratio.high
    assert ratio.high - ratio.low < 0.01
    with pytest.raises(InputError, match="equal shapes"):
        paired_ratio(first, second[:5])


def test_an_interval_holds_its_value_and_needs_two_targets():
    found = bootstrap(lambda chosen: float(len(set(chosen.tolist()))), 20)
    assert found.low <= found.mean == found.high == 20
    with pytest.raises(InputError, match="two targets"):
        bootstrap(lambda _: 0.0, 1)
