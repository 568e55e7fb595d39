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
from emlab.recipes.lesson import Lesson

# Planes of the isotropic volume (axis 0) and sections of the serial-section stack.
TRAINING_PLANES, VALIDATION_PLANES = slice(0, 152), slice(160, 180)
TRAINING_SECTIONS = slice(0, 18)
VALIDATION_LEVELS = (0.1, 0.25)


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
    """The flow prior on FIB-SEM and serial-section patches.

    Numbers on the card come from planes that no training patch touches, eight unused planes
    after the last that one does. The test volumes are never opened.
    """
    material, objective = Material(**table), recipe["objective"]
    loss = FlowMatching(**{key: value for key, value in objective.items() if key != "kind"})
    validation = torch.from_numpy(validation_patches(material)).float() / 127.5 - 1

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return _denoising_psnr(model, objective, validation.to(device))

    return Lesson(
        torch.from_numpy(training_patches(material)),
        loss,
        evaluate,
        "flyem_validation_train, isbi2012",
        "planes 0-151 and sections 0-17; validation on planes 160-179",
        jitter,
    )


def _denoising_psnr(model: nn.Module, objective: dict, images: Tensor) -> dict[str, float]:
    """PSNR in dB after one evaluation, by noise level in units of the grey range."""
    prior, generator = wrap(model, objective), torch.Generator().manual_seed(0)
    numbers = {}
    for level in VALIDATION_LEVELS:
        sigma = 2 * level
        noisy = images + sigma * torch.randn(images.shape, generator=generator).to(images.device)
        error = (prior.denoise(noisy, sigma) - images).square().mean((1, 2))
        numbers[f"denoising_psnr_at_{level:g}"] = (10 * torch.log10(4 / error)).mean().item()
    return numbers


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
