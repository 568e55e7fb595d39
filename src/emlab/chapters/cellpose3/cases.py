"""Test images of the Cellpose3 chapter: real nuclei, spoiled until half of them are lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab import data
from emlab.bench import Report
from emlab.data.cells import Cell, cells, simulated_cells
from emlab.errors import DataUnavailableError, InputError
from emlab.methods.cellpose3 import DIAMETER
from emlab.metrics.segmentation import average_precision
from emlab.physics.degradations import TASKS, blur, degrade_fixed, normalise, shoot
from emlab.recipes.cellpose3 import at_working_size, part

Image = NDArray[np.float32]
Labels = NDArray[np.int32]
Labeller = Callable[[Image], Labels]
# Where the search for the level starts, and by what the level is multiplied to spoil more.
STARTS = {"denoise": (8.0, 0.5), "deblur": (7.0, 2.0), "upsample": (5.0, 2.0)}
HARDER = 0.25  # share of the photons of the "hard" noise
MOST_FACTOR = 30.0  # of decimation: a nucleus is two thirds of a pixel then
RECORDS = {"stardist": "stardist_2d", "plant": "maize", "bacteria": "omnipose"}
STAND_INS = 16  # simulated nuclei: no row of theirs is recorded, all run


@dataclass(frozen=True)
class Case:
    """One image: what every method gets, and the truth.

    The clean image ``(H, W)`` is 0 and 1 at its 1st and 99th percentile, its objects are 17 pixels
    across. Task and level are those of `degrade_fixed`; the seed is that of the noise.
    """

    name: str
    domain: str
    clean: Image
    labels: Labels
    task: str
    level: float
    seed: int

    @cached_property
    def degraded(self) -> Image:
        """What is given to the methods, ``(H, W)``, normalised."""
        clean = torch.from_numpy(self.clean)
        return degrade_fixed(clean, self.task, self.level, self.generator(), DIAMETER).numpy()

    @cached_property
    def counts(self) -> Image:
        """The noisy image before it was normalised, in photons; for "denoise" only."""
        if self.task != "denoise":
            raise InputError("only noisy images are kept as counts")
        return shoot(torch.from_numpy(self.clean), self.level, self.generator()).numpy()

    @property
    def scale(self) -> float:
        """Photons of a pixel of brightness 1."""
        return self.level if self.task == "denoise" else 4 / TASKS[self.task].rate

    @property
    def blur_sigma(self) -> float:
        """Standard deviation of the blur in pixels."""
        if self.task == "deblur":
            return DIAMETER / 30 * self.level
        return self.level / 2 if self.task == "upsample" and self.level > 1 else 0.0

    def interpolated(self) -> Image:
        """The measurement if the missing pixels had been put in by splines, at their places."""
        sharp = blur(torch.from_numpy(self.clean), self.blur_sigma).numpy()
        factor = int(self.level)
        places = np.meshgrid(*(np.arange(n) / factor for n in sharp.shape), indexing="ij")
        few = sharp[::factor, ::factor]
        fine = ndimage.map_coordinates(few, places, order=3, mode="nearest")
        noisy = shoot(torch.from_numpy(fine.astype(np.float32)), self.scale, self.generator())
        return normalise(noisy).numpy()

    def generator(self) -> torch.Generator:
        """A fresh generator: the same noise at every call."""
        return torch.Generator().manual_seed(self.seed)


def chapter_cells(
    split: str = "test", images: int | None = None, side: int | None = None
) -> list[Cell]:
    """Nuclei at working size, real where they can be had, else simulated (`Cell.domain` tells).

    Where those of the challenge are absent, the part for testing of the image that the package
    stardist ships serves for "test", in two halves. So many `images`, spread over the list, and of
    each the square of at most `side` pixels with the most cell pixels; or all.
    """
    try:
        found = cells("dsb2018", split)
    except DataUnavailableError:
        if split == "test" and data.at_hand("nuclei_test") == RECORDS["stardist"]:
            found = [half for cell in cells("stardist", split) for half in halves(cell)]
        else:
            count = min(images or STAND_INS, STAND_INS)
            found = simulated_cells(count, {"test": 91, "validation": 92}[split])
    if images is not None and images < len(found):
        found = [found[i] for i in np.linspace(0, len(found) - 1, images).round().astype(int)]
    sized = [at_working_size(cell) for cell in found]
    return sized if side is None else [part(cell, busiest(cell.labels, side)) for cell in sized]


def halves(cell: Cell) -> list[Cell]:
    """The upper and the lower half of an image."""
    middle = cell.image.shape[0] // 2
    rows = {"upper": slice(0, middle), "lower": slice(middle, None)}
    parts = {name: part(cell, (place, slice(None))) for name, place in rows.items()}
    return [replace(one, name=f"{cell.name}_{name}") for name, one in parts.items()]


def busiest(truth: Labels, side: int) -> tuple[slice, slice]:
    """The square with the most cell pixels."""
    inside = np.pad((truth > 0).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = (min(side, length) for length in truth.shape)
    sums = (
        inside[height:, width:] - inside[:-height, width:]
        - inside[height:, :-width] + inside[:-height, :-width]
    )  # fmt: skip
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(y), int(y) + height), slice(int(x), int(x) + width)


def precision(truth: Labels, labels: Labels) -> float:
    """AP at .5 of one image; 0 where there is no object at all."""
    return float(np.nan_to_num(average_precision(truth, labels, (0.5,)).ap[0]))


def make_cases(
    found: Sequence[Cell], task: str, levels: Mapping[str, float], seed: int
) -> list[Case]:
    """Cases of cells at working size, each with the level of its name and noise of its own."""
    seeds = np.random.default_rng(seed).integers(2**31, size=len(found))
    return [
        Case(cell.name, cell.domain, cell.image, cell.labels, task, levels[cell.name], int(own))
        for cell, own in zip(found, seeds, strict=True)
    ]


def harder(case: Case) -> Case:
    """The same noisy image with a quarter of its photons."""
    return replace(case, level=HARDER * case.level)


def tune_levels(
    found: Sequence[Cell], task: str, labeller: Labeller, seed: int, halvings: int = 4
) -> dict[str, float]:
    """For each image the level at which AP at .5 is nearest to half of that of the clean image.

    Images are at working size; the labeller segments normalised ones. The noise of the search is
    not that of the cases, so that it is not chosen together with the level.
    """
    levels = {}
    for case in make_cases(found, task, {cell.name: 0.0 for cell in found}, seed + 1):

        def quality(level: float, case: Case = case) -> float:
            return precision(case.labels, labeller(replace(case, level=level).degraded))

        aim = 0.5 * precision(case.labels, labeller(case.clean))
        ends = STARTS[task]
        levels[case.name] = halving_level(quality, aim, *ends, halvings, whole=task == "upsample")
    return levels


def halving_level(
    quality: Callable[[float], float],
    aim: float,
    start: float,
    worse: float,
    halvings: int,
    *,
    whole: bool = False,
) -> float:
    """The level at which a quality that falls is nearest to what is wanted, of those tried.

    Steps outwards from `start` by the factor `worse` until the quality is above `aim` at one end
    only, then halves this interval on a logarithmic scale. A quality within .02 ends the search. An
    aim of 0 gets the mildest level of ten steps; `whole` levels go from 1 to `MOST_FACTOR`.
    """
    if aim == 0:
        return 1.0 if whole else start / worse**10
    tried: dict[float, float] = {}

    def above(level: float) -> bool:
        tried[level] = quality(level)
        return tried[level] > aim

    def rounded(level: float) -> float:
        return min(max(1.0, float(round(level))), MOST_FACTOR) if whole else float(f"{level:.4g}")

    level = start
    first = above(level)
    for _ in range(10):
        mild, severe = (level, rounded(level * worse)) if first else (rounded(level / worse), level)
        level = severe if first else mild
        if level in tried or above(level) != first:
            break
    for _ in range(halvings):
        best = min(tried, key=lambda level: abs(tried[level] - aim))
        level = rounded(math.sqrt(mild * severe))
        if abs(tried[best] - aim) <= 0.02 or level in tried:
            break
        mild, severe = (level, severe) if above(level) else (mild, level)
    return min(tried, key=lambda level: abs(tried[level] - aim))


def domain_cases(
    report: Report, names: Sequence[str], scale: float, side: int, seed: int
) -> dict[str, list[Case]]:
    """Noisy test images of other domains, all at one Poisson scale; those not here are told.

    Of each image the halves, so that there are two at least, and of these at most `side` pixels.
    """
    found = {}
    for name in names:
        try:
            given = [at_working_size(cell) for cell in cells(name, "test")]
        except DataUnavailableError:
            report.absent(RECORDS[name], "this domain is left out")
            continue
        own = [part(one, busiest(one.labels, side)) for cell in given for one in halves(cell)]
        found[name] = make_cases(own, "denoise", {cell.name: scale for cell in own}, seed)
        record_cells(report, own)
    return found


def record_cells(report: Report, found: Sequence[Cell]) -> None:
    """Tell a report where images come from."""
    for domain in dict.fromkeys(cell.domain for cell in found):
        if domain == "simulated":
            how = "ellipses of uneven brightness that touch but do not overlap"
            report.simulated("nuclei", how, stands_in_for="nuclei_test")
        elif domain == "dsb2018":
            report.data(data.load("nuclei_test"), wanted="nuclei_test")
        else:
            name = RECORDS[domain]
            wanted = "nuclei_test" if data.at_hand("nuclei_test") == name else name
            report.data(data.load(name), wanted, note="another domain" if wanted == name else "")
