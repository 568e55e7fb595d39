"""Pixels replaced, everything else kept: MRC headers, extended headers, TIFF tags."""

import mrcfile
import numpy as np
import pytest
import tifffile

from emlab.errors import InputError
from emlab.io import read_image
from emlab.io.images import write_like


def pixels(seed=0):
    return np.random.default_rng(seed).normal(size=(12, 10)).astype(np.float32)


def make_mrc(path, extended=b"", swapped=False):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data((100 * pixels()).astype(np.int16))
        file.voxel_size = 1.06
        file.header.origin = (3.0, 4.0, 5.0)
        file.header.nxstart = 7
        file.add_label("from a microscope")
        if extended:
            file.set_extended_header(np.frombuffer(extended, dtype="V1"))
            file.header.exttyp = b"SERI"


def test_mrc_header_and_extended_header_are_kept(tmp_path):
    source, target = tmp_path / "in.mrc", tmp_path / "out.mrc"
    extended = bytes(range(256)) * 3
    make_mrc(source, extended)
    write_like(target, pixels(1), source)
    with mrcfile.open(source) as old, mrcfile.open(target) as new:
        np.testing.assert_array_equal(new.data, pixels(1))
        assert new.extended_header.tobytes() == extended
        same = ("nxstart", "origin", "cella", "exttyp", "label", "nlabl", "ispg", "mx")
        assert all(np.array_equal(new.header[name], old.header[name]) for name in same)
        assert new.header.mode == 2
        assert new.header.dmax == pytest.approx(pixels(1).max())
    assert mrcfile.validate(target)


def test_a_file_of_another_suffix_gets_the_pixel_size(tmp_path):
    source = tmp_path / "in.mrc"
    make_mrc(source)
    found = read_image(write_like(tmp_path / "out.tif", pixels(1), source))
    assert found.pixel_size_angstrom == pytest.approx(1.06, rel=1e-3)
    np.testing.assert_array_equal(found.pixels, pixels(1))


def test_tiff_tags_are_kept(tmp_path):
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(
        source, (100 * pixels()).astype(np.int16), description="dose 40", software="microscope",
        datetime="2026:11:21 20:00:00", resolution=(9e7, 9e7), resolutionunit=3,
        extratags=[(65001, 2, 0, "private", True)], metadata=None,
    )  # fmt: skip
    write_like(target, pixels(1), source)
    with tifffile.TiffFile(target) as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
        np.testing.assert_array_equal(file.asarray(), pixels(1))
    assert tags[270] == "dose 40"
    assert tags[305] == "microscope"
    assert tags[306] == "2026:11:21 20:00:00"
    assert tags[65001] == "private"
    assert tags[282][0] / tags[282][1] == pytest.approx(9e7)
    assert tags[296] == 3


def test_other_shapes_are_refused(tmp_path):
    make_mrc(tmp_path / "in.mrc")
    with pytest.raises(InputError, match="shape"):
        write_like(tmp_path / "out.mrc", np.zeros((3, 4), np.float32), tmp_path / "in.mrc")
    assert not (tmp_path / "out.mrc").exists()
