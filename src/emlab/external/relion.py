"""RELION (Scheres 2012) as a separate program: reconstruction, and a first map without poses.

Found on PATH (Debian's package ``relion``) or in the folder that ``EMLAB_RELION`` names. It is
under the GPL, is not part of emlab, and takes STAR files and stacks with *bright* protein.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emlab.errors import EmlabError, InputError
from emlab.external.process import Finished, run_program
from emlab.io import read_image

VARIABLE = "EMLAB_RELION"
MISSING = (
    "RELION is not installed; install your system's package relion, or let EMLAB_RELION name the "
    "folder of its programs"
)


def find(program: str = "relion_reconstruct") -> Path | None:
    """Where one of RELION's programs is, or None.

    Raises
    ------
    InputError
        EMLAB_RELION names a folder without it.
    """
    if named := os.environ.get(VARIABLE):
        place = Path(named).expanduser() / program
        if not place.is_file():
            raise InputError(f"{VARIABLE} is {named}, where {program} is not; correct or unset it")
        return place
    found = shutil.which(program)
    return Path(found) if found else None


def require(program: str = "relion_reconstruct") -> Path:
    """`find`, or an InputError that says what to do."""
    place = find(program)
    if place is None:
        raise InputError(MISSING)
    return place


def version() -> str:
    """Version that ``relion_reconstruct`` tells, or nothing."""
    place = find()
    if place is None:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        said = run_program([place, "--version"], Path(folder)).output
    found = re.search(r"version: (\S+)", said)
    return found[1] if found else ""


def reconstruct(star: Path) -> tuple[NDArray[np.float32], float, Finished]:
    """Reconstruct a map from particles of known poses, with correction for their lens.

    The STAR file has poses and optics, its stacks lie beside it. Returns the map ``(n, n, n)``
    float32, axes (z, y, x), its voxel size in angstrom, and what the program took.

    Raises
    ------
    InputError
        RELION is not installed.
    EmlabError
        It failed, or wrote no map.
    """
    program = require()
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        out = Path(made) / "map.mrc"
        words: list[str | Path] = [program, "--i", star.name, "--o", out, "--ctf"]
        done = run_program([*words, "--sym", "C1", "--pad", "2"], star.resolve().parent)
        return *_map(out), done


def initial_model(
    star: Path, diameter_angstrom: float, iterations: tuple[int, int, int], seed: int = 0
) -> tuple[NDArray[np.float32], float, Finished]:
    """Make a first map from particles of unknown poses, by stochastic gradient descent.

    `iterations` at 40 angstrom, between, and at 20 are of 100 to 200 particles each, whose
    directions are tried in steps of 15 degrees. Its hand is unknown. Returns and raises as
    `reconstruct`.
    """
    program, last = require("relion_refine"), sum(iterations)
    first, between, final = iterations
    told = (
        "--ctf --K 1 --sym C1 --sgd --denovo_3dref --pad 1 --flatten_solvent --zero_mask --j 1 "
        "--healpix_order 1 --oversampling 1 --maxsig 200 --offset_range 3 --offset_step 2 "
        "--sgd_ini_resol 40 --sgd_fin_resol 20 --sgd_ini_subset 100 --sgd_fin_subset 200 "
        f"--sgd_ini_iter {first} --sgd_inbetween_iter {between} --sgd_fin_iter {final} "
        f"--sgd_write_iter {last} --particle_diameter {diameter_angstrom} --random_seed {seed}"
    )
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        words: list[str | Path] = [program, "--i", star.name, "--o", Path(made) / "run"]
        done = run_program([*words, *told.split()], star.resolve().parent)
        return *_map(Path(made) / f"run_it{last:03d}_class001.mrc"), done


def _map(path: Path) -> tuple[NDArray[np.float32], float]:
    if not path.is_file():
        raise EmlabError(f"RELION wrote no {path.name}; look at the poses in the STAR file")
    found = read_image(path)
    size = found.pixel_size_angstrom
    voxel = float(size[-1] if isinstance(size, tuple) else size or 0.0)
    return found.pixels, voxel
