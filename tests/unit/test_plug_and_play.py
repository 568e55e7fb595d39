"""Plug-and-play restoration on Gaussian images, whose posterior is known in closed form."""

import pytest
import torch
from drawing import draw, generator

from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Axial, Blur, Downsample, Identity, gaussian_kernel
from emlab.priors import GaussianPrior
from emlab.solvers.plug_and_play import (
    PlanesPrior,
    PlugAndPlayConfig,
    RestoreConfig,
    across_axes,
    data_step,
    plug_and_play_flow,
    restore,
)

SIZE = 10
TASKS = {  # operator, noise, mean square error that the reference reports for alpha = .3
    "denoise": (Identity(), 0.5, 0.071),
    "blur": (Blur(gaussian_kernel(1.0).double()), 0.24, 0.025),
    "decimate": (Downsample(2), 0.1, 0.018),
}


def smooth(length=3.0):
    places = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).double()
    covariance = (-0.5 * (torch.cdist(places, places) / length) ** 2).exp()
    covariance += 1e-4 * torch.eye(SIZE**2).double()
    return GaussianPrior(torch.zeros(SIZE, SIZE).double(), covariance)


def posterior(prior, operator, sigma):
    """Gain that makes the posterior mean of a measurement, and the posterior covariance."""
    covariance = (prior.basis * prior.variances) @ prior.basis.T
    pixels = torch.eye(SIZE**2).double().reshape(-1, SIZE, SIZE)
    matrix = operator.A(pixels).flatten(1).T
    evidence = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix))
    gain = torch.linalg.solve(evidence, matrix @ covariance).T
    return gain, covariance - gain @ matrix @ covariance


def measure(operator, sigma, n=1):
    truth = smooth().sample(n, generator(1))
    clean = operator.A(truth)
    return truth, clean + sigma * draw(*clean.shape, seed=2)


def published(task, alpha, n=200):
    """Mean square error of one sample, over n images, and that of an exact posterior sample."""
    operator, sigma, _ = TASKS[task]
    truth, measurement = measure(operator, sigma, n)
    config = PlugAndPlayConfig(100, alpha)
    found = plug_and_play_flow(
        smooth(), operator, measurement, None, config, generator(), shape=(SIZE, SIZE), samples=n
    ).images
    _, covariance = posterior(smooth(), operator, sigma)
    return (found - truth).square().mean().item(), 2 * covariance.diagonal().mean().item()


# --- the published scheme


@pytest.mark.parametrize("task", TASKS)
def test_published_scheme_has_the_errors_of_the_reference(task):
    error, of_exact_sample = published(task, 0.3)
    assert error == pytest.approx(TASKS[task][2], rel=0.2)
    assert error < 1.15 * of_exact_sample
    assert error > 0.5 * of_exact_sample


def test_alpha_balances_noise_against_detail():
    noisy = {alpha: published("denoise", alpha)[0] for alpha in (0.0, 0.3, 1.0)}
    assert noisy[0.0] > 1.5 * noisy[0.3] > 1.5 * noisy[1.0]
    sparse = {alpha: published("decimate", alpha)[0] for alpha in (0.3, 1.0)}
    assert sparse[1.0] > 3 * sparse[0.3]


def test_published_step_is_the_formula():
    prior, operator = smooth(), Blur(gaussian_kernel(1.0).double())
    measurement = draw(SIZE, SIZE)
    found = plug_and_play_flow(
        prior, operator, measurement, None, PlugAndPlayConfig(4, 0.5), generator(3)
    )
    draws, x = generator(3), torch.zeros(1, SIZE, SIZE).double()
    for t in (0.001, 0.25, 0.5, 0.75):
        weight = 1 if t == 0.001 else (1 - t) ** 0.5
        z = x - weight * operator.A_adjoint(operator.A(x) - measurement)
        noise = torch.randn(x.shape, generator=draws, dtype=torch.float64)
        on_path = t * z + (1 - t) * noise
        velocity = (prior.denoise(on_path / t, (1 - t) / t) - on_path) / (1 - t)
        x = on_path + (1 - t) * velocity
    torch.testing.assert_close(found.images, x)


# --- ours


def against_closed_form(task, samples=150, **options):
    """Error of the mean in posterior standard deviations, and the spread over the exact one."""
    operator, sigma, _ = TASKS[task]
    _, measurement = measure(operator, sigma)
    gain, covariance = posterior(smooth(), operator, sigma)
    std = covariance.diagonal().sqrt().reshape(SIZE, SIZE)
    mean = (gain @ measurement.flatten()).reshape(SIZE, SIZE)
    config = RestoreConfig(steps=40, sigma_max=5.0, **options)
    found = restore(
        smooth(), operator, measurement[0], GaussianNoise(sigma), config, generator(),
        shape=(SIZE, SIZE), samples=samples,
    )  # fmt: skip
    ratio = (found.spread.square().mean() / std.square().mean()).sqrt()
    return ((found.mean - mean) / std).square().mean().sqrt(), ratio


