"""Calibrated samples cover what they say: checked on a Gaussian posterior in closed form."""

import math

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.metrics.calibration import coverage, error_against_spread

PIXELS = (100, 120)


@pytest.fixture(scope="module")
def posterior():
    """Truth of unit variance seen through noise that grows along the image: mean, spread, truth."""
    rng = np.random.default_rng(0)
    noise = np.linspace(0.2, 2, PIXELS[1])
    truth = rng.normal(size=PIXELS)
    measurement = truth + noise * rng.normal(size=PIXELS)
    mean = measurement / (1 + noise**2)
    spread = np.broadcast_to(noise / np.sqrt(1 + noise**2), PIXELS)
    return mean, spread, truth


def draw(posterior, n, width=1.0, seed=1):
    mean, spread, _ = posterior
    return mean + width * spread * np.random.default_rng(seed).normal(size=(n, *PIXELS))


@pytest.mark.parametrize(
    ("interval", "n"), [("quantile", 19), ("quantile", 25), ("normal", 3), ("normal", 12)]
)
def test_samples_of_the_posterior_cover_the_level_for_any_number_of_samples(posterior, interval, n):
    covered = coverage(draw(posterior, n), posterior[2], 0.9, interval)
    assert covered == pytest.approx(0.9, abs=0.012)


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_other_levels_are_covered_too(posterior, level):
    for interval in ("quantile", "normal"):
        covered = coverage(draw(posterior, 20), posterior[2], level, interval)
        assert covered == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize("interval", ["quantile", "normal"])
def test_samples_too_narrow_or_too_wide_are_found_out(posterior, interval):
    """Half the width covers erf(1.645 / 2 / sqrt 2) = 59 %, twice the width 99.9 %."""
    narrow = coverage(draw(posterior, 39, 0.5), posterior[2], 0.9, interval)
    assert narrow == pytest.approx(math.erf(1.645 / 2 / math.sqrt(2)), abs=0.05)
    assert coverage(draw(posterior, 39, 2.0), posterior[2], 0.9, interval) > 0.99


def test_identical_samples_cover_only_a_perfect_answer(posterior):
    mean, _, truth = posterior
    assert coverage(np.stack([mean] * 20), truth) == 0
    assert coverage(np.stack([truth] * 20), truth) == 1


def test_error_equals_spread_in_every_bin_of_the_posterior(posterior):
    mean, spread, truth = posterior
    found = error_against_spread(mean, spread, truth, bins=8)
    assert found.counts.sum() == truth.size
    assert np.ptp(found.counts) <= 1
    assert (np.diff(found.spread) > 0).all()
    np.testing.assert_allclose(found.error, found.spread, rtol=0.08)
    assert found.ratio == pytest.approx(1, abs=0.03)


def test_the_mean_of_few_samples_adds_its_own_error(posterior):
    samples = draw(posterior, 4)
    found = error_against_spread(samples.mean(axis=0), posterior[1], posterior[2])
    assert found.ratio == pytest.approx(math.sqrt(1 + 1 / 4), abs=0.03)


def test_overconfidence_and_a_spread_that_says_nothing_show(posterior):
    mean, spread, truth = posterior
    assert error_against_spread(mean, spread / 2, truth).ratio == pytest.approx(2, abs=0.06)
    shuffled = np.random.default_rng(0).permutation(spread.ravel()).reshape(PIXELS)
    blind = error_against_spread(mean, shuffled, truth)
    assert np.ptp(blind.error) < 0.15 < np.ptp(blind.spread)
    assert error_against_spread(mean, 0 * spread, truth).ratio == math.inf


def test_tensors_are_taken(posterior):
    mean, spread, truth = (torch.tensor(np.array(values)) for values in posterior)
    assert error_against_spread(mean, spread, truth).ratio == pytest.approx(1, abs=0.03)
    assert coverage(torch.stack([truth, truth + 1]), truth, 0.9, "normal") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((18, 4)), np.ones(4)), "need 19 samples"),
        ((np.ones((9, 4)), np.ones(4), 0.9), "interval='normal'"),
        ((np.ones((1, 4)), np.ones(4), 0.9, "normal"), "need 2 samples"),
        ((np.ones((20, 4)), np.ones(5)), "samples"),
        ((np.ones((20, 4)), np.ones(4), 1.0), "level"),
        ((np.ones((20, 4)), np.ones(4), 0.9, "bayes"), "quantile or normal"),
        ((np.full((20, 4), np.nan), np.ones(4)), "NaN"),
    ],
)
def test_coverage_without_a_meaning_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        coverage(*arguments)


@pytest.mark.parametrize(
    ("spread", "bins", "message"),
    [(-np.ones(4), 2, "zero or more"), (np.ones(4), 5, "4 bins"), (np.ones(3), 2, "one shape")],
)
def test_spreads_without_a_meaning_are_refused(spread, bins, message):
    with pytest.raises(InputError, match=message):
        error_against_spread(np.ones(4), spread, np.ones(4), bins)
