"""Decode the files of a data set into arrays, by suffix, in the dtype that the file has."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emlab.errors import IntegrityError
from emlab.io import READABLE, read_array

Arrays = dict[str, np.ndarray]


def decode_file(path: Path, key: str) -> Arrays:
    """Return the arrays of one file, named by ``key``; containers name their own arrays.

    A file without a key, or of a format that is only located (pdb, star, xml, ...), gives none.

    Raises
    ------
    IntegrityError
        The file does not have the structure that its name promises.
    """
    if not key:
        return {}
    for suffix, decoder in _DECODERS.items():
        if path.name.lower().endswith(suffix):
            return decoder(path, key)
    if path.suffix.lower() in READABLE:
        return {key: read_array(path)[0]}
    return {}


def _npz(path: Path, key: str) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _idx(path: Path, key: str) -> Arrays:
    """IDX: two zero bytes, type (8 = uint8), number of axes, big-endian lengths, values."""
    with gzip.open(path) as stream:
        raw = stream.read()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise IntegrityError(f"{path} is not an IDX file of unsigned bytes; fetch it again")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return {key: np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()}


def _digits_csv(path: Path, key: str) -> Arrays:
    """One digit a line, 784 pixels and its label."""
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    return {"images": table[:, :-1].reshape(-1, 28, 28), "labels": table[:, -1]}


def _zip_of_images(path: Path, key: str) -> Arrays:
    """``<array>/<identifier>.png`` for the same identifiers in each array; sizes may differ."""
    import PIL.Image

    with zipfile.ZipFile(path) as archive:
        members = sorted(name for name in archive.namelist() if name.endswith(".png"))
        folders = sorted({name.partition("/")[0] for name in members})
        names = {f: [m for m in members if m.startswith(f"{f}/")] for f in folders}
        identifiers = [[Path(name).stem for name in group] for group in names.values()]
        if any(found != identifiers[0] for found in identifiers):
            raise IntegrityError(f"{path}: its folders {folders} hold different images")
        arrays = {"identifiers": np.array(identifiers[0])}
        for folder, group in names.items():
            arrays[folder] = np.empty(len(group), dtype=object)
            for i, name in enumerate(group):
                arrays[folder][i] = np.asarray(PIL.Image.open(io.BytesIO(archive.read(name))))
    return arrays


def _table(path: Path, key: str) -> Arrays:
    """Numbers, one row a line: comma-separated below a header line, or separated by tabs."""
    header = path.suffix == ".csv"
    rows = np.loadtxt(
        path, delimiter="," if header else None, skiprows=int(header), dtype=np.float64
    )
    return {key: rows}


def _structured(path: Path, key: str) -> Arrays:
    """A cryoSPARC table: a NumPy structured array in a file with its own suffix."""
    return {key: np.load(path, allow_pickle=False)}


_DECODERS: dict[str, Callable[[Path, str], Arrays]] = {
    ".npz": _npz,
    "-ubyte.gz": _idx,
    "mnist_5k.csv.gz": _digits_csv,
    ".zip": _zip_of_images,
    ".csv": _table,
    ".box": _table,
    ".cs": _structured,
}
