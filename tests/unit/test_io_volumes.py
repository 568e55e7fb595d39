"""Volumes in files: boxes, voxel sizes and types come back; bad files say what is wrong."""

import io
import os
import shutil

import numpy as np
import pytest
import tifffile

from emlab.errors import EmlabError, InputError
from emlab.io import backends as io_backends, read_image, volumes as io_volumes, write_image
from emlab.io.backends import RawArray
from emlab.io.volumes import create_volume, open_volume

RNG = np.random.default_rng(7)
VOLUME = RNG.integers(0, 100, (7, 9, 11)).astype(np.uint8)
RAW = [".tif", ".mrc", ".npy"]
FORMATS = [*RAW, ".tiff", ".map", ".zarr"]
BOXES = [
    np.s_[:],
    np.s_[2],
    np.s_[-1, 3:5],
    np.s_[1:4, 2:9, 3:10],
    np.s_[:, :, 4],
    np.s_[3:3],
    np.s_[2:5, :, -4:],
    np.s_[1:3, 2:5],
    np.s_[0, 0, 0],
]


@pytest.fixture
def new():
    """Make a volume, skipping what needs zarr where there is none."""

    def make(path, *arguments, **keywords):
        if path.suffix == ".zarr":
            pytest.importorskip("zarr")
        return create_volume(path, *arguments, **keywords)

    return make


def interrupted(volume, values):
    """Write to a volume and fail."""

    def run():
        with volume:
            volume[:] = values
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("size", [None, 40.0, (300.0, 40.0, 41.0)])
def test_boxes_type_and_voxel_size_come_back(tmp_path, new, suffix, size):
    path = tmp_path / f"a{suffix}"
    with new(path, VOLUME.shape, "float32", size) as volume:
        for z in (0, 3):  # in two parts, rows and columns in two more
            for y in (0, 5):
                volume[z : z + 4, y : y + 5, :6] = VOLUME[z : z + 4, y : y + 5, :6]
        volume[:, :, 6:] = VOLUME[:, :, 6:]
        np.testing.assert_array_equal(volume[2:4], VOLUME[2:4])
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with open_volume(path) as volume:
        assert volume.shape == VOLUME.shape
        assert volume.dtype == np.float32
        expected = None if suffix == ".npy" else size
        assert volume.pixel_size_angstrom == (expected and pytest.approx(expected, rel=1e-6))
        for box in BOXES:
            np.testing.assert_array_equal(volume[box], VOLUME[box])


