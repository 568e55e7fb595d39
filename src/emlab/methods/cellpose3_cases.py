"""Test images of the Cellpose3 chapter: real nuclei, spoiled until half of them are lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import data
from emlab.data.cells import Cell, cells, simulated_cells
from emlab.errors import DataUnavailableError, InputError
from emlab.methods.cellpose3 import DIAMETER
from emlab.methods.cellpose3_material import at_working_size
from emlab.metrics.segmentation import average_precision
from emlab.physics.degradations import TASKS, blur, degrade_fixed, normalise, shoot
from emlab.report import Report

Image = NDArray[np.float32]
Labels = NDArray[np.int32]
Labeller = Callable[[Image], Labels]
# Where the search for the level starts and ends, mild first; factors are whole numbers.
RANGES = {"denoise": (2000.0, 0.02), "deblur": (0.5, 60.0), "upsample": (1.0, 16.0)}
_RECORDS = {"stardist": "stardist_2d", "plant": "maize", "bacteria": "omnipose"}


@dataclass(frozen=True)
class Case:
    """One image: what every method gets, and the truth.

    Attributes
    ----------
    name, domain : str
        See `emlab.data.cells.Cell`.
    clean : ndarray
        ``(H, W)``, 0..1 between its 1st and 99th percentile, objects 17 pixels across.
    labels : ndarray
        ``(H, W)`` int32, the truth.
    task : str
        A key of `emlab.physics.degradations.TASKS`.
    level : float
        Strength, see `emlab.physics.degradations.degrade_fixed`.
    seed : int
        Of the noise.
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

    def interpolated(self, order: int = 3) -> Image:
        """The measurement if the missing pixels had been put in by splines, at their places."""
        from scipy import ndimage

        sharp = blur(torch.from_numpy(self.clean), self.blur_sigma).numpy()
        factor = int(self.level)
        places = np.meshgrid(*(np.arange(n) / factor for n in sharp.shape), indexing="ij")
        few = sharp[::factor, ::factor]
        fine = ndimage.map_coordinates(few, places, order=order, mode="nearest")
        noisy = shoot(torch.from_numpy(fine.astype(np.float32)), self.scale, self.generator())
        return normalise(noisy).numpy()

    def generator(self) -> torch.Generator:
        """A fresh generator: the same noise at every call."""
        return torch.Generator().manual_seed(self.seed)


def chapter_cells(split: str = "test", images: int | None = None) -> list[Cell]:
    """Nuclei at working size, real where they can be had, else simulated (`Cell.domain` tells).

    Parameters
    ----------
    split : str
        "test" or "validation".
    images : int, optional
        So many, spread over the list; all of them otherwise.
    """
    try:
        found = cells("dsb2018", split)
    except DataUnavailableError:
        found = simulated_cells(images or 8, {"test": 91, "validation": 92}[split])
    if images is not None and images < len(found):
        found = [found[i] for i in np.linspace(0, len(found) - 1, images).round().astype(int)]
    return [at_working_size(cell) for cell in found]


def make_cases(
    found: Sequence[Cell], task: str, levels: Mapping[str, float], seed: int
) -> list[Case]:
    """Cases of cells at working size, each with the level of its name and noise of its own."""
    return [
        Case(cell.name, cell.domain, cell.image, cell.labels, task, levels[cell.name], noise_seed)
        for cell, noise_seed in zip(found, _seeds(seed, len(found)), strict=True)
    ]


def tune_levels(
    found: Sequence[Cell],
    task: str,
    labeller: Labeller,
    seed: int,
    evaluations: int = 9,
    progress: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """For each image the level at which AP at .5 is nearest to half of that of the clean image.

    The noise of the search is not that of the cases, so that it is not chosen together with the
    level.

    Parameters
    ----------
    found : sequence of Cell
        At working size.
    labeller : callable
        Segments a normalised image.
    """
    levels = {}
    for cell, noise_seed in zip(found, _seeds(seed + 1, len(found)), strict=True):
        aim = 0.5 * _ap(cell.labels, labeller(cell.image))
        if aim == 0:
            levels[cell.name] = RANGES[task][0]
            continue

        def lost(level: float, cell: Cell = cell, noise_seed: int = noise_seed) -> float:
            case = Case(cell.name, cell.domain, cell.image, cell.labels, task, level, noise_seed)
            return _ap(cell.labels, labeller(case.degraded))

        whole = task == "upsample"
        levels[cell.name] = halving_level(lost, aim, RANGES[task], evaluations, whole=whole)
        if progress is not None:
            progress(f"{task} {cell.name[:12]}: level {levels[cell.name]:.4g}")
    return levels


def halving_level(
    quality: Callable[[float], float],
    aim: float,
    ends: tuple[float, float],
    evaluations: int,
    *,
    whole: bool = False,
) -> float:
    """Bisect a falling quality on a logarithmic scale; the best level seen is returned.

    Parameters
    ----------
    quality : callable
        Of a level.
    aim : float
        Wanted quality.
    ends : tuple of float
        Mild and severe, positive, in this order.
    whole : bool
        Try whole levels one after the other instead.
    """
    mild, severe = ends
    tried: dict[float, float] = {}
    if whole:
        for factor in range(int(mild), int(severe) + 1):
            tried[float(factor)] = quality(float(factor))
            if tried[float(factor)] <= aim:
                break
    else:
        for _ in range(evaluations):
            level = float(f"{math.sqrt(mild * severe):.4g}")
            tried[level] = quality(level)
            mild, severe = (level, severe) if tried[level] > aim else (mild, level)
    return min(tried, key=lambda level: abs(tried[level] - aim))


def record_cells(report: Report, found: Sequence[Cell]) -> None:
    """Say in a report where images come from."""
    for domain in dict.fromkeys(cell.domain for cell in found):
        if domain == "simulated":
            how = "ellipses of uneven brightness that touch but do not overlap"
            report.simulated("nuclei", how, stands_in_for="nuclei_test")
        elif domain == "dsb2018":
            report.data(data.load("nuclei_test"), wanted="nuclei_test")
        else:
            report.data(data.load(_RECORDS[domain]), note="another domain")


def _ap(truth: Labels, labels: Labels) -> float:
    return float(np.nan_to_num(average_precision(truth, labels, (0.5,)).ap[0]))


def _seeds(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(2**31, size=n).tolist()
