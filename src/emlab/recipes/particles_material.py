"""What a segmenter of particles and restorers before it are trained on: simulated micrographs.

The micrographs are those of `tsm_material`: networks here and there see the same proteins and
defoci. Particles are bright in these images, as Cellpose networks want their objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.methods.tsm import resize
from emlab.methods.tsm_guidance import CLIP, standardise
from emlab.metrics.particle_bands import RADIUS_ANGSTROM
from emlab.physics.micrograph import Micrograph
from emlab.recipes.cellpose3_material import turned
from emlab.recipes.tsm import places

COARSER = 2  # the networks see pixels so many times as large as the micrographs'
WORKING_ANGSTROM = COARSER * PIXEL_ANGSTROM
ZOOM = 1.3  # largest zoom, in and out, of the specimen
DOSE = 1.5  # largest factor on the contrast of the specimen, and its inverse the smallest


@dataclass(frozen=True)
class Material:
    """How much a network sees.

    Attributes
    ----------
    micrographs, size : int
        How many of which side, in pixels of 2.63 A.
    validation : int
        How many to measure with.
    crop, crops : int
        Side of the training crops in pixels of 5.26 A, a multiple of 8, and how many places they
        are drawn from.
    """

    micrographs: int = 8
    size: int = 1024
    validation: int = 2
    crop: int = 96
    crops: int = 20_000

    def __post_init__(self) -> None:
        if min(self.micrographs, self.validation, self.crops) < 1:
            raise InputError("training needs micrographs, validation ones and crops")
        if self.crop < 32 or self.crop % 8:
            raise InputError(f"crops have a side of 32 or more, in 8s, got {self.crop}")
        if round(self.crop * ZOOM) > self.size // COARSER:
            raise InputError(f"crops of {self.crop} do not fit into {self.size} pixels")


def coarse(
    image: NDArray[np.float32] | Tensor, pixel_size_angstrom: float = PIXEL_ANGSTROM
) -> NDArray[np.float32]:
    """An image ``(H, W)`` at 5.26 A a pixel, cropped or padded in Fourier space."""
    values = np.asarray(image, np.float32)
    ratio = pixel_size_angstrom / WORKING_ANGSTROM
    height, width = (max(64, round(side * ratio)) for side in values.shape)
    return resize(values, (height, width))


@dataclass(frozen=True)
class Field:
    """A micrograph in units of its noise, background taken off, particles bright.

    Attributes
    ----------
    clean, noise : Tensor
        ``(H, W)`` at the working pixel size; their sum is what a restorer is given.
    flows : Tensor
        ``(2, H, W)`` unit vectors (y, x) towards the centre inside particles, else 0.
    inside : Tensor
        ``(H, W)``, 1 in discs of 70 A about the centres.
    """

    clean: Tensor
    noise: Tensor
    flows: Tensor
    inside: Tensor


def field_of(micrograph: Micrograph) -> Field:
    """Working image, truth and targets of a simulated micrograph."""
    standard = standardise(coarse(micrograph.noisy), WORKING_ANGSTROM)
    clean = (torch.from_numpy(coarse(micrograph.clean)) - standard.background) / standard.sigma
    ratio = standard.image.shape[0] / micrograph.noisy.shape[0]
    flows, inside = disc_targets(
        (micrograph.coordinates + 0.5) * ratio - 0.5,
        tuple(standard.image.shape),
        RADIUS_ANGSTROM / WORKING_ANGSTROM,
    )
    given = (-standard.image).clamp(-CLIP, CLIP)
    clean = (-clean).clamp(-CLIP, CLIP)
    return Field(clean, given - clean, flows, inside)


def disc_targets(
    centres: NDArray[np.float64], shape: tuple[int, ...], radius: float
) -> tuple[Tensor, Tensor]:
    """Flows ``(2, H, W)`` towards the nearest centre and discs ``(H, W)`` about the centres.

    Parameters
    ----------
    centres : ndarray
        ``(n, 2)`` (y, x) in pixels.
    radius : float
        Of the discs, in pixels.
    """
    flows, nearest = torch.zeros(2, *shape), torch.full(shape, torch.inf)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in shape)
    for y, x in centres:
        toward = torch.stack(torch.broadcast_tensors(float(y) - rows[:, None], float(x) - columns))
        length = toward.square().sum(0).sqrt()
        closer = (length < nearest) & (length < radius)
        flows = torch.where(closer, toward / length.clamp_min(0.5), flows)
        nearest = torch.where(closer, length, nearest)
    return flows, torch.isfinite(nearest).float()


@dataclass(frozen=True)
class Crops:
    """Makes a batch of crops: turned, flipped and zoomed specimen, noise of another place.

    Attributes
    ----------
    fields : sequence of Field
    crop : int
        Side in pixels.
    noisy : bool
        Whether the first channel has noise; otherwise it is the clean one with another offset.
    """

    fields: tuple[Field, ...]
    crop: int
    noisy: bool

    def places(self, count: int) -> Tensor:
        """Corners ``(count, 3)`` that leave room for the largest zoom."""
        shapes = [tuple(field.clean.shape) for field in self.fields]
        return places(shapes, round(self.crop * ZOOM), count, 0)

    def __call__(self, corners: Tensor, generator: torch.Generator) -> Tensor:
        """``(n, 5, side, side)``: input, clean, flows in y and x, inside (0 or 1)."""
        draw = torch.rand(2, generator=generator)
        zoom = ZOOM ** (2 * float(draw[0]) - 1)
        window = round(self.crop / zoom)
        specimen = torch.stack([self._specimen(row, window) for row in corners.tolist()])
        sized = functional.interpolate(
            specimen, size=(self.crop, self.crop), mode="bilinear", antialias=True
        )
        image, y, x, inside = turned(sized, generator).unbind(1)
        contrast = DOSE ** (2 * torch.rand(len(corners), 1, 1, generator=generator) - 1)
        clean = contrast * image
        if self.noisy:
            noise = torch.stack([self._noise(generator) for _ in range(len(corners))])
            entering = clean + noise
        else:
            entering = clean + 0.4 * float(draw[1]) - 0.2
        length = torch.hypot(y, x).clamp_min(1e-3)
        mask = (inside > 0.5).float()
        return torch.stack([entering, clean, mask * y / length, mask * x / length, mask], 1)

    def _specimen(self, corner: list[int], side: int) -> Tensor:
        number, top, left = corner
        field = self.fields[number]
        maps = torch.cat([field.clean[None], field.flows, field.inside[None]])
        return maps[:, top : top + side, left : left + side]

    def _noise(self, generator: torch.Generator) -> Tensor:
        number = int(torch.randint(len(self.fields), (), generator=generator))
        noise = self.fields[number].noise
        room = torch.tensor(noise.shape) - self.crop + 1
        top, left = (torch.rand(2, generator=generator) * room).long().tolist()
        return noise[top : top + self.crop, left : left + self.crop]
