"""Find, check and decode data sets: mirror folder, user's cache, installed package, public URL."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emlab.data.decode import decode_file
from emlab.data.hashing import hash_file
from emlab.data.records import DataFile, Record, record
from emlab.errors import DataUnavailableError, InputError, IntegrityError


@dataclass(frozen=True)
class Dataset:
    """Decoded arrays of a data set, in the dtype of its files, with its record.

    ``source`` tells where the files were found: "mirror", "cache", "package" or "url".
    """

    arrays: dict[str, np.ndarray]
    record: Record
    source: str

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise InputError(
                f"{self.record.name} has no array {key!r}; it has {', '.join(self.arrays)}"
            )
        return self.arrays[key]


def mirror_folder() -> Path | None:
    """Return the folder that EMLAB_MIRROR names, or None; a name that is no folder is an error."""
    name = os.environ.get("EMLAB_MIRROR", "")
    if not name:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(f"EMLAB_MIRROR={name} is not a folder; correct or unset it")
    return folder


def cache_folder() -> Path:
    """Return the user's cache: EMLAB_CACHE, else the platform's cache folder for emlab."""
    name = os.environ.get("EMLAB_CACHE", "")
    if name:
        return Path(name).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("emlab", appauthor=False))


def _package_path(file: DataFile) -> Path | None:
    if not file.package:
        return None
    module, _, inside = file.package.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], inside)


def _candidates(file: DataFile) -> list[tuple[str, Path]]:
    mirror = mirror_folder()
    places = [("mirror", mirror / file.path)] if mirror else []
    places.append(("cache", cache_folder() / file.path))
    package = _package_path(file)
    return places + ([("package", package)] if package else [])


def _find(file: DataFile) -> tuple[str, Path] | None:
    return next((place for place in _candidates(file) if place[1].is_file()), None)


def available(name: str) -> bool:
    """Tell whether all files of a data set are on this machine (nothing is hashed)."""
    return all(_find(file) for file in record(name).files)


def _located(name: str) -> list[tuple[DataFile, str, Path]]:
    found = []
    for file in record(name).files:
        place = _find(file)
        if place is None:
            raise DataUnavailableError(_absent(record(name), file))
        _check(name, file, place[1])
        found.append((file, *place))
    return found


def _absent(entry: Record, file: DataFile) -> str:
    return (
        f"{entry.name}: {file.path} is neither in the mirror nor in the cache; "
        f"set EMLAB_MIRROR to a folder that has it"
    )


def _check(name: str, file: DataFile, path: Path) -> None:
    found = hash_file(path)
    if found != file.sha256:
        raise IntegrityError(
            f"{name}: {path} has sha256 {found[:16]}..., the registry says {file.sha256[:16]}...; "
            f"delete it and run `emlab data fetch {name}`"
        )


def load(name: str) -> Dataset:
    """Return the arrays of a data set with its record, after checking the hash of each file.

    Raises
    ------
    InputError
        Unknown name.
    DataUnavailableError
        A file is nowhere to be found.
    IntegrityError
        A file has the wrong bytes.
    """
    located = _located(name)
    arrays: dict[str, np.ndarray] = {}
    for file, _, path in located:
        arrays.update(decode_file(path, file.key))
    return Dataset(arrays, record(name), located[0][1])
