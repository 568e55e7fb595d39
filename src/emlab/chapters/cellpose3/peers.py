"""What restoration without clean images makes of a case: the peers, tuned on validation nuclei."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from emlab.chapters.cellpose3.cases import Case, Image, Labeller
from emlab.chapters.cellpose3.study import count_objects, from_counts
from emlab.errors import InputError
from emlab.physics.degradations import normalise
from emlab.settings import read_settings
from emlab.solvers import classical
from emlab.solvers.blind_spot import BlindSpotConfig, denoise_blind_spot

# What each task's peers may be set to; the best on validation images is written down.
GRIDS: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]] = {
    "denoise": {
        "gaussian": {"width": (1.0, 2.0, 3.0, 4.0)},
        "bm3d": {"strength": (1.0, 1.5)},
    },
    "hard": {
        "gaussian": {"width": (2.0, 3.0, 4.0, 5.0)},
        "bm3d": {"strength": (1.0, 1.5)},
    },
    "deblur": {
        "gaussian": {"width": (0.5, 1.0, 2.0)},
        "richardson_lucy": {"smoothing": (0.0, 1.0), "iterations": (8, 40)},
    },
    "upsample": {
        "cubic": {"width": (0.0, 1.0, 2.0)},
        "richardson_lucy": {"smoothing": (0.0, 1.0), "iterations": (8, 40)},
    },
}
BLIND_SPOT = ("noise2void", "noise2self")
SETTINGS = Path(__file__).with_name("peers.toml")


def tuned(task: str) -> dict[str, dict[str, Any]]:
    """Settings of a task's peers as `tune` found them."""
    return read_settings("chapters/cellpose3/peers")["peers"][task]


def run_peer(name: str, case: Case, settings: Mapping[str, Any]) -> Image:
    """Restore a case; peers are told the strength of noise and blur.

    Raises
    ------
    InputError
        Unknown peer, or its package is not installed.
    """
    if name in BLIND_SPOT:
        config = BlindSpotConfig(kind=name, **settings)  # type: ignore[arg-type]
        noisy = torch.from_numpy(case.degraded)
        return denoise_blind_spot(noisy, config, case.generator()).numpy()
    if name not in _PEERS:
        raise InputError(f"unknown peer {name!r}; use {', '.join((*_PEERS, *BLIND_SPOT))}")
    return _PEERS[name](case, **settings)


def tune(
    task: str,
    cases: Sequence[Case],
    labeller: Labeller,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """The settings of `GRIDS` with the highest AP at .5 on validation cases.

    Parameters
    ----------
    labeller : callable
        Segments a restored image.
    """
    best: dict[str, dict[str, Any]] = {}
    for name, grid in GRIDS[task].items():
        tried = []
        for values in product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            counts = [
                count_objects(case.labels, labeller(run_peer(name, case, settings)))
                for case in cases
            ]
            tried.append((float(from_counts(counts).ap[:, 0].mean()), settings))
            if progress is not None:
                progress(f"{task} {name} {settings}: AP {tried[-1][0]:.3f}")
        score, chosen = max(tried, key=lambda pair: pair[0])
        best[name] = chosen | {"validation_ap_50": round(score, 4)}
    return best


def settings_of(task: str, name: str) -> dict[str, Any]:
    """Tuned settings without the score; blind-spot methods have those of their solver."""
    if name in BLIND_SPOT:
        return {}
    return {key: value for key, value in tuned(task)[name].items() if key != "validation_ap_50"}


def as_image(image: Image, like: Case) -> Case:
    """A case that shows another image as its measurement, such as a crop for the audit."""
    case = replace(like)
    case.__dict__["degraded"] = image
    return case


def _gaussian(case: Case, width: float) -> Image:
    return classical.gaussian(case.degraded, width)


def _bm3d(case: Case, strength: float) -> Image:
    """Of the counts' square roots (Anscombe 1948), whose noise has a standard deviation of 1."""
    root = 2 * np.sqrt(case.counts + 0.375)
    smooth = classical.bm3d(root, strength)
    return normalise(torch.from_numpy(np.maximum(smooth / 2, 0) ** 2 - 0.375)).numpy()


def _richardson_lucy(case: Case, smoothing: float, iterations: int) -> Image:
    """With the true width of the blur, started from the image, which is made positive first."""
    measured = ndimage.gaussian_filter(case.degraded, smoothing) if smoothing else case.degraded
    measured = np.maximum(measured - measured.min(), 1e-3)
    estimate = measured.copy()
    for _ in range(iterations):
        predicted = ndimage.gaussian_filter(estimate, case.blur_sigma, mode="reflect")
        ratio = measured / np.maximum(predicted, 1e-6)
        estimate = estimate * ndimage.gaussian_filter(ratio, case.blur_sigma, mode="reflect")
    return np.asarray(estimate, np.float32)


def _cubic(case: Case, width: float) -> Image:
    fine = case.interpolated()
    return classical.gaussian(fine, width) if width else fine


_PEERS: Mapping[str, Callable[..., Image]] = {
    "gaussian": _gaussian,
    "bm3d": _bm3d,
    "richardson_lucy": _richardson_lucy,
    "cubic": _cubic,
}
