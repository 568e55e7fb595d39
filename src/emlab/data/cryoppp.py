"""Annotated real micrographs of CryoPPP: EMPIAR-10081, -10289, -10291 and its other entries.

CryoPPP (Dhakal et al. 2023, Sci. Data 10, 392) serves one archive of tens of gigabytes an entry::

    10081/micrographs/NAME.mrc
    10081/ground_truth/particle_coordinates/NAME.csv     X-Coordinate,Y-Coordinate,Diameter,...

An archive is read as it arrives and left as soon as the wanted micrographs and their hand-checked
coordinates are there; until then what came is kept, so that the next try goes on. It publishes no
hashes: what was received first is kept, and checked.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from emlab import data
from emlab.data.build import keep_members
from emlab.data.coordinates import read_coordinates
from emlab.data.download import Policy, Progress, stream
from emlab.data.hashing import check_noted, note_hash
from emlab.data.micrographs import RealMicrograph, read_micrograph
from emlab.errors import DataUnavailableError, InputError

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
    progress: Progress | None = None,
) -> list[RealMicrograph]:
    """Micrographs of an entry with their coordinates, in the order of their names.

    Parameters
    ----------
    entry : str
        Number of the EMPIAR entry, such as ``"10081"``; those of the TSM paper are `ENTRIES`.
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
        A file differs from when it was first received, or what comes is no such archive.
    """
    if not (entry.isdigit() and len(entry) == 5) or micrographs < 1:
        raise InputError("give an entry such as '10081' and at least one micrograph")
    place = (folder or data.cache_folder() / "cryoppp") / entry
    if len(_pairs(place)) < micrographs:
        policy = Policy(timeout_seconds, attempts=3)
        _receive(f"{base_url}/{entry}.tar.gz", place, micrographs, policy, progress)
    pairs = _pairs(place)[:micrographs]
    if len(pairs) < micrographs:
        raise DataUnavailableError(
            f"{base_url}/{entry}.tar.gz has {len(pairs)} micrographs with coordinates; ask for "
            f"fewer than {micrographs}, or extract the archive into {place.parent} yourself"
        )
    found = []
    for image, table in pairs:
        for file in (image, table):
            check_noted(file)
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


def _receive(url: str, place: Path, wanted: int, policy: Policy, progress: Progress | None) -> None:
    """Keep all coordinates, and the first micrographs, until enough of them have both."""
    images: set[Path] = set()

    def kept(name: str) -> Path | None:
        folder = str(PurePosixPath(*PurePosixPath(name).parts[1:-1]))
        target = place / folder / PurePosixPath(name).name
        if folder == IMAGES and target.suffix == ".mrc" and len(images) < wanted:
            images.add(target)
        return target if folder == PLACES or target in images else None

    try:
        with stream(url, place.with_name(f"{place.name}.tar.gz"), policy, progress) as received:
            for file in keep_members(received, kept):
                note_hash(file)
                if len(_pairs(place)) >= wanted:
                    return
    except DataUnavailableError as problem:
        raise DataUnavailableError(
            f"{url} cannot be had ({problem}); connect to the network, or extract the archive "
            f"into {place.parent} yourself"
        ) from problem
