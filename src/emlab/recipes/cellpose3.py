"""How the Cellpose3 networks are trained: windows of real images, losses, validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from emlab import data
from emlab.checks import check_fields
from emlab.data.cells import DOMAINS, Cell, cells, simulated_cells
from emlab.errors import InputError
from emlab.methods.cellpose3 import (
    DIAMETER,
    Config,
    load_segmenter,
    middle,
    resize,
    restore,
    segment,
    working_size,
)
from emlab.metrics.segmentation import average_precision, mean_diameter
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.degradations import degrade, degrade_fixed
from emlab.priors.restoration_losses import Weights, restoration_loss, segmentation_loss
from emlab.recipes.lesson import Lesson
from emlab.runtime import atomic_path
from emlab.solvers.mask_flows import flow_targets
from emlab.training import Loss

ZOOM = 1.25  # largest zoom, in and out, of the augmentation
_VERSION = 4  # of the windows in the cache
_DATA = {
    "nuclei": "nuclei_train",
    "all": "nuclei_train, stardist_2d, maize, omnipose",
    "balanced": "nuclei_train, stardist_2d, maize, omnipose, each as often",
}


@dataclass(frozen=True)
class Material:
    """How much of which images a network sees.

    `windows` of nuclei, cut once, with sides that are multiples of 8, and of each of the `others`
    of `emlab.data.cells.DOMAINS`; of so many `simulated` images, in place of all real ones where
    this is not 0; `validation` images, at most 256 x 256 pixels of each.
    """

    windows: int = 1200
    others: int = 0
    side: int = 128
    simulated: int = 0
    validation: int = 24

    def __post_init__(self) -> None:
        check_fields(self)
        if self.windows < 1 or self.others < 0 or self.validation < 1:
            raise InputError("training material needs windows, others >= 0 and validation images")
        if self.side < 32 or self.side % 8:
            raise InputError(f"windows have a side of 32 or more, in 8s, got {self.side}")


def at_working_size(cell: Cell, factor: float = 1.0) -> Cell:
    """Image and labels at the size where the objects have ``17 * factor`` pixels.

    Labels of objects that vanish in this leave gaps in the numbering.
    """
    diameter = mean_diameter(cell.labels)
    if diameter == 0:
        return cell
    size = working_size(cell.image.shape, diameter / factor)
    image = resize(torch.from_numpy(cell.image), size).numpy()
    labels = torch.from_numpy(cell.labels)[None, None].float()  # exact up to 16 million objects
    sized = functional.interpolate(labels, size=size, mode="nearest-exact")[0, 0].int().numpy()
    return replace(cell, image=image, labels=sized)


def validation_cells(material: Material) -> list[Cell]:
    """Validation images at working size, the middle of large ones."""
    if material.simulated:
        chosen = simulated_cells(material.validation, seed=1)
    else:
        chosen = cells(split="validation")[: material.validation]
    sized = [at_working_size(cell) for cell in chosen]
    return [part(cell, middle(cell.image.shape, 256)) for cell in sized]


def part(cell: Cell, place: tuple[slice, ...]) -> Cell:
    """A window of an image with its labels."""
    return replace(cell, image=cell.image[place].copy(), labels=cell.labels[place].copy())


def training_windows(material: Material) -> Tensor:
    """Windows ``(n, 4, side, side)`` float16: image, flows in y and x, inside; cached.

    Nuclei first, then the other domains. Objects have 17 pixels times a factor of 3/4 to 4/3,
    another one for each window. Images smaller than a window are continued by reflection.
    """
    text = f"{_VERSION} 0 {sorted(asdict(material).items())}"
    file = data.cache_folder() / "cellpose3" / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
    if not file.is_file():
        made = _make_windows(material, np.random.default_rng(0))
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, made)
    return torch.from_numpy(np.load(file, allow_pickle=False))


def drawing_order(material: Material, domains: str) -> Tensor:
    """Indices of the windows as they are drawn from.

    Of domains "nuclei" only, "all" windows alike, or "balanced": every domain as often as the
    others; an `InputError` for another word.
    """
    if domains not in _DATA:
        raise InputError(f"domains are {', '.join(map(repr, _DATA))}, got {domains!r}")
    nuclei = torch.arange(material.windows)
    if material.simulated or not material.others or domains == "nuclei":
        return nuclei
    others = material.windows + torch.arange((len(DOMAINS) - 1) * material.others)
    times = 1 if domains == "all" else max(1, round(material.windows / material.others))
    return torch.cat([nuclei, others.repeat(times)])


@dataclass(frozen=True)
class Augmentation:
    """Makes a batch: turns, flips and zooms `training_windows`, after degrading them.

    One of the tasks is drawn for each batch; without any the first channel is the image with
    another contrast and brightness.
    """

    windows: Tensor
    tasks: Sequence[str] = ()

    def __call__(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """``(n, 5, side, side)``: input, clean image, flows in y and x, inside (0 or 1)."""
        windows = turned(self.windows[chosen].float(), generator)
        clean = windows[:, 0]
        number = torch.randint(max(1, len(self.tasks)), (), generator=generator).item()
        if self.tasks:
            entering = degrade(clean, self.tasks[int(number)], generator, DIAMETER)
        else:
            gain, offset = torch.rand(2, len(clean), 1, 1, generator=generator)
            entering = (0.8 + 0.4 * gain) * clean + 0.2 * offset - 0.1
        batch = torch.cat([entering[:, None], windows], dim=1)
        zoomed = _zoomed(batch, generator)
        zoomed[:, 4] = (zoomed[:, 4] > 0.5).float()
        return zoomed


def turned(windows: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight flips and turns of image, flows (y, x) and mask ``(n, 4, H, W)``."""
    turns, flip = torch.randint(4, (), generator=generator), torch.rand((), generator=generator)
    image, y, x, inside = windows.unbind(1)
    if flip < 0.5:
        image, y, x, inside = (channel.flip(-1) for channel in (image, y, -x, inside))
    for _ in range(int(turns)):  # a quarter turn takes (y, x) to (-x, y)
        image, y, x, inside = (torch.rot90(c, 1, (-2, -1)) for c in (image, -x, y, inside))
    return torch.stack([image, y, x, inside], dim=1)


