"""How the segmenter of particles and the restorers before it are trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emlab import weights
from emlab.errors import InputError
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks
from emlab.methods.cellpose3 import load_segmenter
from emlab.metrics.particle_bands import band_correlations
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.micrograph import Micrograph
from emlab.priors.restoration_losses import Weights
from emlab.recipes.cellpose3 import initial_weights, restorer_loss, rounded, segmenter_loss
from emlab.recipes.lesson import Lesson, Recipe, named, train_recipe
from emlab.recipes.particles_material import Crops, Material, field_of
from emlab.recipes.particles_network import find_particles, restore
from emlab.recipes.tsm_material import frames
from emlab.training import Loss

METHOD = "particles"


def recipes() -> dict[str, Recipe]:
    """Recipes by name; see `emlab.recipes.recipes`."""
    return named(METHOD, train_network)


def train_network(
    name: str,
    profile: str = "cpu",
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
) -> weights.Card | None:
    """Train the segmenter or a restorer and write weights (half precision) and card.

    A restorer needs the segmenter's weights, and one with ``initial`` those that it starts from:
    train these first. Numbers on the card come from another protein than those trained on.
    """
    return train_recipe(METHOD, name, _prepare, profile, device, out, resume)


def own_picks(
    images: Sequence[np.ndarray], truth: Sequence[Micrograph], segmenter: ResidualUNet
) -> Picks:
    """What the segmenter finds in images of micrographs, beside the true places."""
    found = [
        find_particles(image, micrograph.noisy.numpy(), segmenter).picked
        for image, micrograph in zip(images, truth, strict=True)
    ]
    radius = HIT * DIAMETER_ANGSTROM / truth[0].pixel_size_angstrom
    return Picks(found, [micrograph.coordinates for micrograph in truth], radius)


def _prepare(recipe: dict, table: dict) -> Lesson:
    material, objective = Material(**table), recipe["objective"]
    shown = frames("train", material.micrographs, material.size)
    held_out = [
        frame.micrograph
        for frame in frames("validation", material.validation, min(material.size, 512))
    ]
    kind = objective["kind"]
    if kind not in ("segmenter", "restorer"):
        raise InputError(f"unknown objective {kind!r}; use segmenter or restorer")
    crops = Crops(
        tuple(field_of(frame.micrograph) for frame in shown), material.crop, kind == "restorer"
    )
    if kind == "segmenter":
        loss: Loss = segmenter_loss
        evaluate = partial(_judge_segmenter, truth=held_out)
    else:
        segmenter = load_segmenter(objective["segmenter"])
        loss = partial(restorer_loss, segmenter=segmenter, terms=Weights(**objective["weights"]))
        evaluate = partial(_judge_restorer, truth=held_out, segmenter=segmenter)
    return Lesson(
        crops.places(material.crops),
        loss,
        evaluate,
        f"simulated micrographs of {', '.join(sorted({f.specimen for f in shown}))}, "
        f"{material.size} x {material.size} pixels of 2.63 A at 300 kV, and their truth",
        f"{material.micrographs} micrographs of .8 to 1.6 um defocus; validation on the simulated "
        "barrel at 1.2 to 2.2 um, which is in no training micrograph",
        crops,
        initial_weights(objective.get("initial")),
        half=True,
    )


def _judge_segmenter(
    model: nn.Module, device: torch.device, truth: Sequence[Micrograph]
) -> dict[str, float]:
    """F1 of particles found in clean and in noisy validation micrographs."""
    network = rounded(model)
    images = {
        "clean": [micrograph.clean.numpy() for micrograph in truth],
        "noisy": [micrograph.noisy.numpy() for micrograph in truth],
    }
    return {
        f"validation_f1_{name}": own_picks(every, truth, network).at(-np.inf).f1()
        for name, every in images.items()
    }


def _judge_restorer(
    model: nn.Module,
    device: torch.device,
    truth: Sequence[Micrograph],
    segmenter: ResidualUNet,
) -> dict[str, float]:
    """F1 of particles found after restoration, and correlations with the clean ones."""
    network, seeing = rounded(model), segmenter.to(device)
    restored = [restore(micrograph.noisy.numpy(), network) for micrograph in truth]
    bands = [
        band_correlations(image, micrograph)
        for image, micrograph in zip(restored, truth, strict=True)
    ]
    numbers = {"validation_f1": own_picks(restored, truth, seeing).at(-np.inf).f1()}
    return numbers | {
        f"correlation_{name}": float(np.mean([each[name] for each in bands])) for name in bands[0]
    }
