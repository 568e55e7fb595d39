"""Errors forgive what the measurement cannot know and nothing else; intervals cover."""

import numpy as np
import pytest

from emlab.errors import InputError
from emlab.metrics import mean_interval, paired_difference, relative_error, wilson_interval


def image(size=12, margin=4, seed=0):
    """Random pixels inside an empty margin."""
    inner = np.random.default_rng(seed).uniform(0.5, 1, (size - 2 * margin,) * 2)
    return np.pad(inner, margin)


# --- relative error


@pytest.mark.parametrize("turns", range(4))
def test_a_rotated_copy_has_no_error(turns):
    assert relative_error(np.rot90(image(), turns), image()) == 0


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-3, 3), (1, 0)])
@pytest.mark.parametrize("turns", range(4))
def test_a_shifted_and_rotated_copy_has_no_error_once_shifts_are_allowed(turns, shift):
    moved = np.roll(np.rot90(image(), turns), shift, (0, 1))
    assert relative_error(moved, image(), max_shift=3) == 0
    assert (relative_error(moved, image()) == 0) == (shift == (0, 0))


def test_shifts_beyond_the_largest_are_not_forgiven():
    moved = np.roll(image(), 3, 0)
    assert relative_error(moved, image(), max_shift=2) > 0.3


def test_what_a_shift_pushes_out_is_lost_not_wrapped():
    full = np.random.default_rng(0).normal(size=(6, 6))
    rolled = np.roll(full, 1, 0)
    # the best shift moves five rows home and leaves one row empty
    expected = np.linalg.norm(full[-1]) / np.linalg.norm(full)
    assert relative_error(rolled, full, max_shift=1) == pytest.approx(expected)


def test_a_mirror_image_is_an_error():
    assert relative_error(image()[:, ::-1], image(), max_shift=3) > 0.1


def test_nothing_has_an_error_of_one():
    assert relative_error(np.zeros((12, 12)), image()) == pytest.approx(1)
    assert relative_error(np.zeros((12, 12)), image(), 3) == pytest.approx(1)


def test_the_error_is_relative_to_the_truth():
    truth, noise = image(), np.random.default_rng(1).normal(size=(12, 12))
    noise *= 0.05 * np.linalg.norm(truth) / np.linalg.norm(noise)
    assert relative_error(truth + noise, truth) == pytest.approx(0.05)
    assert relative_error(100 * (truth + noise), 100 * truth) == pytest.approx(0.05)
    assert relative_error(1.2 * truth, truth) == pytest.approx(0.2)


def test_more_freedom_never_makes_the_error_larger():
    truth, estimate = image(), np.random.default_rng(2).random((12, 12))
    errors = [relative_error(estimate, truth, shift) for shift in range(5)]
    turned = [np.linalg.norm(np.rot90(estimate, k) - truth) for k in range(4)]
    assert errors[0] == pytest.approx(min(turned) / np.linalg.norm(truth))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("estimate", "truth", "message"),
    [
        (np.ones((4, 4)), np.ones((5, 5)), "two square images"),
        (np.ones((4, 5)), np.ones((4, 5)), "two square images"),
        (np.ones((2, 4, 4)), np.ones((2, 4, 4)), "two square images"),
        (np.full((4, 4), np.nan), np.ones((4, 4)), "NaN or infinity"),
        (np.ones((4, 4)), np.full((4, 4), np.inf), "NaN or infinity"),
        (np.ones((4, 4)), np.zeros((4, 4)), "truth is zero everywhere"),
    ],
)
def test_errors_without_a_meaning_are_refused(estimate, truth, message):
    with pytest.raises(InputError, match=message):
        relative_error(estimate, truth)


# --- intervals


def test_nineteen_of_twenty_intervals_contain_the_mean():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        values = rng.gamma(4.0, 0.25, 30)  # mean 1, skewed as errors are
        low, high = mean_interval(values, resamples=400, seed=trial)[1:]
        inside += low <= 1 <= high
    # the percentile bootstrap is known to be a little short at 30 targets
    assert 0.90 <= inside / 300 <= 0.98


def test_an_interval_surrounds_its_mean_and_shrinks_with_more_targets():
    values = np.random.default_rng(0).normal(3, 1, 400)
    few, many = mean_interval(values[:25]), mean_interval(values)
    for interval, count in ((few, 25), (many, 400)):
        assert interval.low < interval.mean < interval.high
        assert interval.high - interval.low == pytest.approx(2 * 1.96 / count**0.5, rel=0.3)
    assert many.mean == pytest.approx(values.mean())


def test_draws_of_one_target_do_not_count_as_targets():
    targets = np.random.default_rng(0).normal(size=10)
    repeated = np.repeat(targets[:, None], 50, axis=1)
    assert mean_interval(repeated) == pytest.approx(mean_interval(targets))


def test_targets_that_resemble_each_other_count_as_their_group():
    """Twenty copies of eight values are eight targets; drawn alone they seem to be 160."""
    values = np.random.default_rng(3).normal(size=8)
    copies, groups = np.repeat(values, 20), np.repeat(np.arange(8), 20)
    alone, grouped = mean_interval(copies), mean_interval(copies, groups=groups)
    eight = mean_interval(values)
    assert grouped.high - grouped.low == pytest.approx(eight.high - eight.low)
    assert alone.high - alone.low < 0.4 * (grouped.high - grouped.low)
    with pytest.raises(InputError, match="two targets"):
        mean_interval(copies, groups=np.zeros(160))


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=10)
    assert mean_interval(values) == mean_interval(values) != mean_interval(values, seed=1)


def test_pairing_removes_the_spread_between_targets():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 1, (12, 1))
    worse = difficulty + 0.3 + 0.05 * rng.normal(size=(12, 2))
    better = difficulty + 0.05 * rng.normal(size=(12, 2))
    gain = paired_difference(worse, better)
    assert gain.mean == pytest.approx(0.3, abs=0.05)
    assert 0.2 < gain.low < gain.high < 0.4
    alone = mean_interval(worse)
    assert gain.high - gain.low < 0.1 * (alone.high - alone.low)
    assert paired_difference(better, worse).mean == pytest.approx(-gain.mean)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf]])
def test_an_interval_needs_two_targets_and_finite_values(values):
    with pytest.raises(InputError, match="finite values of at least two targets"):
        mean_interval(np.array(values))


def test_pairs_must_match():
    with pytest.raises(InputError, match="equal shapes"):
        paired_difference(np.ones((3, 2)), np.ones((3, 1)))


# --- Wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_newcombe(successes, trials, low, high):
    """Table I of Newcombe (1998), method 3."""
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((successes / trials, low, high), abs=5e-5)


def test_wilson_intervals_mirror_and_stay_inside():
    for successes in range(8):
        one, other = wilson_interval(successes, 7), wilson_interval(7 - successes, 7)
        assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))
        assert 0 <= one.low <= one.mean <= one.high <= 1
    assert wilson_interval(0, 7).low == 0
    assert wilson_interval(7, 7).high == 1


def test_the_ends_of_a_wilson_interval_are_just_not_contradicted():
    _, *ends = wilson_interval(12, 40, level=0.8)
    for rate in ends:
        assert abs(0.3 - rate) / np.sqrt(rate * (1 - rate) / 40) == pytest.approx(1.281552)


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 5), (6, 5), (1, 5, 0), (1, 5, 1)])
def test_rates_need_trials_and_a_level(arguments):
    with pytest.raises(InputError, match=r"at least one trial|level"):
        wilson_interval(*arguments)