def _zoomed(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Whole windows at 1/ZOOM to ZOOM of their size; a part of one would cut objects anew."""
    draw = torch.rand((), generator=generator).item()
    side = 8 * round(batch.shape[-1] * ZOOM ** (2 * draw - 1) / 8)
    return resize(batch, (side, side)).contiguous()


def _make_windows(material: Material, generator: np.random.Generator) -> NDArray[np.float16]:
    side = material.side
    if material.simulated:
        groups = [(simulated_cells(material.simulated, seed=0), material.windows)]
    else:
        groups = [(cells(), material.windows)]
        if material.others:
            groups += [(cells(name), material.others) for name in DOMAINS[1:]]
    made = np.empty((sum(count for _, count in groups), 4, side, side), np.float16)
    row = 0
    for images, count in groups:
        areas = np.array([np.prod(at_working_size(cell).image.shape) for cell in images])
        share = np.sqrt(areas.clip(side**2)) / np.sqrt(areas.clip(side**2)).sum()
        for which in generator.choice(len(images), count, p=share):
            made[row] = _window(images[which], side, generator)
            row += 1
    return made


def _window(cell: Cell, side: int, generator: np.random.Generator) -> NDArray[np.float32]:
    sized = at_working_size(cell, (4 / 3) ** generator.uniform(-1, 1))
    image, labels = sized.image, sized.labels
    lacking = [max(0, side - length) for length in image.shape]
    if any(lacking):
        from skimage.measure import label

        padding = [(lack // 2, lack - lack // 2) for lack in lacking]
        image = np.pad(image, padding, mode="reflect")
        labels = label(np.pad(labels, padding, mode="reflect"), connectivity=1)
    y, x = (generator.integers(length - side + 1) for length in image.shape)
    place = np.s_[y : y + side, x : x + side]
    seen = labels[place]
    return np.concatenate([image[place][None], flow_targets(seen), (seen > 0)[None]])


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


def prepare(recipe: dict, table: dict) -> Lesson:
    """A segmenter or a restorer; weights are written in half precision.

    A restorer needs the weights of the segmenter, and a recipe with ``initial`` those that it
    starts from: train these first. The numbers on the card are of validation images of the
    training set; the test images are never opened.
    """
    material, objective = Material(**table), recipe["objective"]
    loss, segmenter = loss_of(objective)
    judge = partial(_judge_restorer, segmenter=segmenter)
    return Lesson(
        drawing_order(material, objective["domains"]),
        loss,
        partial(
            _judge_segmenter if objective["kind"] == "segmenter" else judge,
            truth=validation_cells(material),
            levels=recipe["validation"],
        ),
        "simulated nuclei" if material.simulated else _DATA[objective["domains"]],
        "nuclei_train less 48 validation images; of other domains the left 60 %",
        Augmentation(training_windows(material), tuple(objective.get("tasks", ()))),
        objective.get("initial", ""),
        half=True,
    )


def loss_of(objective: dict) -> tuple[Loss, ResidualUNet | None]:
    """The loss of a segmenter or a restorer, and the segmenter that it looks through, if any."""
    if objective["kind"] == "segmenter":
        return segmenter_loss, None
    if objective["kind"] != "restorer":
        raise InputError(f"unknown objective {objective['kind']!r}; use segmenter or restorer")
    segmenter = load_segmenter(objective["segmenter"]) if "segmenter" in objective else None
    terms = Weights(**objective["weights"])
    return partial(restorer_loss, segmenter=segmenter, terms=terms), segmenter


def _judge_segmenter(
    model: nn.Module, device: torch.device, truth: Sequence[Cell], levels: dict[str, float]
) -> dict[str, float]:
    """AP at .5 on clean validation images and at each level of a task."""
    network = rounded(model)
    seen = {"clean": [cell.image for cell in truth]}
    seen |= {f"{task}_{level:g}": spoilt(truth, task, level) for task, level in levels.items()}
    return {
        f"validation_ap50_{name}": mean_precision(images, truth, network, False)
        for name, images in seen.items()
    }


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
        pairs = zip(restored, truth, strict=True)
        errors = [np.mean((image - cell.image) ** 2) for image, cell in pairs]
        numbers[f"validation_psnr_{name}"] = float(-10 * np.log10(errors).mean())
    return numbers


def rounded(model: nn.Module) -> ResidualUNet:
    """The network as it is after its weights were written in half precision."""
    if not isinstance(model, ResidualUNet):
        raise InputError(f"Cellpose3 recipes train a residual_unet, not a {type(model).__name__}")
    return model.half().float()
