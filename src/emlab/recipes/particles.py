r"""Cellpose3's idea on cryo-electron micrographs: restore so that a frozen network finds particles.

1. Take off the background, divide by the noise, go to 5.26 A a pixel; particles become bright.
2. A residual U-Net, trained through a frozen segmenter of particles, restores the image.
3. Put noise level and background back, at the pixel size that was given.

Stringer and Pachitariu (2025) do this with cells. The segmenter knows particles as discs of 70 A.
Both are trained on the simulated micrographs of `emlab.recipes.tsm`: the same proteins and defoci.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks
from emlab.external.topaz import Picked
from emlab.methods.cellpose3 import Config, segment
from emlab.methods.tsm import resize
from emlab.methods.tsm_guidance import CLIP, standardise
from emlab.metrics.bands import RADIUS_ANGSTROM, band_correlations
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.micrograph import Micrograph
from emlab.recipes.cellpose3 import loss_of, rounded, turned
from emlab.recipes.lesson import Lesson
from emlab.recipes.tsm import frames, places
from emlab.solvers.tiling import apply_tiled

Image = NDArray[np.float32]
SEGMENTER, RESTORER, SQUARES = "particle_segmenter", "particle_restorer", "particle_squares"
SEGMENTING = Config(smallest=150, steps=60)  # a disc of 70 A has 556 pixels
COARSER = 2  # the networks see pixels so many times as large as the micrographs'
WORKING_ANGSTROM = COARSER * PIXEL_ANGSTROM
ZOOM = 1.3  # largest zoom, in and out, of the specimen
DOSE = 1.5  # largest factor on the contrast of the specimen, and its inverse the smallest


def restore(
    micrograph: Image, restorer: ResidualUNet, pixel_size_angstrom: float = PIXEL_ANGSTROM
) -> Image:
    """Restore a micrograph ``(H, W)``, protein dark, in its grey levels.

    What is finer than 10.5 A is gone.

    Raises
    ------
    InputError
        Not an image, constant, or a pixel size that is not positive.
    """
    if not pixel_size_angstrom > 0:
        raise InputError(f"the pixel size must be positive (angstrom), got {pixel_size_angstrom}")
    standard = standardise(coarse(micrograph, pixel_size_angstrom), WORKING_ANGSTROM)
    given = (-standard.image).clamp(-CLIP, CLIP)
    restored = apply_tiled(restorer, given).float()[0].cpu()
    return resize(standard.restore(-restored).numpy(), micrograph.shape)


@dataclass(frozen=True)
class Particles:
    """What the segmenter takes for particles."""

    labels: NDArray[np.int32]  #: ``(H, W)`` at 5.26 A a pixel, 0 is background
    #: their middles in pixels of the micrograph, the likeliest first; scores are mean logits
    picked: Picked


def find_particles(
    image: Image,
    micrograph: Image,
    segmenter: ResidualUNet,
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
) -> Particles:
    """Let the segmenter look at what some method made of a micrograph.

    Parameters
    ----------
    image : ndarray
        ``(H, W)`` in the grey levels of the micrograph, protein dark.
    micrograph : ndarray
        ``(H, W)`` the recorded one: its noise and background are the scale.

    Raises
    ------
    InputError
        Other shapes.
    """
    if image.shape != micrograph.shape:
        raise InputError(f"image {image.shape} and micrograph {micrograph.shape} differ")
    standard = standardise(coarse(micrograph, pixel_size_angstrom), WORKING_ANGSTROM)
    grey = torch.from_numpy(coarse(image, pixel_size_angstrom))
    shown = ((standard.background - grey) / standard.sigma).clamp(-CLIP, CLIP).numpy()
    found = segment(shown, segmenter, config=SEGMENTING, rescale_intensity=False)
    return Particles(found.labels, _middles(found.labels, found.cell_probability, micrograph.shape))


def _middles(labels: NDArray[np.int32], logits: Image, shape: tuple[int, ...]) -> Picked:
    number = int(labels.max(initial=0))
    if not number:
        return Picked(np.zeros((0, 2)), np.zeros(0))
    y, x = np.nonzero(labels)
    owner = labels[y, x] - 1
    areas = np.bincount(owner, minlength=number)
    sums = [np.bincount(owner, values, number) for values in (y, x, logits[y, x])]
    ratio = shape[0] / labels.shape[0]
    centres = (np.stack(sums[:2], 1) / areas[:, None] + 0.5) * ratio - 0.5
    scores = sums[2] / areas
    order = np.argsort(-scores, kind="stable")
    return Picked(centres[order], scores[order])


@dataclass(frozen=True)
class Material:
    """How much a network sees: micrographs of a size in pixels of 2.63 A, so many to measure with.

    Training crops have a side in pixels of 5.26 A, a multiple of 8, and come from `crops` places.
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
    """A micrograph ``(H, W)`` at 5.26 A, in units of its noise, flat, particles bright.

    A restorer is given ``clean + noise``; `flows` ``(2, H, W)`` are unit vectors (y, x) towards the
    centre inside particles, else 0; `inside` is 1 in discs of 70 A about the centres.
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
    """Flows ``(2, H, W)`` towards the nearest centre, and discs ``(H, W)`` about the centres.

    Centres ``(n, 2)`` are (y, x) and the radius of the discs is in pixels.
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

    The first channel has noise if they are `noisy`, else it is the clean one with another offset.
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


def prepare(recipe: dict, table: dict) -> Lesson:
    """The segmenter of particles or a restorer; weights are written in half precision.

    A restorer needs the segmenter's weights, and one with ``initial`` those that it starts from:
    train these first. Numbers on the card come from another protein than those trained on.
    """
    material, objective = Material(**table), recipe["objective"]
    shown = frames("train", material.micrographs, material.size)
    held_out = [
        frame.micrograph
        for frame in frames("validation", material.validation, min(material.size, 512))
    ]
    loss, segmenter = loss_of(objective)
    fields = tuple(field_of(frame.micrograph) for frame in shown)
    crops = Crops(fields, material.crop, segmenter is not None)
    judge = partial(_judge_restorer, segmenter=segmenter) if segmenter else _judge_segmenter
    return Lesson(
        crops.places(material.crops),
        loss,
        partial(judge, truth=held_out),
        f"simulated micrographs of {', '.join(sorted({f.specimen for f in shown}))}, "
        f"{material.size} x {material.size} pixels of 2.63 A at 300 kV, and their truth",
        f"{material.micrographs} micrographs of .8 to 1.6 um defocus; validation on the simulated "
        "barrel at 1.2 to 2.2 um, which is in no training micrograph",
        crops,
        objective.get("initial", ""),
        half=True,
    )


def _judge_segmenter(
    model: nn.Module, device: torch.device, truth: Sequence[Micrograph]
) -> dict[str, float]:
    """F1 of particles found in clean and in noisy validation micrographs."""
    network = rounded(model)
    numbers = {}
    for name in ("clean", "noisy"):
        images = [getattr(micrograph, name).numpy() for micrograph in truth]
        numbers[f"validation_f1_{name}"] = own_picks(images, truth, network).at(-np.inf).f1()
    return numbers


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
