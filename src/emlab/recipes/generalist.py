"""How the electron-microscopy prior is trained: stacks of five planes, at many pixel sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emlab import data
from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.priors.depth import REFERENCE_ANGSTROM, DepthMatching
from emlab.recipes.lesson import Lesson, denoising_psnr, settings_of

NAME = "generalist_depth"
# Planes of the isotropic volume (axis 0) and sections of the serial-section stack.
TRAINING_PLANES, VALIDATION_PLANES = slice(0, 152), slice(160, 180)
TRAINING_SECTIONS = slice(0, 18)
# For cards: between the planes lie eight unused ones, and the test volumes are never opened.
TISSUE = (
    "flyem_validation_train, isbi2012",
    "planes 0-151 and sections 0-17; validation on planes 160-179",
)
VALIDATION_LEVELS = (0.1, 0.25, 0.5)  # in units of the grey range
UNIT_RANGE = 2.0  # networks see grey levels 0..255 as -1..1
STEPS_AN_OCTAVE, AT_REFERENCE = 32, 128  # pixel sizes are kept as whole numbers beside the planes
SECTION_ANGSTROM = 40.0
_WIDEST = 4  # largest distance between the planes of a stack, in pixels


@dataclass(frozen=True)
class Material:
    """How many stacks of which size a network sees, drawn once."""

    patch: int = 64  #: side of the square patches in pixels
    planes: int = 5  #: of a stack
    stacks: int = 40_000  #: for training; a tenth from the serial sections
    validation: int = 96
    zoomed: float = 0.4  #: share of stacks cut at another pixel size
    zoom: tuple[float, float] = (0.35, 1.5)  #: smallest and largest, drawn log-uniformly
    spread: float = 0.08  #: share of the volume's stacks whose planes lie 2 to 4 voxels apart

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patch < 16 or self.stacks < 10 or self.validation < 1:
            raise InputError("training material needs patch >= 16, stacks >= 10, validation >= 1")
        if not (0 < self.zoom[0] <= self.zoom[1] and max(self.zoomed, self.spread) <= 1):
            raise InputError("training material needs growing zooms and shares of at most 1")


def training_stacks(material: Material) -> NDArray[np.uint8]:
    """Stacks ``(n, planes + 1, patch, patch)`` u8; the last plane is the pixel size, see `code`.

    Stacks of the volume lie along all three of its axes. Those of sections are neighbouring ones,
    50 nm apart: of them the network learns that a neighbour can be of little use.
    """
    generator = np.random.default_rng(0)
    volume = data.load("flyem_validation_train").arrays["volume"][TRAINING_PLANES]
    sheets = data.load("isbi2012").arrays["volume"][TRAINING_SECTIONS]
    size = (material.planes, material.patch, material.patch)
    stacks = np.empty((material.stacks, material.planes + 1, *size[1:]), np.uint8)
    for number, stack in enumerate(stacks):
        of_sections = number % 10 == 9
        source = sheets if of_sections else np.moveaxis(volume, generator.integers(3), 0)
        zoom, distance = 1.0, 1.0
        if generator.random() < material.zoomed:
            fits = material.patch / min(source.shape[1:])
            zoom = max(fits, math.exp(generator.uniform(*np.log(material.zoom))))
        if not of_sections and generator.random() < material.spread:
            distance = generator.uniform(2, _WIDEST)
        voxel = (1.0 if of_sections else 1 / zoom, 1 / zoom, 1 / zoom)
        stack[:-1] = np.rint(resampled(source, size, voxel, generator, distance))
        stack[-1] = code((SECTION_ANGSTROM if of_sections else REFERENCE_ANGSTROM) / zoom)
    return stacks


def resampled(
    source: NDArray[np.uint8],
    size: tuple[int, ...],
    voxel: tuple[float, ...],
    generator: np.random.Generator,
    distance: float = 1.0,
) -> NDArray[np.float32]:
    """Cut ``size`` voxels, each `voxel` pixels wide, at a random place of ``(D, H, W)``.

    Coarser voxels are averages of what they cover, finer ones are interpolated; planes lie
    `distance` voxels apart.
    """
    windows, matrices = [], []
    for axis, (count, length, width) in enumerate(zip(size, source.shape, voxel, strict=True)):
        step, width = width * (1.0 if axis else distance), max(1.0, width)
        room = length - (count - 1) * step - width
        if room < -1e-6:
            raise InputError(f"{count} voxels of {step:.3g} pixels do not fit into {length}")
        whole = step == 1
        start = generator.integers(int(room) + 1) if whole else generator.uniform(0, max(0.0, room))
        left = start + step * np.arange(count)[:, None]
        first, last = int(start), min(length, math.ceil(start + (count - 1) * step + width))
        pixel = np.arange(first, last)
        overlap = np.minimum(left + width, pixel + 1) - np.maximum(left, pixel)
        windows.append(slice(first, last))
        matrices.append((np.maximum(overlap, 0) / width).astype(np.float32))
    part = source[tuple(windows)].astype(np.float32)
    if part.shape == tuple(size):
        return part
    return np.einsum("az,zbc->abc", matrices[0], matrices[1] @ part @ matrices[2].T)


def code(pixel_angstrom: float) -> int:
    """A pixel size as a whole number 0 to 255, 32 steps an octave."""
    return round(AT_REFERENCE + STEPS_AN_OCTAVE * math.log2(pixel_angstrom / REFERENCE_ANGSTROM))


def validation_stacks(material: Material) -> NDArray[np.uint8]:
    """Stacks from planes of the volume that training does not touch, all planes there."""
    volume = data.load("flyem_validation_train").arrays["volume"][VALIDATION_PLANES]
    size = (material.planes, material.patch, material.patch)
    generator = np.random.default_rng(1)
    cuts = [resampled(volume, size, (1.0,) * 3, generator) for _ in range(material.validation)]
    return np.rint(np.stack(cuts)).astype(np.uint8)


def vary(batch: Tensor, generator: torch.Generator) -> Tensor:
    """For each stack a flip and turn, an order of planes, a contrast and a brightness.

    u8 stacks in, float32 in about [-1, 1] out, ``gain * x + offset`` with a gain of .7 to 1.3 and
    an offset of -.2 to .2; the plane of pixel sizes becomes octaves from the reference.
    """
    images, octaves = batch[:, :-1].float() / 127.5 - 1, batch[:, -1:].float() - AT_REFERENCE
    turns = torch.randint(4, (len(batch),), generator=generator).tolist()
    flips = (torch.rand(2, len(batch), generator=generator) < 0.5).tolist()
    turned = []
    for stack, turn, flip, upside in zip(images, turns, *flips, strict=True):
        stack = torch.rot90(stack, turn, (-2, -1))
        axes = [-1] * flip + [0] * upside
        turned.append(stack.flip(axes) if axes else stack)
    gain, offset = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    varied = (0.7 + 0.6 * gain) * torch.stack(turned) + 0.4 * offset - 0.2
    return torch.cat([varied, octaves / STEPS_AN_OCTAVE], dim=1)


def prepare(recipe: dict, table: dict) -> Lesson:
    """The prior that sees depth, on FIB-SEM stacks and serial sections."""
    material, loss = Material(**table), DepthMatching(**settings_of(recipe["objective"]))
    clean = torch.from_numpy(validation_stacks(material)).float() / 127.5 - 1
    planes, octaves = torch.arange(material.planes), torch.zeros(len(clean))

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        """With all planes, and with the middle one alone."""
        numbers = {}
        for ending, present in (("", planes >= 0), ("_alone", planes == material.planes // 2)):
            found = stack_psnr(model, device, loss, clean, octaves, present, VALIDATION_LEVELS)
            numbers.update({f"{name}{ending}": value for name, value in found.items()})
        return numbers

    images = torch.from_numpy(training_stacks(material))
    return Lesson(images, loss, evaluate, *TISSUE, vary, half=True)


def stack_psnr(
    model: nn.Module,
    device: torch.device,
    matching: DepthMatching,
    clean: Tensor,
    octaves: Tensor,
    present: Tensor,
    levels: Sequence[float],
) -> dict[str, float]:
    """PSNR of the middle planes of stacks ``(n, planes, H, W)``, see `denoising_psnr`.

    The network is told the pixel size of each stack, in octaves from the reference (NaN: unknown),
    and which of its planes are present.
    """
    parts = iter(octaves.split(64) * len(levels))  # as `denoising_psnr` asks for them

    def denoise(noisy: Tensor, sigma: float) -> Tensor:
        level, there = noisy.new_full((len(noisy),), sigma), present.to(device)
        with torch.no_grad():
            told = next(parts).to(device)
            return matching.denoise(model, noisy, level, told, there.expand(len(noisy), -1))

    truth = clean[:, clean.shape[1] // 2].to(device)
    return denoising_psnr(denoise, clean.to(device), levels, UNIT_RANGE, UNIT_RANGE, truth)
