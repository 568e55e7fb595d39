"""Phase maps: a blob where geometry says, views apart between the splits, the cache tells truth."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from emlab.data import phase_maps as module
from emlab.data.phase_maps import degrees_to_held_out, phase_maps, poses, project, sigma_e
from emlab.errors import InputError


def blob(centre, sigma=2.0, side=32):
    """A Gaussian of 1 V about a place (x, y, z), in voxels from the centre."""
    z, y, x = np.indices((side,) * 3) - side // 2
    distance = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
    return torch.from_numpy(np.exp(-distance / (2 * sigma**2)).astype(np.float32))


def apart(first, second):
    """Angles (n, m) between directions under D7 and seen from behind."""
    turns = Rotation.from_euler("z", 360 / 7 * np.arange(7)[:, None], degrees=True).as_matrix()
    group = np.concatenate([turns, turns @ np.diag([1, -1, -1])])
    cosine = np.abs(np.einsum("ni,sij,mj->snm", first, group, second))
    return np.degrees(np.arccos(np.clip(cosine.max(0), -1, 1)))


def test_interaction_parameter_is_that_of_the_tables():
    assert sigma_e(300.0) == pytest.approx(6.526e-4, rel=1e-3)
    assert sigma_e(100.0) == pytest.approx(9.244e-4, rel=1e-3)
    assert sigma_e(200.0) == pytest.approx(7.288e-4, rel=1e-3)
    with pytest.raises(InputError, match="in kV"):
        sigma_e(0.0)


def test_projection_of_a_blob_is_a_gaussian_at_the_turned_place():
    place, pixel = np.array([5.0, -3.0, 4.0]), 2.0
    rotations = Rotation.random(4, random_state=2).as_matrix()
    shifts = np.array([[0, 0], [2.0, 0], [0, -3.0], [1.0, 1.0]])
    views = project(blob(place), rotations, pixel, 300.0, shifts).numpy()
    y, x = np.indices((32, 32)) - 16
    for view, rotation, shift in zip(views, rotations, shifts, strict=True):
        u, v = (rotation.T @ place)[:2] + shift / pixel
        area = sigma_e(300.0) * pixel * np.sqrt(2 * np.pi) * 2.0
        wanted = area * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
        assert np.abs(view - wanted).max() < 0.03 * area
        assert view.sum() == pytest.approx(wanted.sum(), rel=0.02)


def test_view_from_behind_is_the_mirror_image():
    volume = blob((5, -3, 4)) + 0.5 * blob((-6, 2, 1))
    rotation = Rotation.random(random_state=4).as_matrix()
    front, back = project(volume, np.stack([rotation, rotation @ np.diag([1, -1, -1])]), 2.0)
    assert torch.allclose(front[1:].flip(0), back[1:], atol=0.01 * front.max().item())


def test_shift_leaves_the_field_on_one_side_and_brings_ice_on_the_other():
    volume = blob((14, 0, 0))
    moved = project(volume, np.eye(3)[None], 2.0, shifts_angstrom=np.array([[12.0, 0.0]]))[0]
    assert moved[:, :20].abs().max() < 0.02 * volume.sum(0).max() * 2 * sigma_e(300)


def test_splits_hold_views_apart_under_the_symmetry():
    train, validation, test = (poses(400, 7, split)[:, :, 2] for split in module.SPLITS)
    assert apart(validation, train).min() >= module.MARGIN_DEGREES - 1e-6
    assert apart(test, train).min() >= module.MARGIN_DEGREES - 1e-6
    assert apart(test, validation).min() >= module.MARGIN_DEGREES
    assert degrees_to_held_out(test).max() <= module.CAP_DEGREES + 1e-6
    assert len(module._held_out("validation")) == 4
    assert len(module._held_out("test")) == 8
    assert apart(train, test).min() < 5, "the margin is one step of resolution, not a hemisphere"


def test_poses_are_rotations_spread_over_sphere_and_plane():
    rotations = poses(3000, 0, "train")
    assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(rotations), 1)
    assert np.abs(rotations[:, :, 2].mean(0)).max() < 0.06
    assert np.abs(rotations[:, :, 0].mean(0)).max() < 0.06
    assert (np.abs(rotations[:, 2, 2]) > 0.9).mean() == pytest.approx(0.1, abs=0.04)
    assert not np.allclose(poses(5, 1, "train"), poses(5, 2, "train"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))
    return tmp_path / "specimens"


def test_maps_come_from_the_cache_the_second_time(cache, monkeypatch):
    first = phase_maps("barrel", 3, 5, "test")
    assert first.phases.shape == (3, 64, 64)
    assert 0.1 < first.phases.amax() < 0.8
    assert np.abs(first.shifts_angstrom).max() <= 3 * module.SHIFT_ANGSTROM
    monkeypatch.setattr(module, "project", None)
    again = phase_maps("barrel", 3, 5, "test")
    assert torch.equal(first.phases, again.phases)
    assert np.array_equal(first.rotations, again.rotations)
    with pytest.raises(TypeError):
        phase_maps("barrel", 3, 6, "test")
    assert len(list(cache.iterdir())) == 2


def test_maps_are_projections_at_the_poses_they_name(cache):
    maps = phase_maps("barrel", 2, 0, "validation")
    volume = module.specimen_volume("barrel")
    again = project(volume, maps.rotations, module.PIXEL_ANGSTROM, 300.0, maps.shifts_angstrom)
    assert torch.allclose(maps.phases, again, atol=1e-3 * again.max().item())
    straight = project(volume, maps.rotations, module.PIXEL_ANGSTROM)
    assert not torch.allclose(maps.phases, straight, atol=0.1 * again.max().item())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ribosome", 1), "choose one of t20s, barrel"),
        (("barrel", 0), "at least 1"),
        (("barrel", 1, 0, "all"), "choose one of train, validation, test"),
    ],
)
def test_impossible_wishes_say_what_there_is(cache, arguments, said):
    with pytest.raises(InputError, match=said):
        phase_maps(*arguments)


def test_only_cubes_are_projected():
    with pytest.raises(InputError, match="need a cube"):
        project(torch.zeros(4, 4, 6), np.eye(3)[None], 1.0)
