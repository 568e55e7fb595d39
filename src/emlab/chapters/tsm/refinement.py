"""Refinement without known poses: what picks are worth when RELION has to find the poses, too.

Small on purpose: one class, some iterations from the true structure at 40 A, each half of the
particles by itself. A run takes minutes, so the chapter shows what ``python -m
tools.measure_tsm_refinement`` measured, and refines by itself where a profile says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import pipe_table
from emlab.chapters.tsm.peers import LABELS
from emlab.chapters.tsm.reconstruction import Extracted, Reconstruction, compared, extract
from emlab.chapters.tsm.study import Table
from emlab.data.particles import write_star
from emlab.external import relion
from emlab.external.picking import DIAMETER_ANGSTROM, HIT
from emlab.io import write_image
from emlab.physics.micrograph import Micrograph
from emlab.settings import read_measured

BOX = 64
START_ANGSTROM = 40.0  # resolution of the reference that refinement starts from
ITERATIONS = 5
_SEED = 7


def refine(
    particles: Extracted, truth: NDArray[np.float32], iterations: int = ITERATIONS
) -> Reconstruction:
    """Refine both halves of the particles from the coarse truth and compare them.

    Parameters
    ----------
    particles : Extracted
        In boxes as large as `truth`; their poses are not used.
    truth : ndarray
        ``(n, n, n)`` potential with the same voxels.

    Raises
    ------
    InputError
        RELION is not installed.
    EmlabError
        It failed.
    """
    maps, seconds = [], 0.0
    for number in (0, 1):
        volume, took = _half(particles.half(number), truth, iterations)
        maps.append(volume)
        seconds += took
    program = f"RELION {relion.version()}, {iterations} iterations"
    return compared((maps[0], maps[1]), particles, truth, program, seconds)


def refine_at(
    micrographs: Sequence[Micrograph],
    places: Sequence[NDArray[np.float64]],
    truth: NDArray[np.float32],
) -> dict[str, Any]:
    """Refine raw particles at some places: plain numbers, as the file of the tool holds them."""
    pixel = micrographs[0].pixel_size_angstrom
    found = extract(micrographs, places, HIT * DIAMETER_ANGSTROM / pixel, BOX, _SEED)
    one = refine(found, truth)
    return {
        "windows": one.particles,
        "particles": one.right,
        "halves_angstrom": round(one.resolution_angstrom, 2),
        "truth_angstrom": round(one.true_resolution_angstrom, 2),
        "cpu_seconds": round(one.seconds, 1),
    }


def rows_of(table: Table, truth: NDArray[np.float32], methods: Sequence[str]) -> dict[str, Any]:
    """Rows of a table's true places and of its picks, made now; nothing for no methods."""
    made = {}
    for name in ("truth", *methods) if methods else ():
        if name == "truth":
            places = [micrograph.coordinates for micrograph in table.micrographs]
        else:
            places = table.picks[name].kept(table.threshold(name))
        made[name] = refine_at(table.micrographs, places, truth)
    return made


def measured() -> dict[str, Any]:
    """What the tool wrote: ``date``, ``machine``, ``program`` and ``rows``."""
    return read_measured("chapters/tsm/refinement")


def record(found: Mapping[str, Mapping[str, Any]], report: Report) -> None:
    """Record ``refined.halves.METHOD`` and ``refined.truth.METHOD`` in angstrom."""
    for name, row in found.items():
        for key in ("halves", "truth"):
            report.value(f"refined.{key}.{name}", row[f"{key}_angstrom"], unit="A")


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a method."""
    if not found:
        return "*skipped: not measured; run* `python -m tools.measure_tsm_refinement`"
    heads = ["picks of", "windows", "of them particles", "halves, FSC .143 [A]"]
    rows = []
    for name, row in found.items():
        cells = [LABELS.get(name, "the true places"), str(row["windows"]), str(row["particles"])]
        cells += [f"{row[f'{key}_angstrom']:.2f}" for key in ("halves", "truth")]
        rows.append([*cells, f"{row['cpu_seconds']:.0f}"])
    return pipe_table([*heads, "truth, FSC .5 [A]", "CPU-s"], rows)


def _half(
    part: Extracted, truth: NDArray[np.float32], iterations: int
) -> tuple[NDArray[np.float32], float]:
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        folder, pixel = Path(made), part.metadata.pixel_size_angstrom
        write_image(folder / "particles.mrcs", part.images, pixel)
        side = part.images.shape[-1]
        write_star(folder / "particles.star", part.metadata, "particles.mrcs", side)
        volume, _, done = relion.refine(
            folder / "particles.star",
            truth,
            pixel,
            low_pass_angstrom=START_ANGSTROM,
            mask_angstrom=DIAMETER_ANGSTROM + 10,
            iterations=iterations,
        )
    return volume, done.cpu_seconds
