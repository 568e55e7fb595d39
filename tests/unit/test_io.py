"""Images: pixels and pixel size come back as they were written; bad files say what is wrong."""

import warnings

import mrcfile
import numpy as np
import PIL.Image
import pytest
import tifffile

from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image

RNG = np.random.default_rng(5)
SMALL = RNG.integers(0, 100, (7, 9))


@pytest.mark.parametrize("suffix", [".mrc", ".map", ".mrcs", ".tif", ".tiff", ".png", ".TIF"])
@pytest.mark.parametrize("size", [0.854, 1.0, 100.0, 2.3, 1234.5])
def test_pixel_size_and_pixels_come_back(tmp_path, suffix, size):
    path = tmp_path / f"a{suffix}"
    write_image(path, SMALL.astype(np.uint8), size)
    image = read_image(path)
    assert image.pixel_size_angstrom == pytest.approx(size, rel=1e-6)
    assert image.pixels.dtype == np.float32
    np.testing.assert_array_equal(image.pixels, SMALL)
    assert image.path == path


@pytest.mark.parametrize("suffix", WRITABLE)
def test_unknown_pixel_size_stays_unknown(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", SMALL.astype(np.uint8))
    assert read_image(tmp_path / f"a{suffix}").pixel_size_angstrom is None


@pytest.mark.parametrize("suffix", [".mrc", ".tif"])
def test_anisotropic_volume_keeps_a_size_per_axis(tmp_path, suffix):
    volume = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    write_image(tmp_path / f"a{suffix}", volume, (500.0, 40.0, 40.5))
    image = read_image(tmp_path / f"a{suffix}")
    assert image.pixel_size_angstrom == pytest.approx((500.0, 40.0, 40.5), rel=1e-6)
    np.testing.assert_array_equal(image.pixels, volume)


def test_stack_of_particles_has_the_pixel_size_of_its_images(tmp_path):
    write_image(tmp_path / "a.mrcs", np.zeros((3, 4, 5), np.float32), 1.31)
    with mrcfile.open(tmp_path / "a.mrcs") as file:
        assert file.is_image_stack()
    assert read_image(tmp_path / "a.mrcs").pixel_size_angstrom == pytest.approx(1.31)


@pytest.mark.parametrize("suffix", [".mrc", ".tif", ".npy"])
@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int16", "uint16", "int32", ">i2", "float16", "float32", "f8"],
)
def test_values_of_every_dtype_survive(tmp_path, suffix, dtype):
    pixels = (SMALL % 2 if dtype == "bool" else SMALL).astype(dtype)
    write_image(tmp_path / f"a{suffix}", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, pixels)


def test_labels_that_float32_would_round_are_refused(tmp_path):
    labels = np.full((4, 4), 2**24 + 1)
    with pytest.raises(InputError, match="rounded"):
        write_image(tmp_path / "a.tif", labels)
    assert not list(tmp_path.iterdir())


def test_png_stores_16_bit_and_unit_range_floats(tmp_path):
    write_image(tmp_path / "a.png", np.array([[0, 40000], [65535, 1]], np.uint16))
    assert read_image(tmp_path / "a.png").pixels.tolist() == [[0, 40000], [65535, 1]]
    write_image(tmp_path / "b.png", np.array([[0, 0.5], [1, 0.25]]), 2.0)
    assert read_image(tmp_path / "b.png").pixels.tolist() == [[0, 32768], [65535, 16384]]


@pytest.mark.parametrize("pixels", [[[0.0, 1.5]], [[-0.1, 1.0]], np.array([[1, -5]], np.int16)])
def test_png_refuses_values_it_cannot_hold(tmp_path, pixels):
    with pytest.raises(InputError, match=r"use \.tif or \.mrc"):
        write_image(tmp_path / "a.png", pixels)
    assert not list(tmp_path.iterdir())


def test_pixel_size_from_foreign_headers(tmp_path):
    pixels = SMALL.astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, resolution=(1e7, 1e7), resolutionunit="CENTIMETER")
    assert read_image(path).pixel_size_angstrom == pytest.approx(10)
    tifffile.imwrite(path, pixels, resolution=(72, 72), resolutionunit="INCH")
    assert read_image(path).pixel_size_angstrom is None
    tifffile.imwrite(path, pixels, imagej=True, resolution=(50, 50), metadata={"unit": "um"})
    assert read_image(path).pixel_size_angstrom == pytest.approx(200)
    tifffile.imwrite(path, pixels, imagej=True, resolution=(50, 50), metadata={"unit": "pixel"})
    assert read_image(path).pixel_size_angstrom is None
    ome = {"axes": "YX", "PhysicalSizeX": 4.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.004}
    tifffile.imwrite(tmp_path / "b.ome.tif", pixels, ome=True, metadata=ome)
    assert read_image(tmp_path / "b.ome.tif").pixel_size_angstrom == pytest.approx(40)
    PIL.Image.fromarray(pixels).save(tmp_path / "c.png", dpi=(2.54e6, 2.54e6))
    assert read_image(tmp_path / "c.png").pixel_size_angstrom == pytest.approx(100, rel=1e-6)
    PIL.Image.fromarray(pixels).save(tmp_path / "d.png", dpi=(96, 96))
    assert read_image(tmp_path / "d.png").pixel_size_angstrom is None


