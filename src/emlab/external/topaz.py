"""Topaz (Bepler et al. 2019, 2020) as a separate program: its picker and its denoiser.

``make topaz`` puts version 0.3.20 into ``.programs/topaz``; the variable ``EMLAB_TOPAZ`` names
another folder that ``pip install --target FOLDER --no-deps topaz-em==0.3.20`` filled, or a program
``topaz``. It is under the GPL, is not part of emlab, and nothing of it is imported here.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emlab.data.coordinates import Coordinates, read_coordinates
from emlab.errors import InputError
from emlab.external.process import Finished, run_program
from emlab.io import read_image, write_image

MISSING = "Topaz is not installed; run `make topaz`, or let EMLAB_TOPAZ name its folder"
VARIABLE = "EMLAB_TOPAZ"
PICKER = "resnet16_u32"  # the name "resnet16" alone means 64 units
LOWEST_SCORE = -6.0  # where the extraction ends; thresholds are chosen later
_LAUNCHER = Path(__file__).with_name("topaz_launcher.py")
_PLACE = Path(".programs") / "topaz"


@dataclass(frozen=True)
class Command:
    """How Topaz is started.

    Attributes
    ----------
    words : tuple of str
        First words of the command line.
    folder : Path or None
        Put before Python's own places.
    """

    words: tuple[str, ...]
    folder: Path | None = None

    def run(self, arguments: Sequence[str | Path], folder: Path, threads: int) -> Finished:
        """Run a sub-command of Topaz."""
        extra = {} if self.folder is None else {"PYTHONPATH": str(self.folder)}
        extra["CUDA_VISIBLE_DEVICES"] = ""
        return run_program([*self.words, *arguments], folder, threads=threads, environment=extra)


@dataclass(frozen=True)
class Picked:
    """Picks of one micrograph, best first."""

    coordinates: NDArray[np.float64]  #: (n, 2) centres (y, x) in pixels
    scores: NDArray[np.float64]  #: (n,) log-likelihood ratios


def find() -> Command | None:
    """How to start Topaz, or None where it is not installed.

    Raises
    ------
    InputError
        EMLAB_TOPAZ names a place without it.
    """
    if named := os.environ.get(VARIABLE):
        place = Path(named).expanduser()
        if (place / "topaz" / "main.py").is_file():
            return _in_folder(place)
        if program := shutil.which(named):
            return Command((program,))
        raise InputError(f"{VARIABLE} is {named}, where Topaz is not; correct or unset it")
    checkout = Path(__file__).resolve().parents[3]
    for up in (Path.cwd(), *Path.cwd().parents, checkout):
        if (up / _PLACE / "topaz" / "main.py").is_file():
            return _in_folder((up / _PLACE).resolve())
    program = shutil.which("topaz")
    return Command((program,)) if program else None


def _in_folder(place: Path) -> Command:
    return Command((sys.executable, "-P", str(_LAUNCHER)), place)


def require() -> Command:
    """`find`, or an InputError that says what to do."""
    command = find()
    if command is None:
        raise InputError(MISSING)
    return command


def pick(
    micrographs: Sequence[NDArray[np.float32]], radius: int, *, threads: int = 1
) -> tuple[list[Picked], Finished]:
    """Pick particles by the pretrained detector of ``topaz extract``; returns one list an image.

    Parameters
    ----------
    micrographs : sequence of ndarray
        ``(H, W)`` each, protein dark, binned so that a particle is 15 to 30 pixels wide. Each is
        normalised to mean 0 and standard deviation 1.
    radius : int
        Pixels within which only the best pick stays.

    Raises
    ------
    InputError
        Topaz is not installed, or there is no micrograph.
    EmlabError
        It failed.
    """
    words = ["extract", "-m", PICKER, "-r", radius, "-t", LOWEST_SCORE, "-o", "picks.txt"]
    with _run(words, micrographs, threads) as (folder, names, done):
        table = read_coordinates(folder / "picks.txt")
    return [_best_first(table.of(name)) for name in names], done


def denoise(
    micrographs: Sequence[NDArray[np.float32]], *, threads: int = 1
) -> tuple[list[NDArray[np.float32]], Finished]:
    """Denoise with the pretrained U-Net of Topaz-Denoise (Bepler et al. 2020).

    Micrographs are ``(H, W)`` each, of any grey levels; they come back in their own. Parts of 1024
    pixels a side are denoised at a time, with 128 around them. Errors are those of `require` and
    `run_program`.
    """
    # its option --model is ignored by version 0.3.20
    words = ["denoise", "--arch", "unet", "-s", 1024, "-p", 128, "-o", "out"]
    with _run(words, micrographs, threads) as (folder, names, done):
        images = [read_image(folder / "out" / name).pixels for name in names]
    scaled = [
        (image.reshape(old.shape) * old.std() + old.mean()).astype(np.float32)
        for image, old in zip(images, micrographs, strict=True)
    ]
    return scaled, done


def _best_first(found: Coordinates) -> Picked:
    scores = np.zeros(0) if found.scores is None else found.scores
    order = np.argsort(-scores, kind="stable")
    return Picked(found.places[order], scores[order])


@contextmanager
def _run(
    words: Sequence[object], micrographs: Sequence[NDArray[np.float32]], threads: int
) -> Iterator[tuple[Path, list[str], Finished]]:
    """Run on micrographs in a folder of their own; yields it, their names and what it took."""
    if not micrographs:
        raise InputError("give Topaz at least one micrograph")
    command = require()
    with tempfile.TemporaryDirectory(prefix="emlab-topaz-") as made:
        folder = Path(made)
        (folder / "out").mkdir()
        names = _write(folder, micrographs)
        asked = [str(word) for word in (*words, "-d", -1, "-j", threads, *names)]
        yield folder, names, command.run(asked, folder, threads)


def _write(folder: Path, micrographs: Sequence[NDArray[np.float32]]) -> list[str]:
    names = []
    for number, micrograph in enumerate(micrographs):
        spread = float(micrograph.std())
        if micrograph.ndim != 2 or not spread > 0:
            raise InputError("Topaz takes micrographs (H, W) that are not constant")
        names.append(f"m{number:04d}.mrc")
        write_image(folder / names[-1], (micrograph - micrograph.mean()) / spread)
    return names
