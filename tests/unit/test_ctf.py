"""The lens: wavelength, sign, astigmatism, envelope, and the complex CTF of another package."""

import math

import pytest
import torch

from emlab.errors import InputError
from emlab.physics.ctf import ComplexCTF, wavelength_angstrom

SHAPE = (24, 32)


def lens(**options):
    return ComplexCTF(**{"voltage_kv": 300, "pixel_size_angstrom": 2.63} | options)


@pytest.mark.parametrize(("kv", "known"), [(100, 0.03701), (200, 0.02508), (300, 0.01969)])
def test_wavelength(kv, known):
    assert wavelength_angstrom(kv) == pytest.approx(known, rel=1e-3)


def test_first_zero_of_a_textbook_lens_is_where_chi_is_pi():
    ctf = lens(defocus_u_angstrom=15000.0, cs_mm=0.0, amplitude_contrast=0.0)
    zero = 1 / math.sqrt(ctf.wavelength_angstrom * 15000)
    assert ctf.chi(zero).item() == pytest.approx(math.pi)
    assert ctf.chi(zero / 2).item() == pytest.approx(math.pi / 4)
    aberrated = lens(defocus_u_angstrom=0.0, cs_mm=2.7)
    k = 0.2
    assert aberrated.chi(k).item() == pytest.approx(
        -math.pi / 2 * 2.7e7 * aberrated.wavelength_angstrom**3 * k**4
    )


def test_underfocus_makes_matter_dark_and_amplitude_contrast_helps():
    plain = lens(defocus_u_angstrom=15000.0, amplitude_contrast=0.0).weak_phase(SHAPE)
    with_loss = lens(defocus_u_angstrom=15000.0, amplitude_contrast=0.07).weak_phase(SHAPE)
    over = lens(defocus_u_angstrom=-15000.0, amplitude_contrast=0.07).weak_phase(SHAPE)
    assert plain[0, 0] == 0
    assert with_loss[0, 0].item() == pytest.approx(-0.07 / math.sqrt(1 - 0.07**2))
    assert plain[0, 1] < 0
    assert with_loss[0, 1] < plain[0, 1]
    assert over[0, 1] > 0


def test_weak_phase_transfer_is_a_sine_shifted_by_the_amplitude_contrast():
    q = 0.1
    ctf = lens(defocus_u_angstrom=12000.0, amplitude_contrast=q, b_factor_angstrom2=60.0)
    frequency, azimuth = ctf.grid(SHAPE)
    expected = -(ctf.chi(frequency, azimuth) + math.asin(q)).sin() / math.sqrt(1 - q**2)
    torch.testing.assert_close(ctf.weak_phase(SHAPE), expected * (-60 / 4 * frequency**2).exp())


def test_astigmatism_turns_with_its_angle():
    ctf = lens(defocus_u_angstrom=20000.0, defocus_v_angstrom=10000.0, astigmatism_deg=90.0)
    k = 0.05
    along_rows, along_columns = ctf.chi(k, math.pi / 2), ctf.chi(k, 0.0)
    first, second = (lens(defocus_u_angstrom=d).chi(k) for d in (20000.0, 10000.0))
    torch.testing.assert_close(along_rows, first)
    torch.testing.assert_close(along_columns, second)
    transfer = ctf.transfer((32, 32))
    one, two = (lens(defocus_u_angstrom=d).transfer((32, 32)) for d in (20000.0, 10000.0))
    torch.testing.assert_close(transfer[:, 0], one[:, 0])
    torch.testing.assert_close(transfer[0], two[0])


def test_delocalisation_is_the_slope_of_chi_and_some_75_angstrom_at_2_um_and_5_angstrom():
    ctf = lens(defocus_u_angstrom=20000.0, defocus_v_angstrom=18000.0, astigmatism_deg=20.0)
    k = torch.tensor([0.02, 0.1, 0.19], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ctf.chi(k, 0.3).sum(), k)
    torch.testing.assert_close(ctf.delocalisation_angstrom(k, 0.3), slope.abs() / (2 * math.pi))
    far = lens(defocus_u_angstrom=20000.0).delocalisation_angstrom(1 / 5.3).item()
    assert far == pytest.approx(73.0, abs=1.0)


