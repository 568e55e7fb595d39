"""The registry of data sets: what a file is, where it comes from, which bytes it has."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emlab.errors import InputError

REGISTRY = Path(__file__).with_name("registry.toml")
ROLES = ("train", "test", "demo", "metadata")
PixelSize = float | tuple[float, ...] | None


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
        Hash of the decoded arrays by `emlab.data.hashing.hash_arrays`; empty if none decode.
    """

    name: str
    title: str
    role: str
    licence: str
    citation: str
    source: str
    files: tuple[DataFile, ...]
    pixel_size_angstrom: PixelSize = None
    pixel_size_note: str = ""
    how: str = ""
    note: str = ""
    instead: tuple[str, ...] = ()
    pixel_sha256: str = ""

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
        fields = {key: value for key, value in table.items() if key != "files"}
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        record = Record(name=name, files=files, **fields)
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
