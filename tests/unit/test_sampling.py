"""Samplers against posteriors known in closed form, and the pieces of the first chapter."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from drawing import generator

from emlab import chapters
from emlab.chapters.start_here import cases as lab
from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.priors import FlowPrior, GaussianPrior, VPPrior
from emlab.priors.objectives import VPSchedule
from emlab.solvers import PosteriorConfig, sample_posterior, sample_prior
from emlab.solvers.sampling import noise_levels

SIZE, STD, NOISE = 6, 0.7, 0.3


def white():
    return GaussianPrior(torch.full((SIZE, SIZE), 0.4), STD**2)


def half_mask():
    return lab.Mask((torch.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2).float())


def posterior_samples(prior, mask, measurement, n=2000, seed=3, **options):
    return sampled(prior, mask, measurement, NOISE, n, seed, **{"steps": 300, **options})


def sampled(prior, mask, measurement, noise, n, seed=0, prior_std=STD, **options):
    config = PosteriorConfig(prior_std, **options)
    noise, random = GaussianNoise(noise), generator(seed)
    return sample_posterior(prior, mask, measurement, noise, config, random, samples=n).images


@pytest.fixture(scope="module")
def case():
    """White Gaussian images, half of the pixels seen: prior, mask, exact posterior, samples."""
    prior, mask = white(), half_mask()
    measurement = lab.measure(mask, prior.sample(1, generator(1))[0], NOISE, generator(2))
    exact = lab.gaussian_posterior(prior, mask, measurement, NOISE)
    return prior, mask, *exact, posterior_samples(prior, mask, measurement)


# --- noise levels


def test_noise_levels_fall_from_the_first_to_zero():
    levels = noise_levels(10, 5.0, 0.1)
    assert len(levels) == 11
    assert levels[0] == pytest.approx(5.0)
    assert levels[-2] == pytest.approx(0.1)
    assert levels[-1] == 0
    assert all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize(("steps", "high", "low"), [(1, 5, 1), (5, 1, 1), (5, 1, 2), (5, 1, 0)])
def test_noise_levels_that_do_not_fall_are_refused(steps, high, low):
    with pytest.raises(InputError, match="at least 2 steps"):
        noise_levels(steps, high, low)


# --- the prior


def test_prior_samples_have_mean_and_covariance_of_the_prior():
    prior = lab.smooth_images(4, correlation=1.5)
    samples = sample_prior(prior, (20_000, 4, 4), generator(), steps=40, sigma_max=50.0).flatten(1)
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    assert samples.mean(0).abs().max() < 0.03
    assert (samples.T.cov() - covariance).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["exact", "vp", "flow"])
def test_every_parametrisation_samples_the_same_islands(kind):
    islands, schedule = lab.three_islands(), VPSchedule()
    prior = {
        "exact": islands,
        "vp": VPPrior(lab.ExactDiffusion(islands, schedule), schedule),
        "flow": FlowPrior(lab.ExactVelocity(islands)),
    }[kind]
    samples = sample_prior(prior, (4000, 1, 2), generator(), steps=30)
    assert lab.largest_share_error(samples, islands, islands.log_weights.exp()) < 0.025
    assert abs(lab.energy_distance(samples, islands.sample(4000, generator(1)))) < 0.01


def test_samplers_repeat_with_the_seed_and_differ_without():
    prior, mask = white(), half_mask()
    for draw in (
        lambda seed: sample_prior(prior, (2, SIZE, SIZE), generator(seed), steps=5),
        lambda seed: posterior_samples(prior, mask, mask.mask, n=2, seed=seed, steps=5),
    ):
        assert torch.equal(draw(7), draw(7))
        assert not torch.allclose(draw(7), draw(8))


def test_samplers_keep_double_precision():
    prior = GaussianPrior(torch.zeros(2, 2).double(), 1.0)
    drawn = sample_prior(prior, (3, 2, 2), generator(), steps=5, dtype=torch.float64)
    measurement = torch.zeros(2, 2).double()
    mask = lab.Mask(torch.ones(2, 2).double())
    given = sampled(prior, mask, measurement, 0.5, 3, prior_std=1.0, steps=5)
    assert drawn.dtype == given.dtype == torch.float64
    assert drawn.shape == given.shape == (3, 2, 2)


# --- the posterior


def test_closed_form_of_the_posterior_is_that_of_single_pixels(case):
    prior, mask, mean, std, _ = case
    seen = mask.mask.bool()
    assert torch.allclose(std[~seen], torch.tensor(STD), atol=1e-5)
    assert torch.allclose(mean[~seen], prior.mean[~seen], atol=1e-5)
    expected = STD * NOISE / math.hypot(STD, NOISE)
    assert torch.allclose(std[seen], torch.tensor(expected), atol=1e-5)


def test_closed_form_of_the_posterior_agrees_with_conditioned_draws():
    prior, mask = lab.smooth_images(3, 1.0), lab.Mask(torch.eye(3))
    draws = prior.sample(400_000, generator())
    seen = lab.measure(mask, draws, NOISE, generator(1)).flatten(1).double()
    inputs = torch.cat([seen[:, ::4], torch.ones(len(seen), 1)], dim=1)
    fit = torch.linalg.lstsq(inputs, draws.flatten(1).double())
    measurement = lab.measure(mask, prior.sample(1, generator(2))[0], NOISE, generator(3))
    values = torch.cat([measurement.flatten()[::4], torch.ones(1)]).double()
    mean, std = lab.gaussian_posterior(prior, mask, measurement, NOISE)
    regressed = (draws.flatten(1) - inputs @ fit.solution).std(0)
    assert (mean.flatten() - values @ fit.solution).abs().max() < 0.02
    assert (std.flatten() - regressed).abs().max() < 0.01


def test_posterior_intervals_cover_what_they_claim(case):
    _, _, mean, std, samples = case
    assert 0.88 < lab.coverage(samples, mean, std) < 0.91


def test_more_steps_bring_the_variance_closer():
    prior, mask = white(), half_mask()
    _, std = lab.gaussian_posterior(prior, mask, prior.mean, NOISE)
    ratios = [
        (posterior_samples(prior, mask, prior.mean * mask.mask, steps=n).var(0) / std**2).mean()
        for n in (30, 300)
    ]
    assert abs(ratios[1] - 1) < abs(ratios[0] - 1) / 2


def test_unseen_values_follow_their_correlation_with_seen_ones():
    prior = lab.smooth_images(6, correlation=2.0)
    mask = half_mask()
    measurement = lab.measure(mask, prior.sample(1, generator(1))[0], 0.5, generator(2))
    mean, std = lab.gaussian_posterior(prior, mask, measurement, 0.5)
    samples = sampled(prior, mask, measurement, 0.5, 1000, seed=3, prior_std=1.0)
    scores = lab.compare_posteriors([(mean, std)], [samples])
    (error,), (ratio,), (covered,) = scores.values()
    assert error < 0.4
    assert 0.9 < ratio < 1.25
    assert 0.86 < covered < 0.94
    ignorant = (prior.mean - mean) / std
    assert ignorant.square().mean().sqrt() > 3 * error


def test_posterior_of_the_islands_keeps_both_that_fit():
    islands, mask = lab.three_islands(), lab.Mask(torch.tensor([[1.0, 0.0]]))
    measurement = torch.tensor([[-0.9, 0.0]])
    samples = sampled(islands, mask, measurement, 0.5, 3000, prior_std=0.4, steps=100)
    exact = lab.exact_shares(islands, -0.9, 0.5)
    points = lab.grid(4.0, 300)
    weight = lab.log_posterior_on_grid(islands, points, -0.9, 0.5).flatten().softmax(0)
    by_grid = weight @ islands.responsibilities(points, 0.0).flatten(0, 1)
    assert torch.allclose(exact, by_grid, atol=2e-3)
    assert lab.largest_share_error(samples, islands, exact) < 0.04


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_a_wrong_noise_level_costs_the_coverage_of_the_closed_form(factor):
    prior = GaussianPrior(torch.zeros(24, 24), STD**2)
    mask, told = lab.Mask(torch.ones(24, 24)), factor * NOISE
    truth = prior.sample(1, generator(1))[0]
    measurement = lab.measure(mask, truth, NOISE, generator(2))
    gain = STD**2 / (STD**2 + told**2)
    half_width = lab.NORMAL_90 * told * math.sqrt(gain)
    covered = ((truth - gain * measurement).abs() < half_width).float().mean().item()
    assert lab.coverage_with_wrong_noise(STD, NOISE, told) == pytest.approx(covered, abs=0.05)
    if factor == 1.0:
        assert lab.coverage_with_wrong_noise(STD, NOISE, told) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize(("noise", "std"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_levels_that_are_not_positive_are_refused(noise, std):
    with pytest.raises(InputError, match="must be positive"):
        sampled(white(), half_mask(), torch.zeros(SIZE, SIZE), noise, 1, prior_std=std)


# --- pieces of the chapter


def test_adjoint_of_the_mask():
    mask, x, y = half_mask(), *torch.randn(2, SIZE, SIZE, generator=generator())
    left, right = (mask.A(x) * y).sum(), (x * mask.A_adjoint(y)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0])
def test_exact_networks_are_the_prior_that_they_came_from(sigma):
    islands, schedule = lab.three_islands(), VPSchedule()
    x = 2 * torch.randn(50, 1, 2, generator=generator())
    for prior in (
        VPPrior(lab.ExactDiffusion(islands, schedule), schedule),
        FlowPrior(lab.ExactVelocity(islands)),
    ):
        torch.testing.assert_close(
            prior.denoise(x, sigma), islands.denoise(x, sigma), atol=1e-4, rtol=1e-4
        )


def test_energy_distance_sees_a_shift():
    points = torch.randn(1000, 1, 2, generator=generator())
    other = torch.randn(1000, 1, 2, generator=generator(1))
    assert abs(lab.energy_distance(points, other)) < 0.01
    assert lab.energy_distance(points, other + 1) > 0.2


def test_the_score_error_of_the_exact_score_and_of_none():
    islands = lab.three_islands()
    assert lab.score_error(islands.score, islands, 0.3) == 0
    assert lab.score_error(lambda x, _: 0 * x, islands, 0.3) == pytest.approx(1)


def test_psnr_and_tuning():
    truth = np.zeros((3, 8, 8), np.float32)
    np.testing.assert_allclose(lab.psnr(truth + 0.1, truth), 20, atol=1e-4)
    assert lab.tune(lambda images, s: images * s, (0.1, 0.5, 0.9), truth + 1, truth) == 0.1


def test_images_are_spread_over_all_classes():
    images = np.arange(200)[:, None, None]
    assert lab.spread_out(images, 20).ravel()[[0, -1]].tolist() == [0, 199]
    for n in (0, 201):
        with pytest.raises(InputError, match="cannot be taken"):
            lab.spread_out(images, n)


def test_shortcuts_name_what_is_smaller_than_at_full_scale():
    slug = "00_start_here"
    smoke, paper = (chapters.settings(slug, name)["steps"] for name in ("smoke", "paper"))
    line = f"training steps of each small network: {smoke} here, {paper} at full scale"
    assert line in chapters.shortcuts(slug, "smoke")
    assert chapters.shortcuts(slug, "paper") == []
    with pytest.raises(InputError, match="unknown profile"):
        chapters.settings(slug, "huge")
