"""Half-quadratic splitting against the posterior mean that a Gaussian prior knows."""

import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Downsample, Identity
from emlab.priors import EquivariantPrior, GaussianPrior
from emlab.priors.base import turn, turn_back
from emlab.solvers.plug_and_play import HalfQuadraticConfig, data_step, half_quadratic


def test_data_step_solves_its_normal_equations():
    operator = Downsample(2)
    image = torch.randn(3, 6, 8, generator=generator(), dtype=torch.float64)
    y = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    found, _ = data_step(operator, y, lambda r: r / 0.3**2, image, 0.5, 50)
    gradient = operator.A_adjoint(operator.A(found) - y) / 0.3**2 + (found - image) / 0.5
    assert gradient.abs().max() < 1e-8


def test_result_agrees_with_a_noise_free_measurement():
    truth = torch.randn(16, 16, generator=generator())
    operator = Downsample(4)
    result = half_quadratic(
        GaussianPrior(torch.zeros(16, 16), 1.0),
        operator,
        operator.A(truth),
        GaussianNoise(1e-3),
        HalfQuadraticConfig(),
        shape=(16, 16),
    )
    assert torch.allclose(operator.A(result.mean), operator.A(truth), atol=1e-2)
    assert result.evaluations == 8
    assert len(result.trace) == 8


def test_coloured_noise_is_weighed_by_its_precision():
    """Where the noise is said to be weak the measurement is kept, elsewhere the prior wins."""
    sigma = torch.cat([torch.full((8, 4), 1e-3), torch.full((8, 4), 1e3)], dim=1)
    y = torch.ones(8, 8)

    class Halves:
        def precision(self, residual):
            return residual / sigma**2

    prior, config = GaussianPrior(torch.zeros(8, 8), 0.5), HalfQuadraticConfig(iterations=100)
    result = half_quadratic(prior, Identity(), y, Halves(), config).mean
    assert (result[:, :4] - 1).abs().max() < 1e-2
    assert result[:, 4:].abs().max() < 1e-2


def test_coloured_noise_leaves_when_the_prior_has_the_last_word():
    """A last data step would mix noise back in that a smooth prior has already recognised."""
    size, count = 12, 16
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size)).float()
    squares = torch.cdist(places, places).square()
    signal = 0.3**2 * (-0.5 * squares / 3.0**2).exp()
    noise = 0.1**2 * (-0.5 * squares / 0.7**2).exp() + 1e-4 * torch.eye(size * size)
    prior = GaussianPrior(torch.zeros(size, size), signal)
    truth = prior.sample(count, generator())
    measured = truth + GaussianPrior(torch.zeros(size, size), noise).sample(count, generator(1))
    exact = signal @ torch.linalg.solve(signal + noise, measured.flatten(1).T)

    class Coloured:
        def precision(self, residual):
            rows = residual.reshape(count, -1)
            return torch.linalg.solve(noise, rows.T).T.reshape(residual.shape)

    def error(last):
        found = half_quadratic(
            prior, Identity(), measured, Coloured(),
            HalfQuadraticConfig(sigma_max=0.4, sigma_min=0.04, iterations=60, last=last),
            start=measured,
        ).mean  # fmt: skip
        return (found - truth).square().mean() / (exact.T - truth.flatten(1)).square().mean()

    assert error("prior") < 1.15
    assert error("data") > 1.3 * error("prior")


@pytest.mark.parametrize(
    "settings",
    [{"last": "both"}, {"steps": 1}, {"sigma_min": 0.5}, {"weight": 0.0}, {"iterations": 0}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError):
        HalfQuadraticConfig(**settings)


def test_turns_are_the_eight_symmetries_and_are_undone():
    image = torch.arange(12.0).reshape(3, 4)
    square = torch.arange(9.0).reshape(3, 3)
    assert len({tuple(turn(square, g).flatten().tolist()) for g in range(8)}) == 8
    assert all(torch.equal(turn_back(turn(image, g), g), image) for g in range(8))


def test_equivariant_prior_averages_out_what_depends_on_orientation():
    class Leaning:
        def denoise(self, x, sigma):
            return x + torch.linspace(-1, 1, x.shape[-1])

    prior = EquivariantPrior(Leaning(), generator())
    answers = torch.stack([prior.denoise(torch.zeros(5, 5), 0.1) for _ in range(400)])
    assert answers.mean(0).abs().max() < 0.2
    assert answers[0].abs().max() == 1
    assert prior.score(torch.zeros(5, 5), 0.1).abs().max() == pytest.approx(100)
