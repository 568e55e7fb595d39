"""Annotated real micrographs of CryoPPP: EMPIAR-10081, -10289, -10291 and its other entries.

CryoPPP (Dhakal et al. 2023, Sci. Data 10, 392) serves one archive of tens of gigabytes an entry::

    10081/micrographs/NAME.mrc
    10081/ground_truth/particle_coordinates/NAME.csv     X-Coordinate,Y-Coordinate,Diameter,...

An archive is read as it arrives and left as soon as the wanted micrographs and their hand-checked
coordinates are there. It publishes no hashes: what was received first is kept, and checked.
"""

from __future__ import annotations

import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from emlab import __version__, data
from emlab.data.coordinates import read_coordinates
from emlab.data.hashing import hash_file
from emlab.data.micrographs import RealMicrograph, read_micrograph
from emlab.errors import DataUnavailableError, InputError, IntegrityError
from emlab.runtime import atomic_path

CRYOPPP = "https://calla.rnet.missouri.edu/cryoppp"
ENTRIES = {
    "10081": "HCN1 ion channel",
    "10289": "innexin-6 gap junction",
    "10291": "innexin-6 gap junction in nanodiscs",
}
IMAGES, PLACES = "micrographs", "ground_truth/particle_coordinates"


def load_cryoppp(
    entry: str,
    micrographs: int = 1,
    *,
    pixel_size_angstrom: float | None = None,
    base_url: str = CRYOPPP,
    folder: Path | None = None,
    timeout_seconds: float = 60.0,
) -> list[RealMicrograph]:
    """Micrographs of an entry with their coordinates, in the order of their names.

    Parameters
    ----------
    entry : str
        Number of the EMPIAR entry, such as ``"10081"``; those of the TSM paper are `ENTRIES`.
    micrographs : int
        How many.
    pixel_size_angstrom : float, optional
        Where the headers do not say it.
    base_url, folder : str, Path
        Where the archives are, and where the files are kept (default: the user's cache). A folder
        into which somebody extracted an archive works as well.

    Raises
    ------
    InputError
        A malformed entry, fewer than one micrograph, or a missing pixel size.
    DataUnavailableError
        No network, or no such archive, or it holds fewer micrographs with coordinates.
    IntegrityError
        A file differs from when it was first received.
    """
    if not (entry.isdigit() and len(entry) == 5) or micrographs < 1:
        raise InputError("give an entry such as '10081' and at least one micrograph")
    place = (folder or data.cache_folder() / "cryoppp") / entry
    if len(_pairs(place)) < micrographs:
        _receive(f"{base_url}/{entry}.tar.gz", place, micrographs, timeout_seconds)
    pairs = _pairs(place)[:micrographs]
    if len(pairs) < micrographs:
        raise DataUnavailableError(
            f"{base_url}/{entry}.tar.gz has {len(pairs)} micrographs with coordinates; ask for "
            f"fewer than {micrographs}, or extract the archive into {place.parent} yourself"
        )
    found = []
    for image, table in pairs:
        for file in (image, table):
            _check(file)
        places = read_coordinates(table)
        seen = read_micrograph(image, pixel_size_angstrom)
        size = seen.pixel_size_angstrom
        found.append(
            RealMicrograph(
                f"EMPIAR-{entry} {image.stem}",
                seen.pixels,
                size,
                places.places,
                size * places.diameter if places.diameter else None,
                "coordinates checked by hand (CryoPPP)",
            )
        )
    return found


def _pairs(place: Path) -> list[tuple[Path, Path]]:
    found = []
    for table in sorted((place / PLACES).glob("*.csv")):
        image = place / IMAGES / f"{table.stem}.mrc"
        if image.is_file():
            found.append((image, table))
    return found


def _check(file: Path) -> None:
    note = file.with_name(f"{file.name}.sha256")
    if note.is_file() and hash_file(file) != note.read_text("utf-8").strip():
        raise IntegrityError(f"{file} has changed since it was received; remove it")


def _receive(url: str, place: Path, wanted: int, timeout: float) -> None:
    """Keep all coordinates, and the first micrographs, until enough of them have both."""
    request = urllib.request.Request(url, headers={"User-Agent": f"emlab/{__version__}"})
    try:
        with (
            urllib.request.urlopen(request, timeout=timeout) as response,
            tarfile.open(fileobj=response, mode="r|gz") as archive,
        ):
            images = 0
            for name, stream in _members(archive):
                folder = str(PurePosixPath(*PurePosixPath(name).parts[1:-1]))
                is_image = folder == IMAGES and name.endswith(".mrc")
                if folder == PLACES or (is_image and images < wanted):
                    images += is_image
                    _keep(stream, place / folder / PurePosixPath(name).name)
                if len(_pairs(place)) >= wanted:
                    return
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException,
            tarfile.TarError, EOFError) as problem:  # fmt: skip
        raise DataUnavailableError(
            f"{url} cannot be had ({problem}); connect to the network, or extract the archive "
            f"into {place.parent} yourself"
        ) from problem


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive:
        stream = archive.extractfile(member) if member.isfile() else None
        if stream is not None:
            yield member.name.removeprefix("./"), stream


def _keep(stream: IO[bytes], target: Path) -> None:
    with atomic_path(target) as temporary, open(temporary, "wb") as out:
        shutil.copyfileobj(stream, out)
    with atomic_path(target.with_name(f"{target.name}.sha256")) as note:
        note.write_text(hash_file(target) + "\n", "utf-8")
