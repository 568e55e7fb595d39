"""What the Cellpose3 networks are trained on: windows of real images, flows, augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emlab import data
from emlab.checks import check_fields
from emlab.data.cells import DOMAINS, Cell, cells, simulated_cells
from emlab.errors import InputError
from emlab.methods.cellpose3 import DIAMETER, resize, working_size
from emlab.metrics.segmentation import mean_diameter
from emlab.physics.degradations import degrade
from emlab.runtime import atomic_path
from emlab.solvers.mask_flows import flow_targets

ZOOM = 1.25  # largest zoom, in and out, of the augmentation
_VERSION = 4  # of the windows in the cache


@dataclass(frozen=True)
class Material:
    """How much of which images a network sees.

    Attributes
    ----------
    windows : int
        Windows of nuclei, cut once.
    others : int
        Windows of each other domain of `emlab.data.cells.DOMAINS`.
    side : int
        Side of the windows, a multiple of 8.
    simulated : int
        Simulated images, in place of all real ones where this is not 0.
    validation : int
        Validation images, at most 256 x 256 pixels of each.
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
    return Cell(image, sized, cell.name, cell.domain)


def validation_cells(material: Material) -> list[Cell]:
    """Validation images at working size, the middle of large ones."""
    if material.simulated:
        chosen = simulated_cells(material.validation, seed=1)
    else:
        chosen = cells(split="validation")[: material.validation]
    return [_middle(at_working_size(cell), 256) for cell in chosen]


def training_windows(material: Material, seed: int = 0) -> Tensor:
    """Windows ``(n, 4, side, side)`` float16: image, flows in y and x, inside; cached.

    Nuclei first, then the other domains. Objects have 17 pixels times a factor of 3/4 to 4/3,
    another one for each window. Images smaller than a window are continued by reflection.
    """
    text = f"{_VERSION} {seed} {sorted(asdict(material).items())}"
    file = data.cache_folder() / "cellpose3" / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
    if not file.is_file():
        made = _make_windows(material, np.random.default_rng(seed))
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, made)
    return torch.from_numpy(np.load(file, allow_pickle=False))


def drawing_order(material: Material, domains: str) -> Tensor:
    """Indices of the windows as they are drawn from.

    Parameters
    ----------
    domains : str
        "nuclei" only, "all" windows alike, or "balanced": every domain as often as the others.
    """
    if domains not in ("nuclei", "all", "balanced"):
        raise InputError(f"domains are 'nuclei', 'all' or 'balanced', got {domains!r}")
    nuclei = torch.arange(material.windows)
    if material.simulated or not material.others or domains == "nuclei":
        return nuclei
    others = material.windows + torch.arange((len(DOMAINS) - 1) * material.others)
    times = 1 if domains == "all" else max(1, round(material.windows / material.others))
    return torch.cat([nuclei, others.repeat(times)])


@dataclass(frozen=True)
class Augmentation:
    """Makes a batch: turns, flips and zooms windows, after degrading them where there is a task.

    Attributes
    ----------
    windows : Tensor
        See :func:`training_windows`.
    tasks : sequence of str
        One is drawn for each batch; none: the first channel is the image with another contrast and
        brightness.
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
    part = labels[place]
    return np.concatenate([image[place][None], flow_targets(part), (part > 0)[None]])


def _middle(cell: Cell, side: int) -> Cell:
    places = tuple(
        slice(start := max(0, (length - side) // 2), start + side) for length in cell.image.shape
    )
    return Cell(cell.image[places], cell.labels[places], cell.name, cell.domain)
