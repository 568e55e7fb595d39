"""The E-step by FFT is the plain loop over patches, shifts and rotations, and survives any SNR."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from drawing import draw, generator
from scipy import ndimage

from emlab.errors import InputError
from emlab.physics.mtd import Rotations, cut_patches, simulate_measurement
from emlab.solvers.expectation_maximization import ExpectationStep, likelihood_gradient

EXACT = {"rtol": 1e-10, "atol": 1e-10}


# --- the plain loop, from the equations


@functools.cache
def rotation_matrices(count, size):
    """Dense ``(K, L*L, L*L)``, made by scipy from the images of single pixels."""
    pixels = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size).numpy()
    turned = [
        [
            ndimage.rotate(p, 360 * k / count, order=1, reshape=False, mode="grid-constant")
            for p in pixels
        ]
        for k in range(count)
    ]
    return torch.from_numpy(np.array(turned)).flatten(2).transpose(1, 2)


def shift_and_crop(image, row, column):
    """C T Z: pad with zeros to 2L x 2L, shift cyclically, keep the first L x L pixels."""
    size = len(image)
    padded = torch.zeros(2 * size, 2 * size, dtype=image.dtype)
    padded[:size, :size] = image
    return padded.roll((row, column), (0, 1))[:size, :size]


def uncrop(patch, row, column):
    """Adjoint of `shift_and_crop`."""
    size = len(patch)
    padded = torch.zeros(2 * size, 2 * size, dtype=patch.dtype)
    padded[:size, :size] = patch
    return padded.roll((-row, -column), (0, 1))[:size, :size]


def state_probabilities(count, size, occupancy):
    """Prior of every (k, row, column); empty states are those that see no pixel of ones."""
    shifts = list(itertools.product(range(2 * size), repeat=2))
    blank = torch.tensor(
        [not shift_and_crop(torch.ones(size, size), *shift).any() for shift in shifts]
    )
    if occupancy is None:
        table = torch.full((len(shifts),), 1 / len(shifts), dtype=torch.float64)
    else:
        empty, visible = blank.sum().double(), (~blank).sum().double()
        table = torch.where(blank, (1 - occupancy) / empty, occupancy / visible)
    states = [(k, *shift) for k in range(count) for shift in shifts]
    return states, (table / count).repeat(count), blank.repeat(count)


def log_joint(image, patches, count, sigma, occupancy=None):
    """Log of prior times density of each patch in each state, ``(D, states)``; differentiable."""
    size = len(image)
    states, probabilities, _ = state_probabilities(count, size, occupancy)
    stack = (rotation_matrices(count, size) @ image.flatten()).reshape(count, size, size)
    columns = []
    for (k, row, column), probability in zip(states, probabilities, strict=True):
        residual = patches - shift_and_crop(stack[k], row, column)
        log_density = -residual.square().sum((1, 2)) / (2 * sigma**2)
        log_density = log_density - size**2 / 2 * math.log(2 * math.pi * sigma**2)
        columns.append(probability.log() + log_density)
    return torch.stack(columns, 1)


def loop(image, patches, count, sigma, occupancy=None):
    """Numerator, denominator, log-likelihood, occupancy, gradient and expected patches."""
    size = len(image)
    states, _, blank = state_probabilities(count, size, occupancy)
    matrices = rotation_matrices(count, size)
    stack = (matrices @ image.flatten()).reshape(count, size, size)
    logs = log_joint(image, patches, count, sigma, occupancy)
    weights = logs.softmax(1)
    numerator, denominator = torch.zeros(2, count, size, size, dtype=torch.float64)
    gradient, expected = torch.zeros_like(image), torch.zeros_like(patches)
    for state, (k, row, column) in enumerate(states):
        template = shift_and_crop(stack[k], row, column)
        weight = weights[:, state, None, None]
        expected += weight * template
        pulled = uncrop((weight * patches).sum(0), row, column)
        numerator[k] += pulled
        denominator[k] += uncrop(weight.sum() * torch.ones_like(image), row, column)
        residual = uncrop((weight * (patches - template)).sum(0), row, column)
        gradient += (matrices[k].T @ residual.flatten()).reshape(size, size) / sigma**2
    log_likelihood = logs.logsumexp(1).sum()
    seen = weights[:, ~blank].sum(1).mean()
    return numerator, denominator, log_likelihood, seen, gradient, expected


def problem(count, size, snr=2.0, seed=1, side=3):
    image = draw(size, size, seed=seed)
    measurement = simulate_measurement(
        image, snr, generator(seed), field_size=side * size, density=0.3, rotations=count,
        separation=size,
    )  # fmt: skip
    patches = cut_patches(measurement.field, size)
    return image, patches, Rotations(count, size, torch.float64), measurement.sigma


# --- equal to the loop


CHUNKINGS = (1e-6, 0.2, 16.0)  # MB


@pytest.mark.parametrize("occupancy", [None, 0.4])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("size", [3, 4])
def test_statistics_equal_the_plain_loop(size, count, occupancy):
    truth, patches, rotations, sigma = problem(count, size)
    images = torch.stack([truth, draw(size, size, seed=5), torch.zeros_like(truth)])
    expected = [loop(image, patches, count, sigma, occupancy) for image in images]
    for memory_mb in CHUNKINGS:
        step = ExpectationStep(patches, rotations, sigma, memory_mb=memory_mb)
        statistics = step(images, occupancy)
        gradient = likelihood_gradient(images, statistics, rotations, sigma**2)
        for index, image in enumerate(images):
            actual = (
                statistics.numerator[index],
                statistics.denominator[index],
                statistics.log_likelihood[index],
                statistics.occupancy[index],
                gradient[index],
                step.expected_patches(image, occupancy),
            )
            for one, other in zip(actual, expected[index], strict=True):
                torch.testing.assert_close(one, other, **EXACT)
        assert torch.equal(step.log_likelihood(images, occupancy), statistics.log_likelihood)


def test_the_chunks_of_that_comparison_differ():
    """One patch at a time, a few, and all at once."""
    _, patches, rotations, sigma = problem(4, 4)
    sizes = [
        ExpectationStep(patches, rotations, sigma, memory_mb=m)._chunk_size(12, 8)
        for m in CHUNKINGS
    ]
    assert sizes[0] == 1 < sizes[1] < sizes[2] == len(patches)


@pytest.mark.parametrize("occupancy", [None, 0.7])
@pytest.mark.parametrize(("size", "count"), [(3, 8), (4, 4)])
def test_the_gradient_is_the_derivative_of_the_log_likelihood(size, count, occupancy):
    truth, patches, rotations, sigma = problem(count, size)
    image = (truth + 0.3 * draw(size, size, seed=7)).requires_grad_()
    log_likelihood = log_joint(image, patches, count, sigma, occupancy).logsumexp(1).sum()
    (expected,) = torch.autograd.grad(log_likelihood, image)
    point = image.detach()[None]
    step = ExpectationStep(patches, rotations, sigma)
    gradient = likelihood_gradient(point, step(point, occupancy), rotations, sigma**2)
    torch.testing.assert_close(gradient[0], expected, **EXACT)


@pytest.mark.parametrize("count", [4, 8])
def test_the_gradient_agrees_with_finite_differences(count):
    truth, patches, rotations, sigma = problem(count, 5, side=5)
    image = (truth + 0.3 * draw(5, 5, seed=7))[None]
    step = ExpectationStep(patches, rotations, sigma)
    gradient = likelihood_gradient(image, step(image), rotations, sigma**2)[0]
    basis = torch.eye(25, dtype=torch.float64).reshape(25, 5, 5)
    ahead, behind = step(image + 1e-5 * basis), step(image - 1e-5 * basis)
    slope = (ahead.log_likelihood - behind.log_likelihood) / 2e-5
    torch.testing.assert_close(gradient.flatten(), slope, rtol=1e-6, atol=1e-5)


def test_each_image_can_have_its_own_occupancy():
    truth, patches, rotations, sigma = problem(4, 4)
    images = torch.stack([truth, -truth])
    step = ExpectationStep(patches, rotations, sigma)
    both = step(images, torch.tensor([0.2, 0.9], dtype=torch.float64))
    for index, occupancy in enumerate((0.2, 0.9)):
        one = step(images[index : index + 1], occupancy)
        torch.testing.assert_close(both.numerator[index], one.numerator[0], **EXACT)
        torch.testing.assert_close(both.log_likelihood[index], one.log_likelihood[0], **EXACT)


def test_equal_shifts_are_the_default_occupancy():
    truth, patches, rotations, sigma = problem(4, 5)
    step = ExpectationStep(patches, rotations, sigma)
    assert step.uniform_occupancy() == pytest.approx(1 - 19 / 100)  # 4L - 1 of (2L)^2 are empty
    default, explicit = step(truth[None]), step(truth[None], step.uniform_occupancy())
    torch.testing.assert_close(default.log_likelihood, explicit.log_likelihood, **EXACT)


def test_without_rotations_and_noise_every_pixel_is_found_where_it_is():
    """Denominators count the sightings of each pixel, numerators add up what was seen."""
    image = 5 + draw(4, 4)
    patches = torch.stack([shift_and_crop(image, *shift) for shift in [(0, 0), (2, 1), (7, 7)]])
    statistics = ExpectationStep(patches, Rotations(1, 4, torch.float64), 0.05)(image[None], 0.5)
    visible = torch.ones(4, 4, dtype=torch.float64)
    visible[:2, :3] += 1
    visible[1:, 1:] += 1
    torch.testing.assert_close(statistics.denominator[0, 0], visible, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(statistics.numerator[0, 0], visible * image, rtol=1e-9, atol=1e-9)
    assert statistics.occupancy.item() == pytest.approx(1)


def test_coverage_turns_sums_into_averages_over_grids():
    truth, patches, rotations, sigma = problem(4, 4)
    once = ExpectationStep(patches, rotations, sigma)(truth[None])
    twice = ExpectationStep(patches.repeat(2, 1, 1), rotations, sigma, coverage=2)(truth[None])
    for name in ("numerator", "denominator", "log_likelihood", "occupancy"):
        torch.testing.assert_close(getattr(once, name), getattr(twice, name), **EXACT)


def test_expected_patches_find_the_copies_at_high_snr():
    truth, _, rotations, _ = problem(4, 5)
    measurement = simulate_measurement(truth, 200.0, generator(3))
    step = ExpectationStep(cut_patches(measurement.field, 5), rotations, measurement.sigma)
    clean = cut_patches(measurement.clean, 5)
    error = step.expected_patches(truth, 0.4) - clean
    assert error.norm() < 0.02 * clean.norm()


# --- all weight on one state


@pytest.mark.parametrize("occupancy", [None, 0.4])
def test_hard_assignment_gives_each_patch_to_its_likeliest_state(occupancy):
    """Shifts that see nothing look all the same: they are one state."""
    truth, patches, rotations, sigma = problem(4, 4)
    states, _, blank = state_probabilities(4, 4, occupancy)
    logs = log_joint(truth, patches, 4, sigma, occupancy)
    best = logs.masked_fill(blank, -math.inf).max(1)
    seen = best.values > logs[:, blank].logsumexp(1)
    numerator = torch.zeros(4, 4, 4, dtype=torch.float64)
    for patch, state in zip(patches[seen], best.indices[seen], strict=True):
        k, *shift = states[int(state)]
        numerator[k] += uncrop(patch, *shift)
    step = ExpectationStep(patches, rotations, sigma, memory_mb=0.2)
    hard = step(truth[None], occupancy, "hard")
    torch.testing.assert_close(hard.numerator[0], numerator, **EXACT)
    assert 0 < seen.double().mean() < 1
    assert hard.occupancy.item() == pytest.approx(seen.double().mean().item())
    assert hard.log_likelihood == step(truth[None], occupancy).log_likelihood
    nothing = step(0 * truth[None], 1e-6, "hard")
    assert not nothing.numerator.any()
    assert not nothing.denominator.any()


def test_drawn_states_are_on_average_the_weights():
    truth, patches, rotations, sigma = problem(4, 4, snr=0.5)
    step = ExpectationStep(patches, rotations, sigma)
    soft = step(truth[None], 0.4)
    drawn = step(truth.expand(2000, 4, 4), 0.4, generator(3))
    for name in ("numerator", "denominator", "occupancy"):
        each, expected = getattr(drawn, name), getattr(soft, name)[0]
        error = 5 * each.std(0) / len(each) ** 0.5
        assert each.std() > 0
        assert ((each.mean(0) - expected).abs() <= error + 1e-9).all()


# --- numbers that computers can hold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("snr", [1e-3, 1.0, 1e4])
def test_no_overflow_or_underflow_at_any_snr(snr, dtype):
    truth, _, _, _ = problem(4, 5)
    measurement = simulate_measurement(truth.to(dtype), snr, generator(2))
    patches = cut_patches(measurement.field, 5)
    step = ExpectationStep(patches, Rotations(4, 5, dtype), measurement.sigma)
    images = torch.stack([truth, 3 + 10 * draw(5, 5, seed=9), 0 * truth]).to(dtype)
    statistics = step(images)
    assert statistics.numerator.dtype == dtype
    for tensor in vars(statistics).values():
        assert torch.isfinite(tensor).all()
    # no patch can see a pixel more than once
    assert (statistics.denominator >= 0).all()
    assert (statistics.denominator <= len(patches) * (1 + 1e-4)).all()
    assert ((statistics.occupancy >= 0) & (statistics.occupancy <= 1)).all()
    if snr >= 1:
        assert statistics.log_likelihood[0] == statistics.log_likelihood.max()


def test_single_precision_agrees_with_double():
    truth, patches, rotations, sigma = problem(8, 5, side=9)
    double = ExpectationStep(patches, rotations, sigma)(truth[None], 0.4)
    single = ExpectationStep(patches.float(), Rotations(8, 5), sigma)(truth[None].float(), 0.4)
    torch.testing.assert_close(single.numerator.double(), double.numerator, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.log_likelihood, double.log_likelihood, rtol=1e-6, atol=1e-3)


# --- bad input


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_the_noise_level_must_be_positive(sigma):
    with pytest.raises(InputError, match="sigma must be positive"):
        ExpectationStep(torch.zeros(2, 4, 4), Rotations(4, 4), sigma)


@pytest.mark.parametrize(
    "change", [{"memory_mb": 0}, {"memory_mb": math.nan}, {"coverage": 0.5}, {"coverage": math.nan}]
)
def test_memory_and_coverage_must_make_sense(change):
    with pytest.raises(InputError, match="memory_mb must be positive and coverage at least 1"):
        ExpectationStep(torch.zeros(2, 4, 4), Rotations(4, 4), 1.0, **change)


@pytest.mark.parametrize("shape", [(2, 5, 5), (4, 4), (2, 4, 5)])
def test_patches_must_have_the_size_of_the_image(shape):
    with pytest.raises(InputError, match=r"patches must be \(D, 4, 4\)"):
        ExpectationStep(torch.zeros(shape), Rotations(4, 4), 1.0)
