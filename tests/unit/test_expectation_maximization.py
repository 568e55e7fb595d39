"""Expectation-maximisation climbs, and every M-step is the step that its equation says."""

import itertools
import math

import pytest
import torch
from drawing import draw, generator
from torch.nn.functional import pad

from emlab.errors import InputError
from emlab.physics.mtd import Rotations, cut_patches, simulate_measurement
from emlab.priors.gaussian import GaussianPrior
from emlab.solvers.expectation_maximization import (
    EMConfig,
    ExpectationStep,
    aligned_average,
    approximate_em,
    estimate_noise,
    likelihood_gradient,
    maximization_step,
    sample_images,
)
from emlab.solvers.one_step import DiffuseBackConfig

SIZE = 5


def gaussian_prior(seed=11):
    """Correlated pixels, so that a denoiser which forgets the covariance is found out."""
    factor = draw(25, 25, seed=seed)
    return GaussianPrior(1 + draw(5, 5, seed=12), factor @ factor.T / 25 + 0.1 * torch.eye(25))


def problem(count=4, snr=3.0, seed=1, grids=1, field_size=35, dtype=torch.float64):
    """Truth and E-step of a small field."""
    truth = 1 + draw(SIZE, SIZE, seed=seed)
    measurement = simulate_measurement(
        truth.to(dtype), snr, generator(seed), field_size=field_size, density=0.15, rotations=count
    )
    patches = cut_patches(measurement.field, SIZE, grids)
    coverage = max(1.0, patches.numel() / measurement.field.numel())
    rotations = Rotations(count, SIZE, dtype)
    return truth.to(dtype), ExpectationStep(patches, rotations, measurement.sigma, coverage)


def known_poses(sigma=0.05, copies=6, count=4):
    """Whole copies, one a patch, so little noise that the E-step is sure of every pose."""
    truth = 1 + draw(SIZE, SIZE, seed=1)
    rotations = Rotations(count, SIZE, torch.float64)
    turns = torch.arange(copies) % count
    noisy = rotations.A(truth)[turns] + sigma * draw(copies, SIZE, SIZE, seed=2)
    upright = torch.stack(
        [rotations.rotate_adjoint(p, int(k)) for p, k in zip(noisy, turns, strict=True)]
    )
    empty = sigma * draw(3, SIZE, SIZE, seed=3)
    expectation = ExpectationStep(torch.cat([noisy, empty]), rotations, sigma)
    return truth, upright, expectation


# --- the likelihood climbs


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(("count", "grids"), [(4, 1), (4, 2), (8, 1), (3, 1)])
def test_the_likelihood_never_falls_under_exact_em(count, grids, learn):
    _, expectation = problem(count, grids=grids)
    config = EMConfig(iterations=25, learn_occupancy=learn, tolerance=0.0)
    trace = approximate_em(expectation, draw(4, SIZE, SIZE, seed=4), config).trace
    assert trace.shape == (26, 4)
    assert (trace.diff(dim=0) >= -1e-9 * trace[-1].abs()).all()
    assert (trace[-1] > trace[0] + 5).all()


@pytest.mark.parametrize("count", [4, 8])
def test_the_posterior_density_never_falls_under_map(count):
    _, expectation = problem(count, snr=1.0)
    mean, variance = 1 + draw(SIZE, SIZE, seed=9), 0.5
    config = EMConfig(
        iterations=1, m_step="map", score_sigma=0.0, prior_precision=1 / variance, tolerance=0.0,
        learn_occupancy=False,
    )  # fmt: skip
    prior, images, densities = GaussianPrior(mean, variance), draw(2, SIZE, SIZE, seed=4), []
    for _ in range(20):
        log_prior = -(images - mean).square().sum((1, 2)) / (2 * variance)
        densities.append(expectation(images).log_likelihood + log_prior)
        images = approximate_em(expectation, images, config, prior).images
    assert (torch.stack(densities).diff(dim=0) >= -1e-8).all()
    assert (densities[-1] > densities[0] + 5).all()


def test_a_small_gradient_step_climbs():
    _, expectation = problem()
    config = EMConfig(iterations=10, m_step="gradient", step_size=1e-3, learn_occupancy=False)
    trace = approximate_em(expectation, draw(3, SIZE, SIZE, seed=4), config).trace
    assert (trace.diff(dim=0) > 0).all()


