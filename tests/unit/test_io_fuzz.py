"""A thousand damaged files: each is read as its header says or refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from emlab.errors import InputError
from emlab.io import read_image, write_image

PIXELS = np.random.default_rng(0).normal(100, 30, (3, 8, 10)).clip(0, 255)
FILES = {".mrc": PIXELS, ".mrcs": PIXELS, ".tif": PIXELS, ".png": PIXELS[0].astype(np.uint8)}
SIZE = 12.5
MRC_SIZES = slice(28, 52)  # sampling and cell: the words that say the pixel size
EXTREMES = (b"\xff\xff\xff\xff", bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\xc0\x7f")


def damaged(raw: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Cut, flip bytes of the header, put an extreme word there, or append."""
    found, header = bytearray(raw), min(len(raw), 1024)
    how = ("cut", "bytes", "word", "longer")[rng.integers(4)]
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


@pytest.mark.parametrize("suffix", FILES)
def test_damaged_files(tmp_path, suffix, capfd):
    rng = np.random.default_rng(7)
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"damaged{suffix}"
    write_image(whole, FILES[suffix].astype(np.float32 if suffix != ".png" else np.uint8), SIZE)
    raw, original = whole.read_bytes(), read_image(whole)
    refused = []
    for _ in range(250):
        how, content = damaged(raw, rng)
        path.write_bytes(content)
        try:
            found = read_image(path)
        except InputError as problem:
            refused.append(str(problem))
            continue
        size = found.pixel_size_angstrom
        assert size is None or 0.01 <= np.min(size) <= np.max(size) <= 1000 * np.min(size)
        if how in ("cut", "longer"):
            assert found.pixels.shape == original.pixels.shape
            assert size in (None, SIZE)
        if suffix in (".mrc", ".mrcs") and content[MRC_SIZES] == raw[MRC_SIZES]:
            assert found.pixels.shape != original.pixels.shape or size in (None, SIZE)
    assert 40 < len(refused) < 250
    assert not any("\n" in sentence for sentence in refused)
    assert capfd.readouterr().err == ""
