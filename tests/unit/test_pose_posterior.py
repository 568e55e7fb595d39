"""A reference finds its particles, tells how sure it is, and is refused where it is wrong."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.data.phase_maps import project
from emlab.data.potentials import barrel
from emlab.errors import InputError
from emlab.methods import tsm
from emlab.methods.tsm_guidance import explain, standardise
from emlab.metrics.bands import band_correlations, suppression
from emlab.models import build
from emlab.physics.micrograph import MicrographConfig, config_transfer, simulate_micrograph
from emlab.priors.networks import ScorePrior
from emlab.priors.pose_posterior import PoseConfig, Reference
from emlab.priors.score_matching import ScoreMatching

pytest.importorskip("torch_fourier_slice")
PIXEL = 5.26
SMALL = PoseConfig(20.0, directions=40, angles=12, steps_deg=(8.0, 4.0), keep=3, decoys=3)


@pytest.fixture(scope="module")
def volume():
    return barrel(32, PIXEL)


@pytest.fixture(scope="module")
def reference(volume):
    return Reference(volume, PIXEL, SMALL)


@pytest.fixture(scope="module")
def micrographs(volume):
    """One with particles, one with none."""
    config = MicrographConfig(
        size=160, pixel_size_angstrom=PIXEL, particles=9, contaminants=0, defocus_angstrom=18000.0
    )
    both = config, replace(config, particles=0)
    return [simulate_micrograph(one, volume, generator(3)) for one in both]


def lens_of(micrograph):
    return lambda shape: config_transfer(replace(micrograph.config, size=shape))


def explained(micrograph, reference):
    flat = standardise(micrograph.noisy, PIXEL)
    return explain(flat.image, reference, lens_of(micrograph), generator())


def wiener_prior():
    """A network that returns zeros: what is left is the ring-wise filter."""
    network = build({"kind": "unet", "widths": [8], "patch": 2, "embedding": 16})
    return ScorePrior(network, ScoreMatching(ringwise=True))


def identity_lens(shape):
    return torch.ones(shape[0], shape[1] // 2 + 1)


def test_likelihood_ratio_of_a_particle_in_white_noise_is_its_energy(reference):
    """For x = T + n with unit noise, l = |T|^2 / 2 + <n, T>: mean |T|^2 / 2, variance |T|^2."""
    view = reference.project(reference.turns[[7]], fine=True)[0]
    view = 6 * view / view.square().sum().sqrt()
    image = torch.randn(256, 256, generator=generator())
    image[112:144, 112:144] += view
    search = reference.under(image, identity_lens)
    place = np.array([[128, 128]])
    fields = search.fields(place)
    contrast = float(6 / reference.project(reference.turns[[7]], fine=True)[0].norm())
    found = search.log_ratio(fields, contrast)[0, 7].max()
    assert float(found) == pytest.approx(6**2 / 2, abs=2 * 6)
    elsewhere = search.log_ratio(search.fields(np.array([[60, 60]])), contrast)
    assert search.evidence(fields, contrast) > elsewhere.amax()


def test_the_posterior_mean_is_the_particle(volume, reference):
    turn = reference.turns[[20]]
    wanted = 40 * project(reference.volume, turn, PIXEL)[0]
    wanted *= 12 / wanted.norm()
    image = torch.randn(192, 192, generator=generator(1))
    image[83:115, 77:109] += wanted
    search = reference.under(image, identity_lens)
    place = np.array([[98, 95]])  # a pixel and two off
    fields = search.fields(place)
    poses = search.refine(place, fields, search.contrast(fields))
    canvas = torch.zeros_like(image)
    canvas[98 - 16 : 98 + 16, 95 - 16 : 95 + 16] = poses.guess[0]
    guess = canvas[83:115, 77:109]
    assert torch.corrcoef(torch.stack([guess.flatten(), wanted.flatten()]))[0, 1] > 0.9
    assert poses.disc.max() > 0.95


def test_a_decoy_has_the_power_and_not_the_phases(reference):
    decoy = reference.decoy(40.0, generator())
    pair = torch.stack([decoy.volume.flatten(), reference.volume.flatten()])
    assert torch.corrcoef(pair)[0, 1] < 0.95
    ratio = decoy.volume.square().sum() / reference.volume.square().sum()
    assert 0.5 < float(ratio) < 1.5
    assert decoy.radius < 1.3 * reference.radius
    assert torch.equal(reference.decoys[0].volume, reference.decoys[0].volume)


def test_the_right_reference_guides_and_others_do_not(micrographs, reference):
    here, empty = micrographs
    found = explained(here, reference)
    assert found.accepted
    assert found.used >= 4
    near = np.linalg.norm(found.places[:, None] - here.coordinates, axis=2).min(1)
    assert np.median(near) < 3
    noise = torch.randn(32, 32, 32, generator=generator(5))
    for micrograph, other in ((here, Reference(noise, PIXEL, SMALL)), (empty, reference)):
        refused = explained(micrograph, other)
        assert not refused.accepted
        assert not refused.confidence.any()
        assert "not used" in str(refused)


def test_a_guided_micrograph_is_nearer_to_the_particles(micrographs, reference):
    here, empty = micrographs
    prior = wiener_prior()
    plain = tsm.denoise(here.noisy, PIXEL, prior, tsm.Config(tile=256))
    told = {"reference": reference, "lens": lens_of(here)}
    guided = tsm.denoise(here.noisy, PIXEL, prior, tsm.Config(tile=256), **told)
    before, after = (band_correlations(one.image, here) for one in (plain, guided))
    assert after["40_25"] > before["40_25"] + 0.005
    assert suppression(plain.image, here) > suppression(here.noisy, here) + 1
    assert "guides" in guided.notes[0]
    nothing = tsm.denoise(empty.noisy, PIXEL, prior, tsm.Config(tile=256), **told)
    same = tsm.denoise(empty.noisy, PIXEL, prior, tsm.Config(tile=256))
    np.testing.assert_array_equal(nothing.image, same.image)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda volume: Reference(volume[:-2], PIXEL),
        lambda volume: Reference(torch.zeros_like(volume), PIXEL),
        lambda _: PoseConfig(keep=0),
        lambda _: PoseConfig(low_pass_angstrom=0.0),
    ],
)
def test_impossible_references_are_refused(wrong, volume):
    with pytest.raises(InputError):
        wrong(volume)


def test_a_reference_needs_a_lens_and_the_right_voxels(micrographs, reference):
    image = micrographs[0].noisy
    prior = wiener_prior()
    for lens, size in ((None, PIXEL), (identity_lens, 1.3 * PIXEL)):
        with pytest.raises(InputError, match="voxels as large as pixels"):
            tsm.denoise(image, size, prior, reference=reference, lens=lens)


def test_turns_are_rotations(reference):
    product = reference.turns @ reference.turns.transpose(1, 2)
    assert float((product - torch.eye(3)).abs().max()) < 1e-5
    assert len(reference.turns) == 40 * 12
    assert math.isclose(float(torch.linalg.det(reference.turns[5])), 1, rel_tol=1e-5)
