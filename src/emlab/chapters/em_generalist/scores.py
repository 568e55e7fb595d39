"""How an answer is scored: PSNR, SSIM and Fourier correlation, crop by crop or column by column."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench.tissue import PIXEL_NM
from emlab.errors import InputError
from emlab.recipes.generalist_tasks import GREY_RANGE, REAL_PAIR, Task

Image = NDArray[np.float32]
COLUMN = (24, 32)  # y and x sides of the columns that a block is cut into
TILE = 96  # side of the tiles of the real pair


def match_grey_levels(image: NDArray, reference: NDArray) -> Image:
    """Gain and offset by least squares: the image in the grey levels of the reference."""
    x, y = image.astype(np.float64), reference.astype(np.float64)
    variance = x.var()
    gain = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 0 else 0.0
    return (gain * (x - x.mean()) + y.mean()).astype(np.float32)


def slice_correlation(volume: NDArray) -> float:
    """Mean correlation of neighbouring planes of ``(D, H, W)``; a plane without contrast has 0."""
    flat = volume.reshape(len(volume), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.where(norms > 0, norms, 1)
    return float(np.mean([a @ b for a, b in pairwise(flat)]))


def score(task: Task, estimate: NDArray, truth: NDArray) -> dict[str, list[float]]:
    """All metrics of one case, each a list over its targets; see `Table`."""
    if estimate.shape != truth.shape:
        raise InputError(f"an answer has the shape {estimate.shape}, the truth {truth.shape}")
    if task.kind == "isotropic":
        return _score_volume(estimate, truth)
    if task is REAL_PAIR:
        matched = match_grey_levels(estimate, truth)
        pairs = list(zip(_tiles(matched), _tiles(truth), strict=True))
    else:
        pairs = [(estimate, truth)]
    return {
        "psnr": [metrics.psnr(a, b, GREY_RANGE) for a, b in pairs],
        "ssim": [metrics.ssim(a, b, GREY_RANGE) for a, b in pairs],
        "frc_nm": [_resolution(metrics.fourier_ring_correlation, a, b) for a, b in pairs],
    }


def _score_volume(estimate: NDArray, truth: NDArray) -> dict[str, list[float]]:
    _, height, width = truth.shape
    rows, columns = COLUMN
    scores: dict[str, list[float]] = {
        name: [] for name in ("psnr", "ssim", "psnr_xz", "psnr_yz", "ssim_xz", "ssim_yz")
    }
    for y in range(0, height - rows + 1, rows):
        for x in range(0, width - columns + 1, columns):
            place = (slice(None), slice(y, y + rows), slice(x, x + columns))
            for view, axis in (("xz", 1), ("yz", 2)):
                pairs = [
                    (np.take(estimate[place], i, axis), np.take(truth[place], i, axis))
                    for i in range(truth[place].shape[axis])
                ]
                for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
                    values = [measure(a, b, GREY_RANGE) for a, b in pairs]
                    scores[f"{name}_{view}"].append(float(np.mean(values)))
            for name in ("psnr", "ssim"):
                both = scores[f"{name}_xz"][-1] + scores[f"{name}_yz"][-1]
                scores[name].append(both / 2)
    scores["frc_nm"] = [_resolution(metrics.fourier_shell_correlation, estimate, truth)]
    scores["slice_correlation"] = [slice_correlation(estimate) / slice_correlation(truth)]
    return scores


def _resolution(curve: Callable[..., metrics.Curve], estimate: NDArray, truth: NDArray) -> float:
    """Period in nm at .5; an image without any agreement gets its longest side."""
    longest = max(truth.shape) * PIXEL_NM
    if np.ptp(estimate) == 0:
        return longest
    found = curve(estimate, truth, PIXEL_NM).resolution_nm(0.5)
    return found if math.isfinite(found) else longest


def _tiles(image: NDArray) -> list[NDArray]:
    height, width = image.shape
    side = min(TILE, height, width)
    return [
        image[y : y + side, x : x + side]
        for y in range(0, height - side + 1, side)
        for x in range(0, width - side + 1, side)
    ]


def ceiling(sigma: float, factor: int = 1) -> float:
    """PSNR in dB that noise of the truth itself leaves to a perfect restoration.

    Parameters
    ----------
    sigma : float
        White noise of the truth in grey levels 0..255, above 0.
    factor : int
        Coarse pixels are averages over ``factor ** 2`` of the truth's, which keep that share of
        its noise's variance; the rest cannot be known. With 1 nothing of the noise is known.
    """
    if sigma <= 0 or factor < 1:
        raise InputError("the ceiling needs noise above 0 and a factor of 1 or more")
    lost = 1.0 if factor == 1 else 1 - 1 / factor**2
    return 20 * math.log10(GREY_RANGE / sigma) - 10 * math.log10(lost)
