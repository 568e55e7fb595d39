"""RELION (Scheres 2012) as a separate program: reconstruction.

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
PROGRAM = "relion_reconstruct"
MISSING = (
    "RELION is not installed; install your system's package relion, or let EMLAB_RELION name the "
    "folder of its programs"
)


def find() -> Path | None:
    """Where RELION's program that reconstructs is, or None.

    If EMLAB_RELION names a folder without it, there is an `InputError`.
    """
    if named := os.environ.get(VARIABLE):
        place = Path(named).expanduser() / PROGRAM
        if not place.is_file():
            raise InputError(f"{VARIABLE} is {named}, where {PROGRAM} is not; correct or unset it")
        return place
    found = shutil.which(PROGRAM)
    return Path(found) if found else None


def require() -> Path:
    """`find`, or an InputError that says what to do."""
    place = find()
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
    float32, axes (z, y, x), its voxel size in angstrom, and what the program took. Errors are those
    of `require` and `run_program`; a missing map is an `EmlabError`.
    """
    program = require()
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        out = Path(made) / "map.mrc"
        words: list[str | Path] = [program, "--i", star.name, "--o", out, "--ctf"]
        done = run_program([*words, "--sym", "C1", "--pad", "2"], star.resolve().parent)
        if not out.is_file():
            raise EmlabError(f"RELION wrote no {out.name}; look at the poses in the STAR file")
        found = read_image(out)
    size = found.pixel_size_angstrom
    return found.pixels, float(size[-1] if isinstance(size, tuple) else size or 0.0), done
