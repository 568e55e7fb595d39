"""EMPIAR-10025 as served: a small copy of its layout over loopback, cut at the listed places."""

import numpy as np
import pytest
from serving import serving

from emlab.data.empiar import AVERAGES, TABLE, load_empiar_10025
from emlab.errors import DataUnavailableError, InputError, IntegrityError
from emlab.io import write_image

PLACES = {"14sep05c_a_00002es": [(40, 30), (90, 70), (2, 50)], "14sep05c_b_00003es": [(60, 60)]}


def picture(places, seed):
    """Noise with a bright spot three pixels wide at every place (x, y)."""
    y, x = np.indices((110, 130))
    spots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in places)
    return (spots + 0.05 * np.random.default_rng(seed).normal(size=y.shape)).astype(np.float32)


@pytest.fixture
def entry(tmp_path):
    """Folder and address of the copy."""
    folder = tmp_path / "served"
    names = ["ImageName", "CoordinateX", "CoordinateY", "DefocusU", "DefocusV", "DefocusAngle"]
    names += ["Voltage", "SphericalAberration", "AmplitudeContrast", "AngleRot", "AngleTilt"]
    names += ["AnglePsi", "Magnification", "DetectorPixelSize"]
    lines = ["data_images", "", "loop_", *(f"_rln{name}" for name in names)]
    for number, (exposure, places) in enumerate(PLACES.items()):
        write_image(folder / AVERAGES / f"{exposure}_c.mrc", picture(places, number))
        for row, (x, y) in enumerate(places, 1):
            stack = f"{row:06d}@Particles/Micrographs/{exposure}_particles.mrcs"
            defocus = 12000 + 100 * row
            lines.append(f"{stack} {x} {y} {defocus} 11900 20 300 2.7 0.07 10 80 {row} 38168 5")
    (folder / TABLE).parent.mkdir()
    (folder / TABLE).write_text("\n".join([*lines, ""]))

    with serving(folder) as (_, url):
        yield folder, url


def load(entry, folder, micrographs=1):
    return load_empiar_10025(micrographs, box=8, binning=4, base_url=entry[1], folder=folder)


def test_particles_are_cut_at_their_places_with_their_rows(entry, tmp_path):
    particles = load(entry, tmp_path / "kept", 2)
    assert particles.images.shape == (3, 8, 8)
    assert [np.unravel_index(i.argmax(), i.shape) for i in particles.images] == [(4, 4)] * 3
    assert particles.images.mean((1, 2)) == pytest.approx(np.zeros(3), abs=1e-5)
    assert particles.images.std((1, 2)) == pytest.approx(np.ones(3), abs=1e-5)
    assert particles.pixel_size_angstrom == pytest.approx(2.64)
    assert particles.defocus_u_angstrom.tolist() == [12100, 12200, 12100]
    assert particles.astigmatism_deg.tolist() == [20] * 3
    assert particles.rotations.shape == (3, 3, 3)


def test_only_the_micrographs_asked_for_are_fetched_and_they_are_kept(entry, tmp_path):
    first = load(entry, tmp_path / "kept")
    assert len(first) == 2
    names = sorted(file.name for file in (tmp_path / "kept" / AVERAGES).glob("[!.]*"))
    assert names == ["14sep05c_a_00002es_c.mrc", "14sep05c_a_00002es_c.mrc.sha256"]
    for file in entry[0].rglob("*.*"):
        file.unlink()
    again = load(entry, tmp_path / "kept")
    assert np.array_equal(first.images, again.images)
    with pytest.raises(DataUnavailableError, match="put the file into"):
        load(entry, tmp_path / "elsewhere")


def test_a_file_that_changed_is_refused(entry, tmp_path):
    load(entry, tmp_path / "kept")
    with open(tmp_path / "kept" / TABLE, "a") as stream:
        stream.write("\n")
    with pytest.raises(IntegrityError, match="has changed"):
        load(entry, tmp_path / "kept")


def test_windows_that_do_not_fit(entry, tmp_path):
    with pytest.raises(InputError, match="smaller box"):
        load_empiar_10025(box=200, base_url=entry[1], folder=tmp_path / "kept")
    with pytest.raises(InputError, match="even box"):
        load_empiar_10025(box=7, base_url=entry[1], folder=tmp_path / "kept")
