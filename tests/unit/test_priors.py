"""Priors: closed forms are right, and every parametrisation of one Gaussian is the same prior."""

import numpy as np
import pytest
import torch
from drawing import draw, generator
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from emlab import weights
from emlab.errors import InputError
from emlab.models import MLP, UNet
from emlab.priors import (
    EpsilonPrior,
    FlowPrior,
    GaussianMixturePrior,
    GaussianPrior,
    VPPrior,
    load_prior,
)
from emlab.priors.networks import MLPScore, wrap
from emlab.priors.objectives import (
    EpsilonMatching,
    VPDenoisingScoreMatching,
    VPSchedule,
    conditional_flow_matching,
    implicit_score_matching,
)
from emlab.training import TrainingConfig, train

SIGMAS = (0.02, 0.1, 0.5, 1.0, 3.0, 10.0)
SHAPE = (3, 4)


def gaussian():
    factor = draw(12, 12, seed=1)
    return draw(*SHAPE, seed=2), factor @ factor.T / 12 + 0.05 * torch.eye(12).double()


def mixture():
    means = 2 * draw(3, *SHAPE, seed=3)
    return means, torch.tensor([0.3, 1.0, 0.6]).double(), torch.tensor([1.0, 2.0, 5.0]).double()


# --- closed forms


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_posterior_mean_is_the_wiener_filter(sigma):
    mean, covariance = gaussian()
    x = draw(5, *SHAPE)
    m, c = mean.numpy().ravel(), covariance.numpy()
    gain = c @ np.linalg.inv(c + sigma**2 * np.eye(12))
    expected = np.stack([m + gain @ (one.ravel() - m) for one in x.numpy()]).reshape(5, *SHAPE)
    actual = GaussianPrior(mean, covariance).denoise(x, sigma)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_gaussian_score_is_the_gradient_of_the_log_density(sigma):
    mean, covariance = gaussian()
    x = draw(5, *SHAPE).requires_grad_()
    noisy = MultivariateNormal(mean.flatten(), covariance + sigma**2 * torch.eye(12).double())
    (expected,) = torch.autograd.grad(noisy.log_prob(x.flatten(1)).sum(), x)
    torch.testing.assert_close(GaussianPrior(mean, covariance).score(x, sigma), expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_mixture_posterior_mean_weighs_the_wiener_filters(sigma):
    means, stds, shares = mixture()
    x = draw(4, *SHAPE)
    for one, actual in zip(
        x, GaussianMixturePrior(means, stds, shares).denoise(x, sigma), strict=1
    ):
        logs, filtered = [], []
        for mean, std, share in zip(means.numpy(), stds.numpy(), shares.numpy(), strict=True):
            total = std**2 + sigma**2
            gap = one.numpy() - mean
            logs.append(np.log(share) - 6 * np.log(total) - (gap**2).sum() / (2 * total))
            filtered.append(mean + std**2 / total * gap)
        posterior = np.exp(np.array(logs) - max(logs))
        expected = np.tensordot(posterior / posterior.sum(), np.stack(filtered), 1)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_mixture_density_and_score(sigma):
    means, stds, shares = mixture()
    prior, x = GaussianMixturePrior(means, stds, shares), draw(4, *SHAPE).requires_grad_()
    variances = (stds.square() + sigma**2)[:, None, None] * torch.eye(12).double()
    noisy = MixtureSameFamily(Categorical(shares), MultivariateNormal(means.flatten(1), variances))
    torch.testing.assert_close(prior.log_density(x, sigma), noisy.log_prob(x.flatten(1)))
    (expected,) = torch.autograd.grad(noisy.log_prob(x.flatten(1)).sum(), x)
    torch.testing.assert_close(prior.score(x, sigma), expected)


def exact_priors():
    """The same Gaussian as closed form and as three perfect networks; and a mixture."""
    mean, covariance = gaussian()
    objective = EpsilonMatching(mean=0.2, std=0.7)
    return {
        "gaussian": GaussianPrior(mean, covariance),
        "mixture": GaussianMixturePrior(*mixture()),
        "epsilon": EpsilonPrior(ExactEpsilon(objective), objective),
        "vp": VPPrior(ExactVP(VPSchedule()), VPSchedule()),
        "flow": FlowPrior(ExactFlow()),
    }


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "epsilon", "vp", "flow"])
def test_levels_of_a_batch_belong_to_its_images(kind):
    prior, x = exact_priors()[kind], draw(2, 3, *SHAPE)
    levels = torch.tensor([[0.1, 0.5, 2.0], [1.0, 0.3, 4.0]], dtype=torch.float64)
    for method in (prior.denoise, prior.score):
        batched = method(x, levels)
        for index in np.ndindex(2, 3):
            alone = method(x[index], levels[index].item())
            torch.testing.assert_close(batched[index], alone)
        torch.testing.assert_close(method(x, levels[0])[1, 2], method(x[1, 2], 2.0))


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "epsilon", "vp", "flow"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_and_posterior_mean_obey_tweedie(kind, sigma):
    prior, x = exact_priors()[kind], draw(4, *SHAPE)
    expected = (prior.denoise(x, sigma) - x) / sigma**2
    torch.testing.assert_close(prior.score(x, sigma), expected, rtol=1e-6, atol=1e-8)


