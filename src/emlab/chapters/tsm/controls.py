"""What a denoiser may invent: picks where nothing is, the shape of a protein that is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import pipe_table
from emlab.chapters.tsm.peers import LABELS, Denoised, Method
from emlab.chapters.tsm.study import Table
from emlab.external import topaz
from emlab.external.picking import DIAMETER_ANGSTROM, pick_all
from emlab.external.topaz import Picked
from emlab.metrics import Interval, mean_interval, paired_difference
from emlab.physics.micrograph import Micrograph, MicrographConfig, config_transfer
from emlab.priors.target_bank import TargetBank
from emlab.recipes.tsm import volume
from emlab.runtime import make_generator

LOW_PASS_ANGSTROM, DIRECTIONS, ANGLES = 15.0, 40, 24


@dataclass(frozen=True)
class NoParticles:
    """Micrographs of empty ice.

    Attributes
    ----------
    denoised : dict
        By method.
    picks : dict
        By method, picks of each micrograph ``(n,)`` at the method's threshold.
    """

    denoised: dict[str, Denoised]
    picks: dict[str, NDArray[np.int64]]

    def record(self, report: Report) -> None:
        """Record ``empty.picks.METHOD``, mean over micrographs."""
        for name, counts in self.picks.items():
            report.value(f"empty.picks.{name}", counts.mean(), note="a micrograph", n=len(counts))
        if {"tsm", "raw"} <= self.picks.keys():
            excess = self.picks["tsm"].mean() - self.picks["raw"].mean()
            report.value("empty.excess_picks", excess, note="TSM minus raw")

    def markdown(self) -> str:
        """A row a method."""
        if not self.picks:
            return "*skipped: Topaz is not installed*"
        rows = [[LABELS[name], f"{counts.mean():.1f}"] for name, counts in self.picks.items()]
        return pipe_table(["picked from", "picks in a micrograph without particles"], rows)


def no_particles(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    table: Table,
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> NoParticles:
    """Denoise micrographs without particles and let the picker pick, or take `kept` picks."""
    noisy = [micrograph.noisy.numpy() for micrograph in micrographs]
    denoised = {name: method(noisy) for name, method in methods.items()}
    counts: dict[str, NDArray[np.int64]] = {}
    found = kept or {}
    if kept is None and topaz.find() is not None:
        images = {name: each.images for name, each in denoised.items()}
        pixel = micrographs[0].pixel_size_angstrom
        found, _ = pick_all(images, pixel, DIAMETER_ANGSTROM, threads=threads)
    for name, picked in found.items():
        level = table.threshold(name)
        counts[name] = np.array([(each.scores >= level).sum() for each in picked])
    return NoParticles(denoised, counts)


@dataclass(frozen=True)
class Resemblance:
    """Largest cosine of windows with projections of some protein, method by method.

    Attributes
    ----------
    protein : str
        Whose projections.
    cosines : dict
        By method, ``(windows,)``.
    """

    protein: str
    cosines: dict[str, NDArray[np.float64]]

    def mean(self, method: str) -> Interval:
        """Return a method's mean cosine with its interval."""
        return mean_interval(self.cosines[method])

    def excess(self, first: str = "tsm", second: str = "dsm") -> Interval:
        """Paired difference over windows."""
        return paired_difference(self.cosines[first], self.cosines[second])


def resemblance(
    micrographs: Sequence[Micrograph],
    images: Mapping[str, Sequence[NDArray[np.float32]]],
    protein: str,
    windows: int = 12,
    seed: int = 0,
) -> Resemblance:
    """How much particles (or, in empty micrographs, random places) look like a protein.

    Each window is compared with projections along 40 directions, 24 in-plane angles each, seen
    through the micrograph's lens, at the shift that fits best; windows are the same for all
    methods.

    Parameters
    ----------
    images : dict
        By method, the images of the micrographs.
    windows : int
        A micrograph, at most.
    """
    potential, name = volume(protein)
    cosines: dict[str, list[NDArray[np.float64]]] = {method: [] for method in images}
    for number, micrograph in enumerate(micrographs):
        bank = TargetBank.from_volume(
            potential, micrograph.pixel_size_angstrom, LOW_PASS_ANGSTROM, DIRECTIONS, ANGLES
        )
        matcher = bank.matcher(partial(_transfer, micrograph.config))
        places = _places(micrograph, bank.box, windows, seed + number)
        for method, every in images.items():
            image = torch.from_numpy(np.ascontiguousarray(every[number]))
            half = bank.box // 2
            patches = torch.stack(
                [image[y - half : y + half, x - half : x + half] for y, x in places]
            )
            with torch.no_grad():
                cosines[method].append(matcher(patches).similarity.double().numpy())
    return Resemblance(name, {method: np.concatenate(every) for method, every in cosines.items()})


def _transfer(config: MicrographConfig, shape: tuple[int, int]) -> torch.Tensor:
    return config_transfer(replace(config, size=shape))


def _places(micrograph: Micrograph, box: int, most: int, seed: int) -> NDArray[np.int64]:
    shape = np.array(micrograph.noisy.shape)
    inside = micrograph.coordinates.round().astype(int)
    fits = ((inside >= box // 2) & (inside <= shape - box // 2)).all(1)
    if fits.any():
        return inside[fits][:most]
    generator = make_generator(seed)
    random = torch.rand(most, 2, generator=generator).numpy()
    return (box // 2 + random * (shape - box)).astype(int)
