"""How the electron-microscopy prior is trained: patches, grey-level jitter, validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emlab import data
from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.priors.networks import wrap
from emlab.priors.objectives import FlowMatching
from emlab.recipes.lesson import Lesson, denoising_psnr, settings_of

# Planes of the isotropic volume (axis 0) and sections of the serial-section stack.
TRAINING_PLANES, VALIDATION_PLANES = slice(0, 152), slice(160, 180)
TRAINING_SECTIONS = slice(0, 18)
# For cards: between the planes lie eight unused ones, and the test volumes are never opened.
TISSUE = (
    "flyem_validation_train, isbi2012",
    "planes 0-151 and sections 0-17; validation on planes 160-179",
)
VALIDATION_LEVELS = (0.1, 0.25)  # in units of the grey range
UNIT_RANGE = 2.0  # networks see grey levels 0..255 as -1..1


@dataclass(frozen=True)
class Material:
    """How many patches of which size a network sees.

    Attributes
    ----------
    patch : int
        Side of the square patches, in pixels.
    patches : int
        Training patches, drawn once; nine tenths from the isotropic volume.
    validation : int
        Validation patches.
    """

    patch: int = 64
    patches: int = 40_000
    validation: int = 96

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patch < 16 or self.patches < 10 or self.validation < 1:
            raise InputError("training material needs patch >= 16, patches >= 10, validation >= 1")


def training_patches(material: Material, seed: int = 0) -> NDArray[np.uint8]:
    """Patches ``(n, patch, patch)`` u8 of all three axes of the volume and of the sections."""
    generator = np.random.default_rng(seed)
    volume = data.load("flyem_validation_train").arrays["volume"][TRAINING_PLANES]
    sections = data.load("isbi2012").arrays["volume"][TRAINING_SECTIONS]
    of_sections = material.patches // 10
    isotropic = [
        _cut(np.moveaxis(volume, axis, 0), material.patch, count, generator)
        for axis, count in enumerate(_thirds(material.patches - of_sections))
    ]
    return np.concatenate([*isotropic, _cut(sections, material.patch, of_sections, generator)])


def validation_patches(material: Material) -> NDArray[np.uint8]:
    """Patches ``(n, patch, patch)`` u8 from planes of the volume that training does not touch."""
    volume = data.load("flyem_validation_train").arrays["volume"][VALIDATION_PLANES]
    return _cut(volume, material.patch, material.validation, np.random.default_rng(1))


def jitter(batch: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight flips and turns, and for each image a contrast and a brightness.

    u8 patches in, float32 in about [-1, 1] out: ``gain * x + offset`` with a gain of .7 to 1.3 and
    an offset of -.2 to .2.
    """
    images = batch.float() / 127.5 - 1
    turns, flip = torch.randint(4, (), generator=generator), torch.rand((), generator=generator)
    images = torch.rot90(images, int(turns), (1, 2))
    if flip < 0.5:
        images = images.flip(-1)
    gain, offset = torch.rand(2, len(images), 1, 1, generator=generator)
    return (0.7 + 0.6 * gain) * images + 0.4 * offset - 0.2


def prepare(recipe: dict, table: dict) -> Lesson:
    """The flow prior on FIB-SEM and serial-section patches."""
    material, objective = Material(**table), recipe["objective"]
    clean = torch.from_numpy(validation_patches(material)).float() / 127.5 - 1

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        denoise = wrap(model, objective).denoise
        return denoising_psnr(denoise, clean.to(device), VALIDATION_LEVELS, UNIT_RANGE, UNIT_RANGE)

    images, loss = training_patches(material), FlowMatching(**settings_of(objective))
    return Lesson(torch.from_numpy(images), loss, evaluate, *TISSUE, jitter)


def _cut(
    stack: NDArray[np.uint8], patch: int, count: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    planes, height, width = stack.shape
    if min(height, width) < patch:
        raise InputError(f"patches of {patch} do not fit into planes of {height} x {width}")
    z = generator.integers(planes, size=count)
    y = generator.integers(height - patch + 1, size=count)
    x = generator.integers(width - patch + 1, size=count)
    window = np.lib.stride_tricks.sliding_window_view(stack, (patch, patch), axis=(1, 2))
    return window[z, y, x]


def _thirds(count: int) -> list[int]:
    return [(count + 2) // 3, (count + 1) // 3, count // 3]