def test_learning_the_occupancy_fits_better_and_finds_it():
    truth, expectation = problem(snr=5.0, field_size=110)
    runs = [
        approximate_em(expectation, truth[None], EMConfig(iterations=15, learn_occupancy=learn))
        for learn in (False, True)
    ]
    assert runs[1].log_likelihood.item() > runs[0].log_likelihood.item() + 5
    # expected: a density of 0.15 times the (2 - 1/L)^2 patches that a copy meets
    assert runs[1].occupancy.item() == pytest.approx(0.15 * 1.8**2, abs=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m_step", ["gradient", "closed_form", "map", "proximal"])
@pytest.mark.parametrize("snr", [1e-3, 1e4])
def test_no_m_step_breaks_at_extreme_noise(snr, m_step, dtype):
    truth, expectation = problem(snr=snr, dtype=dtype)
    starts = torch.stack([truth, draw(SIZE, SIZE, seed=4).to(dtype), 0 * truth])
    step_size = 0.01 * expectation.sigma**2
    config = EMConfig(iterations=8, m_step=m_step, step_size=step_size, score_sigma=0.0)
    prior = GaussianPrior(torch.ones(SIZE, SIZE, dtype=dtype), 1.0)
    result = approximate_em(expectation, starts, config, prior)
    assert result.images.dtype == dtype
    for tensor in (result.images, result.trace, result.occupancy):
        assert torch.isfinite(tensor).all()


# --- what each step is


def test_the_closed_form_is_numerator_over_denominator_and_zeroes_the_gradient():
    truth, expectation = problem()
    statistics = expectation(truth[None])
    image = maximization_step(truth[None], statistics, expectation, EMConfig())
    turned = [
        torch.stack([torch.rot90(t[0, k], -k) for k in range(4)]).sum(0)
        for t in (statistics.numerator, statistics.denominator)
    ]
    torch.testing.assert_close(image[0], turned[0] / turned[1])
    gradient = likelihood_gradient(image, statistics, expectation.rotations, 1.0)
    assert gradient.abs().max() < 1e-9


def test_pixels_that_were_never_seen_keep_their_value():
    _, expectation = problem()
    image = draw(1, SIZE, SIZE)
    statistics = expectation(image)
    for tensor in (statistics.numerator, statistics.denominator):
        tensor[..., 0, :] = tensor[..., :, 0] = tensor[..., -1, :] = tensor[..., :, -1] = 0
    moved, visibility = aligned_average(image, statistics, expectation.rotations)
    unseen = visibility == 0
    assert unseen.sum() == 16
    assert torch.equal(moved[unseen], image[unseen])
    assert not torch.isclose(moved[~unseen], image[~unseen]).any()


@pytest.mark.parametrize("with_prior", [False, True])
def test_the_gradient_step_is_the_papers_equation(with_prior):
    truth, expectation = problem()
    images = torch.stack([truth, draw(SIZE, SIZE, seed=4)])
    prior = gaussian_prior() if with_prior else None
    config = EMConfig(m_step="gradient", step_size=0.02, prior_weight=3.0, score_sigma=0.7)
    statistics = expectation(images)
    gradient = likelihood_gradient(images, statistics, expectation.rotations, expectation.sigma**2)
    score = prior.score(images, 0.7) if prior else torch.zeros_like(images)
    actual = maximization_step(images, statistics, expectation, config, 0, prior)
    torch.testing.assert_close(actual, images + 0.02 * (gradient + 3.0 * score))


def test_a_linear_schedule_brings_the_prior_in_gradually():
    truth, expectation = problem()
    config = EMConfig(
        iterations=5, m_step="gradient", step_size=0.02, prior_weight=8.0, prior_schedule="linear"
    )
    assert [config.prior_weight_at(i) for i in range(5)] == [0, 2, 4, 6, 8]
    assert EMConfig(iterations=5, prior_weight=8.0).prior_weight_at(0) == 8
    statistics, prior, images = expectation(truth[None]), gaussian_prior(), truth[None]
    steps = [
        maximization_step(images, statistics, expectation, config, i, prior) for i in (0, 2, 4)
    ]
    torch.testing.assert_close(
        steps[0], maximization_step(images, statistics, expectation, config, 0)
    )
    torch.testing.assert_close(steps[2] - steps[1], steps[1] - steps[0])
    torch.testing.assert_close(steps[2] - steps[0], 0.02 * 8 * prior.score(images, 0.0446))


def test_map_is_the_exact_posterior_mode_when_poses_are_certain():
    truth, upright, expectation = known_poses()
    mean, std = truth + 0.05 * draw(SIZE, SIZE, seed=5), 0.03
    config = EMConfig(iterations=4, m_step="map", score_sigma=0.0, prior_precision=1 / std**2)
    actual = approximate_em(expectation, mean[None], config, GaussianPrior(mean, std**2)).images[0]
    precision = len(upright) / expectation.sigma**2
    expected = precision * upright.mean(0) + mean / std**2
    torch.testing.assert_close(actual, expected / (precision + 1 / std**2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_proximal_is_the_posterior_mean_when_poses_are_certain(weight):
    truth, upright, expectation = known_poses()
    covariance = 0.01 * gaussian_prior().basis.abs()
    covariance = covariance @ covariance.T
    prior = GaussianPrior(truth + 0.05 * draw(SIZE, SIZE, seed=5), covariance)
    config = EMConfig(iterations=4, m_step="proximal", prior_weight=weight)
    actual = approximate_em(expectation, truth[None], config, prior).images[0]
    noise = weight * expectation.sigma**2 / len(upright) * torch.eye(25)
    gain = covariance @ torch.linalg.inv(covariance + noise)
    pull = gain @ (upright.mean(0) - prior.mean).flatten()
    torch.testing.assert_close(actual, prior.mean + pull.reshape(SIZE, SIZE), rtol=1e-8, atol=1e-8)


# --- running it


def test_starts_do_not_see_each_other():
    _, expectation = problem()
    starts = draw(3, SIZE, SIZE, seed=4)
    config = EMConfig(iterations=6, tolerance=0.0)
    together = approximate_em(expectation, starts, config)
    for index in range(3):
        alone = approximate_em(expectation, starts[index : index + 1], config)
        torch.testing.assert_close(together.images[index], alone.images[0])
        torch.testing.assert_close(together.trace[:, index], alone.trace[:, 0])


def test_the_best_start_is_the_most_likely_and_its_number_is_that_of_the_final_image():
    truth, expectation = problem(snr=10.0)
    starts = torch.stack([draw(SIZE, SIZE, seed=4), truth, draw(SIZE, SIZE, seed=5)])
    result = approximate_em(expectation, starts, EMConfig(iterations=3, learn_occupancy=False))
    assert result.best == 1
    again = expectation(result.images)
    torch.testing.assert_close(result.log_likelihood, again.log_likelihood)
    torch.testing.assert_close(result.statistics.numerator, again.numerator)
    assert torch.equal(result.trace[-1], result.log_likelihood)


def test_it_stops_when_nothing_moves_any_more():
    truth, expectation = problem(snr=10.0)
    result = approximate_em(expectation, truth[None], EMConfig(iterations=300, tolerance=1e-4))
    assert 3 < len(result.trace) < 100
    again = maximization_step(result.images, result.statistics, expectation, EMConfig())
    assert (again - result.images).norm() < 2e-4 * result.images.norm()


def test_tolerance_zero_never_stops():
    truth, _, expectation = known_poses()
    result = approximate_em(expectation, truth[None], EMConfig(iterations=12, tolerance=0.0))
    assert len(result.trace) == 13


def test_the_starts_are_left_alone_and_progress_is_told():
    _, expectation = problem()
    starts, told = draw(2, SIZE, SIZE, seed=4), []
    copy = starts.clone()
    result = approximate_em(
        expectation, starts, EMConfig(iterations=3, tolerance=0.0),
        progress=lambda *message: told.append(message),
    )  # fmt: skip
    assert torch.equal(starts, copy)
    assert [iteration for iteration, _ in told] == [0, 1, 2]
    assert torch.equal(torch.stack([likelihood for _, likelihood in told]), result.trace[:-1])


@pytest.mark.parametrize("grids", [1, 2])
@pytest.mark.parametrize(("count", "snr"), [(4, 0.5), (4, 10.0), (8, 3.0)])
def test_the_noise_level_is_estimated_at_the_truth(count, snr, grids):
    truth, expectation = problem(count, snr=snr, field_size=110, grids=grids)
    images = torch.stack([truth, 0 * truth])
    estimates = estimate_noise(images, expectation(images, 0.4), expectation)
    assert estimates[0].item() == pytest.approx(expectation.sigma, rel=0.04)
    raw = math.sqrt(expectation.energy / (expectation.count * SIZE**2))
    assert estimates[1].item() == pytest.approx(raw)


# --- drawing images from their posterior


def closed_form_posterior(patches, prior, variance, sigma, occupancy):
    """Mean and covariance of the pixels of an image seen in two patches, in whatever states.

    A mixture of Gaussians, one for each pair of states, each by the formula of linear regression.
    """
    pixels = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
    views = torch.stack(
        [
            pad(pixels.rot90(k, (1, 2)), (0, 2, 0, 2)).roll(shift, (1, 2))[:, :2, :2].flatten(1).T
            for k in range(4)
            for shift in itertools.product(range(4), repeat=2)
        ]
    )
    blank = views.sum((1, 2)) == 0
    log_state = torch.where(blank, (1 - occupancy) / blank.sum(), occupancy / (~blank).sum()).log()
    pairs = torch.cartesian_prod(torch.arange(64), torch.arange(64))
    operators = views[pairs].flatten(1, 2)
    seen, identity = patches.flatten(), torch.eye(8, dtype=torch.float64)
    noise = sigma**2 * identity + variance * operators @ operators.mT
    law = torch.distributions.MultivariateNormal(operators @ prior.mean.flatten(), noise)
    weights = (log_state[pairs].sum(1) + law.log_prob(seen)).softmax(0)
    precision = torch.eye(4, dtype=torch.float64) / variance + operators.mT @ operators / sigma**2
    pull = prior.mean.flatten() / variance + operators.mT @ seen / sigma**2
    means = torch.linalg.solve(precision, pull)
    mean = weights @ means
    apart = means - mean
    within = torch.einsum("c,cij->ij", weights, torch.linalg.inv(precision))
    return mean, within + torch.einsum("c,ci,cj->ij", weights, apart, apart)


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_sampled_images_have_the_mean_and_covariance_of_the_closed_form(sigma):
    """With states that cannot be told apart and pixels that are seen unequally often."""
    variance, occupancy = 0.5, 0.7
    prior = GaussianPrior(1 + draw(2, 2, seed=9), variance)
    truth = prior.sample(1, generator(3))[0]
    clean = torch.zeros(2, 2, 2, dtype=torch.float64)
    clean[0], clean[1, :1] = truth, truth.rot90(1)[1:]
    patches = clean + sigma * draw(2, 2, 2, seed=5)
    mean, covariance = closed_form_posterior(patches, prior, variance, sigma, occupancy)
    expectation = ExpectationStep(patches, Rotations(4, 2, torch.float64), sigma)
    starts, config = prior.sample(400, generator(1)), DiffuseBackConfig(steps=150, sigma_min=0.005)
    chains = sample_images(expectation, starts, prior, occupancy, 60, generator(2), config)
    assert chains.shape == (60, 400, 2, 2)
    drawn = chains[20:].reshape(-1, 4)
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("change", [{"sweeps": 0}, {"occupancy": 0.0}, {"occupancy": 1.0}])
def test_samples_need_a_sweep_and_an_occupancy(change):
    truth, expectation = problem()
    given = {"sweeps": 1, "occupancy": 0.4} | change
    with pytest.raises(InputError, match="sweeps >= 1 and occupancy in"):
        sample_images(expectation, truth[None], gaussian_prior(), generator=generator(), **given)


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"m_step": "newton"}, "m_step must be 'gradient' or 'closed_form'"),
        ({"prior_schedule": "cosine"}, "'constant' or 'linear'"),
        ({"assignment": "firm"}, "assignment must be 'soft' or 'hard'"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"step_size": math.nan}, "step_size must be a finite number"),
        ({"prior_precision": -1.0}, "prior_precision must be positive"),
        ({"prior_weight": -1.0}, "prior_weight must not be negative"),
        ({"prior_weight": math.nan}, "prior_weight must be a finite number"),
        ({"score_sigma": -0.1}, "score_sigma must not be negative"),
        ({"tolerance": -1e-3}, "tolerance must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        EMConfig(**change)


@pytest.mark.parametrize(
    "starts",
    [torch.zeros(5, 5), torch.zeros(1, 4, 4), torch.full((1, 5, 5), math.nan)],
)
def test_starts_must_be_finite_images_of_the_right_size(starts):
    _, expectation = problem()
    with pytest.raises(InputError, match=r"starts must be finite and \(B, 5, 5\)"):
        approximate_em(expectation, starts.double(), EMConfig())


@pytest.mark.parametrize("m_step", ["map", "proximal"])
def test_steps_that_need_a_prior_say_so(m_step):
    truth, expectation = problem()
    with pytest.raises(InputError, match="needs a prior; choose 'closed_form' without one"):
        approximate_em(expectation, truth[None], EMConfig(m_step=m_step))
