"""Real micrographs are read as what they are; what is no micrograph is refused in words."""

import io
import tarfile

import numpy as np
import pytest
import tifffile
import torch
from serving import serving

from emlab.data.empiar import load_cryoppp
from emlab.data.micrographs import (
    apoferritin_micrograph,
    betagal_micrograph,
    disc_centres,
    k2_micrograph,
    read_micrograph,
    without_hot_pixels,
)
from emlab.errors import DataUnavailableError, InputError, IntegrityError
from emlab.io import write_image

NOISE = np.random.default_rng(0).normal(5, 2, (48, 64)).astype(np.float32)


def test_a_micrograph_is_read_with_its_pixel_size(tmp_path):
    found = read_micrograph(write_image(tmp_path / "a.mrc", NOISE, 1.3))
    assert found.pixel_size_angstrom == pytest.approx(1.3)
    np.testing.assert_array_equal(found.pixels, NOISE)
    assert read_micrograph(tmp_path / "a.mrc", 2.0).pixel_size_angstrom == 2
    stack = write_image(tmp_path / "one.mrcs", NOISE[None], 1.3)
    assert read_micrograph(stack).pixels.shape == (48, 64)


def broken(kind, folder):
    """A file that is no micrograph."""
    path = folder / "a.mrc"
    if kind == "movie":
        return write_image(path, np.ones((5, 48, 64), np.uint16) * 3, 1.3)
    if kind == "stack":
        return write_image(path, np.stack([NOISE] * 3), 1.3)
    if kind == "frame":
        counts = np.random.default_rng(0).poisson(1.5, (48, 64)).astype(np.uint16)
        return write_image(path, counts, 1.3)
    if kind == "float frame":
        counts = np.random.default_rng(0).poisson(1.5, (48, 64)).astype(np.float32)
        return write_image(path, counts, 1.3)
    if kind == "colour":
        tifffile.imwrite(path.with_suffix(".tif"), np.zeros((48, 64, 3), np.uint8) + 9)
        return path.with_suffix(".tif")
    if kind.startswith("swapped "):
        counts = np.random.default_rng(0).poisson(1000, (48, 64))
        stored = counts.astype(np.float32 if kind == "swapped counts" else np.int16)
        write_image(path, stored, 1.3)
        content = path.read_bytes()
        path.write_bytes(content[:1024] + stored.byteswap().tobytes())
        return path
    if kind == "constant":
        return write_image(path, np.ones_like(NOISE), 1.3)
    write_image(path, NOISE, None if kind == "no size" else 1.3)
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[:-4000]
    if kind == "swapped":
        content[1024:] = NOISE.byteswap().tobytes()
    if kind == "nan":
        content[1024:1028] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("movie", "movie.*sum its frames"),
        ("stack", "stack of shape"),
        ("frame", "gain"),
        ("float frame", "gain"),
        ("colour", "colour"),
        ("constant", "constant"),
        ("no size", "--pixel-size"),
        ("truncated", "truncated"),
        ("swapped", "other order"),
        ("swapped counts", "other order"),
        ("swapped integers", "other order"),
        ("nan", "1 pixels that are NaN"),
    ],
)
def test_what_is_no_micrograph_is_refused(kind, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_micrograph(broken(kind, tmp_path))


def test_the_other_byte_order_is_told_where_tiny_numbers_are_zero(tmp_path):
    """Swapped whole numbers are tiny floats, which emlab's threads flush to zero."""
    before = torch.tensor(1e-40).item() == 0
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(InputError, match="other order"):
            read_micrograph(broken("swapped counts", tmp_path))
    finally:
        torch.set_flush_denormal(before)


def test_integers_in_the_right_order_are_read(tmp_path):
    generator = np.random.default_rng(0)
    for name, counts in (
        ("u16", generator.poisson(1000, (48, 64)).astype(np.uint16)),
        ("wide", generator.integers(0, 65535, (48, 64)).astype(np.uint16)),
        ("times256", (256 * generator.integers(0, 200, (48, 64))).astype(np.uint16)),
    ):
        found = read_micrograph(write_image(tmp_path / f"{name}.tif", counts, 1.3))
        np.testing.assert_array_equal(found.pixels, counts)


def test_a_pixel_size_of_nothing_is_refused(tmp_path):
    path = write_image(tmp_path / "a.mrc", NOISE, 1.3)
    with pytest.raises(InputError, match="positive"):
        read_micrograph(path, 0.0)


def test_hot_pixels_are_replaced_and_nothing_else():
    image = NOISE.copy()
    image[10, 20] = 500
    found = without_hot_pixels(image)
    assert found[10, 20] < 12
    assert (found != image).sum() == 1


def test_discs_that_touch_are_two():
    y, x = np.indices((120, 160))
    places = [(40, 40), (66, 58), (90, 120), (30, 155)]
    inside = np.any([np.hypot(y - a, x - b) < 17 for a, b in places], axis=0)
    picture = np.full((120, 160, 3), 120, np.uint8)
    picture[inside] = (255, 242, 0)
    found = disc_centres(picture)
    assert len(found) == 4
    for place in places[:3]:
        assert np.linalg.norm(found - place, axis=1).min() < 2.5


@pytest.mark.real_data
def test_picks_lie_on_dark_particles(mirror):
    """Mean of the windows around the picks: darker within the particle than around it."""
    for found in (apoferritin_micrograph("average"), betagal_micrograph()[0]):
        radius = found.diameter_angstrom / 2 / found.pixel_size_angstrom
        half = int(1.4 * radius)
        places = found.coordinates.round().astype(int)
        inner = (places > half).all(1) & (places < np.array(found.pixels.shape) - half).all(1)
        assert inner.sum() > 120
        windows = [found.pixels[y - half : y + half, x - half : x + half] for y, x in places[inner]]
        y, x = np.indices((2 * half, 2 * half)) - half
        mean, away = np.mean(windows, 0), np.hypot(y, x) / radius
        around = mean[(away > 0.95) & (away < 1.25)]
        assert mean[away < 0.85].mean() < around.mean() - 10 * around.std() / len(around) ** 0.5


@pytest.mark.real_data
def test_the_k2_frame_has_no_hot_pixels_left(mirror):
    found = k2_micrograph()
    assert found.pixels.shape == (2048, 2048)
    assert found.pixels.max() < found.pixels.mean() + 10 * found.pixels.std()


@pytest.fixture
def served(tmp_path):
    """Archive of an entry over loopback, coordinates after the images as in a sorted one."""
    folder = tmp_path / "served"
    folder.mkdir()
    with tarfile.open(folder / "10081.tar.gz", "w:gz") as archive:

        def add(name, content):
            entry = tarfile.TarInfo(f"10081/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        for number in range(3):
            image = write_image(tmp_path / "image.mrc", NOISE + number, 1.3)
            add(f"micrographs/m{number}.mrc", image.read_bytes())
        add("ground_truth/false_positives/m0_false_positives.csv", b"X-Coordinate\n")
        for number in range(3):
            table = f"X-Coordinate,Y-Coordinate,Diameter\n{number},7,100\n"
            add(f"ground_truth/particle_coordinates/m{number}.csv", table.encode())

    with serving(folder) as server:
        yield server


def test_an_entry_gives_micrographs_with_their_coordinates(served, tmp_path):
    url = served[1]
    kept = tmp_path / "kept"
    found = load_cryoppp("10081", 2, base_url=url, folder=kept)
    assert [each.name for each in found] == ["EMPIAR-10081 m0", "EMPIAR-10081 m1"]
    assert found[1].coordinates.tolist() == [[7, 1]]
    assert found[1].diameter_angstrom == pytest.approx(130)
    np.testing.assert_allclose(found[1].pixels, NOISE + 1)
    assert not (kept / "10081" / "micrographs" / "m2.mrc").exists()
    again = load_cryoppp("10081", 2, base_url="http://127.0.0.1:9", folder=kept)
    np.testing.assert_array_equal(again[0].pixels, found[0].pixels)
    (kept / "10081" / "ground_truth/particle_coordinates/m0.csv").write_text("x,y\n1,1\n")
    with pytest.raises(IntegrityError, match="changed"):
        load_cryoppp("10081", 2, base_url=url, folder=kept)


def test_absent_entries_say_what_to_do(served, tmp_path):
    url = served[1]
    with pytest.raises(DataUnavailableError, match="ask for fewer"):
        load_cryoppp("10081", 4, base_url=url, folder=tmp_path / "a")
    with pytest.raises(DataUnavailableError, match="extract the archive"):
        load_cryoppp("10289", base_url=url, folder=tmp_path / "a")
    with pytest.raises(InputError, match="10081"):
        load_cryoppp("EMPIAR-10081")


@pytest.mark.parametrize("fault", ["truncate", "stall", "404", "wrong"])
def test_a_broken_entry_is_one_clear_error_and_the_next_try_goes_on(served, tmp_path, fault):
    handler, url = served
    place = {"base_url": url, "folder": tmp_path / "kept", "timeout_seconds": 0.2}
    handler.fault = ("10081.tar.gz", fault)
    with pytest.raises((DataUnavailableError, IntegrityError), match=r"extract|try again"):
        load_cryoppp("10081", 3, **place)
    handler.fault = None
    seen = []
    assert len(load_cryoppp("10081", 3, **place, progress=seen.append)) == 3
    assert bool(handler.asked[-1][1]) == (fault in ("truncate", "stall"))
    assert sum(seen) == (tmp_path / "served" / "10081.tar.gz").stat().st_size
    assert not list((tmp_path / "kept").glob("*.part"))