def test_samples_have_the_moments_of_the_prior():
    mean, covariance = gaussian()
    samples = GaussianPrior(mean, covariance).sample(40_000, generator()).flatten(1)
    assert (samples.mean(0) - mean.flatten()).abs().max() < 0.03
    assert (samples.T.cov() - covariance).abs().max() < 0.06
    means, stds, shares = mixture()
    prior = GaussianMixturePrior(means, stds, shares)
    samples = prior.sample(20_000, generator())
    weight = shares / shares.sum()
    torch.testing.assert_close(
        prior.responsibilities(samples, 0.0).mean(0), weight, atol=0.015, rtol=0
    )
    spread = (samples - torch.tensordot(weight, means, 1)).square().mean()
    between = (means - torch.tensordot(weight, means, 1)).square().mean((1, 2))
    assert spread.item() == pytest.approx((weight @ (stds.square() + between)).item(), rel=0.03)


def test_samples_repeat_with_the_seed():
    for prior in (GaussianPrior(*gaussian()), GaussianMixturePrior(*mixture())):
        assert torch.equal(prior.sample(5, generator(3)), prior.sample(5, generator(3)))
        assert not torch.equal(prior.sample(5, generator(3)), prior.sample(5, generator(4)))


def test_mixture_is_finite_far_from_every_component():
    prior = GaussianMixturePrior(*(value.float() for value in mixture()))
    x = torch.full((1, *SHAPE), 1e4)
    assert prior.denoise(x, 0.01).isfinite().all()
    assert prior.score(x, 0.0).isfinite().all()


def test_singular_covariance_pins_the_image():
    mean = torch.tensor([[1.0, 2.0]])
    prior = GaussianPrior(mean, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert prior.denoise(torch.tensor([[3.0, 9.0]]), 1.0).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GaussianPrior(torch.zeros(4), 1.0), "image"),
        (lambda: GaussianPrior(torch.zeros(2, 2), torch.eye(3)), r"\(4, 4\)"),
        (lambda: GaussianPrior(torch.zeros(1, 2), torch.diag(torch.tensor([1.0, -1.0]))), "semi"),
        (lambda: GaussianPrior(torch.zeros(1, 2), torch.tensor([[1.0, 0.5], [0, 1]])), "symmetric"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 4), torch.ones(2)), "means"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 1, 4), torch.ones(3)), "stds"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 1, 4), torch.tensor([1.0, 0.0])), "positive"),
    ],
)
def test_impossible_prior_is_an_input_error(make, says):
    with pytest.raises(InputError, match=says):
        make()


# --- networks that know the answer


class ExactEpsilon(nn.Module):
    """What the network of `EpsilonMatching` should return for `gaussian()`."""

    def __init__(self, objective, scale=1.0):
        super().__init__()
        self.objective, self.scale, self.prior = objective, scale, GaussianPrior(*gaussian())

    def forward(self, scaled, condition):
        sigma = torch.exp(4 * condition)
        radius = torch.sqrt(sigma**2 + self.objective.std**2)[:, None, None]
        x = self.objective.mean + radius * scaled[:, 0]
        noise = -self.scale * sigma[:, None, None] * self.prior.score(x, sigma)
        linear = sigma[:, None, None] * scaled[:, 0]
        return ((linear - radius * noise) / self.objective.std)[:, None]


