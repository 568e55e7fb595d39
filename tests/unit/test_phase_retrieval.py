"""Retrieval without a learned prior, on cases with a known answer."""

import pytest
import torch
from weak_phase import WeakPhase

from emlab.errors import InputError
from emlab.physics.counting import GaussianCounts, Poisson
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.solvers.denoiser_spread import power_spectrum
from emlab.solvers.guided_phase import conditional
from emlab.solvers.phase_projections import ProjectionsConfig, alternate
from emlab.solvers.phase_retrieval import (
    phase_flip,
    sparse_fresnel,
    transport_of_intensity,
    wiener,
)

SIZE = 24


def lens(defocus, **options):
    return ComplexCTF(300, 2.63, defocus, **options)


def disc(radius=5.0, height=0.3):
    rows = torch.arange(SIZE).double() - SIZE / 2 + 0.3
    return height * (torch.hypot(rows[:, None], rows - 1.0) < radius).double()


def smooth():
    rows = torch.arange(SIZE).double() - SIZE / 2
    return 0.1 * (-(rows[:, None] ** 2 + (rows + 2) ** 2) / 18).exp()


def error(found, truth):
    found, truth = found - found.mean(), truth - truth.mean()
    return ((found - truth).norm() / truth.norm()).item()


def test_flipping_leaves_the_modulus_of_the_ctf():
    instrument = WeakPhase(lens(15000.0), 30.0, SIZE, padded=SIZE)
    truth = disc()
    found = phase_flip(instrument.A(truth), instrument)
    modulus = lens(15000.0).weak_phase((SIZE, SIZE)).abs()
    expected = torch.fft.ifft2(torch.fft.fft2(truth) * modulus).real
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_wiener_is_the_posterior_mean_of_weak_phases():
    instrument = WeakPhase(lens(torch.tensor([9000.0, 20000.0])), 30.0, SIZE, padded=SIZE)
    noise = GaussianCounts(instrument.counts)
    truth = torch.stack([disc(), smooth()])
    measurement = noise.sample(instrument.A(truth), torch.Generator().manual_seed(0))
    power = power_spectrum(truth)
    mean, _ = conditional(
        instrument, noise, measurement, torch.zeros_like(truth), power, instrument.sensitivity(), 40
    )
    torch.testing.assert_close(wiener(measurement, instrument, power), mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["gerchberg_saxton", "hio", "rrr"])
def test_projections_find_a_strong_phase_in_a_support(rule):
    """One image without noise, a support of a quarter of the area, and a phase beyond weak."""
    instrument = ExitWave(lens(6000.0), 30.0, SIZE, window=2 * SIZE)
    truth = disc(5.0, 1.2) + disc(2.5, 0.5)
    support = disc(7.0, 1.0) > 0
    start = alternate(instrument.A(truth), instrument, ProjectionsConfig(rule, 1), support)
    found = alternate(instrument.A(truth), instrument, ProjectionsConfig(rule, 150), support)
    assert error(found, truth) < 0.03 < 0.5 < error(start, truth)


def test_sparsity_finds_a_disc_that_wiener_does_not():
    instrument = ExitWave(lens(12000.0), 40.0, SIZE)
    truth = disc()
    measurement = Poisson().sample(instrument.A(truth), torch.Generator().manual_seed(1))
    found = sparse_fresnel(measurement, instrument, 10.0, iterations=100)
    linear = wiener(measurement, instrument, power_spectrum(truth[None]))
    fitted = sparse_fresnel(measurement, instrument, 0.0, iterations=100)
    assert found.min() >= 0
    assert error(found, truth) < 0.6 * error(linear, truth)
    assert error(found, truth) < 0.5 * error(fitted, truth)


def test_transport_of_intensity_finds_a_smooth_phase_from_three_defoci():
    instruments = [
        ExitWave(lens(d, cs_mm=0.0, amplitude_contrast=0.0), 30.0, SIZE, padded=SIZE)
        for d in (-300.0, 0.0, 300.0)
    ]
    found = transport_of_intensity([each.A(smooth()) for each in instruments], instruments, 1e-8)
    assert error(found, smooth()) < 0.01
    turned = transport_of_intensity(
        [each.A(smooth()) for each in instruments], instruments[::-1], 1e-8
    )
    assert error(-turned, smooth()) < 0.01


def test_bad_input_is_refused():
    wide = ExitWave(lens(9000.0), 30.0, 8, window=12)
    with pytest.raises(InputError, match="as large as the field"):
        phase_flip(torch.ones(12, 12), wide)
    with pytest.raises(InputError, match="rule"):
        ProjectionsConfig(rule="magic")
    with pytest.raises(InputError, match="beta"):
        ProjectionsConfig(beta=2.0)
    damped = ExitWave(lens(9000.0, b_factor_angstrom2=50.0), 30.0, 8)
    with pytest.raises(InputError, match="B factor"):
        alternate(torch.ones(8, 8), damped, ProjectionsConfig())
    same = [ExitWave(lens(9000.0), 30.0, 8)] * 2
    with pytest.raises(InputError, match="same defocus"):
        transport_of_intensity([torch.ones(8, 8)] * 2, same)
    with pytest.raises(InputError, match="two or more"):
        transport_of_intensity([torch.ones(8, 8)], same[:1])
    with pytest.raises(InputError, match="weight"):
        sparse_fresnel(torch.ones(8, 8), same[0], -1.0)
