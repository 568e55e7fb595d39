"""How much the Cellpose3 chapter computes, images of other domains, and what restoring costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from emlab.bench import Report
from emlab.chapters.cellpose3.cases import RECORDS, Case, busiest, halves, make_cases, part
from emlab.data.cells import cells
from emlab.errors import DataUnavailableError
from emlab.models.residual_unet import ResidualUNet
from emlab.recipes.cellpose3 import at_working_size
from emlab.runtime import Stopwatch
from emlab.settings import read_profile, smaller

_SHIPPED = {
    "images": "noisy test images",
    "task_images": "blurred and coarse test images",
    "side": "pixels of the side of what is taken of a test image, with nuclei of 17",
    "noise_images": "images of pure noise",
}


def settings(profile: str) -> dict[str, Any]:
    """How much the chapter computes: ``[PROFILE]`` of ``chapter.toml``."""
    return read_profile("chapters/cellpose3/chapter", profile)


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    here, full = settings(profile), settings("paper")
    return smaller(_SHIPPED, here, full)


def at_level(case: Case, level: float) -> Case:
    """The same image spoilt with another strength."""
    return replace(case, level=level)


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
