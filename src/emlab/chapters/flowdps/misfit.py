"""What validation poses tell FlowDPS: the spread of its prior, and which misfit is strange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emlab import weights
from emlab.data.metadata import Metadata, Particles
from emlab.data.phase_maps import PIXEL_ANGSTROM, phase_maps
from emlab.methods.flowdps_config import load_in_radians
from emlab.methods.flowdps_spread import on_images, rings_of
from emlab.metrics.calibration import auc
from emlab.recorded import Recording
from emlab.runtime import make_generator

if TYPE_CHECKING:
    from emlab.chapters.flowdps.cases import Cases
    from emlab.chapters.flowdps.rows import Answer


def coarse(cases: Cases, answer: Answer, length: float) -> np.ndarray:
    """Misfit ``(n,)`` coarser than a length in angstrom, mean over samples."""
    from emlab.methods.flowdps_observation import misfit
    from emlab.physics import Poisson

    assert answer.samples is not None
    instrument = cases.instrument()
    each = [
        misfit(cases.counts, instrument.A(one), Poisson(), PIXEL_ANGSTROM, length)[1]
        for one in torch.from_numpy(answer.samples)
    ]
    return torch.stack(each).mean(0).numpy()


def normalised(cases: Cases) -> Particles:
    """Counts as a user extracts them: mean 0, deviation 1, the protein dark."""
    images = cases.counts.numpy()
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
    table = {item.name: getattr(cases.optics, item.name) for item in fields(Metadata)}
    table |= {"pixel_size_angstrom": PIXEL_ANGSTROM, "shifts_angstrom": None}
    return Particles(images=images.astype(np.float32), **table)


def _choose_length(settings: Mapping[str, Any]) -> dict[str, float]:
    """The length of the best AUC, and among equals of the widest gap."""
    from emlab.chapters.flowdps.rows import Sampling, hurried

    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    sampling, found = Sampling.load(config), []
    for cases in _cases(settings).values():
        answer = sampling.retrieve(cases, config, settings["seed"])
        found.append({length: coarse(cases, answer, length) for length in settings["lengths"]})

    def worst(length: float) -> tuple[float, float]:
        own, *others = (one[length] for one in found)
        gaps = [(one.mean() - own.mean()) / np.hypot(one.std(), own.std()) for one in others]
        return min(auc(own, one) for one in others), float(min(gaps))

    return {"coarser_than_angstrom": max(settings["lengths"], key=worst)}


def _choose_limit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Coarse misfit above which 5 % of the prior's own particles lie, and the AUC of others.

    Asked of normalised particles, gain and offset fitted, the envelope unknown, as a user's are.
    """
    from emlab.chapters.flowdps.rows import Sampling, hurried
    from emlab.methods import flowdps

    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    sampling = Sampling.load(config)
    own, *others = (
        flowdps.retrieve(
            normalised(cases), None, config, make_generator(settings["seed"]), crop=True,
            prior=sampling.prior, spread=sampling.spread, contrast="dark",
        ).chi2_low
        for cases in _cases(settings).values()
    )  # fmt: skip
    found = zip(settings["specimens"][1:], others, strict=True)
    return {
        "warn_above": round(float(np.quantile(own, 0.95)), 2),
        "normalised_auc": {name: round(auc(own, low), 3) for name, low in found},
    }


def _cases(settings: Mapping[str, Any]) -> dict[str, Cases]:
    from emlab.chapters.flowdps.cases import make_cases

    poses, seed = settings["poses"], settings["seed"]
    return {n: make_cases(n, poses, seed, split="validation") for n in settings["specimens"]}


_SETTINGS = {
    "specimens": ["t20s", "beta_galactosidase", "apoferritin"],
    "poses": 16,
    "seed": 21,
    "steps": 8,
    "samples": 4,
    "batch": 8,
}
MISFIT = Recording(
    "03_flowdps",
    "misfit",
    _choose_length,
    {**_SETTINGS, "lengths": [20.0, 25.0, 33.0, 45.0, 60.0]},
    ("flowdps_flow",),
)
WARNING = Recording("03_flowdps", "warning", _choose_limit, _SETTINGS, ("flowdps_flow",))


def _spread(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rings ``(levels, rings)`` of shipped weights, on validation views."""
    name = settings["weights"]
    images = phase_maps(settings["specimen"], settings["maps"], 1, "validation").phases
    with torch.no_grad():
        found = on_images(load_in_radians(name), images[: settings["asked"]])
    return {
        "sha256": {name: weights.card(name).sha256},
        "rings": {name: rings_of(found).tolist()},
    }


SPREAD = Recording(
    "03_flowdps",
    "spread",
    _spread,
    {"weights": "flowdps_flow", "specimen": "t20s", "maps": 256, "asked": 64},
    ("flowdps_flow",),
)
