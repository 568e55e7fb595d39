"""Images of cells with instance labels: real nuclei, other real domains, and simulated nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from emlab.data.access import load
from emlab.errors import InputError

SPLITS = ("train", "validation", "test")
DOMAINS = ("dsb2018", "stardist", "plant", "bacteria")
VALIDATION_IMAGES = 48
_BACTERIA = ("caulobacter", "e1t1", "ecoli")


@dataclass(frozen=True)
class Cell:
    """One image and its objects.

    Attributes
    ----------
    image : ndarray
        ``(H, W)`` float32, 0 and 1 at the 1st and 99th percentile, nothing below 0.
    labels : ndarray
        ``(H, W)`` int32, numbered from 1 without gaps; 0 is background.
    domain : str
        One of `DOMAINS`, or "simulated".
    """

    image: NDArray[np.float32]  #: (H, W), 0 and 1 at the 1st and 99th percentile, nothing below 0
    labels: NDArray[np.int32]  #: (H, W), numbered from 1 without gaps; 0 is background
    name: str
    domain: str  #: one of `DOMAINS`, or "simulated"


def cells(name: str = "dsb2018", split: str = "train") -> list[Cell]:
    """Images of one domain.

    Nuclei ("dsb2018"): the files of the test set are the test images; 48 images of the training
    set, drawn once, are for validation. The other domains have an image or three: their left 60 %
    are for training, the right 35 % for testing, and nothing for validation (labels of the bacteria
    are the output of a model).

    Parameters
    ----------
    name, split
        One of `DOMAINS`, and one of `SPLITS`.

    Raises
    ------
    InputError
        Unknown domain or split, or no validation images in that domain.
    DataUnavailableError
        The files are not on this machine.
    """
    if name not in DOMAINS or split not in SPLITS:
        raise InputError(
            f"cells come from {', '.join(DOMAINS)}, split {', '.join(SPLITS)}; got {name!r}, "
            f"{split!r}"
        )
    if name == "dsb2018":
        return _nuclei(split)
    if split == "validation":
        raise InputError(f"{name} has too few images for a validation split; use dsb2018")
    return [_half(cell, split) for cell in _whole(name)]


def simulated_cells(n: int, seed: int, side: int = 128) -> list[Cell]:
    """Simulated nuclei: ellipses of uneven brightness that touch but do not overlap.

    Parameters
    ----------
    side : int
        Width and height in pixels, at least 48.
    """
    if n < 1 or side < 48:
        raise InputError(f"simulated cells need n >= 1 and a side >= 48, got {n} and {side}")
    generator = np.random.default_rng(seed)
    return [_simulated(generator, side, f"simulated_{seed}_{k}") for k in range(n)]


def normalised(image: NDArray) -> NDArray[np.float32]:
    """Map the percentiles 1 and 99 to 0 and 1 (a constant image becomes 0)."""
    bottom, top = np.percentile(image, (1.0, 99.0))
    width = float(top) - float(bottom)
    scaled = (image.astype(np.float32) - np.float32(bottom)) / np.float32(width if width else 1)
    return scaled if width > 0 else np.zeros_like(scaled)


def _cell(image: NDArray, labels: NDArray, name: str, domain: str) -> Cell:
    values, numbered = np.unique(labels, return_inverse=True)
    if values[0] != 0:
        raise InputError(f"the labels of {name} have no background")
    clean = normalised(image).clip(min=0)
    return Cell(clean, numbered.reshape(labels.shape).astype(np.int32), name, domain)


def _nuclei(split: str) -> list[Cell]:
    found = load("nuclei_test" if split == "test" else "nuclei_train")
    chosen = np.arange(len(found["images"]))
    if split != "test":
        held_out = np.random.default_rng(2018).permutation(chosen)[:VALIDATION_IMAGES]
        keep = np.isin(chosen, held_out)
        chosen = chosen[keep if split == "validation" else ~keep]
    return [
        _cell(found["images"][k], found["labels"][k], str(found["identifiers"][k]), "dsb2018")
        for k in chosen
    ]


def _whole(name: str) -> list[Cell]:
    if name == "stardist":
        found = load("stardist_2d")
        return [_cell(found["image"], found["labels"], "img2d", name)]
    if name == "plant":
        found = load("maize")
        labels = found["labels"].astype(np.int64) - 1  # 1 is what lies around the plant
        return [_cell(found["image"], labels, "maize_clsm", name)]
    found = load("omnipose")
    return [_cell(found[key], found[f"{key}_masks"], key, name) for key in _BACTERIA]


def _half(cell: Cell, split: str) -> Cell:
    width = cell.image.shape[1]
    side = slice(0, int(0.6 * width)) if split == "train" else slice(int(0.65 * width), width)
    labels = np.unique(cell.labels[:, side], return_inverse=True)[1]
    part = cell.image[:, side]
    return Cell(part, labels.reshape(part.shape).astype(np.int32), cell.name, cell.domain)


def _simulated(generator: np.random.Generator, side: int, name: str) -> Cell:
    y, x = np.mgrid[:side, :side]
    labels, light = np.zeros((side, side), np.int32), np.zeros((side, side), np.float32)
    texture = scipy.ndimage.gaussian_filter(generator.standard_normal((side, side)), 2)
    texture /= texture.std()
    for _ in range(int(side**2 / 500)):
        middle_y, middle_x = generator.uniform(0, side, 2)
        long, short = generator.uniform(7, 11), generator.uniform(5.5, 8)
        angle, brightness = generator.uniform(0, np.pi), generator.uniform(0.4, 1)
        dy, dx = y - middle_y, x - middle_x
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        distance = (along / long) ** 2 + (across / short) ** 2
        if (inside := (distance < 1)).sum() > 40 and not labels[distance < 1.1].any():
            labels[inside] = labels.max() + 1
            light[inside] = (brightness * (1 + 0.12 * texture))[inside]
    glow = scipy.ndimage.gaussian_filter(light, 6)
    image = scipy.ndimage.gaussian_filter(light, 0.8) + 0.15 * glow + 0.02
    return _cell(image, labels, name, "simulated")
