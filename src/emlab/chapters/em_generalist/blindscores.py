"""Do scores that need no truth follow those that do?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from emlab import metrics
from emlab.bench.tissue import PIXEL_NM
from emlab.errors import InputError
from emlab.physics.operators import Downsample
from emlab.recipes.generalist_tasks import GREY_RANGE
from emlab.solvers.classical import cubic_upsample

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """One image with its PSNR and the scores that do not need the truth."""

    kind: str
    label: str
    psnr: float
    decorrelation_nm: float
    naturalness: float


def judge(
    images: Mapping[tuple[str, str], Grey], truth: Grey, model: metrics.Naturalness
) -> list[Judged]:
    """Score images ``{(kind, label): (n, H, W)}``; kinds are families of one cause."""
    return [
        Judged(
            kind,
            label,
            metrics.psnr(stack, truth, GREY_RANGE),
            float(np.mean([_decorrelation(image) for image in stack])),
            model.score(stack),
        )
        for (kind, label), stack in images.items()
    ]


def _decorrelation(image: Grey) -> float:
    return min(metrics.decorrelation_resolution(image, PIXEL_NM), PIXEL_NM * min(image.shape))


def follows(judged: list[Judged], score: str, kinds: tuple[str, ...] = ()) -> float:
    """Rank correlation of a score (lower is meant to be better) with PSNR, times -1.

    1: the score orders images as PSNR does; -1: the other way round.
    """
    chosen = [item for item in judged if not kinds or item.kind in kinds]
    if len(chosen) < 3:
        raise InputError("a rank correlation needs three images or more")
    values = [[getattr(item, name) for item in chosen] for name in (score, "psnr")]
    return -float(stats.spearmanr(*values).statistic)


def degradations(truth: Grey, seed: int) -> dict[tuple[str, str], Grey]:
    """Planes ``(n, H, W)`` blurred, made noisy and made coarse to several degrees."""
    generator = np.random.default_rng(seed)
    images = {("truth", "truth"): truth}
    for width in (0.7, 1.0, 1.5, 2.0, 3.0):
        blurred = ndimage.gaussian_filter(truth, (0, width, width))
        images["blur", f"blur {width:g} px"] = blurred
    for sigma in (0.02, 0.05, 0.1, 0.25):
        noise = generator.normal(0, sigma * GREY_RANGE, truth.shape)
        images["noise", f"noise {sigma:g}"] = (truth + noise).astype(np.float32)
    for factor in (2, 3, 4):
        side = truth.shape[-1] // factor * factor
        coarse = Downsample(factor).A(torch.from_numpy(truth[:, :side, :side])).numpy()
        fine = np.stack([cubic_upsample(plane, factor) for plane in coarse])
        rest = truth.shape[-1] - side
        images["coarse", f"cubic {factor}x"] = np.pad(fine, ((0, 0), (0, rest), (0, rest)), "edge")
    return images
