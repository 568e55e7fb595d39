"""The rows of the Cellpose3 chapter's tables: how a case becomes labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch

from emlab import weights
from emlab.chapters.cellpose3.cases import Case, Image, Labels
from emlab.chapters.cellpose3.peers import run_peer, settings_of
from emlab.chapters.cellpose3.study import Answer, Method
from emlab.methods.cellpose3 import load_restorer, load_segmenter, restore, segment
from emlab.models import untrained
from emlab.models.residual_unet import ResidualUNet

# Rows of a task by the weights that they need.
RESTORERS = {
    "denoise": {
        "reconstruction": "cellpose3_denoise_reconstruction",
        "perceptual": "cellpose3_denoise_perceptual",
        "segmentation": "cellpose3_denoise_segmentation",
        "oneclick": "cellpose3_oneclick",
        "combined": "cellpose3_all_tasks",
        "ours": "cellpose3_denoise",
    },
    "deblur": {
        "reconstruction": "cellpose3_deblur_reconstruction",
        "combined": "cellpose3_all_tasks",
        "range": "cellpose3_deblur",
        "ours": "cellpose3_deblur_strong",
    },
    "upsample": {
        "reconstruction": "cellpose3_upsample_reconstruction",
        "combined": "cellpose3_all_tasks",
        "range": "cellpose3_upsample",
        "ours": "cellpose3_upsample_strong",
    },
}
RESTORERS["hard"] = RESTORERS["denoise"]
NOISY_SEGMENTER = "cellpose3_noisy_segmenter"


def labels_of(image: Image, segmenter: ResidualUNet, *, restored: bool = False) -> Labels:
    """Segment an image at working size; what a restorer made keeps its grey levels."""
    return segment(image, segmenter, rescale_intensity=not restored).labels


def reference_rows(task: str, segmenter: ResidualUNet, seed: int) -> dict[str, Method]:
    """The ceiling, the identity, a constant, and a restorer that was never trained."""
    rows: dict[str, Method] = {
        "clean": partial(_clean, segmenter),
        "degraded": partial(_degraded, segmenter),
        "constant": _constant,
    }
    name = next((n for n in RESTORERS[task].values() if n in weights.names()), None)
    model = {"kind": "residual_unet", "widths": [8, 16], "outputs": 1}
    if name is not None:
        model = dict(weights.card(name).model)
    network = untrained(model, seed).eval().requires_grad_(False)
    assert isinstance(network, ResidualUNet)
    rows["untrained"] = restored_row(network, segmenter)
    return rows


def peer_rows(task: str, names: Iterable[str], segmenter: ResidualUNet) -> dict[str, Method]:
    """Peers that learn from no clean image."""
    return {name: partial(_peer, name, settings_of(task, name), segmenter) for name in names}


def trained_rows(
    task: str,
    segmenter: ResidualUNet,
    names: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Method]:
    """Every restorer of a task whose weights are there, and the segmenter retrained on noise.

    Parameters
    ----------
    names : iterable of str, optional
        Rows wanted; all by default.
    """
    known = weights.names()
    rows: dict[str, Method] = {}
    if task in ("denoise", "hard") and NOISY_SEGMENTER in known:
        rows["noisy_segmenter"] = partial(_degraded, load_segmenter(NOISY_SEGMENTER, device))
    for row, name in RESTORERS[task].items():
        if name in known:
            rows[row] = restored_row(load_restorer(name, device), segmenter)
    return rows if names is None else {row: rows[row] for row in names if row in rows}


def restored_row(restorer: ResidualUNet, segmenter: ResidualUNet) -> Method:
    """Restore, then segment."""
    return partial(_restored, restorer, segmenter)


def _clean(segmenter: ResidualUNet, case: Case) -> Answer:
    return Answer(case.clean, labels_of(case.clean, segmenter))


def _degraded(segmenter: ResidualUNet, case: Case) -> Answer:
    return Answer(case.degraded, labels_of(case.degraded, segmenter))


def _constant(case: Case) -> Answer:
    return Answer(np.zeros_like(case.degraded), np.zeros_like(case.labels))


def _peer(name: str, settings: dict, segmenter: ResidualUNet, case: Case) -> Answer:
    image = run_peer(name, case, settings)
    return Answer(image, labels_of(image, segmenter))


def _restored(restorer: ResidualUNet, segmenter: ResidualUNet, case: Case) -> Answer:
    image = restore(case.degraded, restorer).image
    return Answer(image, labels_of(image, segmenter, restored=True))
