"""Simulated micrographs: parts that add up, a lens, a detector, places where they are said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.data.potentials import barrel
from emlab.errors import InputError
from emlab.physics.counting import Detector
from emlab.physics.micrograph import (
    MicrographConfig,
    blobs,
    config_transfer,
    hole_edge,
    power_law_field,
    random_rotations,
    simulate_micrograph,
)

SMALL = MicrographConfig(
    size=(160, 128), pixel_size_angstrom=5.3, particles=6, contaminants=0, distance_angstrom=160
)


@pytest.fixture(scope="module")
def volume():
    return barrel(32, 5.3)


@pytest.fixture(scope="module")
def micrograph(volume):
    return simulate_micrograph(replace(SMALL, carbon=0.2, contaminants=1), volume, generator())


def test_same_seed_same_micrograph(volume, micrograph):
    again = simulate_micrograph(micrograph.config, volume, generator())
    assert torch.equal(again.noisy, micrograph.noisy)
    other = simulate_micrograph(micrograph.config, volume, generator(1))
    assert not torch.equal(other.noisy, micrograph.noisy)


def test_sources_add_up(micrograph):
    parts = micrograph.noise_free_sources
    total = torch.stack(list(parts.values())).sum(0)
    torch.testing.assert_close(total, micrograph.noisy, rtol=0, atol=2e-2)
    clean = total - parts["structure"] - parts["shot"]
    torch.testing.assert_close(clean, micrograph.clean, rtol=0, atol=2e-2)
    assert all(part.shape == (160, 128) for part in parts.values())
    assert all(bool(parts[name].any()) for name in parts)


def test_shot_noise_is_that_of_the_counted_electrons(volume):
    config = replace(SMALL, particles=0, size=256, gradient=0.0, background=0.0)
    config = replace(config, ice_phase=0.0, detector=Detector(ntf_nyquist=1.0))
    found = simulate_micrograph(config, volume, generator())
    arriving = config.dose_per_angstrom2 * config.pixel_size_angstrom**2 * np.exp(-400 / 3000)
    counted = config.detector.dqe_zero * arriving
    assert found.noisy.mean().item() == pytest.approx(counted, rel=0.005)
    assert found.noise_free_sources["shot"].var().item() == pytest.approx(counted, rel=0.03)
    assert len(found.coordinates) == 0
    assert not found.particles.any()


def test_particles_are_dark_and_where_the_coordinates_say(volume):
    found = simulate_micrograph(replace(SMALL, dose_per_angstrom2=1e4), volume, generator(2))
    assert 3 <= len(found.coordinates) <= 12
    image = found.particles / found.noisy.mean()
    inside = image[found.mask(50.0)].mean()
    assert inside < -0.005 < image[~found.mask(100.0)].mean()
    gaps = np.linalg.norm(found.coordinates[:, None] - found.coordinates[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() * 5.3 >= 160


def test_a_particle_is_centred_on_its_coordinates(volume):
    """In nearly pure amplitude contrast its dark pixels are centred on the coordinates."""
    config = replace(SMALL, particles=1, ice_angstrom=100.0, gradient=0.0, background=0.0)
    config = replace(config, amplitude_contrast=0.9, defocus_angstrom=500.0, astigmatism_angstrom=0)
    found = simulate_micrograph(config, volume, generator(6))
    (place,) = [place for place in found.coordinates if place.min() > 40 and place.max() < 120]
    dark = (-found.particles).clamp_min(0).numpy() ** 2
    rows, columns = np.indices(dark.shape)
    dark[np.hypot(rows - place[0], columns - place[1]) > 20] = 0
    centre = (dark * rows).sum() / dark.sum(), (dark * columns).sum() / dark.sum()
    np.testing.assert_allclose(centre, place, atol=1.0)


def test_none_on_carbon(micrograph):
    carbon = micrograph.noise_free_sources["carbon"]
    rows, columns = micrograph.coordinates.astype(int).T
    assert carbon.min() < -5
    assert (carbon[rows, columns] > 0.5 * carbon.min()).all()


def test_transfer_is_negative_at_low_frequencies_and_damped_at_high_ones():
    transfer = config_transfer(SMALL)
    assert transfer.shape == (160, 65)
    assert (transfer[:3, :3] < 0).all()
    assert transfer.abs().max() <= 2.01


def test_rotations_are_uniform():
    rotations = random_rotations(4000, generator())
    identity = torch.eye(3, dtype=torch.float64).expand(4000, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity)
    assert (torch.linalg.det(rotations) > 0).all()
    direction = rotations[:, :, 2]
    assert direction.mean(0).abs().max() < 0.04
    np.testing.assert_allclose(direction.square().mean(0), 1 / 3, atol=0.02)


def test_detector_transfers_signal_and_noise_as_said():
    detector = Detector(binning=1.0)
    flat = torch.full((256, 256), 400.0)
    noise = detector.sample(flat, generator()) - detector.expected(flat)
    power = torch.fft.fft2(noise).abs().square() / noise.numel()
    assert power[128, 128].isfinite()
    inner, outer = power[:40, :40].mean(), power[108:148, 108:148].mean()
    assert (outer / inner).item() == pytest.approx(0.85**2, rel=0.1)
    # 400 electrons counted with efficiency .85
    assert inner.item() == pytest.approx(340, rel=0.1)
    transfer = detector.modulation_transfer((8, 8))
    assert transfer[0, 0].item() == pytest.approx(1)
    assert transfer[4, 0].item() == pytest.approx((0.35 / 0.85) ** 0.5 * 0.85, rel=1e-4)


def test_scenery():
    field = power_law_field((64, 48), 1.5, generator())
    assert field.mean().abs() < 1e-5
    assert field.std().item() == pytest.approx(1, rel=1e-4)
    film, phase = hole_edge((96, 96), 0.25, 16, generator())
    assert film[16:80, 16:80].mean().item() == pytest.approx(0.25, abs=0.02)
    assert phase.mean().abs() < 1e-4
    assert not blobs((64, 64), 0, 8, 2.6, generator()).any()
    assert blobs((256, 256), 2, 8, 2.6, generator()).max() > 40


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 32},
        {"dose_per_angstrom2": 0},
        {"carbon": 1.0},
        {"particles": -1},
        {"gradient": 1.0},
        {"contrast": 0.0},
        {"ice_angstrom": 0.0},
    ],
)
def test_impossible_micrographs_are_refused(wrong):
    with pytest.raises(InputError):
        replace(SMALL, **wrong)


def test_impossible_detectors_and_volumes_are_refused():
    for wrong in ({"dqe_zero": 0.2}, {"binning": 0.5}, {"ntf_nyquist": 0}):
        with pytest.raises(InputError):
            Detector(**wrong)
    with pytest.raises(InputError, match="cubic"):
        simulate_micrograph(SMALL, torch.zeros(8, 8, 6), generator())
    with pytest.raises(InputError, match="negative"):
        Detector().sample(torch.full((8, 8), -1.0), generator())
