"""Find, check and decode data sets: mirror folder, user's cache, package, public URL or build."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emlab.data.build import build
from emlab.data.download import Policy, Progress, alone, download
from emlab.data.registry import (
    DataFile,
    Record,
    decode_file,
    hash_arrays,
    hash_file,
    note_hash,
    noted_hash,
    record,
)
from emlab.errors import DataUnavailableError, InputError, IntegrityError


@dataclass(frozen=True)
class Dataset:
    """Decoded arrays of a data set, in the dtype of its files, with its record.

    ``source`` tells where the files were found: "mirror", "cache", "package" or "url" ("simulated"
    for data that no file holds), joined by "+" if they came from several places.
    """

    arrays: dict[str, np.ndarray]
    record: Record
    source: str

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            known = ", ".join(self.arrays) or "none"
            raise InputError(f"{self.record.name} has no array {key!r}; it has: {known}")
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


def available(name: str) -> bool:
    """Tell whether all files of a data set are on this machine (nothing is hashed)."""
    return all(_find(file) for file in record(name).files)


def at_hand(name: str) -> str:
    """Return a data set, or where it is absent the first of its `instead` on this machine."""
    here = (other for other in (name, *record(name).instead) if available(other))
    return next(here, name)


def where(name: str) -> str:
    """Return "mirror", "cache" or "package" (or several), "url" if it can be fetched, else "-"."""
    files = record(name).files
    places = [place[0] if (place := _find(file)) else "" for file in files]
    if all(places):
        return "+".join(dict.fromkeys(places))
    fetchable = all(
        file.url or file.build or place for file, place in zip(files, places, strict=True)
    )
    return "url" if fetchable else "-"


def load(name: str) -> Dataset:
    """Return the arrays of a data set with its record, after checking the hash of each file.

    Files that are not on this machine are downloaded into the cache if the registry has a URL.

    Raises
    ------
    InputError
        Unknown name, or EMLAB_MIRROR is no folder.
    DataUnavailableError
        A file is nowhere to be found; the message says what to set or to do.
    IntegrityError
        A file has the wrong bytes.
    """
    entry = record(name)
    arrays: dict[str, np.ndarray] = {}
    sources = []
    for file in entry.files:
        source, found = _locate(entry, file)
        arrays |= decode_file(found, file.key)
        sources.append(source)
    return Dataset(arrays, entry, "+".join(dict.fromkeys(sources)))


def fetch(name: str, progress: Progress | None = None, policy: Policy | None = None) -> list[Path]:
    """Make sure that all files of a data set are on this machine; return where they are.

    A file in the cache with the wrong bytes is downloaded again. Raises what :func:`load` raises.
    ``progress`` is called with the number of bytes of each piece that comes, maybe from threads.
    """
    entry = record(name)
    return [_locate(entry, file, progress, policy, repair=True)[1] for file in entry.files]


def paths(name: str) -> dict[str, Path]:
    """Return the checked files of a data set by their place below the mirror; fetch what lacks."""
    entry = record(name)
    return {file.path: _locate(entry, file)[1] for file in entry.files}


def path(name: str, file: str = "") -> Path:
    """Return one checked file of a data set.

    Parameters
    ----------
    file
        Its name or the end of it; needed only if the data set has several files.

    Raises
    ------
    InputError
        No file or more than one ends like this; the message lists them.
    """
    entry = record(name)
    matching = [f for f in entry.files if f.path.endswith(file)]
    if len(matching) != 1:
        listed = ", ".join(f.path for f in entry.files)
        raise InputError(
            f"{name} has {len(matching)} files ending in {file!r}; choose of: {listed}"
        )
    return _locate(entry, matching[0])[1]


def verify(name: str) -> Dataset:
    """Check the hash of each file and of the decoded pixels; nothing is downloaded.

    Raises `DataUnavailableError` for a file that is not on this machine, and `IntegrityError` for
    files or decoded arrays that are not what the registry promises.
    """
    entry = record(name)
    for file in entry.files:
        if _find(file) is None:
            raise DataUnavailableError(_absent(entry, file))
    found = load(name)
    pixels = hash_arrays(found.arrays)
    if entry.pixel_sha256 and pixels != entry.pixel_sha256:
        raise IntegrityError(
            f"{name}: the files are right but decode to other pixels ({pixels[:16]}..., the "
            f"registry says {entry.pixel_sha256[:16]}...); update the image readers (tifffile, "
            f"pillow, mrcfile, numpy) to the versions in constraints.txt"
        )
    return found


def _find(file: DataFile) -> tuple[str, Path] | None:
    mirror, package = mirror_folder(), _package_path(file)
    places = [("mirror", mirror / file.path)] if mirror else []
    places.append(("cache", cache_folder() / file.path))
    places.extend([("package", package)] if package else [])
    return next((place for place in places if place[1].is_file()), None)


def _package_path(file: DataFile) -> Path | None:
    """Return the file inside an installed package, which is not imported for that."""
    if not file.package:
        return None
    module, _, inside = file.package.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], inside)


def _locate(
    entry: Record,
    file: DataFile,
    progress: Progress | None = None,
    policy: Policy | None = None,
    repair: bool = False,
) -> tuple[str, Path]:
    """A checked file of a data set, after the kind of place it was found in."""
    place = _find(file)
    if place is None or (repair and place[0] == "cache" and not _as_promised(file, place[1])):
        return "url", _obtain(entry, file, progress, policy)
    source, found = place
    if not _as_promised(file, found):
        digest = hash_file(found)
        advice = {
            "mirror": "correct the folder that EMLAB_MIRROR names, or unset it",
            "cache": f"run `emlab data fetch {entry.name}`",
            "package": entry.how,
        }[source]
        raise IntegrityError(
            f"{entry.name}: {found} has sha256 {digest[:16]}..., the registry says "
            f"{file.sha256[:16]}...; {advice}"
        )
    return source, found


def _as_promised(file: DataFile, path: Path) -> bool:
    """Tell whether a file has the promised bytes, or was built here with the promised pixels."""
    digest = hash_file(path)
    return digest == file.sha256 or (bool(file.build) and digest == noted_hash(path))


def _build(entry: Record, file: DataFile, progress: Progress | None, policy: Policy) -> Path:
    target = cache_folder() / file.path
    pieces = cache_folder() / "pieces" / file.path
    with alone(target, policy):
        if target.is_file() and _as_promised(file, target):
            return target
        build(file.build, target, pieces, policy, progress)
        shutil.rmtree(pieces, ignore_errors=True)
        # other writers give other bytes: what counts is the pixels, once; then the bytes made
        if hash_file(target) != file.sha256:
            pixels = hash_arrays(decode_file(target, file.key)) if file.key else "other"
            if pixels != entry.pixel_sha256:
                target.unlink()
                raise IntegrityError(
                    f"{entry.name}: what was built has pixels {pixels[:16]}..., the registry says "
                    f"{entry.pixel_sha256[:16]}...; try again, and if that does not help tell the "
                    f"emlab authors"
                )
            note_hash(target)
    return target


def _obtain(
    entry: Record, file: DataFile, progress: Progress | None, policy: Policy | None
) -> Path:
    if not (file.url or file.build):
        raise DataUnavailableError(_absent(entry, file))
    target = cache_folder() / file.path
    try:
        if file.build:
            return _build(entry, file, progress, policy or Policy())
        return download(file.url, target, file.sha256, file.size, policy, progress)
    except DataUnavailableError as problem:
        raise DataUnavailableError(f"{_absent(entry, file)} ({problem})") from problem


def _absent(entry: Record, file: DataFile) -> str:
    message = (
        f"{entry.name}: {file.path} is not on this machine; set EMLAB_MIRROR to a folder that has "
        f"it, or "
    )
    if file.url or file.build:
        return f"{message}connect to the network and run `emlab data fetch {entry.name}`"
    return f"{message}put it into {cache_folder() / file.path}: {entry.how or entry.source}"
