"""Decode the files of a data set into arrays, by suffix, in the dtype that the file has."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emlab.errors import IntegrityError

Arrays = dict[str, np.ndarray]


def decode_file(path: Path, key: str) -> Arrays:
    """Return the arrays of one file; empty if its format is only located (pdb, star, xml, ...)."""
    for suffix, decoder in _DECODERS.items():
        if path.name.lower().endswith(suffix):
            return decoder(path, key)
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


_DECODERS: dict[str, Callable[[Path, str], Arrays]] = {
    ".npz": _npz,
    "-ubyte.gz": _idx,
    "mnist_5k.csv.gz": _digits_csv,
}