def test_extended_header_stays_out_of_the_pixels(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(SMALL.astype(np.int16))
        file.set_extended_header(np.frombuffer(b"FEI metadata " * 50, "V1"))
        file.voxel_size = 1.5
    image = read_image(tmp_path / "a.mrc")
    np.testing.assert_array_equal(image.pixels, SMALL)
    assert image.pixel_size_angstrom == pytest.approx(1.5)


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("keep", [0, 10, 0.7])
def test_empty_or_truncated_file_is_one_clear_error(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    write_image(path, RNG.integers(0, 255, (64, 64)).astype(np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match="again"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".mrc", ".tif", ".npy"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused_both_ways(tmp_path, suffix, bad):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 2] = bad
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError, match="NaN"):
        write_image(path, pixels)
    if suffix == ".mrc":
        with mrcfile.new(path) as file, warnings.catch_warnings(action="ignore"):
            file.set_data(pixels)
    elif suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        np.save(path, pixels)
    with pytest.raises(InputError, match="1 pixels that are NaN or infinite; replace"):
        read_image(path)


def test_wrong_kinds_of_files_say_what_to_do(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "folder.tif").mkdir()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    np.save(tmp_path / "line.npy", np.zeros(4))
    np.save(tmp_path / "complex.npy", np.zeros((4, 4), complex))
    np.save(tmp_path / "huge.npy", np.full((2, 2), 1e300))
    np.save(tmp_path / "objects.npy", np.array([[None, 1]]), allow_pickle=True)
    expected = {
        "absent.mrc": "no file",
        "a.xyz": "use one of .mrc",
        "folder.tif": "folder",
        "text.png": "another type",
        "colour.png": "convert it to grey",
        "colour.tif": "convert it to grey",
        "line.npy": "rows and columns",
        "complex.npy": "real-valued",
        "huge.npy": "infinite",
        "objects.npy": "cannot be read",
    }
    for name, words in expected.items():
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / name)
        assert words in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, np.nan, (1, 2, 3), "big"])
def test_bad_pixel_size_is_refused(tmp_path, size):
    with pytest.raises(InputError, match="positive number"):
        write_image(tmp_path / "a.mrc", SMALL.astype(np.uint8), size)
    assert not list(tmp_path.iterdir())


def test_bad_targets_are_refused(tmp_path):
    (tmp_path / "folder.mrc").mkdir()
    for name in ("a.jpg", "a", "folder.mrc"):
        with pytest.raises(InputError):
            write_image(tmp_path / name, SMALL.astype(np.uint8))
    with pytest.raises(InputError, match="rows and columns"):
        write_image(tmp_path / "a.mrc", np.zeros(3))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("cryoem/fei_k2_crop2048.mrc", (2048, 2048), 0.85378),
        ("cryoem/maps/EMD-3001.map", (25, 43, 73), (0.45875, 0.3925, 0.44825)),
        ("cryoem/maps/EMD-3197.map", (20, 20, 20), 11.4),
        ("cryoem/particles/relion31.mrcs", (5, 256, 256), 1.0),
        ("cryoem/particles/aspire_sample.mrcs", (17, 200, 200), None),
        ("cryoem/May08_03.13.02_noisy.png", (1200, 1240), None),
        ("em/brain_noisy_fullfield_1600.tif", (1600, 1600), None),
        ("cells/omnipose/caulo_15.tif", (281, 310), None),
    ],
)
def test_real_files(mirror, tmp_path, name, shape, size):
    image = read_image(mirror / name)
    assert image.pixels.shape == shape
    assert image.pixel_size_angstrom == (size and pytest.approx(size))
    write_image(tmp_path / "copy.mrc", image.pixels, image.pixel_size_angstrom)
    copy = read_image(tmp_path / "copy.mrc")
    np.testing.assert_array_equal(copy.pixels, image.pixels)
    assert copy.pixel_size_angstrom == (size and pytest.approx(size, rel=1e-6))
