"""Real images of the proteasome, EMPIAR-10025, for readers with internet.

The entry (Campbell et al. 2015, eLife 4, e06380) has frame averages of 7676 x 7420 pixels and one
STAR file with the places, defocus and poses of its particles, no extracted particles. It publishes
no hashes: the hash of what was received first is kept beside a file and checked from then on.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emlab import data
from emlab.data.download import Policy, Progress, download
from emlab.data.hashing import check_noted, note_hash
from emlab.data.metadata import Metadata, Particles
from emlab.data.particles import read_metadata, read_star
from emlab.data.windows import centre_window, fourier_resize
from emlab.errors import DataUnavailableError, InputError
from emlab.io import read_image

EMPIAR = "https://ftp.ebi.ac.uk/empiar/world_availability/10025/data"
TABLE = "14sep05c_raw_196/run1_shiny_mp007_data_dotstar.txt"
AVERAGES = "14sep05c_averaged_196"
PIXEL_ANGSTROM = 0.66


def load_empiar_10025(
    micrographs: int = 1,
    *,
    box: int = 128,
    binning: int = 4,
    base_url: str = EMPIAR,
    folder: Path | None = None,
    timeout_seconds: float = 60.0,
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
    base_url, folder : str, Path
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
        return _fetch(f"{base_url}/{name}", folder / name, timeout_seconds, progress)

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


def _fetch(url: str, target: Path, timeout: float, progress: Progress | None) -> Path:
    if target.is_file():
        check_noted(target)
        return target
    try:
        download(url, target, policy=Policy(timeout, attempts=3), progress=progress)
    except DataUnavailableError as problem:
        raise DataUnavailableError(
            f"{url} cannot be had ({problem}); connect to the network, or put the file into "
            f"{target} yourself"
        ) from problem
    note_hash(target)
    return target
