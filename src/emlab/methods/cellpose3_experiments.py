"""How much the Cellpose3 chapter computes, what was measured before, and what restoring costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emlab import weights
from emlab.data.cells import Cell, cells
from emlab.errors import DataUnavailableError
from emlab.methods.cellpose3 import SEGMENTER
from emlab.methods.cellpose3_cases import (
    Case,
    Labeller,
    busiest,
    halves,
    make_cases,
    part,
    tune_levels,
)
from emlab.methods.cellpose3_material import at_working_size
from emlab.methods.cellpose3_study import LABELS, Scores, Table, from_counts
from emlab.methods.settings import read_profile, read_settings, smaller
from emlab.models.residual_unet import ResidualUNet
from emlab.runtime import Stopwatch

PROFILES = Path(__file__).parent / "profiles"
LEVELS, MEASURED = PROFILES / "cellpose3_levels.toml", PROFILES / "cellpose3_measured.toml"
_SHIPPED = {
    "images": "noisy test images",
    "task_images": "blurred and coarse test images",
    "side": "pixels of the side of what is taken of a test image, with nuclei of 17",
    "live_slow": "images on which Noise2Void, Noise2Self and BM3D run in this chapter",
    "noise_images": "images of pure noise",
}


def settings(profile: str) -> dict[str, Any]:
    """How much the chapter computes: ``[PROFILE]`` of ``profiles/cellpose3_chapter.toml``."""
    return read_profile("cellpose3_chapter", profile)


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    here, full = settings(profile), settings("paper")
    return smaller(_SHIPPED, here, full)


def levels_of(
    found: Sequence[Cell], task: str, labeller: Labeller, seed: int, halvings: int = 4
) -> tuple[dict[str, float], str]:
    """Level of every image, and where it is from.

    They are read where they were tuned with the segmenter that is loaded, else tuned now.
    """
    kept = read_settings(LEVELS.stem)
    own = kept["levels"].get(task, {})
    if kept["segmenter"] == weights.card(SEGMENTER).sha256 and all(c.name in own for c in found):
        return {cell.name: own[cell.name] for cell in found}, f"tuned on {kept['date']}"
    return tune_levels(found, task, labeller, seed, halvings), "tuned now"


def recorded(task: str, name: str, cases: Sequence[Case], seed: int) -> tuple[Scores, str] | None:
    """Scores that `tools/measure_cells.py` wrote down for these very cases, and when, or None.

    The cases are the same where their noise was drawn from the same seed and all levels agree.
    """
    kept = read_settings(MEASURED.stem)
    rows = kept["methods"].get(task, {}).get(name)
    same = kept["seed"] == seed and kept["segmenter"] == weights.card(SEGMENTER).sha256
    if rows is None or not same:
        return None
    own = [rows.get(case.name) for case in cases]
    if any(
        row is None
        or not np.isclose(row["level"], case.level)
        or row["shape"] != list(case.labels.shape)
        for row, case in zip(own, cases, strict=True)
    ):
        return None
    counts = [row["counts"] for row in own if row is not None]
    seconds = sum(row["seconds"] for row in own if row is not None)
    return from_counts(counts, seconds), str(kept["date"])


def with_recorded(table: Table, names: Sequence[str], seed: int) -> tuple[Table, list[str]]:
    """Put recorded rows into a table, first; returns a sentence for each."""
    before, told = {}, []
    for name in names:
        found = recorded(table.task, name, table.cases, seed)
        if found is not None:
            before[name], date = found
            told.append(
                f"{LABELS[name]}: measured on {date} by tools/measure_cells.py, read from its file"
            )
    first = {key: table.scores[key] for key in ("clean", "degraded") if key in table.scores}
    scores = first | before | {k: v for k, v in table.scores.items() if k not in first}
    return Table(table.task, table.cases, scores, table.answers), told


def difference(live: Scores, kept: Scores) -> float:
    """Largest difference of AP at .5 of any image between two runs."""
    return float(np.abs(live.ap[:, 0] - kept.ap[:, 0]).max())


def at_level(case: Case, level: float) -> Case:
    """The same image spoilt with another strength."""
    return replace(case, level=level)


def domain_cases(names: Sequence[str], scale: float, side: int, seed: int) -> dict[str, list[Case]]:
    """Noisy test images of other domains that can be had, all at one Poisson scale.

    Of each image the halves, so that there are two at least, and of these at most `side` pixels.
    """
    found = {}
    for name in names:
        try:
            given = [at_working_size(cell) for cell in cells(name, "test")]
        except DataUnavailableError:
            continue
        own = [part(one, busiest(one.labels, side)) for cell in given for one in halves(cell)]
        found[name] = make_cases(own, "denoise", {cell.name: scale for cell in own}, seed)
    return found


@dataclass(frozen=True)
class Speed:
    """Images of 224 x 224 pixels a second, through one network."""

    restored: float
    segmented: float


def race(restorer: ResidualUNet, segmenter: ResidualUNet, images: int, repeats: int = 3) -> Speed:
    """Time a batch through each network, the best of some repeats."""
    device = next(restorer.parameters()).device
    batch = torch.rand(images, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)

    def fastest(network: ResidualUNet) -> float:
        seconds = []
        for _ in range(repeats + 1):
            with Stopwatch() as watch, torch.no_grad():
                network(batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            seconds.append(watch.seconds)
        return images / min(seconds[1:])

    return Speed(fastest(restorer), fastest(segmenter))
