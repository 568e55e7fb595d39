"""Real data of EMPIAR for readers with internet: the proteasome 10025, and entries of CryoPPP.

EMPIAR-10025 (Campbell et al. 2015, eLife 4, e06380) has frame averages of 7676 x 7420 pixels and
one STAR file with the places, defocus and poses of its particles, no extracted particles.

CryoPPP (Dhakal et al. 2023, Sci. Data 10, 392) serves one archive of tens of gigabytes an entry::

    10081/micrographs/NAME.mrc
    10081/ground_truth/particle_coordinates/NAME.csv     X-Coordinate,Y-Coordinate,Diameter,...

An archive is read as it arrives and left as soon as the wanted micrographs and their hand-checked
coordinates are there; until then what came is kept, so that the next try goes on.

Neither publishes hashes: that of what was received first is kept beside a file and checked from
then on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from emlab import data
from emlab.data.build import keep_members
from emlab.data.coordinates import read_coordinates
from emlab.data.download import Policy, Progress, download, stream
from emlab.data.metadata import Metadata, Particles
from emlab.data.micrographs import RealMicrograph, read_micrograph
from emlab.data.particles import centre_window, fourier_resize, read_metadata, read_star
from emlab.data.registry import check_noted, note_hash
from emlab.errors import DataUnavailableError, InputError
from emlab.io import read_image

EMPIAR = "https://ftp.ebi.ac.uk/empiar/world_availability/10025/data"
TABLE = "14sep05c_raw_196/run1_shiny_mp007_data_dotstar.txt"
AVERAGES = "14sep05c_averaged_196"
PIXEL_ANGSTROM = 0.66
CRYOPPP = "https://calla.rnet.missouri.edu/cryoppp"
ENTRIES = {
    "10081": "HCN1 ion channel",
    "10289": "innexin-6 gap junction",
    "10291": "innexin-6 gap junction in nanodiscs",
}
_IMAGES, _PLACES = "micrographs", "ground_truth/particle_coordinates"


def load_empiar_10025(
    micrographs: int = 1,
    *,
    box: int = 128,
    binning: int = 4,
    base_url: str = EMPIAR,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Particles:
    """Cut the particles out of the first frame averages of the entry.

    Parameters
    ----------
    micrographs : int
        How many; each is a download of 228 MB and holds about 250 particles.
    box : int
        Side of the windows in binned pixels; 128 of 2.64 A leave room for delocalisation.
    binning : int
        By which the pixels of .66 A are made coarser.
    base_url, folder
        The entry's ``data`` folder, and where its files are kept (default: the user's cache).

    Returns
    -------
    Particles
        ``(n, box, box)``; each window has mean 0 and standard deviation 1. Windows that leave the
        micrograph are left out.

    Raises
    ------
    InputError
        A count below one, or no window fits.
    DataUnavailableError
        No network, or the entry has no such file.
    IntegrityError
        A file differs from when it was first received.
    """
    if micrographs < 1 or box < 2 or box % 2 or binning < 1:
        raise InputError("give micrographs >= 1, an even box and binning >= 1")
    folder = folder or data.cache_folder() / "empiar" / "10025"

    def fetched(name: str) -> Path:
        return _fetch(f"{base_url}/{name}", folder / name, progress)

    table_file = fetched(TABLE)
    table = read_metadata(table_file, pixel_size_angstrom=PIXEL_ANGSTROM)
    rows = next(t for t in read_star(table_file).values() if "rlnImageName" in t)
    if not {"rlnCoordinateX", "rlnCoordinateY"} <= rows.keys():
        raise InputError(f"{table_file} has no particle coordinates; remove it to fetch it again")
    places = np.stack([np.array(rows[f"rlnCoordinate{axis}"], float) for axis in "XY"], axis=1)
    exposures = np.array([_exposure(name) for name in rows["rlnImageName"]])
    chosen: list[int] = []
    windows: list[NDArray[np.float32]] = []
    for exposure in list(dict.fromkeys(exposures))[:micrographs]:
        picture = read_image(fetched(f"{AVERAGES}/{exposure}_c.mrc")).pixels
        for number in np.flatnonzero(exposures == exposure):
            cut = _window(picture, places[number], box * binning)
            if cut is not None:
                chosen.append(int(number))
                windows.append(cut)
    if not chosen:
        raise InputError(f"no window of {box * binning} pixels fits; take a smaller box")
    coarse = centre_window(fourier_resize(np.stack(windows), box), box)
    coarse -= coarse.mean((1, 2), keepdims=True)
    coarse /= coarse.std((1, 2), keepdims=True)
    kept = table.subset(np.array(chosen))
    values = {item.name: getattr(kept, item.name) for item in fields(Metadata)}
    values["pixel_size_angstrom"] = PIXEL_ANGSTROM * binning
    return Particles(images=coarse, **values)


def _exposure(image_name: str) -> str:
    """What names of a stack ``14sep05c_..._00002es_particles.mrcs`` and of an average share."""
    return Path(image_name.rpartition("@")[2]).stem.removesuffix("_particles").removesuffix("_c")


def _window(
    picture: NDArray[np.float32], place: NDArray[np.float64], side: int
) -> NDArray[np.float32] | None:
    corner = np.round(place[::-1]).astype(int) - side // 2
    if (corner < 0).any() or (corner + side > picture.shape).any():
        return None
    return picture[corner[0] : corner[0] + side, corner[1] : corner[1] + side]


def _fetch(url: str, target: Path, progress: Progress | None) -> Path:
    if target.is_file():
        check_noted(target)
        return target
    with _told(url, f"put the file into {target}"):
        download(url, target, policy=Policy(60.0, attempts=3), progress=progress)
    note_hash(target)
    return target


@contextmanager
def _told(url: str, otherwise: str) -> Iterator[None]:
    """Say what a reader can do where a file cannot be had."""
    try:
        yield
    except DataUnavailableError as problem:
        raise DataUnavailableError(
            f"{url} cannot be had ({problem}); connect to the network, or {otherwise} yourself"
        ) from problem


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
        diameter = places.diameter and seen.pixel_size_angstrom * places.diameter
        described = replace(
            seen,
            name=f"EMPIAR-{entry} {image.stem}",
            coordinates=places.places,
            diameter_angstrom=diameter or None,
            note="coordinates checked by hand (CryoPPP)",
        )
        found.append(described)
    return found


def _pairs(place: Path) -> list[tuple[Path, Path]]:
    tables = sorted((place / _PLACES).glob("*.csv"))
    pairs = [(place / _IMAGES / f"{table.stem}.mrc", table) for table in tables]
    return [pair for pair in pairs if pair[0].is_file()]


def _receive(url: str, place: Path, wanted: int, policy: Policy, progress: Progress | None) -> None:
    """Keep all coordinates, and the first micrographs, until enough of them have both."""
    images: set[Path] = set()

    def kept(name: str) -> Path | None:
        folder = str(PurePosixPath(*PurePosixPath(name).parts[1:-1]))
        target = place / folder / PurePosixPath(name).name
        if folder == _IMAGES and target.suffix == ".mrc" and len(images) < wanted:
            images.add(target)
        return target if folder == _PLACES or target in images else None

    archive = place.with_name(f"{place.name}.tar.gz")
    with (
        _told(url, f"extract the archive into {place.parent}"),
        stream(url, archive, policy, progress) as received,
    ):
        for file in keep_members(received, kept):
            note_hash(file)
            if len(_pairs(place)) >= wanted:
                return
