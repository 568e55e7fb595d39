"""Particles as Cellpose sees them: targets, crops, pipelines and recipes."""

import numpy as np
import pytest
import torch

from emlab import weights
from emlab.data.potentials import barrel as simulated_barrel
from emlab.errors import InputError
from emlab.methods.cellpose3 import load_restorer, load_segmenter
from emlab.physics.micrograph import MicrographConfig, simulate_micrograph
from emlab.recipes import particles, recipes
from emlab.recipes.particles import (
    WORKING_ANGSTROM,
    Crops,
    Field,
    Material,
    coarse,
    disc_targets,
    field_of,
)
from emlab.recipes.tsm import Frame
from emlab.settings import PROFILES, read_profile


@pytest.fixture(scope="module")
def micrograph():
    pytest.importorskip("torch_fourier_slice")
    config = MicrographConfig(size=256, particles=7, contaminants=0, defocus_angstrom=20000.0)
    volume = simulated_barrel(64, 2.63)
    return simulate_micrograph(config, volume, torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def field(micrograph):
    return field_of(micrograph)


def test_coarse_keeps_places_and_grey_levels():
    y, x = np.indices((128, 128))
    blob = np.exp(-((y - 40.5) ** 2 + (x - 80.5) ** 2) / 200).astype(np.float32)
    small = coarse(blob)
    assert small.shape == (64, 64)
    assert small.mean() == pytest.approx(blob.mean(), rel=1e-5)
    assert np.unravel_index(small.argmax(), small.shape) == (20, 40)
    assert coarse(blob, 2 * WORKING_ANGSTROM).shape == (256, 256)


def test_flows_lead_to_the_nearest_centre_and_nowhere_else():
    centres = np.array([[10.0, 10.0], [10.0, 30.0]])
    flows, inside = disc_targets(centres, (24, 40), 8.0)
    assert inside[10, 17] == 1
    assert inside[10, 20] == 0
    assert inside.sum() == pytest.approx(2 * np.pi * 64, rel=0.05)
    assert flows[:, 10, 5].tolist() == [0, 1]
    assert flows[:, 15, 30].tolist() == [-1, 0]
    length = flows.square().sum(0).sqrt()
    assert length[inside == 0].max() == 0
    assert ((length > 0.99) | (length == 0)).all()


def test_a_field_has_bright_particles_in_units_of_the_noise(field, micrograph):
    assert field.clean.shape == (128, 128)
    assert field.noise.std().item() == pytest.approx(1, abs=0.1)
    inside = field.inside > 0
    assert field.clean[inside].mean() > field.clean[~inside].mean() + 0.05
    shown = micrograph.mask(70.0).float().mean().item()
    assert inside.float().mean().item() == pytest.approx(shown, abs=0.02)


def test_crops_bring_other_noise_and_flows_of_the_turned_particle(field):
    crops = Crops((field,), 64, noisy=True)
    corners = crops.places(6)
    assert corners[:, 1:].max() <= 128 - round(64 * 1.3)
    first = crops(corners, torch.Generator().manual_seed(0))
    second = crops(corners, torch.Generator().manual_seed(1))
    assert first.shape == (6, 5, 64, 64)
    assert not torch.equal(first[:, 0], second[:, 0])
    noise = first[:, 0] - first[:, 1]
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    # Walking along the flow ends where the flow changes its sign: the mask's middle.
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    mask = first[:, 4] > 0
    away = [(rows[m].mean() - rows[m], columns[m].mean() - columns[m]) for m in mask]
    one = int(mask.sum((1, 2)).argmin()) if mask.any((1, 2)).all() else int(mask[0].any())
    together = sum((first[one, 2 + k][mask[one]] * away[one][k]).sum() for k in (0, 1))
    assert together > 0
    clean = Crops((field,), 64, noisy=False)(corners, torch.Generator().manual_seed(0))
    spread = (clean[:, 0] - clean[:, 1]).flatten(1).std(1)
    assert spread.max() < 1e-6


def test_material_that_does_not_fit_is_refused():
    for wrong in ({"crop": 30}, {"crop": 128, "size": 256}, {"micrographs": 0}):
        with pytest.raises(InputError):
            Material(**wrong)


def test_discs_are_found_where_they_are(micrograph, monkeypatch):
    """A segmenter that answers with the truth finds the true places."""
    flows, inside = disc_targets(
        (micrograph.coordinates + 0.5) / 2 - 0.5, (128, 128), 70 / WORKING_ANGSTROM
    )
    answer = torch.cat([5 * flows, 8 * inside[None] - 4])
    seen = []

    def segment(image, segmenter, **options):
        seen.append(image)
        from emlab.methods.cellpose3 import segment as real

        return real(np.zeros((128, 128), np.float32), segmenter, **options)

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return answer[None]

    monkeypatch.setattr(particles, "segment", segment)
    noisy = micrograph.noisy.numpy()
    found = particles.find_particles(noisy, noisy, Oracle())
    within = ((micrograph.coordinates > 26) & (micrograph.coordinates < 230)).all(1)
    apart = np.linalg.norm(
        micrograph.coordinates[within][:, None] - found.picked.coordinates[None], axis=2
    )
    assert apart.min(1).max() < 3
    assert len(found.picked.scores) <= len(micrograph.coordinates)
    inside_units = seen[0][inside.numpy() > 0].mean()
    assert inside_units > seen[0][inside.numpy() == 0].mean()  # bright
    with pytest.raises(InputError, match="differ"):
        particles.find_particles(noisy[:-1], noisy, Oracle())


def test_nothing_is_found_in_an_even_image():
    image = np.random.default_rng(0).normal(100, 10, (128, 128)).astype(np.float32)
    segmenter = load_segmenter(particles.SEGMENTER)
    found = particles.find_particles(np.full_like(image, 100), image, segmenter)
    assert found.picked.coordinates.shape == (0, 2)


def test_the_shipped_restorer_uncovers_particles_for_the_frozen_segmenter(micrograph):
    segmenter, noisy = load_segmenter(particles.SEGMENTER), micrograph.noisy.numpy()
    f1 = {}
    for name in ("raw", particles.SQUARES, particles.RESTORER):
        image = noisy if name == "raw" else particles.restore(noisy, load_restorer(name))
        f1[name] = particles.own_picks([image], [micrograph], segmenter).at(-np.inf).f1()
        assert image.shape == noisy.shape
    assert f1["raw"] < 0.4
    assert min(f1[particles.SQUARES], f1[particles.RESTORER]) > 0.7


def test_restoring_keeps_size_and_grey_levels_at_other_pixel_sizes(micrograph):
    restorer, noisy = load_restorer(particles.RESTORER), micrograph.noisy.numpy()
    fine = np.kron(noisy[:150, :170], np.ones((2, 2), np.float32))
    found = particles.restore(fine, restorer, pixel_size_angstrom=1.315)
    assert found.shape == fine.shape
    assert found.mean() == pytest.approx(fine.mean(), rel=0.02)
    assert found.std() < 0.6 * fine.std()
    with pytest.raises(InputError, match="pixel size"):
        particles.restore(noisy, restorer, pixel_size_angstrom=0)


def test_recipes_train_in_their_order_and_have_all_profiles(micrograph, tmp_path, monkeypatch):
    monkeypatch.setattr(particles, "frames", lambda *wanted: [Frame("barrel", micrograph)])
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    for name in ("particle_segmenter", "particle_squares", "particle_restorer"):
        for profile in PROFILES:
            assert name in read_profile("recipes/particles", profile)["training"]
        card = recipes()[name]("smoke", "cpu", tmp_path, False)
        assert card.steps == 3
        assert any(key.startswith("validation_f1") for key in card.evaluation)
        tensors, _ = weights.load(name)
        assert all(t.dtype == torch.float16 for t in tensors.values() if t.is_floating_point())


def test_an_unknown_objective_is_refused(micrograph, monkeypatch):
    monkeypatch.setattr(particles, "frames", lambda *wanted: [Frame("barrel", micrograph)])
    with pytest.raises(InputError, match="segmenter or restorer"):
        particles.prepare({"objective": {"kind": "painter"}}, {"size": 256, "crop": 64})


def test_a_field_is_what_the_restorer_is_given(field, micrograph):
    assert isinstance(field, Field)
    given = []

    class Spy(torch.nn.Module):
        def forward(self, images):
            given.append(images)
            return images[:, None]

    image = particles.restore(micrograph.noisy.numpy(), Spy())
    torch.testing.assert_close(given[0][0], field.clean + field.noise)
    assert np.corrcoef(image.ravel(), micrograph.noisy.numpy().ravel())[0, 1] > 0.4
