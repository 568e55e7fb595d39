"""Classical peers: each undoes what it is for, and interpolation puts samples where they were."""

import sys

import numpy as np
import pytest
import scipy
import torch

from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.metrics import psnr
from emlab.physics.operators import Axial, Blur, Downsample, gaussian_kernel
from emlab.solvers import classical


@pytest.fixture(scope="module")
def clean():
    return neuropil((64, 60), 5) / 255


@pytest.fixture(scope="module")
def noisy(clean):
    return clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape)


DENOISERS = {
    "bm3d": lambda y: classical.bm3d(y, 0.1),
    "nlm": lambda y: classical.nlm(y, 0.1, 0.6),
    "tv": lambda y: classical.tv(y, 0.09),
    "wavelet": lambda y: classical.wavelet(y, 0.1, "db2", levels=2),
    "gaussian": lambda y: classical.gaussian(y, 1.2),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_gain_many_decibels(name, clean, noisy):
    restored = DENOISERS[name](noisy)
    assert restored.shape == clean.shape
    assert restored.dtype == np.float32
    assert psnr(restored, clean, 1) > psnr(noisy, clean, 1) + 6


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_do_not_change_brightness(name, noisy):
    shifted = DENOISERS[name](noisy + 0.5) - 0.5
    np.testing.assert_allclose(shifted, DENOISERS[name](noisy), atol=2e-3)


def test_bm3d_uses_the_colour_of_the_noise(clean):
    """Told that the noise is smooth, BM3D removes smooth noise that it otherwise keeps."""
    white = np.random.default_rng(1).standard_normal(clean.shape)
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in clean.shape), indexing="ij"))
    power = np.exp(-((frequency / 0.15) ** 2)) + 1e-3
    power *= 0.05**2 / power.mean()
    coloured = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(power)).real
    told = classical.bm3d(clean + coloured, clean.size * power)
    untold = classical.bm3d(clean + coloured, 0.05)
    assert psnr(told, clean, 1) > psnr(untold, clean, 1) + 0.5
    assert not hasattr(np, "trapz") or np.lib.NumpyVersion(np.__version__) < "2.4.0"


@pytest.fixture(scope="module")
def blurred(clean):
    kernel = gaussian_kernel(1.5)
    exact = Blur(kernel).A(torch.from_numpy(clean)).numpy()
    return exact, kernel.numpy()


def test_wiener_inverts_a_blur_without_noise_up_to_the_border(clean, blurred):
    exact, kernel = blurred
    restored = classical.wiener_deconvolve(exact, kernel, 1e-7)
    gain = psnr(restored, clean, 1) - psnr(exact, clean, 1)
    assert gain > 15
    border = np.abs(restored - clean)[:4].mean()
    assert border < 2 * np.abs(restored - clean).mean() + 1e-4


@pytest.mark.parametrize(
    "restore",
    [
        lambda y, k: classical.wiener_deconvolve(y, k, 1.0, 3.0),
        lambda y, k: classical.richardson_lucy(y, k, 12),
    ],
)
def test_deconvolution_gains_under_noise(restore, clean, blurred):
    exact, kernel = blurred
    measured = exact + 0.02 * np.random.default_rng(2).standard_normal(exact.shape)
    assert psnr(restore(measured, kernel), clean, 1) > psnr(measured, clean, 1) + 1


def test_richardson_lucy_keeps_a_point_where_it_was():
    """A kernel that is not symmetric moves a point; its deconvolution moves it back."""
    point = np.full((25, 25), 0.05)
    point[11, 14] = 1
    kernel = np.zeros((5, 5))
    kernel[2, 4], kernel[3, 3] = 0.6, 0.4
    moved = Blur(torch.from_numpy(kernel)).A(torch.from_numpy(point)).numpy()
    restored = classical.richardson_lucy(moved, kernel, 60)
    assert np.unravel_index(restored.argmax(), restored.shape) == (11, 14)
    wiener = classical.wiener_deconvolve(moved, kernel, 1e-4)
    assert np.unravel_index(wiener.argmax(), wiener.shape) == (11, 14)


