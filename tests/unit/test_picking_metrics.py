"""Matching of picks is one to one and optimal, and its counts are what they are called."""

import numpy as np
import pytest

from emlab.errors import InputError
from emlab.metrics import picking


def test_two_picks_on_one_particle_are_one_hit():
    found = picking.match(np.array([[10, 10], [11, 10]]), np.array([[10.4, 10]]), 5)
    assert found.hits == 1
    assert found.pick_to_truth.tolist() == [0, -1]
    assert found.distances.tolist() == [pytest.approx(0.4), np.inf]


def test_the_assignment_has_the_most_pairs_not_the_nearest_first():
    """The pick at 4 is nearest to the particle at 5, which is the only one the other can have."""
    found = picking.match(np.array([[0, 4], [0, 8]]), np.array([[0, 0], [0, 5]]), 4.5)
    assert found.hits == 2
    assert found.pick_to_truth.tolist() == [0, 1]


def test_a_hit_is_within_the_radius():
    assert picking.match(np.array([[0, 3.0]]), np.array([[0, 0]]), 3).hits == 1
    assert picking.match(np.array([[0, 3.01]]), np.array([[0, 0]]), 3).hits == 0
    with pytest.raises(InputError, match="radius"):
        picking.match(np.zeros((1, 2)), np.zeros((1, 2)), 0)


def test_matching_equals_brute_force():
    from itertools import permutations

    generator = np.random.default_rng(0)
    for _ in range(20):
        picks, truth = generator.uniform(0, 10, (4, 2)), generator.uniform(0, 10, (4, 2))
        near = np.linalg.norm(picks[:, None] - truth, axis=2) <= 3
        best = max(sum(near[i, j] for i, j in enumerate(p)) for p in permutations(range(4)))
        assert picking.match(picks, truth, 3).hits == best


def test_micro_pools_the_picks_and_macro_the_micrographs():
    counts = picking.Counts(np.array([9, 1]), np.array([10, 10]), np.array([10, 2]))
    assert counts.precision() == 0.5
    assert counts.recall() == pytest.approx(10 / 12)
    assert counts.recall("macro") == pytest.approx((0.9 + 0.5) / 2)
    assert counts.f1() == pytest.approx(20 / 32)
    interval = counts.interval("f1")
    assert interval.low <= interval.mean == counts.f1() <= interval.high
    with pytest.raises(InputError, match="micro"):
        counts.f1("mean")


def test_no_picks_and_no_particles():
    nothing = picking.count([np.zeros((0, 2))], [np.zeros(0)], [np.zeros((0, 2))], 1)
    assert nothing.f1() == nothing.precision() == nothing.recall() == 1
    missed = picking.count([np.zeros((0, 2))], [np.zeros(0)], [np.ones((3, 2))], 1)
    assert (missed.f1(), missed.recall()) == (0, 0)


def test_the_curve_finds_the_threshold_that_separates():
    generator = np.random.default_rng(1)
    truth = [generator.uniform(0, 1000, (20, 2)) for _ in range(3)]
    picks = [np.concatenate([true, generator.uniform(2000, 3000, (30, 2))]) for true in truth]
    scores = [np.r_[generator.uniform(1, 2, 20), generator.uniform(-1, 0.9, 30)] for _ in truth]
    found = picking.curve(picks, scores, truth, 5, levels=400)
    assert 0.8 < found.best < 1.2
    assert found.f1.max() == 1
    assert found.average_precision == pytest.approx(1)
    assert found.precision[-1] == pytest.approx(0.4)
    assert found.recall[-1] == 1
    with pytest.raises(InputError, match="no pick"):
        picking.curve([], [], [], 5)


def test_chance_is_what_the_particles_cover():
    places = np.stack(np.meshgrid(np.arange(50, 1000, 100), np.arange(50, 1000, 100)), -1)
    truth = [places.reshape(-1, 2).astype(float)]
    few = picking.chance(truth, [(1000, 1000)], 10.0)
    assert few.f1() == pytest.approx(np.pi * 10**2 / 100**2, abs=0.02)
    assert picking.chance(truth, [(1000, 1000)], 60.0).f1() > 10 * few.f1()
    assert few.hits.shape == (20,)
