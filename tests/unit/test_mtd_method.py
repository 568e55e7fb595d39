"""From a field to an image: close to known poses, without a prior too, and repeatable."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.methods.mtd import (
    Config,
    align_to_prior,
    draw_starts,
    estimate_noise_level,
    load_config,
    recover,
)
from emlab.metrics import relative_error
from emlab.physics.mtd import Rotations, simulate_measurement
from emlab.priors.gaussian import GaussianMixturePrior, gaussian_prior
from emlab.priors.networks import load_prior
from emlab.settings import read_settings
from emlab.solvers.expectation_maximization import EMConfig

SIZE = 5
NO_PRIOR = Config(size=SIZE, starts=24, kept=6)


def truth(seed=100):
    return gaussian_prior().sample(1, generator(seed))[0]


def measure(snr=10.0, seed=0, **how):
    image = truth(100 + seed)
    return image, simulate_measurement(image, snr, generator(seed), **how)


def error(image, reference):
    return relative_error(image.numpy(), reference.numpy())


# --- recovery


@pytest.mark.parametrize("seed", range(3))
def test_recovery_beats_the_prior_mean_and_nears_known_poses(seed):
    image, measurement = measure(seed=seed)
    prior, copies = gaussian_prior(), len(measurement.operator.turns)
    average = measurement.operator.A_adjoint(measurement.field) / copies
    oracle = error(prior.denoise(average, measurement.sigma / copies**0.5), image)
    recovered = recover(
        measurement.field, load_config("ours_gaussian"), generator(1), prior, measurement.sigma
    )
    assert recovered.noise_sigma == measurement.sigma
    assert error(recovered.image, image) < 0.4 * error(prior.mean, image)
    assert error(recovered.image, image) < 1.25 * oracle + 0.01


def test_several_starts_recover_without_a_prior():
    image, measurement = measure()
    recovered = recover(measurement.field, NO_PRIOR, generator(1), sigma=measurement.sigma)
    assert error(recovered.image, image) < 0.13
    assert recovered.candidates.shape == (6, SIZE, SIZE)
    assert recovered.trace.shape[1] == 6
    best = int(recovered.trace[-1].argmax())
    assert torch.equal(recovered.image, recovered.candidates[best])
    assert recovered.log_likelihood == recovered.trace[-1, best].item()


def test_images_turned_by_eighths_are_recovered():
    image, measurement = measure(rotations=8, field_size=110)
    config = replace(load_config("ours_gaussian"), rotations=8)
    recovered = recover(measurement.field, config, generator(1), gaussian_prior())
    errors = [
        float((turned - image).norm() / image.norm())
        for turned in Rotations(8, SIZE).A(recovered.image)
    ]
    assert min(errors[::2]) < 0.12


def test_a_field_need_not_be_square():
    image, measurement = measure(field_size=110)
    recovered = recover(
        measurement.field[:55], load_config("ours_gaussian"), generator(1), gaussian_prior()
    )
    assert error(recovered.image, image) < 0.15


@pytest.mark.parametrize(("snr", "tolerance"), [(1.0, 0.04), (10.0, 0.02)])
def test_the_noise_level_is_estimated_when_not_given(snr, tolerance):
    _, measurement = measure(snr)
    recovered = recover(
        measurement.field, load_config("ours_gaussian"), generator(1), gaussian_prior()
    )
    assert recovered.noise_sigma == pytest.approx(measurement.sigma, rel=tolerance)


def test_the_same_seed_gives_the_same_result_bit_for_bit():
    _, measurement = measure()
    config = Config(size=SIZE, starts=4, kept=2, em=EMConfig(iterations=10))
    runs = [recover(measurement.field, config, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].image, runs[1].image)
    assert torch.equal(runs[0].trace, runs[1].trace)
    assert runs[0].log_likelihood == runs[1].log_likelihood
    assert not torch.equal(runs[0].image, runs[2].image)


def test_the_likeliest_starts_are_kept():
    image, measurement = measure()
    noise = 2 * torch.randn(20, SIZE, SIZE, generator=generator(3))
    starts = torch.cat([noise[:10], image[None], noise[10:]])
    config = Config(size=SIZE, starts=21, kept=2, em=EMConfig(iterations=1, learn_occupancy=False))
    recovered = recover(measurement.field, config, generator(), starts=starts)
    assert recovered.candidates.shape == (2, SIZE, SIZE)
    errors = [error(candidate, image) for candidate in recovered.candidates]
    assert errors[0] < 0.15 < errors[1]
    assert error(recovered.image, image) == errors[0]


def test_fewer_starts_than_are_kept_are_all_kept():
    _, measurement = measure()
    config = Config(size=SIZE, starts=8, kept=4, em=EMConfig(iterations=1))
    recovered = recover(measurement.field, config, generator(), starts=truth()[None])
    assert len(recovered.candidates) == 1


def test_refinement_on_overlapping_patches_sees_copies_that_one_grid_cuts():
    """With more patches per copy the error falls on average."""
    errors = np.array([_refined(seed) for seed in range(4)])
    assert errors[:, 1].mean() < 0.95 * errors[:, 0].mean()


def _refined(seed):
    image, measurement = measure(2.0, seed)
    coarse = replace(load_config("ours_gaussian"), refine=0)
    fine = replace(coarse, refine=15, grids=SIZE)
    prior, sigma = gaussian_prior(), measurement.sigma
    return [
        error(recover(measurement.field, config, generator(), prior, sigma).image, image)
        for config in (coarse, fine)
    ]


# --- starts


def test_starts_are_what_their_name_says():
    prior = gaussian_prior()
    uniform = draw_starts(Config(size=SIZE, starts=200), generator())
    assert uniform.shape == (200, SIZE, SIZE)
    assert 0 <= uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    mean = draw_starts(Config(size=SIZE, start="prior_mean"), generator(), prior)
    torch.testing.assert_close(mean, prior.mean[None], rtol=0, atol=1e-4)
    config = Config(size=12, start="prior_samples", starts=60)
    samples = draw_starts(config, generator(), letters())
    distance = (samples[:, None] - letters().means).flatten(2).norm(dim=2)
    assert (distance.amin(1) < 12 * 0.15).all()  # each is a letter with its spread of 0.1 a pixel
    assert 15 < distance.argmin(1).sum() < 45


@pytest.mark.parametrize("start", ["prior_mean", "prior_samples"])
def test_starts_from_a_prior_need_one(start):
    with pytest.raises(InputError, match="needs a prior; choose 'uniform' without one"):
        draw_starts(Config(size=SIZE, start=start), generator())


# --- noise level


@pytest.mark.parametrize("shape", [(55, 55), (100, 41)])
@pytest.mark.parametrize("sigma", [0.01, 30.0])
def test_the_first_guess_of_the_noise_is_right_for_noise(shape, sigma):
    field = 7 + sigma * torch.randn(shape, generator=generator())
    assert estimate_noise_level(field) == pytest.approx(sigma, rel=0.08)


def test_the_first_guess_of_the_noise_ignores_smooth_background_and_few_copies():
    ramp = torch.linspace(0, 50, 100)[:, None] + torch.linspace(-20, 3, 100)
    field = ramp + torch.randn(100, 100, generator=generator())
    assert estimate_noise_level(field) == pytest.approx(1, rel=0.15)
    _, measurement = measure(10.0)
    assert estimate_noise_level(measurement.field) == pytest.approx(measurement.sigma, rel=0.2)


def test_a_constant_field_has_no_noise_to_estimate():
    with pytest.raises(InputError, match="is it constant"):
        recover(torch.ones(20, 20), NO_PRIOR, generator())


# --- alignment


def letters():
    """A prior that knows two asymmetric pictures, an F and a P, in the middle of 12 x 12."""
    pictures = torch.zeros(2, 12, 12)
    pictures[:, 2:10, 4] = 1
    pictures[:, 2, 4:8] = pictures[:, 5, 4:7] = 1
    pictures[1, 2:6, 7] = 1
    return GaussianMixturePrior(pictures, torch.tensor([0.1, 0.1]))


def centre_of(image):
    steps = torch.arange(12.0)
    mass = image.sum()
    return ((image.sum(1) @ steps / mass).item(), (image.sum(0) @ steps / mass).item())


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-2, 2)])
def test_alignment_undoes_a_shift_and_a_turn(turns, shift):
    prior, picture = letters(), letters().means[0]
    moved = picture.rot90(turns).roll(shift, (0, 1))
    moved = moved + 0.004 * torch.randn(12, 12, generator=generator(4))
    aligned = align_to_prior(moved, prior, centre_of(picture), generator())
    assert (aligned - picture).norm() < 0.02 * picture.norm()


@pytest.mark.parametrize(("count", "allowed"), [(1, {0}), (2, {0, 2}), (3, {0}), (8, {0, 1, 2, 3})])
def test_only_turns_that_the_rotations_leave_open_are_undone(count, allowed):
    prior, picture = letters(), letters().means[0]
    for turns in range(4):
        moved = picture.rot90(turns)
        aligned = align_to_prior(moved, prior, centre_of(picture), generator(), count)
        found = bool((aligned - picture).norm() < 0.01 * picture.norm())
        assert found == (turns in allowed)


def test_the_network_turns_most_digits_upright_more_than_the_prior_does():
    """Validation digits of every class, turned; those that look alike upside down included."""
    digits, prior = load_digits("validation"), load_prior("mtd_mnist_epsilon")
    chosen = torch.from_numpy(digits.images[::4])
    right = {"mtd_mnist_turns": 0, "": 0}
    for number, digit in enumerate(chosen):
        upright = align_to_prior(digit, prior, (14, 14), generator(), rotations=1)
        moved = digit.rot90(number % 4)
        for name in right:
            found = align_to_prior(moved, prior, (14, 14), generator(), upright=name)
            right[name] += bool(torch.equal(found, upright))
    assert len(chosen) == 125
    assert right["mtd_mnist_turns"] > 0.85 * len(chosen)
    assert right["mtd_mnist_turns"] > right[""] + 4


def test_what_alignment_shifts_out_is_lost():
    image = torch.zeros(12, 12)
    image[2:4, 2:4], image[11, 0] = 1, 0.1
    blank = GaussianMixturePrior(torch.zeros(1, 12, 12), torch.ones(1))
    aligned = align_to_prior(image, blank, (8.0, 8.0), generator(), rotations=1)
    expected = torch.zeros(12, 12)
    expected[7:9, 8:10] = 1
    assert torch.equal(aligned, expected)


def test_recovery_returns_the_image_where_the_prior_knows_it():
    prior, picture = letters(), letters().means[1]
    measurement = simulate_measurement(picture, 100.0, generator(2))
    config = Config(size=12, centre=centre_of(picture), em=EMConfig(iterations=8), refine=4)
    start = picture.rot90(1).roll((1, -2), (0, 1))
    kept = recover(measurement.field, replace(config, centre=None), generator(), starts=start[None])
    assert (kept.image - picture).norm() > 0.5 * picture.norm()
    moved = recover(measurement.field, config, generator(), prior, starts=start[None])
    assert (moved.image - picture).norm() < 0.1 * picture.norm()


# --- settings and bad input


@pytest.mark.parametrize("name", sorted(read_settings("methods/mtd")["configs"]))
def test_every_named_config_can_be_read(name):
    assert isinstance(load_config(name), Config)


def test_the_papers_settings_are_the_papers():
    gaussian, mnist = load_config("paper_gaussian"), load_config("paper_mnist")
    for config, size in ((gaussian, 5), (mnist, 28)):
        assert (config.size, config.rotations, config.starts, config.refine) == (size, 4, 1, 0)
        assert (config.em.m_step, config.em.step_size) == ("gradient", 1e-3)
        assert (config.em.iterations, config.em.prior_weight) == (100, 1.0)
        assert not config.em.learn_occupancy
    assert mnist.em.prior_schedule == "linear"
    assert mnist.em.score_sigma == pytest.approx(0.0446)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1}, "size must be at least 2"),
        ({"start": "zeros"}, "unknown start 'zeros'; choose one of uniform"),
        ({"starts": 0}, "1 <= kept <= starts"),
        ({"starts": 2, "kept": 3}, "1 <= kept <= starts"),
        ({"kept": 0}, "1 <= kept <= starts"),
        ({"refine": -1}, "refine >= 0"),
        ({"grids": 0}, r"grids in 1\.\.5"),
        ({"grids": 6}, r"grids in 1\.\.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Config(**{"size": SIZE, **change})


def test_an_unknown_config_is_refused():
    with pytest.raises(InputError, match="unknown configuration 'best'; choose one of paper_ga"):
        load_config("best")


@pytest.mark.parametrize("sigma", [None, 1.0])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        (torch.randn(52, 55, generator=generator()), "does not divide into patches of 5"),
        (torch.randn(4, 4, generator=generator()), "smaller than one patch"),
        (torch.randn(2, 55, 55, generator=generator()), "one image"),
        (torch.full((55, 55), math.nan), "NaN or infinity"),
    ],
)
def test_fields_that_cannot_be_used_are_refused_whether_or_not_sigma_is_given(
    field, message, sigma
):
    with pytest.raises(InputError, match=message):
        recover(field, NO_PRIOR, generator(), sigma=sigma)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_noise_level_that_is_not_positive_is_refused(sigma):
    with pytest.raises(InputError, match="sigma must be positive"):
        recover(torch.ones(20, 20), NO_PRIOR, generator(), sigma=sigma)


def test_no_rotation_at_all_is_refused():
    with pytest.raises(InputError, match="count >= 1"):
        recover(torch.ones(20, 20), replace(NO_PRIOR, rotations=0), generator())


def test_settings_that_need_a_prior_say_so():
    _, measurement = measure()
    with pytest.raises(InputError, match="needs a prior"):
        recover(measurement.field, load_config("ours_gaussian"), generator())
    config = replace(load_config("ours_gaussian"), start="uniform")
    with pytest.raises(InputError, match="needs a prior"):
        recover(measurement.field, config, generator())
