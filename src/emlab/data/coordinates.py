"""Particle coordinates in STAR, BOX and CSV files, and in the tables of Topaz.

=======  ==========================================================  ==========================
suffix   columns                                                     origin of a place
=======  ==========================================================  ==========================
.star    rlnCoordinateX, rlnCoordinateY [, rlnMicrographName,        centre
         rlnAutopickFigureOfMerit]
.box     x, y, width, height [, score]; no header                    lower corner of the box
.csv     a header with one x and one y column [, diameter, score,    centre
         micrograph]
.txt     image_name, x_coord, y_coord [, score] between tabs         centre
=======  ==========================================================  ==========================

All of them count pixels from 0, x along columns and y along rows; nothing is turned upside down.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emlab.data.particles import read_star
from emlab.errors import InputError
from emlab.runtime import atomic_path

Places = NDArray[np.float64]
SUFFIXES = (".star", ".box", ".csv", ".txt")
_WRITTEN = {  # columns of x, y, the micrograph's name and the score, and what stands between
    ".star": (
        *("rlnCoordinateX", "rlnCoordinateY"),
        *("rlnMicrographName", "rlnAutopickFigureOfMerit", " "),
    ),
    ".box": ("x", "y", "", "score", "\t"),
    ".csv": ("x", "y", "micrograph", "score", ","),
}


@dataclass(frozen=True)
class Coordinates:
    """Places of particles, in one micrograph or in several.

    Attributes
    ----------
    places : ndarray
        ``(n, 2)`` centres (y, x) in pixels.
    scores : ndarray or None
        ``(n,)``, larger is surer.
    micrographs : tuple of str
        Name of the micrograph of each place; empty if the file does not say.
    diameter : float or None
        Pixels; side of the boxes of a BOX file.

    Raises
    ------
    InputError
        Arrays that do not belong together, or numbers that are not finite.
    """

    places: Places  #: ``(n, 2)`` centres (y, x) in pixels
    scores: Places | None = None  #: ``(n,)``, larger is surer
    micrographs: tuple[str, ...] = ()  #: name of each place's one; empty if the file does not say
    diameter: float | None = None  #: pixels; side of the boxes of a BOX file

    def __post_init__(self) -> None:
        n = len(self.places)
        if self.places.shape != (n, 2) or not np.isfinite(self.places).all():
            raise InputError("coordinates are finite and of shape (n, 2): rows (y, x)")
        if self.scores is not None and self.scores.shape != (n,):
            raise InputError(f"{n} places need {n} scores, got {self.scores.shape}")
        if self.micrographs and len(self.micrographs) != n:
            raise InputError(f"{n} places need {n} names, got {len(self.micrographs)}")

    def __len__(self) -> int:
        return len(self.places)

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Coordinates:
        """Some of the places."""
        picked = np.arange(len(self))[chosen]
        scores = None if self.scores is None else self.scores[picked]
        names = tuple(self.micrographs[i] for i in picked) if self.micrographs else ()
        return Coordinates(self.places[picked], scores, names, self.diameter)

    def of(self, micrograph: str) -> Coordinates:
        """Places in one micrograph, by its file name without folder and suffix."""
        stem = Path(micrograph).stem
        return self.subset(np.array([Path(name).stem == stem for name in self.micrographs], bool))


def read_coordinates(path: Path | str) -> Coordinates:
    """Read any of the formats above.

    Raises
    ------
    InputError
        No such file, an unknown suffix, missing columns or words where numbers belong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the name")
    readers = {".star": _star, ".box": _box, ".csv": _table, ".txt": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: coordinates are read from {', '.join(SUFFIXES)}")
    try:
        return reader(path)
    except (ValueError, UnicodeDecodeError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{path} is no table of coordinates: {problem}; correct it") from problem


def write_coordinates(path: Path | str, found: Coordinates, *, box: float | None = None) -> Path:
    """Write STAR, BOX or CSV by the suffix; the file appears whole or not at all.

    Parameters
    ----------
    box : float, optional
        Side of the boxes of a BOX file; default: the diameter that `found` brings.

    Raises
    ------
    InputError
        An unknown suffix, or a BOX file without a size.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    y, x = found.places.T
    if suffix not in _WRITTEN:
        raise InputError(f"{path}: coordinates are written as .star, .box or .csv")
    of_x, of_y, of_name, of_score, joint = _WRITTEN[suffix]
    columns = {of_x: _texts(x), of_y: _texts(y)}
    if suffix == ".box":
        side = box or found.diameter
        if not side:
            raise InputError("a BOX file holds the size of the boxes; give box")
        columns = {of_x: _texts(x - side / 2), of_y: _texts(y - side / 2)}
        columns |= {name: [f"{side:g}"] * len(found) for name in ("width", "height")}
    elif found.micrographs:
        quoted = _quoted if suffix == ".csv" else str
        columns[of_name] = [quoted(name) for name in found.micrographs]
    if found.scores is not None:
        columns[of_score] = _texts(found.scores)
    lines = {
        ".box": [],
        ".csv": [joint.join(columns)],
        ".star": ["data_", "", "loop_", *(f"_{name} #{i}" for i, name in enumerate(columns, 1))],
    }[suffix]
    lines += [joint.join(row) for row in zip(*columns.values(), strict=True)]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), "utf-8")
    return path


def _star(path: Path) -> Coordinates:
    for table in read_star(path).values():
        if {"rlnCoordinateX", "rlnCoordinateY"} <= table.keys():
            scores = table.get("rlnAutopickFigureOfMerit")
            return Coordinates(
                _pair(table["rlnCoordinateY"], table["rlnCoordinateX"]),
                None if scores is None else np.array(scores, float),
                tuple(table.get("rlnMicrographName", ())),
            )
    raise InputError(f"{path} has no rlnCoordinateX and rlnCoordinateY; give a coordinate file")


def _box(path: Path) -> Coordinates:
    rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not rows:
        return Coordinates(np.zeros((0, 2)))
    if len({len(row) for row in rows}) > 1 or not 4 <= len(rows[0]) <= 5:
        raise InputError(f"{path}: a BOX file has rows of x, y, width, height and perhaps a score")
    values = np.array(rows, float)
    centres = values[:, 1::-1] + values[:, 3:1:-1] / 2
    scores = values[:, 4] if values.shape[1] == 5 else None
    return Coordinates(centres, scores, (), float(np.median(values[:, 2])))


def _table(path: Path) -> Coordinates:
    text = path.read_text("utf-8-sig")
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".txt" else ","))
    names = [name.strip().lower() for name in rows[0]] if rows else []

    def column(pattern: str) -> list[str] | None:
        places = [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
        return [row[places[0]] for row in rows[1:] if row] if len(places) == 1 else None

    try:
        x, y = (column(rf"{axis}([ _-]?coord(inate)?)?") for axis in "xy")
        diameters, scores = column("diameter|box.?size"), column("score|confidence")
        micrographs = column("image_name|micrograph|micrograph_name|filename")
    except IndexError:
        raise InputError(f"{path}: a row is shorter than the header; correct it") from None
    if x is None or y is None:
        raise InputError(f"{path} has no header with one x and one y column; add it")
    return Coordinates(
        _pair(y, x),
        None if scores is None else np.array(scores, float),
        tuple(micrographs or ()),
        float(np.median(np.array(diameters, float))) if diameters else None,
    )


def _pair(y: list[str], x: list[str]) -> Places:
    return np.stack([np.array(y, float), np.array(x, float)], axis=1).reshape(-1, 2)


def _texts(values: Places) -> list[str]:
    return [f"{value:.6g}" for value in values]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if {",", '"'} & set(name) else name
