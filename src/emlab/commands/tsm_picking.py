"""What ``emlab tsm pick-eval`` does once its options are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from emlab.commands.output import table
from emlab.commands.restoring import note
from emlab.data.coordinates import SUFFIXES, Coordinates, read_coordinates, write_coordinates
from emlab.data.micrographs import read_micrograph
from emlab.errors import InputError
from emlab.external import topaz
from emlab.methods.tsm_picking import HIT, Picks, pick_all
from emlab.runtime import atomic_path

IMAGES = (".mrc", ".mrcs", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
Named = dict[str, Coordinates]


@dataclass
class PickEvaluation:
    """One call of the command."""

    picks: Path
    truth: Path
    diameter: float | None
    pixel_size: float | None
    radius: float | None
    threshold: float | None
    curve: Path | None
    save: Path | None
    invert: bool

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
            if not self.diameter > 0 or not pixel > 0:
                raise InputError("--diameter and --pixel-size are positive, in angstrom")
            self.radius = HIT * self.diameter / pixel
        self.found, self.true = _paired(self.found, self.true)

    def run(self) -> None:
        """Print the numbers; write the curve and the picks if asked for."""
        names = sorted(self.true)
        empty = Coordinates(np.zeros((0, 2)))
        sides = [[each.get(name, empty) for name in names] for each in (self.found, self.true)]
        picked = [topaz.Picked(side.places, _scores(side)) for side in sides[0]]
        assert self.radius is not None
        picks = Picks(picked, [side.places for side in sides[1]], self.radius)
        scored = all(side.scores is not None for side in sides[0] if len(side))
        level = -np.inf if self.threshold is None else self.threshold
        if self.threshold is not None and not scored:
            raise InputError(f"{self.picks} has no scores, so --threshold means nothing")
        counts = picks.at(level)
        rows = [
            [name, str(p), str(t), str(h)]
            for name, p, t, h in zip(names, counts.picks, counts.truths, counts.hits, strict=True)
        ]
        typer.echo(table(["micrograph", "picks", "particles", "hits"], rows))
        for average in ("micro", "macro"):
            typer.echo(
                f"{average:<16}precision {counts.precision(average):.3f}, recall "
                f"{counts.recall(average):.3f}, F1 {counts.f1(average):.3f}"
            )
        typer.echo(f"{'a hit is':<16}within {self.radius:.4g} pixels, one pick a particle")
        if scored and counts.picks.sum():
            whole = picks.curve()
            best = int(whole.f1.argmax())
            typer.echo(
                f"{'best threshold':<16}{whole.thresholds[best]:.4g} with F1 {whole.f1[best]:.3f}; "
                f"average precision {whole.average_precision:.3f}"
            )
            if self.threshold is None:
                note("a threshold chosen on the micrographs that it is judged by flatters")
            if self.curve is not None:
                columns = zip(
                    whole.thresholds, whole.precision, whole.recall, whole.f1, strict=True
                )
                lines = ["threshold,precision,recall,f1"]
                lines += [",".join(f"{value:.6g}" for value in row) for row in columns]
                with atomic_path(self.curve) as path:
                    path.write_text("\n".join([*lines, ""]), "utf-8")
        if self.save is not None:
            together = Coordinates(
                np.concatenate([side.places for side in sides[0]]),
                np.concatenate([_scores(side) for side in sides[0]]) if scored else None,
                tuple(
                    name for name, side in zip(names, sides[0], strict=True) for _ in side.places
                ),
            )
            write_coordinates(self.save, together)

    def _pick(self, images: list[Path]) -> tuple[Named, float]:
        if self.diameter is None:
            raise InputError("to pick with Topaz give the particle's --diameter in angstrom")
        topaz.require()
        seen = [read_micrograph(path, self.pixel_size) for path in images]
        sizes = {round(each.pixel_size_angstrom, 3) for each in seen}
        if len(sizes) > 1:
            raise InputError(f"micrographs of {sorted(sizes)} angstrom a pixel; give one size")
        pixel = seen[0].pixel_size_angstrom
        sign = -1 if self.invert else 1
        pixels = [(sign * each.pixels).astype(np.float32) for each in seen]
        picked, _ = pick_all({"picks": pixels}, pixel, self.diameter)
        note(f"picked by Topaz {topaz.PICKER} in {len(images)} micrographs")
        return {
            path.stem: Coordinates(each.coordinates, each.scores)
            for path, each in zip(images, picked["picks"], strict=True)
        }, pixel


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
