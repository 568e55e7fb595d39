"""Diffusion posterior sampling on Gaussian images, whose best estimate is known."""

import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.operators import Downsample, Identity
from emlab.priors import GaussianPrior
from emlab.priors.diffusion import DDPMSchedule, DDPMView
from emlab.solvers.sampling import DPSConfig, ancestral_step, dps

PATCH, STD, RANGE, NOISE = 128, 0.2, 2.0, 0.2  # noise of .1 of the range [-1, 1]
SHORT = DDPMSchedule(steps=2, beta_first=0.3, beta_last=0.6)


class StationaryPrior:
    """Periodic Gaussian images with a power spectrum that falls as |f|^-5: closed form by FFT."""

    def __init__(self, size, corner=0.03, std=STD):
        frequency = torch.fft.fftfreq(size)
        squared = frequency[:, None] ** 2 + frequency[: size // 2 + 1].abs() ** 2
        full = (1 + (frequency[:, None] ** 2 + frequency**2) / corner**2) ** -2.5
        self.power = (1 + squared / corner**2) ** -2.5 * std**2 / full.mean()

    def sample(self, n, generator):
        size = len(self.power)
        return self._filter(torch.randn(n, size, size, generator=generator), self.power.sqrt())

    def denoise(self, x, sigma):
        return self._filter(x, self.power / (self.power + sigma**2))

    def score(self, x, sigma):
        return self._filter(x, -1 / (self.power + sigma**2))

    def _filter(self, x, gain):
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])


def psnr(estimate, truth):
    return (10 * torch.log10(RANGE**2 / (estimate - truth).square().mean())).item()


@pytest.fixture(scope="module")
def case():
    prior = StationaryPrior(PATCH)
    truth = prior.sample(1, generator())[0]
    return prior, truth, truth + NOISE * torch.randn(truth.shape, generator=generator(1))


def restored(prior, measurement, steps=200, seed=2, **options):
    config = DPSConfig(steps=steps, **options)
    return dps(prior, Identity(), measurement, None, config, generator(seed)).images[0]


@pytest.fixture(scope="module")
def by_step_size(case):
    prior, _, measurement = case
    return {g: restored(prior, measurement, step_size=g) for g in (1, 3, 15, 50, 150)}


def test_step_size_of_fifteen_is_best_as_published(case, by_step_size):
    prior, truth, measurement = case
    found = {g: psnr(image, truth) for g, image in by_step_size.items()}
    best = psnr(prior.denoise(measurement, NOISE), truth)
    assert found[1] < 23
    assert found[1] + 3 < found[3] < 28
    assert found[3] + 3 < found[15] < best
    assert found[50] < found[15] - 1
    assert best - found[15] < 3
    assert found[15] > psnr(measurement, truth) + 10


def test_a_small_step_smooths_and_a_large_one_leaves_noise(case, by_step_size):
    _, truth, measurement = case
    rough = {g: (image - truth).diff(dim=-1).square().mean() for g, image in by_step_size.items()}
    misfit = {g: (x - measurement).square().mean().sqrt() for g, x in by_step_size.items()}
    assert rough[150] > 1.5 * rough[15]
    assert misfit[1] > 1.3 * NOISE
    assert misfit[15] == pytest.approx(NOISE, rel=0.1)
    assert misfit[150] < 0.8 * NOISE


def test_fewer_steps_pull_as_far_in_all(case, by_step_size):
    prior, truth, measurement = case
    few = psnr(restored(prior, measurement, steps=100), truth)
    assert abs(psnr(by_step_size[15], truth) - few) < 1
    unscaled = psnr(restored(prior, measurement, steps=100, step_size=3), truth)
    assert unscaled < few - 3


def test_an_image_of_another_size_is_pulled_as_hard_per_pixel():
    prior = StationaryPrior(64)
    truth = prior.sample(1, generator())[0]
    measurement = truth + NOISE * torch.randn(truth.shape, generator=generator(1))
    scaled = psnr(restored(prior, measurement), truth)
    as_patch = psnr(restored(prior, measurement, patch=None), truth)
    assert scaled > as_patch + 1
    assert DPSConfig().pull(128**2) == DPSConfig(patch=None).pull(64**2) == 15
    assert DPSConfig(steps=100).pull(64**2) == pytest.approx(15 * 10 / 4)


