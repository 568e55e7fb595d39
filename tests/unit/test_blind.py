"""Blind deblurring finds kernels that nobody told it, on images whose statistics are known."""

import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Blur, defocus_kernel, gaussian_kernel
from emlab.solvers.blind import (
    BlindConfig,
    blind_deblur,
    estimate_kernel,
    fit_on_simplex,
    kernel_atoms,
    project_on_simplex,
)
from emlab.solvers.plug_and_play import RestoreConfig, restore

SIZE, KERNEL, NOISE = 64, 17, 0.02
WHITE = GaussianNoise(NOISE)
CONFIG = BlindConfig(size=KERNEL, steps=30, sigma_min=0.02, restoration=RestoreConfig())


def kernel_width(kernel: torch.Tensor) -> float:
    """Root mean square distance from the centroid along one axis, in pixels (mean of both)."""
    places = torch.arange(len(kernel), dtype=kernel.dtype, device=kernel.device)
    total = kernel.new_zeros(())
    for profile in (kernel.sum(0), kernel.sum(1)):
        centre = (profile * places).sum()
        total = total + (profile * (places - centre).square()).sum()
    return float((total / 2).sqrt())


class CorrelatedPrior:
    """Periodic Gaussian images of standard deviation .3, closed form by FFT."""

    def __init__(self, size=SIZE):
        columns, rows = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
        fall = (1 + (columns[:, None] ** 2 + rows**2) / 0.05**2) ** -2.5
        full = (1 + (columns[:, None] ** 2 + columns**2) / 0.05**2) ** -2.5
        self.power = 0.3**2 * fall / full.mean()

    def sample(self, generator):
        return self._filter(torch.randn(SIZE, SIZE, generator=generator), self.power.sqrt())

    def denoise(self, x, sigma):
        return self._filter(x, self.power / (self.power + sigma**2))

    def score(self, x, sigma):
        return self._filter(x, -1 / (self.power + sigma**2))

    def _filter(self, x, gain):
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])


def blurred(kernel, seed=0):
    draws = generator(seed)
    truth = CorrelatedPrior().sample(draws)
    noise = NOISE * torch.randn(truth.shape, generator=draws)
    side, reach = len(truth), len(kernel) // 2  # the prior's images repeat at their borders
    tiled = truth.repeat(3, 3)[side - reach : 2 * side + reach, side - reach : 2 * side + reach]
    return truth, Blur(kernel).A(tiled)[reach : side + reach, reach : side + reach] + noise


