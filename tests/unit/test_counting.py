"""Likelihoods of counts, and the units of normalised particles."""

import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.counting import (
    GaussianCounts,
    Poisson,
    counts_from_normalised,
    fit_gain_offset,
)

NOISES = [Poisson(), GaussianCounts(9.0)]


def rates(low, high, *shape):
    return low + (high - low) * torch.rand(*shape, generator=generator(5), dtype=torch.float64)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_gradient_is_the_derivative_of_the_log_likelihood(noise):
    mean = rates(3, 30, 2, 4, 5).requires_grad_()
    counts = noise.sample(mean.detach(), generator())
    (slope,) = torch.autograd.grad(noise.log_likelihood(mean, counts).sum(), mean)
    torch.testing.assert_close(noise.gradient(mean.detach(), counts), slope)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_curvature_is_the_variance_of_the_gradient(noise):
    """Fisher's information, twice defined."""
    mean = torch.full((200_000,), 9.0, dtype=torch.float64)
    score = noise.gradient(mean, noise.sample(mean, generator()))
    assert score.mean().abs() < 0.05
    assert score.var() == pytest.approx(noise.curvature(mean)[0].item(), rel=0.03)


def test_poisson_log_likelihood_is_that_of_torch():
    mean, counts = rates(1, 20, 6, 6), rates(0, 30, 6, 6).round()
    known = torch.distributions.Poisson(mean).log_prob(counts).sum()
    torch.testing.assert_close(Poisson().log_likelihood(mean, counts), known)


def test_many_electrons_make_the_likelihoods_agree():
    mean = rates(260, 280, 8, 8)
    counts = Poisson().sample(mean, generator())
    exact = Poisson().log_likelihood(mean, counts) - Poisson().log_likelihood(mean + 3, counts)
    noise = GaussianCounts(270.0)
    other = noise.log_likelihood(mean, counts) - noise.log_likelihood(mean + 3, counts)
    torch.testing.assert_close(other, exact, rtol=0.05, atol=0.1)


def test_a_dark_pixel_does_not_break_the_likelihood():
    dark, counts = torch.zeros(3, 3), torch.ones(3, 3)
    assert Poisson().log_likelihood(dark, counts).isfinite()
    assert Poisson().gradient(dark, counts).isfinite().all()


def test_gain_and_offset_are_found_again():
    expected = rates(200, 300, 3, 16, 16)
    gain, offset = torch.tensor([-0.1, 2.0, 0.5]), torch.tensor([3.0, -5.0, 0.0])
    measured = gain[:, None, None] * expected + offset[:, None, None]
    found = fit_gain_offset(expected, measured)
    torch.testing.assert_close(found[0].flatten(), gain.double())
    torch.testing.assert_close(found[1].flatten(), offset.double())


@pytest.mark.parametrize("inverted", [True, False])
def test_normalised_particles_get_their_counts_back(inverted):
    rows = torch.arange(64) - 32.0
    particle = 40 * (-(rows[:, None] ** 2 + rows**2) / 50).exp()
    clean = (270 - particle).double().expand(4, -1, -1)
    counts = Poisson().sample(clean, generator())
    normalised = (-1 if inverted else 1) * (counts - 250) / 21
    found = counts_from_normalised(normalised, 270.0, radius=24, inverted=inverted)
    gain, _ = fit_gain_offset(counts, found)
    torch.testing.assert_close(gain, torch.ones_like(gain), atol=0.06, rtol=0)
    assert (found - counts).mean().abs() < 1


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="negative"):
        Poisson().sample(torch.tensor([[-1.0]]), generator())
    with pytest.raises(InputError, match="variance"):
        GaussianCounts(0.0)
    with pytest.raises(InputError, match="without contrast"):
        fit_gain_offset(torch.ones(4, 4), torch.ones(4, 4))
    with pytest.raises(InputError, match="no background"):
        counts_from_normalised(torch.randn(8, 8), 100.0, radius=6)
    with pytest.raises(InputError, match="no noise"):
        counts_from_normalised(torch.ones(32, 32), 100.0, radius=6)
