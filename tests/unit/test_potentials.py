"""Potentials: the integral is that of the atoms, ice is taken away, symmetry is found."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emlab.data import potentials
from emlab.data.potentials import ANGSTROM3_PER_DALTON, aligned, barrel, potential, read_atoms
from emlab.errors import InputError

OXYGEN_FACTOR = 1.9826  # A, sum of the five amplitudes (Peng et al. 1996)


def write_model(path, atoms):
    lines = [
        f"ATOM  {i:5d}  {element:<3s} ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}"
        f"          {element:>2s}"
        for i, (element, x, y, z, b) in enumerate(atoms, 1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.fixture
def vacuum(monkeypatch):
    """Nothing is displaced."""
    monkeypatch.setattr(potentials, "ICE_VOLTS", 0.0)


def d7(points):
    """Images of points under the seven-fold along z and the two-fold along x."""
    turns = Rotation.from_euler("z", 360 / 7 * np.arange(7)[:, None], degrees=True).as_matrix()
    both = np.concatenate([points, points * (1, -1, -1)])
    return np.einsum("tij,nj->tni", turns, both).reshape(-1, 3)


def test_integral_in_vacuum_is_the_sum_of_scattering_factors(tmp_path, vacuum):
    model = write_model(tmp_path / "o.pdb", [("O", 5.0, -3.0, 2.0, 20.0), ("O", 9, 1, 4, 20.0)])
    volume = potential(model, 2.0, 16)
    assert volume.shape == (16, 16, 16)
    assert float(volume.sum()) * 8 == pytest.approx(2 * 47.8776 * OXYGEN_FACTOR, rel=0.01)


def test_ice_that_is_displaced_is_taken_away(tmp_path, monkeypatch):
    model = write_model(tmp_path / "o.pdb", [("O", 0.0, 0.0, 0.0, 20.0)])
    ice = potential(model, 2.0, 16)
    monkeypatch.setattr(potentials, "ICE_VOLTS", 0.0)
    vacuum = potential(model, 2.0, 16)
    displaced = 4.5 * ANGSTROM3_PER_DALTON * 1.07 * 16
    assert 8 * float((vacuum - ice).sum()) == pytest.approx(displaced, rel=1e-3)
    spread = (vacuum - ice).max() / (vacuum - ice).sum()
    assert spread < 0.5 * vacuum.max() / vacuum.sum()


def test_atoms_lie_where_the_model_says_x_last(tmp_path, vacuum):
    """Three atoms along a line: it becomes z, the heavy end keeps its side up to a turn."""
    atoms = [("O", 0.0, 0.0, 0.0, 20.0), ("O", 8.0, 0.0, 0.0, 20.0), ("O", -8.0, 0.0, 0.0, 20.0)]
    volume = potential(write_model(tmp_path / "line.pdb", atoms), 2.0, 16)
    peaks = {tuple(place) for place in np.argwhere(volume.numpy() > 0.5 * float(volume.max()))}
    assert {(4, 8, 8), (8, 8, 8), (12, 8, 8)} <= peaks


def test_carbons_carry_the_hydrogens_that_a_model_lacks(tmp_path, vacuum):
    carbon = [("C", 0.0, 0.0, 0.0, 20.0)]
    bare = potential(write_model(tmp_path / "c.pdb", carbon), 2.0, 16)
    with_one = [*carbon, ("H", 0.0, 0.0, 1.09, 20.0)]
    full = potential(write_model(tmp_path / "ch.pdb", with_one), 2.0, 16)
    per_hydrogen = 8 * float(full.sum()) - 47.8776 * 2.5088
    assert 8 * float(bare.sum()) - 47.8776 * 2.5088 == pytest.approx(1.6 * per_hydrogen, rel=0.05)


def test_any_orientation_of_a_sevenfold_particle_is_brought_to_the_same_frame():
    generator = np.random.default_rng(3)
    points = d7(generator.normal(size=(6, 3)) * (6, 6, 12) + (30, 0, 35))
    turned = points @ Rotation.random(random_state=1).as_matrix().T + 7
    found = aligned(turned, np.full(len(points), 6))
    flipped = found * (1, -1, -1)
    distance = np.linalg.norm(found[:, None] - flipped, axis=-1).min(1)
    assert distance.max() < 1e-6
    seventh = found @ Rotation.from_euler("z", 360 / 7, degrees=True).as_matrix().T
    assert np.linalg.norm(found[:, None] - seventh, axis=-1).min(1).max() < 1e-6
    assert np.ptp(found[:, 2]) == pytest.approx(np.ptp(points[:, 2]))


def test_barrel_has_the_published_outline_and_symmetry():
    volume = barrel(64, 2.63).numpy()
    assert volume.sum() * 2.63**3 == pytest.approx(2.8e6, rel=1e-3)
    volume /= volume.max()
    inside = np.argwhere(volume > 0.06)
    extent = 2.63 * (np.ptp(inside, axis=0) + 1)
    assert extent[0] == pytest.approx(148, abs=6)
    assert extent[1:] == pytest.approx([113, 113], abs=6)
    core = volume[1:, 1:, 1:]  # the centre is voxel 32
    assert np.allclose(core, core[::-1, ::-1], atol=1e-5)
    rings = (volume > 0.2).any((1, 2)).astype(int)
    profile = volume.sum((1, 2))
    peaks = (profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])
    assert rings.sum() > 40
    assert peaks.sum() >= 4
    angle = np.arctan2(*(np.indices((64, 64)) - 32))
    order = [abs((volume.sum(0) * np.exp(1j * n * angle)).sum()) for n in range(5, 10)]
    assert np.argmax(order) == 2


def test_what_is_no_model_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="check its name"):
        read_atoms(tmp_path / "none.pdb")
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(InputError, match="holds no atoms"):
        read_atoms(tmp_path / "empty.pdb")
    model = write_model(tmp_path / "wide.pdb", [("O", 0, 0, -40, 20), ("O", 0, 0, 40, 20)])
    with pytest.raises(InputError, match="enlarge the box"):
        potential(model, 2.0, 16)
    with pytest.raises(InputError, match="even box"):
        barrel(7, 2.0)
