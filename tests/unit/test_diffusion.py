"""One prior, every path: DDPM steps, flow times and noise levels are the same question."""

import math

import pytest
import torch
from torch import nn

from emlab.errors import InputError
from emlab.priors import FlowPrior, GaussianPrior, load_prior
from emlab.priors.diffusion import DDPMSchedule, DDPMView, flow_time

SHAPE = (3, 4)
SCHEDULE = DDPMSchedule()
STEPS = (0, 1, 17, 250, 500, 998, 999)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian():
    factor = draw(12, 12, seed=1)
    covariance = factor @ factor.T / 12 + 0.05 * torch.eye(12).double()
    return GaussianPrior(draw(*SHAPE, seed=2), covariance)


class ExactEpsilon(nn.Module):
    """The network that a DDPM of Gaussian images would become, from the joint covariance."""

    def __init__(self, prior):
        super().__init__()
        self.mean = prior.mean.flatten()
        self.covariance = (prior.basis * prior.variances) @ prior.basis.T

    def forward(self, x, step):
        share = SCHEDULE.alpha_bar[step.round().long()][0]
        total = share * self.covariance + (1 - share) * torch.eye(12).double()
        gap = x.flatten(1) - share.sqrt() * self.mean
        return ((1 - share).sqrt() * torch.linalg.solve(total, gap.T).T).reshape(x.shape)


# --- the schedule


def test_schedule_is_that_of_the_paper():
    beta = [1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)]
    assert SCHEDULE.alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    expected = math.exp(sum(math.log1p(-b) for b in beta))
    assert SCHEDULE.alpha_bar[-1].item() == pytest.approx(expected, rel=1e-9)
    assert SCHEDULE.sigma[0].item() == pytest.approx(0.01, rel=1e-3)
    assert 150 < SCHEDULE.sigma[-1].item() < 160


def test_paths_meet_where_their_relative_noise_agrees():
    for step in STEPS:
        sigma = SCHEDULE.sigma[step]
        t = flow_time(sigma)
        torch.testing.assert_close((1 - t) / t, sigma)
        torch.testing.assert_close(SCHEDULE.step_at(sigma), torch.tensor(step).double())


def test_steps_between_steps_rise_with_the_noise_and_end_at_the_ends():
    levels = torch.logspace(-3, 3, 500)
    steps = SCHEDULE.step_at(levels)
    assert (steps.diff() >= 0).all()
    assert (steps[0], steps[-1]) == (0, 999)
    inside = (levels > 0.011) & (levels < 150)
    assert (steps[inside].diff() > 0).all()


def test_spaced_steps_fall_from_the_last_to_the_first():
    assert SCHEDULE.spaced(1000) == list(range(999, -1, -1))
    assert SCHEDULE.spaced(4) == [999, 666, 333, 0]
    for count in (1, 1001):
        with pytest.raises(InputError, match="between 2 and 1000"):
            SCHEDULE.spaced(count)


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"beta_first": 0.0}, {"beta_last": 1.0}, {"beta_last": 1e-5}]
)
def test_schedules_that_do_not_rise_are_refused(options):
    with pytest.raises(InputError, match="schedule needs"):
        DDPMSchedule(**options)


# --- any prior on the DDPM path


@pytest.mark.parametrize("step", STEPS)
def test_view_of_a_gaussian_predicts_the_noise_of_the_joint_distribution(step):
    prior = gaussian()
    x = draw(5, *SHAPE, seed=3)
    expected = ExactEpsilon(prior)(x, torch.full((5,), step))
    torch.testing.assert_close(DDPMView(prior).epsilon(x, step), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", STEPS)
def test_predicted_noise_leaves_the_posterior_mean(step):
    prior, view = gaussian(), DDPMView(gaussian())
    x = draw(5, *SHAPE, seed=3)
    share = SCHEDULE.alpha_bar[step].sqrt()
    expected = prior.denoise(x / share, SCHEDULE.sigma[step].item())
    actual = view.clean(x, step, view.epsilon(x, step))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_view_of_a_noise_network_is_that_network_re_scaled():
    prior = load_prior("mtd_mnist_epsilon")
    x = torch.randn(2, 28, 28, generator=torch.Generator().manual_seed(0))
    for step in (100, 400, 600):
        sigma, share = SCHEDULE.sigma[step].float(), SCHEDULE.alpha_bar[step].float()
        with torch.no_grad():
            expected = prior.objective.predict(prior.network, x / share.sqrt(), sigma.expand(2))
            actual = DDPMView(prior).epsilon(x, step)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_view_lets_gradients_through():
    x = draw(1, *SHAPE).requires_grad_()
    view = DDPMView(gaussian())
    (gradient,) = torch.autograd.grad(view.epsilon(x, 300).sum(), x)
    nudge = 1e-5 * draw(1, *SHAPE, seed=4)
    change = (view.epsilon(x + nudge, 300) - view.epsilon(x - nudge, 300)).sum() / 2
    torch.testing.assert_close((gradient * nudge).sum(), change, rtol=1e-6, atol=1e-12)


# --- a flow seen as a DDPM


def test_flow_network_and_ddpm_network_of_one_gaussian_agree_on_both_paths():
    exact = gaussian()

    class ExactVelocity(nn.Module):
        def forward(self, x, t):
            time = t.reshape(-1, 1, 1, 1)
            clean = exact.denoise(x / time, float((1 - t[0]) / t[0]))
            return (clean - x) / (1 - time)

    flow, ddpm = FlowPrior(ExactVelocity()), ExactEpsilon(exact)
    x = draw(5, *SHAPE, seed=3)
    for step in (50, 400, 800):
        known = ddpm(x, torch.full((5,), step))
        torch.testing.assert_close(DDPMView(flow).epsilon(x, step), known)
