"""What ``emlab tsm pick-eval`` does once its options are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from typer import Option

from emlab.app.commands.job import Job, check_positive, note
from emlab.app.commands.options import argument, option
from emlab.bench import format_table
from emlab.data.coordinates import SUFFIXES, Coordinates, read_coordinates, write_coordinates
from emlab.data.micrographs import read_micrograph
from emlab.errors import InputError
from emlab.external import topaz
from emlab.external.picking import HIT, Picks, pick_all
from emlab.runtime import atomic_path

PixelSize = Annotated[
    float | None,
    Option(help="Angstrom; counts more than the headers.", show_default="from the header"),
]
IMAGES = (".mrc", ".mrcs", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
Named = dict[str, Coordinates]


class PickEvaluation(Job):
    """Compare picks with true places: precision, recall and F1, one pick a particle.

    **Example:** `emlab tsm pick-eval denoised/ truth.star --diameter 150 --threshold 1.2`

    Choose the threshold on other micrographs than those it is judged by. Rows are counted from
    above; boxes of programs that count from below must be turned first.
    """

    picks: Path = argument(
        "STAR, BOX, CSV or a table of Topaz, or a folder of them; or micrographs, which "
        "Topaz then picks from.",
        metavar="PICKS",
    )
    truth: Path = argument("True places: a file or a folder of them.", metavar="TRUTH")
    diameter: float | None = option(
        None, "Of the particle in angstrom; a hit is within half of it."
    )
    pixel_size: PixelSize = None
    radius: float | None = option(None, "Largest distance of a hit in pixels instead.")
    threshold: float | None = option(None, "Lowest score of a pick.", shown="all picks count")
    curve: Path | None = option(None, "Write precision and recall over thresholds (.csv).")
    save: Path | None = option(None, "Write the picks as .star or .csv.", shown="no")
    invert: bool = option(False, "Protein is bright.")

    def open(self) -> None:
        """Read both sides, refuse what does not belong together."""
        if self.save is not None and self.save.suffix.lower() not in (".star", ".csv"):
            raise InputError(f"{self.save}: picks are written as .star or .csv")
        self.true = named_coordinates(self.truth)
        images, pixel = _files(self.picks, IMAGES), self.pixel_size
        if images:
            self.found, pixel = self._pick(images)
        else:
            self.found = named_coordinates(self.picks)
        if self.radius is None:
            if self.diameter is None or pixel is None:
                raise InputError(
                    "how near is a hit? give --radius in pixels, or --diameter with --pixel-size"
                )
            check_positive(diameter=self.diameter, pixel_size=pixel)
            self.radius = HIT * self.diameter / pixel
        self.found, self.true = _paired(self.found, self.true)
        self.scored = all(side.scores is not None for side in self.found.values() if len(side))
        if self.threshold is not None and not self.scored:
            raise InputError(f"{self.picks} has no scores, so --threshold means nothing")

    def run(self) -> dict[str, str]:
        """Count; write the curve and the picks if asked for."""
        names = sorted(self.true)
        empty = Coordinates(np.zeros((0, 2)))
        found, true = (
            [each.get(name, empty) for name in names] for each in (self.found, self.true)
        )
        assert self.radius is not None
        picked = [topaz.Picked(side.places, _scores(side)) for side in found]
        picks = Picks(picked, [side.places for side in true], self.radius)
        counts = picks.at(-np.inf if self.threshold is None else self.threshold)
        columns = zip(names, counts.picks, counts.truths, counts.hits, strict=True)
        rows = [[name, *map(str, numbers)] for name, *numbers in columns]
        typer.echo(format_table(["micrograph", "picks", "particles", "hits"], rows))
        told = {
            average: f"precision {counts.precision(average):.3f}, recall "
            f"{counts.recall(average):.3f}, F1 {counts.f1(average):.3f}"
            for average in ("micro", "macro")
        }
        told["a hit is"] = f"within {self.radius:.4g} pixels, one pick a particle"
        if self.scored and counts.picks.sum():
            whole = picks.curve()
            best = int(whole.f1.argmax())
            told["best threshold"] = (
                f"{whole.thresholds[best]:.4g} with F1 {whole.f1[best]:.3f}; average precision "
                f"{whole.average_precision:.3f}"
            )
            if self.threshold is None:
                note("a threshold chosen on the micrographs that it is judged by flatters")
            if self.curve is not None:
                table = np.stack([whole.thresholds, whole.precision, whole.recall, whole.f1], 1)
                header = "threshold,precision,recall,f1"
                with atomic_path(self.curve) as path:
                    np.savetxt(path, table, "%.6g", ",", header=header, comments="")
        if self.save is not None:
            together = Coordinates(
                np.concatenate([side.places for side in found]),
                np.concatenate([_scores(side) for side in found]) if self.scored else None,
                tuple(name for name, side in zip(names, found, strict=True) for _ in side.places),
            )
            write_coordinates(self.save, together)
        return told

    def _pick(self, images: list[Path]) -> tuple[Named, float]:
        if self.diameter is None:
            raise InputError("to pick with Topaz give the particle's --diameter in angstrom")
        topaz.require()
        pixels, pixel = read_micrographs(images, self.pixel_size, self.invert)
        picked, _ = pick_all({"picks": pixels}, pixel, self.diameter)
        note(f"picked by Topaz {topaz.PICKER} in {len(images)} micrographs")
        return {
            path.stem: Coordinates(each.coordinates, each.scores)
            for path, each in zip(images, picked["picks"], strict=True)
        }, pixel


def read_micrographs(
    paths: list[Path], pixel_size: float | None, invert: bool
) -> tuple[list[NDArray[np.float32]], float]:
    """Pixels of micrographs, protein dark, and their one pixel size in angstrom."""
    read = [read_micrograph(path, pixel_size) for path in paths]
    sizes = sorted({round(each.pixel_size_angstrom, 4) for each in read})
    if sizes[-1] > 1.01 * sizes[0]:
        raise InputError(f"the micrographs have pixels of {sizes} A; give those of one size")
    sign = np.float32(-1 if invert else 1)
    return [sign * each.pixels for each in read], read[0].pixel_size_angstrom


def named_coordinates(path: Path) -> Named:
    """Coordinates of a file or of all files of a folder, by the stem of the micrograph's name."""
    files = _files(path, SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no coordinates; give {', '.join(SUFFIXES)}")
    found: Named = {}
    for file in files:
        table = read_coordinates(file)
        if not table.micrographs:
            found[file.stem] = table
        for name in dict.fromkeys(table.micrographs):
            found[Path(name).stem] = table.of(name)
    return found


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the name")
    return [path] if path.suffix.lower() in suffixes else []


def _paired(found: Named, true: Named) -> tuple[Named, Named]:
    """Two single micrographs belong together whatever their names; others by name."""
    if len(found) == len(true) == 1:
        name = next(iter(true))
        return {name: next(iter(found.values()))}, true
    if strangers := sorted(set(found) - set(true)):
        raise InputError(
            f"there are picks of {strangers[0]}, but no true places of it; name both alike"
        )
    return found, true


def _scores(side: Coordinates) -> NDArray[np.float64]:
    return np.zeros(len(side)) if side.scores is None else side.scores