def small():
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).double()
    covariance = (-0.5 * torch.cdist(places, places) ** 2).exp() + 0.1 * torch.eye(16).double()
    return GaussianPrior(torch.full((4, 4), 0.3).double(), covariance)


def test_first_step_is_the_formula():
    """Every symbol of the reference, with the gradient of the norm written out by hand."""
    prior, operator, gamma = small(), Downsample(2), 7.0
    measurement = torch.tensor([[0.5, -0.2], [0.1, 0.9]]).double()
    config = DPSConfig(2, gamma, None, SHORT)
    noise, shape = None, (4, 4)  # it makes no use of the noise
    actual = dps(
        prior, operator, measurement, noise, config, generator(), shape=shape, samples=3
    ).images

    draws = generator()
    x = torch.randn(3, 4, 4, generator=draws, dtype=torch.float64)
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    sampling = operator.A(torch.eye(16).double().reshape(16, 4, 4)).reshape(16, 4).T
    bar = [0.7, 0.7 * 0.4]
    for step in (1, 0):
        a, b = bar[step] ** 0.5, (1 - bar[step]) ** 0.5
        inverse = torch.linalg.inv(a**2 * covariance + b**2 * torch.eye(16))
        gap = x.flatten(1) - a * prior.mean.flatten()
        epsilon = b * gap @ inverse
        clean = prior.mean.flatten() + a * gap @ inverse @ covariance
        residual = measurement.flatten() - clean @ sampling.T
        norm = residual.norm(dim=1, keepdim=True)
        gradient = -(residual / norm) @ sampling @ (a * covariance @ inverse)
        moved = x.flatten(1) - gamma / norm * gradient
        left = (moved - b * epsilon) / a
        if step == 1:
            beta = 0.6
            mean = 0.7**0.5 * beta / (1 - bar[1]) * left + 0.4**0.5 * 0.3 / (1 - bar[1]) * moved
            std = (0.3 / (1 - bar[1]) * beta) ** 0.5
        else:
            mean, std = left, 0.0
        noise = torch.randn(3, 4, 4, generator=draws, dtype=torch.float64)
        x = mean.reshape(3, 4, 4) + std * noise
    torch.testing.assert_close(actual, x)


def by_hand(prior, measurement, noises, pulled):
    """Two steps on one image; `pulled` says which of them are pulled."""
    view = DDPMView(prior, SHORT)
    x = noises[0]
    for count, (step, following) in enumerate(((1, 0), (0, -1))):
        x = x.detach().requires_grad_()
        epsilon = view.epsilon(x, step)
        norm = (measurement - view.clean(x, step, epsilon)).norm()
        (gradient,) = torch.autograd.grad(norm, x)
        moved = x.detach() - pulled[count] * 3.0 / norm.detach() * gradient
        x = ancestral_step(view, moved, epsilon.detach(), step, following, noises[count + 1])
    return x


@pytest.mark.parametrize("views", [1, 3])
def test_an_image_of_a_batch_has_its_own_step_and_the_first_of_three_views_none(views):
    prior, measurement = small(), torch.zeros(4, 4).double()
    config = DPSConfig(2, 3.0, None, SHORT)
    priors = prior if views == 1 else [prior] * 3
    pair = dps(priors, Identity(), measurement, None, config, generator(), samples=2)
    draws = generator()
    noises = [torch.randn(2, 4, 4, generator=draws, dtype=torch.float64)[0] for _ in range(3)]
    expected = by_hand(prior, measurement, noises, pulled=(views == 1, True))
    torch.testing.assert_close(pair.images[0], expected)


def test_without_pull_it_draws_from_the_prior():
    prior = small()
    config = DPSConfig(steps=200, step_size=0.0)
    zeros = torch.zeros(4, 4).double()
    drawn = dps(prior, Identity(), zeros, None, config, generator(), samples=2000).images
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    assert (drawn.mean(0) - prior.mean).abs().max() < 0.1
    assert (drawn.flatten(1).T.cov() - covariance).abs().max() < 0.15


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"steps": 1001}, {"step_size": -1.0}, {"patch": 0}]
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        DPSConfig(**options)
