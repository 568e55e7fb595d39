"""Every format gives back what it was given: pixels, pixel size, whatever the name and shape."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from emlab.errors import InputError
from emlab.io import WRITABLE, Image, axes_sizes, read_array, read_image, write_image
from emlab.io.volumes import CREATORS, create_volume, open_volume

KEPT = {  # types that come back as they were
    ".mrc": ("int8", "int16", "uint16", "float16", "float32"),
    ".map": ("int8", "int16", "uint16", "float16", "float32"),
    ".mrcs": ("int8", "int16", "uint16", "float16", "float32"),
    ".tif": ("uint8", "uint16", "float32"),
    ".tiff": ("uint8", "uint16", "float32"),
    ".png": ("uint8", "uint16"),
    ".npy": ("int8", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64"),
}
AXES = {".png": (2, 2), ".tif": (2, 4), ".tiff": (2, 4)}
NAMES = st.text(
    st.characters(exclude_characters="/\0\\", exclude_categories=("Cs", "Cc")),
    min_size=1,
    max_size=12,
).filter(lambda name: len(name.encode()) < 60)
SIZES = st.floats(0.02, 9e4, allow_subnormal=False)


def pixels_of(suffix: str) -> st.SearchStrategy[np.ndarray]:
    low, high = AXES.get(suffix, (2, 3))
    shapes = arrays.array_shapes(min_dims=low, max_dims=high, min_side=1, max_side=7)

    def drawn(name: str) -> st.SearchStrategy[np.ndarray]:
        within = {} if np.dtype(name).kind in "ui" else {"min_value": -6e4, "max_value": 6e4}
        elements = arrays.from_dtype(np.dtype(name), **within)
        return arrays.arrays(name, shapes, elements=elements)

    return st.sampled_from(KEPT[suffix]).flatmap(drawn)


def test_all_formats_are_drawn() -> None:
    assert set(KEPT) == set(WRITABLE)


@pytest.mark.parametrize("suffix", WRITABLE)
@given(data=st.data())
@settings(max_examples=16)
def test_an_image_comes_back(suffix: str, data: st.DataObject) -> None:
    pixels, name = data.draw(pixels_of(suffix)), data.draw(NAMES)
    count = data.draw(st.sampled_from([0, 1, 2, 3]))
    sizes = tuple(data.draw(st.lists(SIZES, min_size=count, max_size=count)))
    size = None if not sizes else sizes[0] if len(sizes) == 1 else sizes[-pixels.ndim :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name + suffix)
        write_image(path, pixels, size)
        found, (raw, _) = read_image(path), read_array(path)
        assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert raw.dtype.name == pixels.dtype.name
    assert np.array_equal(raw.reshape(pixels.shape), pixels)
    assert found.pixels.dtype == np.float32
    assert_size(found, suffix, pixels.shape, size)


def assert_size(
    found: Image, suffix: str, shape: tuple[int, ...], size: float | tuple[float, ...] | None
) -> None:
    """The size is that which was given as far as the format has room for it; never another one."""
    wanted = np.array(axes_sizes(size, 3) or (0, 0, 0))
    deep = len(shape) > 2 and shape[-3] > 1 and suffix not in (".mrcs", ".png")
    known = found.pixel_size_angstrom
    if size is None or suffix == ".npy":
        assert known is None
    elif known is None:
        assert wanted.max() > 1000 * wanted.min()
    else:
        told = np.broadcast_to(known, len(known) if isinstance(known, tuple) else 2 + deep)
        assert len(told) == 3 or not deep
        assert np.allclose(told, wanted[-len(told) :], rtol=2e-4)


@pytest.mark.parametrize("suffix", CREATORS)
@given(data=st.data())
@settings(max_examples=6)
def test_a_volume_comes_back_box_by_box(suffix: str, data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=6))
    values = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32)))
    size = data.draw(st.none() | SIZES)
    cut = data.draw(st.integers(0, shape[0]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, data.draw(NAMES) + suffix)
        with create_volume(path, shape, "float32", size) as target:
            target[:cut], target[cut:] = values[:cut], values[cut:]
        with open_volume(path) as volume:
            assert np.array_equal(volume[:], values)
            assert np.array_equal(volume[cut:, -1], values[cut:, -1])
            known = volume.pixel_size_angstrom
        assert [item.name for item in path.parent.iterdir()] == [path.name]
    expected = None if suffix == ".npy" else size
    assert known == (expected if expected is None else pytest.approx(expected, rel=2e-4))


@given(junk=st.binary(max_size=200), suffix=st.sampled_from([*WRITABLE, ".jpg"]))
@settings(max_examples=60)
def test_any_bytes_are_refused_in_one_sentence(junk: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"junk{suffix}")
        path.write_bytes(junk)
        with pytest.raises(InputError) as caught:
            read_image(path)
    assert "\n" not in str(caught.value)


class Program:
    """What somebody hides in a pickle."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_pickles_are_never_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    path.write_bytes(pickle.dumps(Program()))
    for reader in (read_image, open_volume):
        with pytest.raises(InputError):
            reader(path)


def test_arrays_of_objects_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path, values = tmp_path / "objects.npy", np.empty(2, object)
    values[:] = [Program(), 1]
    np.save(path, values, allow_pickle=True)
    for reader in (read_image, open_volume):
        with pytest.raises(InputError, match=r"pickled objects.*allow_pickle=False"):
            reader(path)