class ExactVP(nn.Module):
    """sigma_t times the score of the diffused `gaussian()`."""

    def __init__(self, schedule, scale=1.0):
        super().__init__()
        self.schedule, self.scale = schedule, scale

    def forward(self, x, t):
        mean, covariance = gaussian()
        answers = []
        for one, time in zip(x[:, 0], t, strict=True):
            alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
            total = alpha**2 * covariance + sigma**2 * torch.eye(12).double()
            score = -torch.linalg.solve(total, (one - alpha * mean).flatten())
            answers.append(self.scale * sigma * score.reshape(1, *SHAPE))
        return torch.stack(answers)


class ExactFlow(nn.Module):
    """E[x_1 - x_0 | x_t] by the rule for conditional means of Gaussians."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x, t):
        mean, covariance = gaussian()
        identity = torch.eye(12).double()
        answers = []
        for one, time in zip(x[:, 0], t, strict=True):
            total = time**2 * covariance + (1 - time) ** 2 * identity
            joint = time * covariance - (1 - time) * identity
            gap = (one - time * mean).flatten()
            velocity = mean + (joint @ torch.linalg.solve(total, gap)).reshape(SHAPE)
            answers.append(self.scale * velocity[None])
        return torch.stack(answers)


@pytest.mark.parametrize("kind", ["epsilon", "vp", "flow"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_exact_network_is_the_gaussian_prior(kind, sigma):
    prior, exact, x = exact_priors()[kind], GaussianPrior(*gaussian()), 3 * draw(6, *SHAPE)
    torch.testing.assert_close(
        prior.denoise(x, sigma), exact.denoise(x, sigma), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_silent_network_leaves_the_white_gaussian_answer(sigma):
    prior = EpsilonPrior(UNet(widths=(8,), embedding=16), EpsilonMatching(mean=0.2, std=0.7))
    x = torch.randn(3, 5, 5, generator=generator())
    white = GaussianPrior(torch.full((5, 5), 0.2), 0.7**2)
    torch.testing.assert_close(prior.denoise(x, sigma), white.denoise(x, sigma))


def test_epsilon_prior_clips_the_level_to_what_it_was_trained_on():
    objective = EpsilonMatching(mean=0.2, std=0.7)
    prior, x = EpsilonPrior(ExactEpsilon(objective), objective), draw(2, *SHAPE)
    assert torch.equal(prior.denoise(x, 99.0), prior.denoise(x, objective.sigma_max))
    assert torch.equal(prior.score(x, 1e-5), prior.score(x, objective.sigma_min))


@pytest.mark.parametrize("kind", ["epsilon", "vp", "flow"])
def test_level_must_be_positive(kind):
    for sigma in (0.0, -1.0, torch.tensor([0.5, 0.0])):
        with pytest.raises(InputError, match="positive"):
            exact_priors()[kind].denoise(draw(2, *SHAPE), sigma)


def test_vp_schedule_is_the_solution_of_its_equation():
    schedule, t = VPSchedule(), torch.linspace(0, 1, 2001, dtype=torch.float64)
    beta = schedule.beta_min + t * (schedule.beta_max - schedule.beta_min)
    alpha = torch.exp(-torch.cumulative_trapezoid(beta, t) / 2)
    torch.testing.assert_close(schedule.alpha(t[1:]), alpha)
    ones = schedule.alpha(t).square() + schedule.sigma(t).square()
    torch.testing.assert_close(ones, torch.ones_like(t))
    torch.testing.assert_close(schedule.time_at(schedule.sigma(t) / schedule.alpha(t)), t)


# --- objectives: the exact answer is their minimum


class ExactScore(MLP):
    """The score of `gaussian()` with its divergence, in the clothes of an MLP."""

    def __init__(self, scale=1.0):
        super().__init__(12, hidden=1)
        self.scale, self.prior = scale, GaussianPrior(*gaussian())
        self.trace = -(1 / self.prior.variances).sum()

    def forward_with_divergence(self, x):
        score = self.prior.score(x.reshape(-1, *SHAPE), 0.0).flatten(1)
        return self.scale * score, (self.scale * self.trace).expand(len(x))


EXACT = {
    "implicit": (implicit_score_matching, ExactScore),
    "epsilon": (
        EpsilonMatching(mean=0.2, std=0.7),
        lambda scale: ExactEpsilon(EpsilonMatching(mean=0.2, std=0.7), scale),
    ),
    "vp": (VPDenoisingScoreMatching(), lambda scale: ExactVP(VPSchedule(), scale)),
    "flow": (conditional_flow_matching, ExactFlow),
}


@pytest.mark.parametrize("kind", EXACT)
def test_objective_is_lowest_at_the_exact_answer(kind):
    objective, network = EXACT[kind]
    images = GaussianPrior(*gaussian()).sample(3000, generator())
    images = images[:, None] if kind == "flow" else images
    exact, *others = (
        objective(network(scale), images, generator(1)).item() for scale in (1.0, 0.85, 1.15)
    )
    assert exact < min(others)
    assert objective(network(1.0), images, generator(1)).item() == exact


def test_implicit_score_matching_reaches_its_known_minimum():
    """At the exact score the loss is half the trace of the inverse covariance, negative."""
    images = GaussianPrior(*gaussian()).sample(100_000, generator())
    minimum = ExactScore().trace.item() / 2
    loss = implicit_score_matching(ExactScore(), images, generator()).item()
    assert loss == pytest.approx(minimum, rel=0.01)


def test_score_of_a_gaussian_is_learned_without_noise():
    mean = torch.linspace(-1, 1, 9).reshape(3, 3)
    prior = GaussianPrior(mean, 1.0)
    torch.manual_seed(0)
    network = MLP(9, hidden=64)
    config = TrainingConfig(
        steps=600, batch_size=500, learning_rate=5e-3, warmup_steps=20, ema_decay=0.98
    )
    images = prior.sample(20_000, generator(1))
    result = train(network, implicit_score_matching, images, config, progress=False)
    network.load_state_dict(result.weights)
    fresh = prior.sample(1000, generator(2))
    exact = prior.score(fresh, 0.0)
    error = MLPScore(network).score(fresh) - exact
    assert error.norm() / exact.norm() < 0.1


def test_implicit_score_matching_needs_a_known_divergence():
    with pytest.raises(InputError, match="MLP"):
        implicit_score_matching(nn.Linear(12, 12), draw(2, *SHAPE).float(), generator())


# --- from a card to a prior


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        ({"kind": "epsilon", "mean": 0.1, "std": 0.3}, EpsilonPrior),
        ({"kind": "vp", "beta_min": 0.2, "beta_max": 9.0}, VPPrior),
        ({"kind": "flow"}, FlowPrior),
    ],
)
def test_stored_network_comes_back_as_its_prior(tmp_path, monkeypatch, objective, kind):
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    model = {"kind": "unet", "widths": [8], "embedding": 16}
    network = UNet(widths=[8], embedding=16)
    nn.init.normal_(network.leave[-1].weight, generator=generator())
    text = dict.fromkeys(("recipe", "data", "split", "device", "commit", "limits"), "none")
    fields = text | {"steps": 1, "seconds": 0.0, "seed": 0, "evaluation": {}}
    weights.save("tiny", network.state_dict(), {**fields, "model": model, "objective": objective})
    prior, x = load_prior("tiny"), torch.randn(2, 6, 5, generator=generator())
    assert isinstance(prior, kind)
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())
    assert torch.equal(prior.denoise(x, 0.5), wrap(network, objective).denoise(x, 0.5))


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"kind": "oracle"},
        {"kind": "epsilon", "mean": 0.1},
        {"kind": "vp", "gamma": 1.0},
        {"kind": "vp", "beta_min": 2.0, "beta_max": 1.0},
        {"kind": "epsilon", "mean": 0.1, "std": 0.0},
        {"kind": "implicit_score_matching"},
    ],
)
def test_impossible_objective_is_an_input_error(objective):
    with pytest.raises(InputError):
        wrap(UNet(widths=[8], embedding=16), objective)
