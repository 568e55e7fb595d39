"""How the Cellpose3 segmenters and restorers are trained, and how validation judges them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from emlab import weights
from emlab.data.cells import Cell
from emlab.errors import InputError
from emlab.methods.cellpose3 import DIAMETER, Config, load_segmenter, restore, segment
from emlab.metrics.segmentation import average_precision
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.degradations import degrade_fixed
from emlab.priors.restoration_losses import Weights, restoration_loss, segmentation_loss
from emlab.recipes.cellpose3_material import (
    Augmentation,
    Material,
    drawing_order,
    training_windows,
    validation_cells,
)
from emlab.recipes.lesson import Lesson, Recipe, named, train_recipe
from emlab.training import Loss

METHOD = "cellpose3"


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
    """Train a segmenter or a restorer and write weights (half precision) and card.

    A restorer needs the weights of the segmenter, and a recipe with ``initial`` those that it
    starts from: train these first. The numbers on the card are of validation images of the
    training set; the test images are never opened.
    """
    return train_recipe(METHOD, name, _prepare, profile, device, out, resume)


def segmenter_loss(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
    """`segmentation_loss` for a batch of `Augmentation`."""
    return segmentation_loss(model(batch[:, 0]), batch[:, 2:4], batch[:, 4])


def restorer_loss(
    model: nn.Module,
    batch: Tensor,
    generator: torch.Generator,
    segmenter: ResidualUNet | None,
    terms: Weights,
) -> Tensor:
    """`restoration_loss` of the restored first channel of a batch of `Augmentation`."""
    restored = model(batch[:, 0])[:, 0]
    clean, flows, inside = batch[:, 1], batch[:, 2:4], batch[:, 4]
    if segmenter is not None:
        segmenter = segmenter.to(batch.device)
    return restoration_loss(restored, clean, flows, inside, segmenter, terms)


def spoilt(images: Sequence[Cell], task: str, level: float) -> list[np.ndarray]:
    """The same degraded images for the same task and level."""
    found = []
    for number, cell in enumerate(images):
        generator = torch.Generator().manual_seed(number)
        clean = torch.from_numpy(np.ascontiguousarray(cell.image))
        found.append(degrade_fixed(clean, task, level, generator, DIAMETER).numpy())
    return found


def mean_precision(
    images: Sequence[np.ndarray], truth: Sequence[Cell], segmenter: ResidualUNet, restored: bool
) -> float:
    """Mean over images of the average precision at an overlap of one half."""
    config = Config(steps=100)
    found = [segment(x, segmenter, None, config, not restored).labels for x in images]
    scores = [
        average_precision(cell.labels, labels, (0.5,)).ap[0]
        for cell, labels in zip(truth, found, strict=True)
    ]
    return float(np.nanmean(scores))


def _prepare(recipe: dict, table: dict) -> Lesson:
    material, objective = Material(**table), recipe["objective"]
    tasks = tuple(objective.get("tasks", ()))
    truth, levels = validation_cells(material), recipe["validation"]
    if objective["kind"] == "segmenter":
        loss: Loss = segmenter_loss
        evaluate = partial(_judge_segmenter, truth=truth, levels=levels)
    elif objective["kind"] == "restorer":
        terms = Weights(**objective["weights"])
        segmenter = load_segmenter(objective["segmenter"]) if "segmenter" in objective else None
        loss = partial(restorer_loss, segmenter=segmenter, terms=terms)
        evaluate = partial(_judge_restorer, truth=truth, levels=levels, segmenter=segmenter)
    else:
        raise InputError(f"unknown objective {objective['kind']!r}; use segmenter or restorer")
    tasks = tuple(objective.get("tasks", ()))
    return Lesson(
        drawing_order(material, objective["domains"]),
        loss,
        evaluate,
        "simulated nuclei" if material.simulated else _DATA[objective["domains"]],
        "nuclei_train less 48 validation images; of other domains the left 60 %",
        Augmentation(training_windows(material), tasks),
        initial_weights(objective.get("initial")),
        half=True,
    )


def initial_weights(name: str | None) -> dict[str, Tensor] | None:
    """Shipped weights in single precision, or None without a name."""
    if name is None:
        return None
    tensors = weights.load(name)[0]
    return {key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}


_DATA = {
    "nuclei": "nuclei_train",
    "all": "nuclei_train, stardist_2d, maize, omnipose",
    "balanced": "nuclei_train, stardist_2d, maize, omnipose, each as often",
}


def _judge_segmenter(
    model: nn.Module, device: torch.device, truth: Sequence[Cell], levels: dict[str, float]
) -> dict[str, float]:
    """AP at .5 on clean validation images and at each level of a task."""
    network = rounded(model)
    clean = [cell.image for cell in truth]
    numbers = {"validation_ap50_clean": mean_precision(clean, truth, network, False)}
    for task, level in levels.items():
        images = spoilt(truth, task, level)
        numbers[f"validation_ap50_{task}_{level:g}"] = mean_precision(images, truth, network, False)
    return numbers


def _judge_restorer(
    model: nn.Module,
    device: torch.device,
    truth: Sequence[Cell],
    levels: dict[str, float],
    segmenter: ResidualUNet | None,
) -> dict[str, float]:
    """PSNR in dB of the restored validation images at each level of a task, and AP at .5."""
    network, numbers = rounded(model), {}
    for task, level in levels.items():
        restored = [restore(image, network).image for image in spoilt(truth, task, level)]
        name = f"{task}_{level:g}"
        if segmenter is not None:
            seeing = segmenter.to(device)
            numbers[f"validation_ap50_{name}"] = mean_precision(restored, truth, seeing, True)
        errors = [
            np.mean((found - cell.image) ** 2) for found, cell in zip(restored, truth, strict=True)
        ]
        numbers[f"validation_psnr_{name}"] = float(-10 * np.log10(errors).mean())
    return numbers


def rounded(model: nn.Module) -> ResidualUNet:
    """The network as it is after its weights were written in half precision."""
    if not isinstance(model, ResidualUNet):
        raise InputError(f"Cellpose3 recipes train a residual_unet, not a {type(model).__name__}")
    return model.half().float()