@pytest.mark.parametrize("mode", ["average", "decimate"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_cubic_upsampling_returns_a_ramp_to_its_place(factor, mode):
    ramp = np.add.outer(0.01 * np.arange(48), 0.02 * np.arange(60)).astype(np.float32)
    coarse = Downsample(factor, mode=mode).A(torch.from_numpy(ramp)).numpy()
    fine = classical.cubic_upsample(coarse, factor, mode)
    assert fine.shape == ramp.shape
    inner = (slice(4 * factor, -4 * factor),) * 2
    np.testing.assert_allclose(fine[inner], ramp[inner], atol=2e-4)


@pytest.mark.parametrize("mode", ["average", "decimate"])
@pytest.mark.parametrize("factor", [4, 6, 10])
def test_cubic_axial_returns_a_ramp_along_z_and_leaves_the_plane_alone(factor, mode):
    ramp = np.zeros((120, 3, 4), np.float32) + 0.01 * np.arange(120)[:, None, None]
    ramp += np.arange(12).reshape(3, 4)
    coarse = Axial(factor, mode).A(torch.from_numpy(ramp)).numpy()
    fine = classical.cubic_axial(coarse, factor, mode)
    assert fine.shape == ramp.shape
    inner = slice(4 * factor, -4 * factor)
    np.testing.assert_allclose(fine[inner], ramp[inner], atol=3e-4)


def test_splines_pass_through_decimated_samples_at_every_order():
    coarse = np.random.default_rng(3).random((9, 8)).astype(np.float32)
    for order in (3, 5):
        fine = classical.cubic_upsample(coarse, 3, "decimate", order)
        np.testing.assert_allclose(fine[1::3, 1::3], coarse, atol=2e-3)


def test_wrong_input_is_refused(clean):
    kernel = gaussian_kernel(1.0).numpy()
    for call in (
        lambda: classical.gaussian(np.zeros((1, 2, 3, 4)), 1),
        lambda: classical.tv(np.full((8, 8), np.nan), 0.1),
        lambda: classical.wiener_deconvolve(clean, 2 * kernel, 0.1),
        lambda: classical.wiener_deconvolve(clean, kernel[:-1], 0.1),
        lambda: classical.wiener_deconvolve(clean, kernel, 0),
        lambda: classical.richardson_lucy(clean, kernel, 0),
        lambda: classical.cubic_upsample(clean, 0),
        lambda: classical.cubic_axial(np.zeros((4, 4, 4)), 2, "middle"),
        lambda: classical.bm3d(clean, 0.1, "best"),
        lambda: classical.bm4d(clean, 0.1),
        lambda: classical.bm4d(np.zeros((8, 8, 8)), 0.1, "best"),
        lambda: classical.bm3d(clean, np.ones((3, 3))),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("bm3d", lambda: classical.bm3d(np.eye(16), 0.1)),
        ("bm4d", lambda: classical.bm4d(np.zeros((8, 8, 8)), 0.1)),
        ("pywt", lambda: classical.wavelet(np.eye(16), 0.1)),
    ],
)
def test_missing_extras_are_named(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"emlab-book\[peers\]"):
        call()


@pytest.mark.parametrize(
    ("operator", "sigma"), [(Downsample(2), 0.1), (Downsample(2, mode="decimate"), 0.0)]
)
def test_linear_mmse_is_the_posterior_mean_of_a_gaussian_with_that_spectrum(operator, sigma):
    shape, spectrum = (8, 12), [-2.0, -6.0]
    generator = np.random.default_rng(0)
    frequency = classical._radius(shape)
    density = np.exp(np.polyval(spectrum, np.log(frequency)))
    basis = np.stack(
        [
            scipy.fft.idctn(unit.reshape(shape), norm="ortho").ravel()
            for unit in np.eye(shape[0] * shape[1])
        ]
    )
    covariance = basis.T @ (density.ravel()[:, None] * basis)
    rows = [operator.A(torch.eye(96, dtype=torch.float64)[n].view(shape)) for n in range(96)]
    matrix = torch.stack(rows).flatten(1).T.numpy()
    y = generator.normal(size=(4, 6)) + 3.0
    middle = np.full(96, y.mean())
    gain = matrix @ covariance @ matrix.T + max(sigma, 1e-3) ** 2 * np.eye(24)
    wanted = middle + covariance @ matrix.T @ np.linalg.solve(gain, y.ravel() - matrix @ middle)
    found = classical.linear_mmse(y, operator, shape, sigma, spectrum)
    np.testing.assert_allclose(found.ravel(), wanted, atol=2e-4)


def test_fit_spectrum_finds_a_power_law():
    generator = np.random.default_rng(1)
    shape = (64, 64)
    amplitude = np.exp(np.polyval([-1.0, -5.0], np.log(classical._radius(shape))))
    images = scipy.fft.idctn(
        amplitude * generator.normal(size=(200, *shape)), axes=(1, 2), norm="ortho"
    )
    slope = np.polyval(classical.fit_spectrum(images, 2), np.log([0.05, 0.4]))
    assert slope == pytest.approx(2 * np.polyval([-1.0, -5.0], np.log([0.05, 0.4])), abs=0.15)


@pytest.mark.parametrize("denoise", [classical.bm4d, classical.nlm, None])
def test_volumes_are_denoised_along_all_axes(denoise):
    clean = neuropil((12, 24, 24), 3) / 255
    noisy = clean + np.random.default_rng(0).normal(0, 0.2, clean.shape)
    restored = denoise(noisy, 0.2) if denoise else classical.gaussian(noisy, 1.5)
    assert restored.shape == clean.shape
    assert psnr(restored, clean, 1.0) > psnr(noisy, clean, 1.0) + 3