def test_many_images_are_the_single_ones():
    defocus, plate = torch.tensor([8000.0, 16000.0]), torch.tensor([0.0, 60.0])
    many = lens(defocus_u_angstrom=defocus, phase_shift_deg=plate).transfer(SHAPE)
    for each, d, p in zip(many, defocus, plate, strict=True):
        one = lens(defocus_u_angstrom=float(d), phase_shift_deg=float(p)).transfer(SHAPE)
        torch.testing.assert_close(each, one)


def test_a_phase_plate_turns_sine_into_cosine_but_leaves_the_unscattered_wave():
    ctf = lens(defocus_u_angstrom=10000.0, amplitude_contrast=0.0, phase_shift_deg=90.0)
    plain = lens(defocus_u_angstrom=10000.0, amplitude_contrast=0.0)
    assert ctf.transfer(SHAPE)[0, 0] == 1
    torch.testing.assert_close(ctf.weak_phase(SHAPE)[0, 1:], -plain.transfer(SHAPE).real[0, 1:])


def test_transfer_keeps_the_energy_unless_there_is_an_envelope():
    options = {"defocus_u_angstrom": 18000.0, "defocus_v_angstrom": 16000.0}
    ones = torch.ones(SHAPE).double()
    torch.testing.assert_close(lens(**options).transfer(SHAPE).abs(), ones)
    damped = lens(**options, b_factor_angstrom2=100.0).transfer(SHAPE).abs()
    assert damped[0, 0] == 1
    assert damped[SHAPE[0] // 2, 0].item() == pytest.approx(math.exp(-25 / (2 * 2.63) ** 2))


def test_complex_ctf_is_that_of_torch_ctf_and_shows_why_ours_leaves_q_out():
    torch_ctf = pytest.importorskip("torch_ctf", reason="torch-ctf is not installed")
    options = {
        "voltage": 300.0, "spherical_aberration": 2.7, "pixel_size": 2.63, "phase_shift": 0.0,
        "image_shape": SHAPE, "rfft": False, "fftshift": False, "return_complex_ctf": True,
    }  # fmt: skip
    astigmatic = {"defocus": 1.5, "astigmatism": 0.2, "astigmatism_angle": 30.0}
    ours = lens(defocus_u_angstrom=17000.0, defocus_v_angstrom=13000.0, astigmatism_deg=30.0)
    other = torch_ctf.calculate_ctf_2d(**options, **astigmatic, amplitude_contrast=0.0)
    torch.testing.assert_close(ours.transfer(SHAPE), other.to(torch.complex128), atol=1e-3, rtol=0)
    lossy = torch_ctf.calculate_ctf_2d(**options, **astigmatic, amplitude_contrast=0.07)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(math.asin(0.07)))
    torch.testing.assert_close(lossy, other * turn, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"defocus_u_angstrom": 2.0}, "angstrom"),
        ({"defocus_u_angstrom": torch.tensor([15000.0, 1.5])}, "angstrom"),
        ({"defocus_u_angstrom": float("nan")}, "angstrom"),
        ({"defocus_u_angstrom": 1e4, "voltage_kv": 300000}, "kV"),
        ({"defocus_u_angstrom": 1e4, "pixel_size_angstrom": 0.0}, "pixel_size"),
        ({"defocus_u_angstrom": 1e4, "cs_mm": 2.7e7}, "mm"),
        ({"defocus_u_angstrom": 1e4, "amplitude_contrast": 7.0}, "amplitude_contrast"),
        ({"defocus_u_angstrom": 1e4, "b_factor_angstrom2": -1.0}, "B factor"),
    ],
)
def test_wrong_units_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        lens(**options)
