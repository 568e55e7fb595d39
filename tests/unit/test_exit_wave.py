"""The exit wave: derivative, transpose, weak-phase limit, energy, and abTEM's multislice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from weak_phase import WeakPhase

from emlab.errors import InputError
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave

SIZE = 12
MULTISLICE = Path(__file__).resolve().parents[1] / "fixtures" / "multislice.npz"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lens(**options):
    known = {"voltage_kv": 300, "pixel_size_angstrom": 2.63, "defocus_u_angstrom": 15000.0}
    return ComplexCTF(**known | options)


def two_particles(kind=ExitWave, **sizes):
    defocus = torch.tensor([9000.0, 21000.0])
    ctf = lens(defocus_u_angstrom=defocus, b_factor_angstrom2=40.0)
    return kind(ctf, torch.tensor([30.0, 60.0]), SIZE, **sizes)


SIZES = [{}, {"window": 20}, {"window": 7}, {"window": SIZE, "padded": SIZE}, {"padded": 31}]


@pytest.mark.parametrize("sizes", SIZES)
def test_jacobian_is_that_of_finite_differences(sizes):
    operator = two_particles(**sizes)
    image, change = 0.3 * draw(3, 2, SIZE, SIZE), draw(3, 2, SIZE, SIZE, seed=1)
    step = 1e-5
    ahead, behind = operator.A(image + step * change), operator.A(image - step * change)
    tangent = operator.linearised(image)
    torch.testing.assert_close(
        tangent.A(change), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-4
    )
    torch.testing.assert_close(tangent.expected, operator.A(image))


@pytest.mark.parametrize("kind", [ExitWave, WeakPhase])
@pytest.mark.parametrize("sizes", SIZES)
def test_adjoint_is_the_transpose(sizes, kind):
    operator = two_particles(kind, **sizes)
    tangent = operator.linearised(0.3 * draw(2, SIZE, SIZE))
    change, counts = draw(2, SIZE, SIZE, seed=1), draw(2, *[operator.window] * 2, seed=2)
    forward = (tangent.A(change) * counts).sum()
    torch.testing.assert_close(forward, (change * tangent.A_adjoint(counts)).sum())


def test_gradient_through_autograd_is_the_adjoint():
    operator = two_particles()
    image = (0.2 * draw(2, SIZE, SIZE)).requires_grad_()
    weights = draw(2, SIZE, SIZE, seed=3)
    (gradient,) = torch.autograd.grad((operator.A(image) * weights).sum(), image)
    adjoint = operator.linearised(image.detach()).A_adjoint(weights)
    torch.testing.assert_close(gradient, adjoint)


def test_weak_phase_limit_is_twice_the_convolution_with_the_ctf():
    operator = ExitWave(lens(), 40.0, SIZE, padded=SIZE)
    image = 1e-4 * draw(SIZE, SIZE)
    spectrum = torch.fft.fft2(image) * lens().weak_phase((SIZE, SIZE))
    expected = 40 * 2.63**2 * (1 + 2 * torch.fft.ifft2(spectrum).real)
    contrast = (expected - expected.mean()).abs().max()
    assert (operator.A(image) - expected).abs().max() < 1e-3 * contrast
    weak = WeakPhase(lens(), 40.0, SIZE, padded=SIZE)
    torch.testing.assert_close(weak.A(1e4 * image) - 40 * 2.63**2, 1e4 * (expected - 40 * 2.63**2))


def test_no_electron_is_lost_without_absorption():
    image = 0.8 * draw(SIZE, SIZE)
    whole = ExitWave(lens(amplitude_contrast=0.0), 1.0, SIZE, window=24, padded=24)
    torch.testing.assert_close(whole.A(image).mean().item(), 2.63**2)
    lossy = ExitWave(lens(amplitude_contrast=0.1), 1.0, SIZE, window=24, padded=24)
    assert lossy.A(image.abs()).mean() < 0.99 * 2.63**2


def test_mean_phase_of_a_specimen_that_fills_the_square_is_unobservable():
    operator = ExitWave(lens(amplitude_contrast=0.0), 1.0, SIZE, padded=SIZE)
    image = 0.5 * draw(SIZE, SIZE)
    torch.testing.assert_close(operator.A(image), operator.A(image + 0.7))


def test_matter_is_dark_under_focus_and_bright_over_focus():
    rows = torch.arange(SIZE).double() - SIZE / 2
    blob = 0.1 * (-(rows[:, None] ** 2 + rows**2) / 8).exp()
    for defocus, sign in ((15000.0, -1), (-15000.0, 1)):
        counts = ExitWave(lens(defocus_u_angstrom=defocus), 1.0, SIZE).A(blob)
        assert sign * (counts[SIZE // 2, SIZE // 2] - 2.63**2) > 0


def test_waves_leave_the_field_and_a_larger_window_sees_them():
    blob = torch.zeros(SIZE, SIZE).double()
    blob[SIZE // 2, SIZE // 2] = 1.0
    small = ExitWave(lens(), 1.0, SIZE, padded=64).A(blob)
    large = ExitWave(lens(), 1.0, SIZE, window=40, padded=64).A(blob)
    torch.testing.assert_close(large[14:26, 14:26], small)
    contrast = (large - 2.63**2).square()
    assert contrast[14:26, 14:26].sum() < 0.5 * contrast.sum()


@pytest.mark.parametrize("window", [32, 48])
def test_sensitivity_is_about_the_diagonal_of_the_normal_operator(window):
    defocus = torch.tensor([9000.0, 21000.0])
    operator = WeakPhase(lens(defocus_u_angstrom=defocus), 40.0, 32, window)
    tangent = operator.linearised(torch.zeros(2, 32, 32).double())
    places, sensitivity = torch.arange(32).double(), operator.sensitivity()
    for row, column in ((0, 1), (2, 3), (5, 0), (9, 14), (13, 4)):
        angle = 2 * torch.pi * (row * places[:, None] + column * places) / 32
        waves = torch.stack([angle.cos(), angle.sin()])[:, None] / 32
        power = tangent.A(waves).square().sum((0, -2, -1))
        known = sensitivity[:, row, column].double()
        torch.testing.assert_close(power, known, rtol=0.1, atol=0.04 * float(sensitivity.max()))


@pytest.mark.parametrize("image", [0, 1, 2])
def test_thin_specimen_has_the_image_of_multislice(image):
    """And not the one of the other sign of defocus; better than its weak-phase limit."""
    stored = np.load(MULTISLICE)
    phase = torch.from_numpy(stored["phase"]).double()
    defocus, expected = float(stored["defocus_angstrom"][image]), stored["images"][image]

    def misfit(kind, sign=1):
        ctf = ComplexCTF(300, 1.0, sign * defocus, amplitude_contrast=0.0)
        found = kind(ctf, 1.0, len(phase), padded=len(phase)).A(phase).numpy()
        return np.std(found - expected) / np.std(expected)

    assert misfit(ExitWave) < 0.05
    assert misfit(ExitWave) < 0.75 * misfit(WeakPhase)
    assert misfit(ExitWave, -1) > 1


def test_bad_sizes_and_doses_are_refused():
    with pytest.raises(InputError, match="padded square"):
        ExitWave(lens(), 30.0, 64, padded=32)
    with pytest.raises(InputError, match="dose"):
        ExitWave(lens(), 0.0, 64)
    with pytest.raises(InputError, match="field is 12 x 12"):
        ExitWave(lens(), 30.0, SIZE).A(torch.zeros(8, 8))