@pytest.mark.parametrize("suffix", RAW)
def test_both_modules_read_what_the_other_writes(tmp_path, suffix):
    with create_volume(tmp_path / f"a{suffix}", VOLUME.shape, "float32", (30.0, 4.0, 4.0)) as new:
        new[:] = VOLUME
    image = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.pixels, VOLUME)
    write_image(tmp_path / f"b{suffix}", VOLUME.astype(np.int16), image.pixel_size_angstrom)
    volume = open_volume(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(volume[1:3, 4:], VOLUME[1:3, 4:])
    assert volume.pixel_size_angstrom == pytest.approx(image.pixel_size_angstrom)
    if suffix != ".npy":
        assert image.pixel_size_angstrom == pytest.approx((30, 4, 4), rel=1e-6)


def test_new_tiff_is_an_uncompressed_bigtiff_that_can_be_mapped(tmp_path):
    with create_volume(tmp_path / "a.tif", VOLUME.shape, "uint16", 4.0) as new:
        new[:] = VOLUME
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.series[0].axes == "ZYX"
    np.testing.assert_array_equal(tifffile.memmap(tmp_path / "a.tif", mode="r"), VOLUME)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"imagej": True},
        {"byteorder": ">"},
        {"rowsperstrip": 2},
        {"extra": "axis of length 1"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_tiff_files_of_others(tmp_path, options):
    pixels = VOLUME.astype(np.uint16)[None if "extra" in options else ...]
    writing = {key: value for key, value in options.items() if key != "extra"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **writing)
    with open_volume(tmp_path / "a.tif") as volume:
        for box in BOXES:
            np.testing.assert_array_equal(volume[box], VOLUME[box])


def test_reading_a_box_reads_little_more_than_the_box(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    count = []

    class Counting(io.FileIO):
        def readinto(self, row):
            count.append(len(row))
            return super().readinto(row)

    volume = open_volume(tmp_path / "a.npy")
    volume._array._file = Counting(tmp_path / "a.npy")
    volume[1:4, 2:6, 3:8]
    assert sum(count) == 3 * 4 * 5
    count.clear()
    volume[1:4]
    assert count == [3 * 9 * 11]


def test_zarr_arrays_and_ome_images_of_others(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(tmp_path / "plain.zarr", VOLUME)
    group = zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    group.create_array("s0", data=VOLUME[None], chunks=(1, 4, 4, 4))
    units = [{"name": "c", "type": "channel"}]
    units += [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    level = {
        "path": "s0",
        "coordinateTransformations": [{"type": "scale", "scale": [1, 30, 4, 4]}],
    }
    group.attrs["multiscales"] = [{"axes": units, "datasets": [level]}]
    for name, size in [("plain.zarr", None), ("old.zarr", (300, 40, 40)), ("old.zarr/s0", None)]:
        volume = open_volume(tmp_path / name)
        assert volume.pixel_size_angstrom == size
        np.testing.assert_array_equal(volume[1:5, 3:7, 2], VOLUME[1:5, 3:7, 2])
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(InputError, match="path of one array"):
        open_volume(tmp_path / "empty.zarr")
    chunk = tmp_path / "plain.zarr" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(InputError, match=r"plain\.zarr cannot be read"):
        open_volume(tmp_path / "plain.zarr")[:]


def test_a_zarr_image_is_one_slice(tmp_path, new):
    zarr = pytest.importorskip("zarr")
    zarr.save_array(tmp_path / "plain.zarr", VOLUME[0])
    with new(tmp_path / "ours.zarr", VOLUME[0].shape, "uint8", (40.0, 41.0)) as image:
        image[:] = VOLUME[0]
    for name, size in (("plain.zarr", None), ("ours.zarr", (40.0, 41.0))):
        volume = open_volume(tmp_path / name)
        assert (volume.shape, volume.pixel_size_angstrom) == ((1, *VOLUME.shape[1:]), size)
        np.testing.assert_array_equal(volume[0, 2:5], VOLUME[0, 2:5])
    assert zarr.open(tmp_path / "ours.zarr")["0"].shape == VOLUME[0].shape
    interrupted(create_volume(tmp_path / "b.zarr", (9, 11), "uint8", resume=True), VOLUME[0])
    with create_volume(tmp_path / "b.zarr", (9, 11), "uint8", resume=True) as image:
        assert image.resumed
        np.testing.assert_array_equal(image[0], VOLUME[0])


def test_a_folder_into_which_threads_still_write_is_removed(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    remove, late = shutil.rmtree, [tmp_path / ".a.partial.zarr" / "0" / "c" / "late"]

    def removed_while_written(path, **options):
        remove(path, **options)
        if late:
            late[0].parent.mkdir(parents=True)
            late.pop().touch()

    volume = create_volume(tmp_path / "a.zarr", (2, 3, 4), "uint8")
    monkeypatch.setattr(io_volumes.shutil, "rmtree", removed_while_written)
    with pytest.raises(RuntimeError), volume:
        raise RuntimeError
    assert late == []
    assert list(tmp_path.iterdir()) == []


def test_zarr_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    (tmp_path / "a.zarr").mkdir()
    for action in (open_volume, lambda path: create_volume(path.with_name("b.zarr"), (2, 2, 2))):
        with pytest.raises(InputError, match=r"pip install 'emlab-book\[volumes\]'"):
            action(tmp_path / "a.zarr")


@pytest.mark.parametrize("suffix", RAW)
@pytest.mark.parametrize("keep", [0, 10, 0.8])
def test_empty_or_truncated_file_is_one_clear_error(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    with create_volume(path, (16, 32, 32)) as new:
        new[:] = 1
    os.truncate(path, keep if isinstance(keep, int) else int(keep * path.stat().st_size))
    with pytest.raises(InputError, match="again") as caught:
        open_volume(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_lost_its_last_pages_is_not_taken_for_a_shorter_one(tmp_path, big, compression):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for plane in VOLUME:
            file.write(plane, contiguous=False, metadata=None, compression=compression)
    assert open_volume(path).shape == VOLUME.shape
    for kept in (0.9, 0.8, 0.7):
        os.truncate(path, int(kept * path.stat().st_size))
        with pytest.raises(InputError, match="copy or download it again"):
            open_volume(path)


def test_a_file_that_is_cut_while_it_is_read_is_one_clear_error(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    volume = open_volume(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 300)
    with pytest.raises(InputError, match=r"a\.npy cannot be read: it ends too early"):
        volume[5]


def test_wrong_kinds_of_files_say_what_to_do(tmp_path):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "text.tif").write_text("no volume")
    (tmp_path / "file.zarr").write_text("no folder")
    tifffile.imwrite(tmp_path / "flat.tif", VOLUME[0])
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((5, 8, 8, 3), np.uint8), photometric="rgb")
    np.save(tmp_path / "flat.npy", VOLUME[0])
    np.save(tmp_path / "two.npy", np.zeros((2, 3, 4, 5)))
    np.save(tmp_path / "complex.npy", VOLUME.astype(complex))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(VOLUME))
    expected = {
        "absent.mrc": "no file",
        "a.png": "use one of .tif",
        "folder.tif": "folder",
        "file.zarr": "not a zarr folder",
        "text.tif": "another type",
        "flat.tif": r"volume (D, H, W)",
        "flat.npy": r"volume (D, H, W)",
        "two.npy": r"volume (D, H, W)",
        "complex.npy": "real",
        "rgb.tif": "convert it to grey",
        "fortran.npy": "ascontiguousarray",
    }
    for name, words in expected.items():
        with pytest.raises(InputError) as caught:
            open_volume(tmp_path / name)
        assert words in str(caught.value)
        assert name in str(caught.value)


@pytest.mark.parametrize("index", [np.s_[::2], np.s_[9], np.s_[0, 0, 0, 0], np.s_[[1, 2]]])
def test_indices_it_cannot_do_are_refused(tmp_path, index):
    np.save(tmp_path / "a.npy", VOLUME)
    with pytest.raises(InputError):
        open_volume(tmp_path / "a.npy")[index]


def test_bad_targets_are_refused(tmp_path):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "notes.zarr").mkdir()
    for name, shape, dtype, size in [
        ("a.png", (2, 2, 2), "uint8", None),
        ("a.mrc", (2, 2, 2), "uint8", None),
        ("a.tif", (2, 2), "uint8", None),
        ("a.tif", (2, 0, 2), "uint8", None),
        ("a.tif", (2, 2, 2), "float64", None),
        ("a.tif", (2, 2, 2), "uint8", -1.0),
        ("a.npy", (2, 2, 2), "complex64", None),
        ("folder.tif", (2, 2, 2), "uint8", None),
        ("notes.zarr", (2, 2, 2), "uint8", None),
    ]:
        with pytest.raises(InputError):
            create_volume(tmp_path / name, shape, dtype, size)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.tif", "notes.zarr"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_run_leaves_the_old_file_and_nothing_else(tmp_path, new, suffix):
    path = tmp_path / f"a{suffix}"
    with new(path, (2, 3, 4)) as volume:
        volume[:] = 1
    interrupted(new(path, (2, 3, 4)), 2)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert (open_volume(path)[:] == 1).all()
    with new(path, (2, 3, 5)) as volume:
        volume[:] = 3
    assert open_volume(path)[:].tolist() == np.full((2, 3, 5), 3).tolist()


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_interrupted_volume_is_resumed(tmp_path, new, suffix):
    path = tmp_path / f"a{suffix}"
    volume = new(path, (4, 3, 5), resume=True)
    assert not volume.resumed
    interrupted(volume, np.array([1, 1, 0, 0])[:, None, None])
    assert not path.exists()
    with pytest.raises(InputError, match=r"repeat its settings or delete it"):
        new(path, (4, 3, 6), resume=True)
    with new(path, (4, 3, 5), resume=True) as volume:
        assert volume.resumed
        volume[2:] = 2
    assert open_volume(path)[:, 0, 0].tolist() == [1, 1, 2, 2]


def test_what_cannot_be_resumed_is_started_anew(tmp_path):
    partial = tmp_path / ".a.partial.tif"
    partial.write_text("killed in the first millisecond")
    with create_volume(tmp_path / "a.tif", (2, 2, 2), resume=True) as new:
        assert not new.resumed
    interrupted(create_volume(tmp_path / "b.tif", (2, 2, 2), resume=True), 1)
    with create_volume(tmp_path / "b.tif", (2, 2, 2)) as new:
        assert not new.resumed


@pytest.mark.posix
def test_a_full_disk_is_one_clear_error(tmp_path):
    with pytest.raises(EmlabError, match="no space is left"):
        create_volume(tmp_path / "a.npy", (10**6, 10**6, 10**3))
    assert not list(tmp_path.iterdir())

    class Full(io.FileIO):
        def write(self, row):
            raise OSError(28, "No space left on device")

    new = create_volume(tmp_path / "a.npy", (2, 2, 2))
    new._array._file = Full(new.partial, "r+b")
    with pytest.raises(EmlabError, match="no space left on the disk"), new:
        new[:] = 1
    assert not list(tmp_path.iterdir())


def test_writes_that_the_system_cuts_short_are_completed(tmp_path):
    class Short(io.FileIO):
        def readinto(self, row):
            return super().readinto(row[:9])

        def write(self, row):
            return super().write(row[:7])

    path = tmp_path / "a"
    path.write_bytes(bytes(5 + VOLUME.size * 4))
    array = RawArray(path, 5, np.dtype(">f4"), VOLUME.shape, writable=True)
    array._file = Short(path, "r+b")
    everything = io_backends.as_box(slice(None), VOLUME.shape)[0]
    array.write(everything, VOLUME.astype(np.float32))
    np.testing.assert_array_equal(array.read(everything), VOLUME)
    array.close()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["em/flyem_sample2_250.tif", "cryoem/maps/EMD-3001.map"])
def test_real_volumes_agree_with_the_reader_of_images(mirror, name):
    image = read_image(mirror / name)
    with open_volume(mirror / name) as volume:
        assert volume.shape == image.pixels.shape
        assert volume.pixel_size_angstrom == image.pixel_size_angstrom
        box = np.s_[3:9, 5:20, 11:30]
        np.testing.assert_array_equal(volume[box], image.pixels[box])


def test_suffixes_are_those_of_the_table():
    for suffix in FORMATS:
        assert suffix in io_volumes.__doc__
