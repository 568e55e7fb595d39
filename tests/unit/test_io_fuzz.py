"""A thousand damaged files and more: each is read as its header says or refused in one sentence."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from emlab.errors import EmlabError, InputError
from emlab.io import read_image, write_image
from emlab.io.volumes import create_volume, open_volume

PIXELS = np.random.default_rng(0).normal(100, 30, (3, 8, 10)).clip(0, 255).astype(np.float32)
SIZE = 12.5
EXTREMES = (b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\xc0\x7f")
SECONDS = 5.0  # nobody waits longer for a file of a kilobyte
DESCRIPTIVE_TAGS = ("ImageDescription", "XResolution", "YResolution", "ResolutionUnit")


class HangError(BaseException):
    """Not an Exception: a reader that catches those does not catch this."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def extended_mrc(path: Path) -> None:
    with mrcfile.new(path) as file:
        file.set_data(PIXELS)
        file.voxel_size = SIZE
        file.set_extended_header(np.zeros(96, "V1"))


def ome_tiff(path: Path) -> None:
    with create_volume(path, PIXELS.shape, "float32", SIZE) as volume:
        volume[:] = PIXELS


def by_suffix(path: Path) -> None:
    flat = path.suffix == ".png"
    write_image(path, PIXELS[0].astype(np.uint8) if flat else PIXELS, SIZE)


WRITERS: dict[str, tuple[Callable[[Path], None], int]] = {
    "plain.mrc": (by_suffix, 200),
    "extended.mrc": (extended_mrc, 200),
    "stack.mrcs": (by_suffix, 150),
    "imagej.tif": (by_suffix, 250),
    "ome.tif": (ome_tiff, 200),
    "image.png": (by_suffix, 100),
    "array.npy": (by_suffix, 60),
}


def test_there_are_a_thousand_files_of_electron_microscopes() -> None:
    assert sum(n for name, (_, n) in WRITERS.items() if "mrc" in name or "tif" in name) == 1000


def damaged(raw: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Cut, flip bytes of the header, put an extreme word there, or append."""
    found, header = bytearray(raw), min(len(raw), 1024)
    how = ("cut", "bytes", "word", "longer")[rng.choice(4, p=[0.15, 0.4, 0.35, 0.1])]
    if how == "cut":
        del found[rng.integers(len(raw)) :]
    elif how == "bytes":
        for place in rng.integers(header, size=rng.integers(1, 5)):
            found[place] = rng.integers(256)
    elif how == "word":
        place = int(rng.integers(header - 4))
        found[place : place + 4] = EXTREMES[rng.integers(len(EXTREMES))]
    else:
        found += rng.bytes(int(rng.integers(1, 200)))
    return how, bytes(found)


def places_of_the_size(path: Path) -> set[int]:
    """Bytes that say the pixel size, or where it stands."""
    if path.suffix in (".mrc", ".mrcs"):  # mode, sampling, cell, space group, stamp
        return {*range(12, 16), *range(28, 52), *range(88, 92), *range(212, 216)}
    if path.suffix != ".tif":
        return set(range(path.stat().st_size))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = {*range(16), *range(page.offset, page.offset + file.tiff.tagnosize)}
        for tag in page.tags:
            if tag.name in DESCRIPTIVE_TAGS:
                places |= {*range(tag.offset, tag.offset + file.tiff.tagsize)}
                places |= {*range(tag.valueoffset, tag.valueoffset + tag.valuebytecount)}
            else:  # another code can turn a tag into one of these
                places |= {tag.offset, tag.offset + 1}
        return places


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    write, count = WRITERS[name]
    whole, path = tmp_path / name, tmp_path / f"damaged{Path(name).suffix}"
    write(whole)
    raw, original, places = whole.read_bytes(), read_image(whole), places_of_the_size(whole)
    known = original.pixel_size_angstrom
    assert known == (None if name.endswith(".npy") else SIZE)
    refused = []
    for number in range(count):
        how, content = damaged(raw, rng)
        path.write_bytes(content)
        changed = {i for i, (a, b) in enumerate(zip(raw, content, strict=False)) if a != b}
        try:
            with time_limit():
                found = read_image(path)
                if number % 2 and found.pixels.ndim == 3 and "png" not in name:
                    with open_volume(path) as volume:
                        assert volume[:].shape == found.pixels.shape
                        assert volume.pixel_size_angstrom == found.pixel_size_angstrom
        except EmlabError as problem:
            refused.append(str(problem))
            continue
        size = found.pixel_size_angstrom
        assert size is None or 0.01 <= np.min(size) <= np.max(size) <= 1000 * np.min(size)
        if how in ("cut", "longer"):
            assert found.pixels.shape == original.pixels.shape
        if not changed & places:
            assert size in (None, known)
    assert 0.1 * count < len(refused) < count
    assert not any("\n" in sentence for sentence in refused)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stamp", [b"DD\0\0", b"\x11\x11\0\0", bytes(4)])
@pytest.mark.parametrize("reader", [read_image, open_volume])
def test_an_extended_header_longer_than_the_file_costs_neither_time_nor_memory(
    tmp_path: Path, stamp: bytes, reader: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """mrcfile would first make room for as much as the header promises, here two gigabytes."""
    path = tmp_path / "promising.mrc"
    write_image(path, PIXELS, SIZE)
    raw = bytearray(path.read_bytes())
    raw[92:96] = struct.pack("<i", 2**31 - 1)
    raw[212:216] = stamp
    path.write_bytes(raw)
    for opener in ("open", "mmap"):
        monkeypatch.setattr(mrcfile, opener, lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InputError, match="promises 2147483647 more bytes of header"):
        reader(path)


def test_swapped_and_compressed_files_with_extended_headers_are_still_read(tmp_path: Path) -> None:
    path, swapped = tmp_path / "plain.mrc", tmp_path / "swapped.mrc"
    extended_mrc(path)
    with mrcfile.open(path) as file:
        header, data = file.header.copy(), file.data
        words = header.astype(header.dtype.newbyteorder(">"))
        words.machst = [0x11, 0x11, 0, 0]
        swapped.write_bytes(words.tobytes() + bytes(96) + data.astype(">f4").tobytes())
    with mrcfile.new(tmp_path / "zipped.mrc", compression="gzip") as file:
        file.set_data(PIXELS)
        file.voxel_size = SIZE
    for name in ("plain", "swapped", "zipped"):
        found = read_image(tmp_path / f"{name}.mrc")
        assert np.array_equal(found.pixels, PIXELS)
        assert found.pixel_size_angstrom == SIZE