@pytest.fixture(scope="module")
def restored():
    """Images blurred by a Gaussian of 2 pixels: truth, measurement, what was found, progress."""
    truth, measurement = blurred(gaussian_kernel(2.0, KERNEL))
    seen = []
    found, kernel = blind_deblur(
        CorrelatedPrior(), measurement, WHITE, CONFIG, generator(9), samples=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    return truth, measurement, found, kernel, seen


def check(kernel, sigma):
    true = gaussian_kernel(sigma, KERNEL)
    assert kernel.min() >= 0
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    assert kernel_width(kernel) == pytest.approx(sigma, abs=0.4)
    error = (kernel - true).norm() / true.norm()
    assert error < 0.5
    assert error < 0.3 * (gaussian_kernel(0, KERNEL) - true).norm() / true.norm()


def test_width_of_a_narrow_gaussian_kernel_is_recovered():
    _, measurement = blurred(gaussian_kernel(1.0, KERNEL), seed=2)
    check(estimate_kernel(CorrelatedPrior(), measurement, WHITE, CONFIG, generator(9)), 1.0)


def test_width_of_a_wide_gaussian_kernel_is_recovered(restored):
    check(restored[3], 2.0)


def test_no_blur_is_found_to_be_none():
    _, measurement = blurred(gaussian_kernel(0, KERNEL), seed=1)
    kernel = estimate_kernel(CorrelatedPrior(), measurement, WHITE, CONFIG, generator(9))
    assert kernel[KERNEL // 2, KERNEL // 2] > 0.8


def test_restored_image_is_as_good_as_with_the_true_kernel(restored):
    truth, measurement, found, kernel, seen = restored
    known = restore(
        CorrelatedPrior(), Blur(gaussian_kernel(2.0, KERNEL)), measurement, WHITE,
        RestoreConfig(), generator(9), samples=2, start=measurement,
    )  # fmt: skip
    error, of_known, of_input = (
        (image - truth).square().mean() for image in (found.mean, known.mean, measurement)
    )
    assert error < 0.75 * of_input
    assert error < 1.15 * of_known
    assert found.images.shape == (2, SIZE, SIZE)
    assert kernel.shape == (KERNEL, KERNEL)
    assert found.evaluations == CONFIG.steps + 2 * CONFIG.restoration.steps
    total = CONFIG.steps + CONFIG.restoration.steps
    assert seen == [(k, total) for k in range(1, total + 1)]


def test_without_samples_one_image_is_returned_that_is_closer():
    truth, measurement = blurred(gaussian_kernel(2.0, KERNEL))
    config = BlindConfig(size=KERNEL, steps=15, sigma_min=0.02)
    found, _ = blind_deblur(CorrelatedPrior(), measurement, WHITE, config, generator(9))
    assert found.images.shape == (1, SIZE, SIZE)
    assert found.evaluations == 15 + config.restoration.steps
    assert (found.mean - truth).square().mean() < 0.65 * (measurement - truth).square().mean()
    with pytest.raises(InputError, match="draws no samples"):
        blind_deblur(CorrelatedPrior(), measurement, WHITE, config, generator(), samples=2)


def test_same_seed_same_kernel():
    _, measurement = blurred(gaussian_kernel(1.0, KERNEL))
    config = BlindConfig(size=9, steps=4)
    first, again, other = (
        estimate_kernel(CorrelatedPrior(), measurement, WHITE, config, generator(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the fit


def test_projection_on_the_simplex_is_the_nearest_point():
    values = torch.randn(40, 6, generator=generator(), dtype=torch.float64)
    others = torch.rand(2000, 6, generator=generator(1), dtype=torch.float64).log()
    others = others / others.sum(1, keepdim=True)
    for value in values[:10]:
        projected = project_on_simplex(value)
        assert projected.min() >= 0
        assert projected.sum().item() == pytest.approx(1)
        nearest = (others - value).norm(dim=1).min()
        assert (projected - value).norm() <= nearest + 1e-12
    inside = torch.tensor([0.2, 0.3, 0.5]).double()
    torch.testing.assert_close(project_on_simplex(inside), inside)


def test_fit_finds_weights_that_were_mixed():
    columns = torch.randn(50, 5, generator=generator(), dtype=torch.float64)
    weights = torch.tensor([0.0, 0.6, 0.0, 0.4, 0.0]).double()
    start = torch.full((5,), 0.2).double()
    found = fit_on_simplex(columns.T @ columns, columns.T @ columns @ weights, start)
    torch.testing.assert_close(found, weights, atol=1e-5, rtol=0)


def test_known_image_gives_the_kernel_back():
    """With an all-knowing prior the fit is plain least squares."""
    truth = torch.randn(SIZE, SIZE, generator=generator())

    class Oracle(CorrelatedPrior):
        def denoise(self, x, sigma):
            return truth.expand(x.shape)

    disc = torch.nn.functional.pad(defocus_kernel(3.0), (5,) * 4)
    config = BlindConfig(size=17, steps=3)
    noise = GaussianNoise(0.01)
    kernel = estimate_kernel(Oracle(), Blur(disc).A(truth), noise, config, generator())
    assert (kernel - disc).norm() < 0.02 * disc.norm()


def test_atoms_are_kernels_from_narrow_to_wide():
    atoms = kernel_atoms(9)
    assert atoms.shape == (5, 9, 9)
    torch.testing.assert_close(atoms.sum((1, 2)), torch.ones(5))
    widths = [kernel_width(atom) for atom in atoms]
    assert widths == sorted(widths)
    assert widths[0] == 0
    assert widths[4] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_width_of_a_gaussian_is_its_sigma(sigma):
    assert kernel_width(gaussian_kernel(sigma, 33)) == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [{"size": 4}, {"size": 1}, {"steps": 1}, {"sigma_min": 2.0},
     {"memory": 1.0}, {"trust": 0.0}, {"window": 1}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        BlindConfig(**options)


@pytest.mark.parametrize("shape", [(2, 64, 64), (32, 64)])
def test_images_that_make_no_sense_are_refused(shape):
    with pytest.raises(InputError):
        blind_deblur(CorrelatedPrior(), torch.zeros(shape), WHITE, BlindConfig(), generator())
