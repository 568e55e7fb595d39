"""Particle stacks: what real files say, what is written comes back, one error for each fault."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emlab import data
from emlab.data.metadata import Particles
from emlab.data.particles import (
    draw_metadata,
    euler_angles,
    fourier_resize,
    read_metadata,
    read_particles,
    resample,
    rotation_matrices,
    write_star,
)
from emlab.errors import DataUnavailableError, InputError
from emlab.io import write_image

KNOWN = {
    "pixel_size_angstrom": 1.31,
    "voltage_kv": 300.0,
    "cs_mm": 2.7,
    "amplitude_contrast": 0.1,
    "defocus_angstrom": 15000.0,
}
STAR = """# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
1 300.0 2.7 0.1 1.5
2 300.0 2.7 0.1 {second}

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
000002@sub/stack.mrcs 1 {defocus} 11000
000001@sub/stack.mrcs {group} 13000 12500
"""


def stack(n=3, side=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, side, side)).astype(np.float32)


def write(folder, pixels=None, second=1.5, defocus="12000", group=2):
    (folder / "sub").mkdir(exist_ok=True)
    write_image(folder / "sub" / "stack.mrcs", stack() if pixels is None else pixels)
    path = folder / "particles.star"
    path.write_text(STAR.format(second=second, defocus=defocus, group=group))
    return path


def cs_table(n=3, **columns):
    kinds = {
        "blob/path": "S40",
        "blob/idx": "u4",
        "blob/psize_A": "f4",
        "ctf/accel_kv": "f4",
        "ctf/cs_mm": "f4",
        "ctf/amp_contrast": "f4",
        "ctf/df1_A": "f4",
        "ctf/df2_A": "f4",
        "ctf/df_angle_rad": "f4",
        "ctf/phase_shift_rad": "f4",
        "alignments3D/pose": ("f4", 3),
        "alignments3D/shift": ("f4", 2),
        "alignments3D/psize_A": "f4",
    }
    values = {
        "blob/path": b">J1/extract/stack.mrc",
        "blob/idx": np.arange(n)[::-1],
        "blob/psize_A": 1.5,
        "ctf/accel_kv": 300,
        "ctf/cs_mm": 2.7,
        "ctf/amp_contrast": 0.1,
        "ctf/df1_A": 12000,
        "ctf/df2_A": 11000,
        "ctf/df_angle_rad": np.pi / 6,
        "ctf/phase_shift_rad": np.pi / 2,
        "alignments3D/pose": [0.3, -0.2, 1.0],
        "alignments3D/shift": [2.0, -1.0],
        "alignments3D/psize_A": 3.0,
        **columns,
    }
    table = np.zeros(
        n, [(k, *(kinds[k] if isinstance(kinds[k], tuple) else (kinds[k],))) for k in values]
    )
    for name, value in values.items():
        table[name] = value
    return table


def test_star_with_optics_groups_in_the_order_of_its_rows(tmp_path):
    particles = read_particles(write(tmp_path))
    assert np.array_equal(particles.images, stack()[[1, 0]])
    assert (particles.pixel_size_angstrom, particles.voltage_kv, particles.cs_mm) == (1.5, 300, 2.7)
    assert particles.optics_group.tolist() == [1, 2]
    assert particles.defocus_u_angstrom.tolist() == [12000, 13000]
    assert particles.defocus_v_angstrom.tolist() == [11000, 12500]
    assert particles.rotations is None
    assert particles.subset(np.array([1])).images_at == (("sub/stack.mrcs", 0),)


def test_cryosparc_table(tmp_path):
    (tmp_path / "J1" / "extract").mkdir(parents=True)
    write_image(tmp_path / "J1" / "extract" / "stack.mrc", stack())
    with open(tmp_path / "J1" / "particles.cs", "wb") as stream:
        np.save(stream, cs_table())
    particles = read_particles(tmp_path / "J1" / "particles.cs")
    assert np.array_equal(particles.images, stack()[::-1])
    assert particles.astigmatism_deg == pytest.approx(30)
    assert particles.phase_shift_deg == pytest.approx(90)
    assert particles.shifts_angstrom[0].tolist() == [-6, 3]
    pose = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix()
    assert np.allclose(particles.rotations[0], pose.T, atol=1e-6)


def test_bare_stack_takes_its_numbers_from_the_caller(tmp_path):
    write_image(tmp_path / "stack.mrcs", stack(), 1.31)
    given = {name: value for name, value in KNOWN.items() if name != "pixel_size_angstrom"}
    particles = read_particles(tmp_path / "stack.mrcs", **given)
    assert particles.pixel_size_angstrom == pytest.approx(1.31)
    assert particles.defocus_v_angstrom.tolist() == [15000] * 3
    with pytest.raises(InputError, match=r"give voltage_kv, cs_mm, .*defocus_angstrom"):
        read_particles(tmp_path / "stack.mrcs")


def test_what_is_given_counts_more_than_the_file(tmp_path):
    table = read_metadata(write(tmp_path, second=3.0), pixel_size_angstrom=2.0, voltage_kv=200.0)
    assert (table.pixel_size_angstrom, table.voltage_kv) == (2.0, 200.0)


def test_star_of_older_relion_has_its_pixel_size_in_the_magnification(tmp_path):
    names = ["ImageName", "DefocusU", "Magnification", "DetectorPixelSize", "Voltage"]
    names += ["SphericalAberration", "AmplitudeContrast"]
    head = "\n".join(f"_rln{name} #{i}" for i, name in enumerate(names, 1))
    path = tmp_path / "old.star"
    path.write_text(f"data_\n\nloop_\n{head}\n1@a.mrcs 12000 50000 5.0 300 2.7 0.07\n")
    table = read_metadata(path)
    assert table.pixel_size_angstrom == pytest.approx(1.0)
    assert table.defocus_v_angstrom.tolist() == [12000]


def test_what_is_written_is_read_again(tmp_path):
    rotations = Rotation.random(4, random_state=1).as_matrix()
    rotations[3] = Rotation.from_euler("z", 40, degrees=True).as_matrix()
    table = replace(
        draw_metadata(4, 0),
        rotations=rotations,
        shifts_angstrom=np.arange(8.0).reshape(4, 2),
        optics_group=np.array([1, 2, 2, 1]),
    )
    write_star(tmp_path / "out.star", table, "out.mrcs", 8)
    again = read_metadata(tmp_path / "out.star")
    assert again.images_at == tuple(("out.mrcs", i) for i in range(4))
    for name in ("defocus_u_angstrom", "astigmatism_deg", "rotations", "shifts_angstrom"):
        assert np.allclose(getattr(again, name), getattr(table, name), atol=1e-5), name
    assert again.optics_group.tolist() == [1, 2, 2, 1]
    assert again.pixel_size_angstrom == pytest.approx(table.pixel_size_angstrom, abs=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["out.star"]


def test_euler_angles_are_those_of_relion():
    """rot and tilt are the azimuth and the height of the viewing direction; psi turns the view."""
    rotation = rotation_matrices(np.array([[40.0, 70.0, 25.0]]))[0]
    azimuth, height = np.radians([40, 70])
    direction = np.array(
        [np.cos(azimuth) * np.sin(height), np.sin(azimuth) * np.sin(height), np.cos(height)]
    )
    assert np.allclose(rotation[:, 2], direction)
    intrinsic = Rotation.from_euler("ZYZ", [40, 70, 25], degrees=True).as_matrix()
    assert np.allclose(rotation, intrinsic)
    assert np.allclose(euler_angles(rotation[None]), [[40, 70, 25]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"defocus": "-12000"}, "underfocus is positive, change the sign"),
        ({"defocus": "1.2"}, "give angstrom"),
        ({"defocus": "1200000"}, "give angstrom"),
        ({"defocus": "nan"}, "NaN or infinite in row 1"),
        ({"defocus": "thick"}, "rlnDefocusU is not a number"),
        ({"second": "1.7"}, "mixes particles of pixel_size_angstrom 1.5 and 1.7; split it"),
        ({"group": "3"}, "no row of optics for group 3"),
        ({"pixels": stack(1)}, "image 2 is not among the 1"),
        ({"pixels": stack()[:, :6]}, "give square ones"),
    ],
)
def test_faulty_files_say_what_to_do(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        read_particles(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"voltage_kv": 300000.0}, "the voltage in kV"),
        ({"cs_mm": 2.7e7}, "spherical aberration in mm"),
        ({"amplitude_contrast": 7.0}, "as a share"),
        ({"pixel_size_angstrom": 0.0}, "pixel size in angstrom"),
        ({"volts": 1.0}, "unknown volts"),
    ],
)
def test_optics_in_other_units_are_refused(tmp_path, changes, said):
    write_image(tmp_path / "stack.mrcs", stack())
    with pytest.raises(InputError, match=said):
        read_particles(tmp_path / "stack.mrcs", **{**KNOWN, **changes})


def test_what_is_not_there_is_named(tmp_path):
    path = write(tmp_path)
    (tmp_path / "sub" / "stack.mrcs").unlink()
    with pytest.raises(InputError, match=r"names the stack sub/stack.mrcs, which is not there"):
        read_particles(path)
    with pytest.raises(InputError, match="check the name"):
        read_metadata(tmp_path / "none.star")
    (tmp_path / "odd.txt").write_text("x")
    with pytest.raises(InputError, match=r"give a .star, .cs, .mrcs or .mrc file"):
        read_particles(tmp_path / "odd.txt")
    (tmp_path / "text.cs").write_text("not a table")
    with pytest.raises(InputError, match="no cryoSPARC table"):
        read_particles(tmp_path / "text.cs")
    (tmp_path / "mics.star").write_text("data_m\nloop_\n_rlnMicrographName #1\na.mrc\n")
    with pytest.raises(InputError, match="no table with rlnImageName"):
        read_particles(tmp_path / "mics.star")


def test_resampling_keeps_a_wave_its_place_and_its_size():
    """A Gaussian off the centre, with its shift known, ends at the centre on the new pixels."""
    y, x = np.indices((40, 40)) - 20
    image = np.exp(-((x - 3) ** 2 + (y + 2) ** 2) / 18).astype(np.float32)
    table = draw_metadata(1, 0)
    values = {key: getattr(table, key) for key in table.__dataclass_fields__}
    values |= {"pixel_size_angstrom": 1.0, "shifts_angstrom": np.array([[3.0, -2.0]])}
    particles = Particles(images=image[None], **values)
    small = resample(particles, 2.0, 16)
    v, u = 2 * (np.indices((16, 16)) - 8)
    assert small.pixel_size_angstrom == 2.0
    assert small.shifts_angstrom is None
    assert np.allclose(small.images[0], np.exp(-(u**2 + v**2) / 18), atol=2e-3)
    wide = resample(particles, 2.0, 32)
    assert np.allclose(wide.images[0, 8:24, 8:24], small.images[0], atol=1e-3)
    assert resample(particles, 2.1, 16).pixel_size_angstrom == pytest.approx(40 / 20, abs=0.3)
    fine = fourier_resize(image[None], 80)
    assert np.allclose(fine[0, ::2, ::2], image, atol=1e-3)
    with pytest.raises(InputError, match="even box"):
        resample(particles, 2.0, 15)


def test_drawn_metadata_without_network_says_that_it_is_simulated(monkeypatch):
    def absent(*_):
        raise DataUnavailableError("no network")

    monkeypatch.setattr(data, "path", absent)
    table = draw_metadata(50, 1)
    assert table.source.startswith("simulated")
    assert 11_000 < table.defocus_u_angstrom.min() < table.defocus_u_angstrom.max() < 22_500
    assert len(draw_metadata(3, 1)) == 3


def test_real_files(mirror):
    star = data.paths("particles_relion31")["cryoem/particles/relion31.star"]
    particles = read_particles(star)
    assert particles.images.shape == (5, 256, 256)
    assert particles.pixel_size_angstrom == 2.806
    assert particles.defocus_u_angstrom[0] == pytest.approx(13108.08, abs=0.01)
    table = draw_metadata(2000, 0)
    assert 11_000 < table.defocus_v_angstrom.min() < table.defocus_u_angstrom.max() < 22_500
    side_views = np.abs(table.rotations[:, 2, 2]) < np.sin(np.radians(20))
    assert side_views.mean() > 0.8, "the proteasome lies on its side in ice"
    for name, side in (("particles_10076", 320), ("particles_aspire", 200)):
        assert read_particles(data.path(name), **KNOWN).images.shape[1:] == (side, side)
