"""RELION (Scheres 2012) as a separate program: reconstruction and refinement.

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
from emlab.io import read_image, write_image

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


def refine(
    star: Path,
    reference: NDArray[np.float32],
    pixel_size_angstrom: float,
    *,
    low_pass_angstrom: float,
    mask_angstrom: float,
    iterations: int,
) -> tuple[NDArray[np.float32], float, Finished]:
    """Find poses and a map from a coarse reference: ``relion_refine`` with one class.

    Results and errors are those of `reconstruct`.

    Parameters
    ----------
    star : Path
        STAR file with optics; poses in it are not used, its stacks lie beside it.
    reference : ndarray
        ``(n, n, n)``, protein positive, n the particles' box; the program low-passes it to
        `low_pass_angstrom`.
    mask_angstrom : float
        Diameter of the circle outside which particles are zeroed.
    """
    program = require("relion_refine")
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        folder = Path(made)
        write_image(folder / "reference.mrc", reference, pixel_size_angstrom)
        words: list[str | Path] = [program, "--i", star.name, "--o", folder / "run", "--ref"]
        words += [folder / "reference.mrc", "--firstiter_cc", "--ini_high", str(low_pass_angstrom)]
        words += ["--ctf", "--iter", str(iterations), "--tau2_fudge", "4", "--K", "1"]
        words += ["--particle_diameter", str(mask_angstrom), "--flatten_solvent", "--zero_mask"]
        words += ["--sym", "C1", "--norm", "--scale", "--oversampling", "1"]
        # 15 degrees between directions, halved once by oversampling.
        words += ["--healpix_order", "2", "--offset_range", "5"]
        words += ["--offset_step", "2", "--j", "1", "--pool", "30", "--dont_check_norm"]
        words += ["--random_seed", "0", "--pad", "2", "--dont_combine_weights_via_disc"]
        done = run_program(words, star.resolve().parent)
        return *_map(folder / f"run_it{iterations:03d}_class001.mrc"), done


def _map(path: Path) -> tuple[NDArray[np.float32], float]:
    if not path.is_file():
        raise EmlabError(f"RELION wrote no {path.name}; look at the poses in the STAR file")
    found = read_image(path)
    size = found.pixel_size_angstrom
    voxel = float(size[-1] if isinstance(size, tuple) else size or 0.0)
    return found.pixels, voxel
