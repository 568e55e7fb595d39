"""The prior of tissue, trained further on a user's own images, with a part of each held out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emlab import models, weights
from emlab.errors import InputError
from emlab.io import read_image
from emlab.methods.generalist import KNOWN_ANGSTROM, GreyScale
from emlab.physics.noise_estimation import estimate_noise_sigma
from emlab.priors.depth import REFERENCE_ANGSTROM, DepthMatching
from emlab.recipes.generalist import (
    AT_REFERENCE,
    NAME,
    STEPS_AN_OCTAVE,
    Material,
    code,
    resampled,
    stack_psnr,
    vary,
)
from emlab.recipes.lesson import Lesson, settings_of, train_recipe

SUFFIXES = (".mrc", ".tif", ".tiff", ".png", ".npy")
LEVELS = (0.1, 0.25)  # of noise that is added to what was held out, in units of the grey range
GAP = 8  # rows between what is trained on and what is held out


def train_on(
    folder: Path,
    profile: str = "cpu",
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
) -> weights.Card | None:
    """Go on from the shipped weights on the images of a folder, and say what that gained.

    The last fifth of the rows of each image is held out. The card's ``gain_at_LEVEL`` is in dB of
    one denoising there, over the shipped weights. Images teach their own noise, too: give the
    least noisy ones.

    Raises
    ------
    InputError
        No images, or images that are too small.
    """
    command = f"emlab train {NAME} --images {folder.name} --profile {profile}"
    prepare = partial(prepare_own, Path(folder))
    told = {"section": "tuning", "command": command}
    return train_recipe("generalist", NAME, prepare, profile, device, out, resume, **told)


def prepare_own(folder: Path, recipe: dict, table: dict) -> Lesson:
    """Stacks of a user's images: neighbours where all are volumes, planes alone otherwise."""
    material, card = Material(**table), weights.card(NAME)
    images = [_units(path, material) for path in _files(folder)]
    deep = all(len(volume) >= material.planes for volume, _ in images)
    named = all(pixel is not None for _, pixel in images)
    matching = DepthMatching(**settings_of(card.objective))
    if not deep:
        matching = replace(matching, alone=1.0)
    if not named:
        matching = replace(matching, nameless=1.0)
    generator = np.random.default_rng(0)
    rows = [max(material.patch, volume.shape[1] // 5) for volume, _ in images]
    held = [(volume[:, -n:], pixel) for n, (volume, pixel) in zip(rows, images, strict=True)]
    kept = [(volume[:, : -n - GAP], pixel) for n, (volume, pixel) in zip(rows, images, strict=True)]
    training = _stacks(kept, material, material.stacks, generator)
    checked = torch.from_numpy(_stacks(held, material, material.validation, generator)).float()
    clean, octaves = checked[:, :-1] / 127.5 - 1, (checked[:, -1, 0, 0] - AT_REFERENCE)
    octaves = octaves / STEPS_AN_OCTAVE if named else octaves * torch.nan
    seen = (torch.arange(material.planes) == material.planes // 2) | deep

    def judge(model: nn.Module, device: torch.device) -> dict[str, float]:
        return stack_psnr(model, device, matching, clean, octaves, seen, LEVELS)

    before = judge(models.load(NAME)[0], torch.device("cpu"))

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        found = judge(model, device)
        gains = {key.replace("denoising_psnr", "gain"): found[key] - before[key] for key in found}
        return {**found, **gains}

    return Lesson(
        torch.from_numpy(training), matching, evaluate,
        f"{len(images)} images of {folder.name}", "all rows but the last fifth, held out", vary,
        NAME, half=True,
    )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with images ({', '.join(SUFFIXES)})")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(f"{folder} holds no images; give {', '.join(SUFFIXES)}")
    return files


def _units(path: Path, material: Material) -> tuple[NDArray[np.uint8], float | None]:
    """A file as ``(D, H, W)`` at the grey levels of training tissue, and its pixel size."""
    image = read_image(path)
    grey = image.pixels.astype(np.float32)
    least = 2 * material.patch + GAP
    if grey.ndim > 3 or grey.shape[-2] < least or grey.shape[-1] < material.patch:
        raise InputError(
            f"{path} has the shape {grey.shape}; images or volumes of at least {least} rows and "
            f"{material.patch} columns can be trained on and checked"
        )
    volume = grey.reshape(-1, *grey.shape[-2:])
    units = GreyScale.of(volume, estimate_noise_sigma(volume)).to_units(volume, "cpu").numpy()
    size = image.pixel_size_angstrom
    pixel = size[-1] if isinstance(size, tuple) else size
    known = pixel is not None and KNOWN_ANGSTROM[0] <= pixel <= KNOWN_ANGSTROM[1]
    return np.rint(127.5 * (units + 1)).clip(0, 255).astype(np.uint8), pixel if known else None


def _stacks(
    images: list[tuple[NDArray[np.uint8], float | None]],
    material: Material,
    count: int,
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """As `emlab.recipes.generalist.training_stacks`; fewer planes than a stack's are repeated."""
    size = (material.planes, material.patch, material.patch)
    stacks = np.empty((count, material.planes + 1, *size[1:]), np.uint8)
    for stack in stacks:
        volume, pixel = images[generator.integers(len(images))]
        planes = material.planes if len(volume) >= material.planes else 1  # one is repeated
        stack[:-1] = resampled(volume, (planes, *size[1:]), (1.0,) * 3, generator)
        stack[-1] = code(pixel or REFERENCE_ANGSTROM)
    return stacks
