"""One Tweedie step is the posterior mean; the published iteration is not, and can diverge."""

from dataclasses import replace

import pytest
import torch

from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.solvers.one_step import IterationConfig, iterate, tweedie


class Gaussian:
    """Score of images of independent pixels of standard deviation `spread`."""

    def __init__(self, spread):
        self.spread = spread

    def score(self, x, sigma):
        return -x / (self.spread**2 + sigma**2)

    def denoise(self, x, sigma):
        return x + sigma**2 * self.score(x, sigma)


def noise(seed=0):
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))


def iterated(prior, x, sigma, config):
    return iterate(prior, Identity(), x, GaussianNoise(sigma), config).images[0]


def test_one_step_is_the_posterior_mean():
    clean = 0.7 * noise()
    x = clean + 1.5 * noise(1)
    found = tweedie(Gaussian(0.7), x, 1.5)
    torch.testing.assert_close(found, x * 0.49 / (0.49 + 2.25))
    assert (found - clean).square().mean() < (x - clean).square().mean()


def test_exact_iteration_multiplies_white_noise_by_the_stated_gain():
    config = IterationConfig(b=0.0)
    gain = 1 - (config.a / config.noise) ** 2
    assert gain == pytest.approx(-1.19, abs=0.01)
    x = 2.0 * noise()
    for number in range(1, 6):
        found = iterated(Gaussian(0.0), x, 2.0, replace(config, steps=number))
        torch.testing.assert_close(found, x * gain**number, rtol=1e-4, atol=1e-4)
    assert found.std() > 2 * x.std()


def test_small_steps_do_not_diverge_but_go_past_the_posterior_mean():
    x = noise()
    config = IterationConfig(a=0.2, b=0.0, steps=40)
    assert abs(1 - (config.a / config.noise) ** 2) < 1
    last = iterated(Gaussian(0.5), x, 1.0, config)
    assert last.std() < 0.1 * tweedie(Gaussian(0.5), x, 1.0).std()


def test_step_that_grows_with_the_image_treats_bright_and_dark_alike_in_no_way():
    x = torch.tensor([[-20.0, 20.0]])
    found = iterated(Gaussian(0.0), x, 1.0, IterationConfig(steps=1, b=0.01))
    assert found[0, 1] < -found[0, 0]


def test_refused():
    with pytest.raises(InputError):
        tweedie(Gaussian(1.0), noise(), 0.0)
    for wrong in ({"steps": 0}, {"a": 0.0}, {"noise": 0.0}):
        with pytest.raises(InputError):
            IterationConfig(**wrong)