def test_little_trust_spreads_too_much():
    assert against_closed_form("denoise", trust=0.3)[1] > 1.3


@pytest.mark.parametrize("task", TASKS)
def test_data_step_is_the_exact_minimiser(task):
    operator, sigma, _ = TASKS[task]
    images, spread = draw(2, SIZE, SIZE, seed=4), 0.3
    _, measurement = measure(operator, sigma)
    found, misfit = data_step(operator, measurement[0], lambda r: r / sigma**2, images, spread, 60)
    pixels = torch.eye(SIZE**2).double().reshape(-1, SIZE, SIZE)
    matrix = operator.A(pixels).flatten(1).T
    normal = matrix.T @ matrix / sigma**2 + torch.eye(SIZE**2) / spread
    right = matrix.T @ measurement.flatten() / sigma**2 + images.flatten(1) / spread
    expected = torch.linalg.solve(normal, right.T).T.reshape(images.shape)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    rms = (measurement[0] - operator.A(images)).square().mean().sqrt().item()
    assert misfit == pytest.approx(rms)


def test_coloured_noise_is_followed_where_it_is_weak():
    """With a precision that knows which half is noisy, that half follows the prior."""
    prior, measurement = smooth(), draw(SIZE, SIZE)
    weight = torch.full((SIZE, SIZE), 1e8).double()
    weight[:, SIZE // 2 :] = 1e-4

    class Halves:
        def precision(self, residual):
            return weight * residual

    found = restore(
        prior, Identity(), measurement, Halves(), RestoreConfig(iterations=30), generator()
    ).images[0]
    gap = (found - measurement).square().mean(0)
    assert gap[: SIZE // 2].max() < 1e-3
    assert gap[SIZE // 2 :].min() > 0.1


def test_the_start_matters_only_while_noise_does_not_drown_it():
    prior, zeros = smooth(), torch.zeros(SIZE, SIZE).double()

    def distance(sigma_max):
        config = RestoreConfig(sigma_max=sigma_max, trust=1.0)
        ends = [
            restore(
                prior, Identity(), zeros, GaussianNoise(1.0), config, generator(),
                start=torch.full((SIZE, SIZE), level).double(),
            ).images
            for level in (0.0, 1.0)
        ]  # fmt: skip
        return (ends[1] - ends[0]).norm().item()

    assert distance(100.0) < 0.01 * distance(0.05)


# --- volumes, settings


def test_planes_of_each_axis_are_denoised_by_themselves():
    prior, volume = smooth(), draw(SIZE, SIZE, SIZE)
    for view, axis in zip(across_axes(prior), (0, 1, 2), strict=True):
        planes = [prior.denoise(plane, 0.5) for plane in volume.unbind(axis)]
        torch.testing.assert_close(view.denoise(volume, 0.5), torch.stack(planes, axis))
        scores = [prior.score(plane, 0.5) for plane in volume.unbind(axis)]
        torch.testing.assert_close(view.score(volume, 0.5), torch.stack(scores, axis))
    with pytest.raises(InputError, match="axis -3, -2 or -1"):
        PlanesPrior(prior, 0)


@pytest.mark.parametrize("scheme", ["published", "ours"])
def test_volumes_use_the_views_in_turn_and_fit_their_sections(scheme):
    used = []

    class Named(PlanesPrior):
        def denoise(self, x, sigma):
            used.append(self.axis)
            return super().denoise(x, sigma)

    views = [Named(smooth(), axis) for axis in (-3, -2, -1)]
    operator, truth = Axial(5), smooth().sample(1, generator(1))[0].expand(SIZE, SIZE, SIZE)
    measurement, shape = operator.A(truth), (SIZE, SIZE, SIZE)
    if scheme == "published":
        config = PlugAndPlayConfig(30, 0.3)
        found = plug_and_play_flow(
            views, operator, measurement, None, config, generator(), shape=shape
        )
    else:
        config = RestoreConfig(steps=30, trust=1.0)
        found = restore(
            views, operator, measurement, GaussianNoise(0.05), config, generator(), shape=shape
        )
    assert used == [-3, -2, -1] * 10
    assert found.images.shape == (1, *shape)
    assert (found.images[0] - truth).square().mean() < 0.3 * truth.square().mean()


@pytest.mark.parametrize("options", [{"steps": 0}, {"alpha": -0.1}, {"alpha": 1.1}])
def test_published_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        PlugAndPlayConfig(**options)


@pytest.mark.parametrize(
    "options",
    [{"steps": 1}, {"sigma_min": 2.0}, {"trust": 0.0}, {"iterations": 0}],
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        RestoreConfig(**options)
