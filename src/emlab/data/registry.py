"""The registry of data sets: where files come from, which bytes they have, how they are decoded."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from emlab.errors import InputError, IntegrityError
from emlab.io import READABLE, read_array
from emlab.runtime import atomic_path

REGISTRY = Path(__file__).with_name("registry.toml")
ROLES = ("train", "test", "demo", "metadata")
PixelSize = float | tuple[float, ...] | None
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes
    ----------
    path
        Place below the mirror folder and below the cache folder.
    key
        Name of the array that the file holds; empty for files that are only located, not decoded.
        Containers (npz, zip) name their own arrays.
    url
        Public address of exactly these bytes; empty if there is none.
    package
        ``module:path/inside/it`` for a file that a Python package ships.
    build
        How to make the file from public pieces: the arguments of `emlab.data.build.build`. What is
        made is accepted by its pixels, not by its bytes.
    """

    path: str
    sha256: str
    size: int
    key: str = ""
    url: str = ""
    package: str = ""
    build: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Record:
    """What is known about a data set.

    Attributes
    ----------
    role
        ``"test"`` sets never enter training; ``"train"`` sets may; ``"demo"`` sets are for format
        examples and figures; ``"metadata"`` sets have no pixels.
    pixel_size_angstrom
        Sampling in angstrom, one number or one per axis (z, y, x); ``None`` if it has none.
    pixel_size_note
        Says so when the pixel size is recalled and not read from a file.
    how
        How to obtain the files where no URL serves exactly these bytes.
    instead
        Real data sets that packages ship, used where this one is absent, before any simulated one.
    pixel_sha256
        Hash of the decoded arrays by `hash_arrays`; empty if none decode.
    """

    name: str
    title: str
    role: str
    licence: str
    citation: str
    source: str
    files: tuple[DataFile, ...]
    pixel_size_angstrom: PixelSize = None  #: one number or one per axis (z, y, x)
    pixel_size_note: str = ""  #: says so when the pixel size is recalled and not read from a file
    how: str = ""  #: how to obtain the files where no URL serves exactly these bytes
    note: str = ""
    #: real data sets that packages ship, used where this one is absent, before any simulated one
    instead: tuple[str, ...] = ()
    pixel_sha256: str = ""  #: of the decoded arrays, by `hash_arrays`; empty if none decode

    @property
    def size(self) -> int:
        """Total length of the files in bytes."""
        return sum(file.size for file in self.files)


def parse(text: str) -> dict[str, Record]:
    """Read registry TOML; each top-level table is a record with an array of tables ``files``.

    Raises
    ------
    InputError
        A table has an unknown or missing field, an unknown role or a malformed hash.
    """
    return {name: _record(name, table) for name, table in tomllib.loads(text).items()}


def _record(name: str, table: dict[str, Any]) -> Record:
    try:
        files = tuple(DataFile(**entry) for entry in table["files"])
        lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
        record = Record(name=name, **(table | lists | {"files": files}))
    except (KeyError, TypeError) as problem:
        raise InputError(
            f"registry entry {name!r} is malformed ({problem}); see emlab.data.registry.Record"
        ) from problem
    if record.role not in ROLES:
        raise InputError(
            f"registry entry {name!r} has role {record.role!r}; use one of {', '.join(ROLES)}"
        )
    for file in files:
        if len(file.sha256) != 64:
            raise InputError(
                f"registry entry {name!r}: {file.path} needs a sha256 of 64 hex digits"
            )
    return record


def records() -> Mapping[str, Record]:
    """Return all records of the packaged registry by name (read-only)."""
    return _read(REGISTRY)


@cache
def _read(path: Path) -> Mapping[str, Record]:
    return MappingProxyType(parse(path.read_text(encoding="utf-8")))


def record(name: str) -> Record:
    """Return one record; an unknown name is an `InputError` with a hint."""
    known = records()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InputError(f"no data set is called {name!r}; {hint}`emlab data list` shows them")
    return known[name]


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note_hash(path: Path) -> None:
    """Keep the hash of a file whose bytes nobody promised in ``<name>.sha256`` beside it."""
    with atomic_path(path.with_name(f"{path.name}.sha256")) as note:
        note.write_text(f"{hash_file(path)}\n", "utf-8")


def noted_hash(path: Path) -> str:
    """Return the hash that :func:`note_hash` kept, or nothing."""
    note = path.with_name(f"{path.name}.sha256")
    return note.read_text("utf-8").strip() if note.is_file() else ""


def check_noted(path: Path) -> None:
    """Raise `IntegrityError` if a file is not as :func:`note_hash` found it."""
    if noted_hash(path) not in ("", hash_file(path)):
        raise IntegrityError(f"{path} has changed since it was received; remove it")


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return one sha256 over all arrays, by name: dtype (little-endian), shape and bytes.

    It does not depend on the container (tif, npz, ...), only on what a reader gets to see. Arrays
    of objects (images of different sizes) are hashed item by item.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}\n".encode())
        for item in array if array.dtype == object else [array]:
            item = np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<"))
            digest.update(f"{item.dtype.str} {item.shape}\n".encode())
            digest.update(item.tobytes())
    return digest.hexdigest()


def hash_images(images: np.ndarray) -> list[str]:
    """Return the sha256 of each image's uint8 pixels; images (n, H, W) uint8."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


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


def _npz(path: Path, _key: str) -> Arrays:
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


def _digits_csv(path: Path, _key: str) -> Arrays:
    """One digit a line, 784 pixels and its label."""
    with gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    return {"images": table[:, :-1].reshape(-1, 28, 28), "labels": table[:, -1]}


def _zip_of_images(path: Path, _key: str) -> Arrays:
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
    return {key: np.loadtxt(path, delimiter="," if header else None, skiprows=int(header))}


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
