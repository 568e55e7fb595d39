"""The three ways in which Cellpose3 spoils images: noise, blur and undersampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from emlab.errors import InputError

DIAMETER_UNIT = 30.0  # blur scales are in units of diameter / 30
PROBABILITY = 0.8
_SMALLEST_BLUR = 0.05  # pixels


@dataclass(frozen=True)
class Task:
    """Distribution of the degradation in training (Stringer & Pachitariu, Cellpose3, methods).

    Attributes
    ----------
    blur : tuple of float or None
        Range of the blur scale, uniform; the standard deviation is ``diameter / 30`` times that.
    factors : tuple of int or None
        Smallest and largest factor of decimation.
    rate : float
        Rate of the Gamma distribution of shape 4 from which the Poisson scale is drawn (at least
        1); 4 over this is its mean.
    """

    blur: tuple[float, float] | None
    factors: tuple[int, int] | None
    rate: float


TASKS = {
    "denoise": Task(None, None, 0.7),
    "deblur": Task((1.0, 10.0), None, 0.1),
    "upsample": Task((1.0, 5.0), (2, 7), 0.03),
}
# Ours: as far as the test images must be spoilt until half of their objects are lost.
STRONG_TASKS = {
    "deblur_strong": Task((1.0, 14.0), None, 0.1),
    "upsample_strong": Task((1.0, 12.0), (2, 12), 0.03),
}


def degrade(
    images: Tensor, task: str, generator: torch.Generator, diameter: float = 17.0
) -> Tensor:
    """Degrade at random as in training: each part with probability .8, other strength per image.

    Parameters
    ----------
    images : Tensor
        ``(n, H, W)``, clean, in about [0, 1], not negative.
    task : str
        A key of `TASKS` or `STRONG_TASKS`.
    generator : torch.Generator
        On the CPU.
    diameter : float
        Of the objects, in pixels.

    Returns
    -------
    Tensor
        ``(n, H, W)``, 0 and 1 at the 1st and 99th percentile of each image.
    """
    chosen = _task(task, TASKS | STRONG_TASKS)
    degraded = []
    for image in images:
        happens = torch.rand(3, generator=generator) < PROBABILITY
        strength = torch.rand(2, generator=generator).tolist()
        if chosen.blur is not None and happens[0]:
            low, high = chosen.blur
            image = blur(image, diameter / DIAMETER_UNIT * (low + (high - low) * strength[0]))
        if chosen.factors is not None and happens[1]:
            low_factor, high_factor = chosen.factors
            factor = low_factor + int(strength[1] * (high_factor - low_factor + 1))
            image = decimate(image, factor)
        if happens[2]:
            # a Gamma variable of shape 4 is the sum of four exponential ones
            draws = -torch.log1p(-torch.rand(4, generator=generator, dtype=torch.float64))
            image = shoot(image, max(1.0, draws.sum().item() / chosen.rate), generator)
        degraded.append(normalise(image))
    return torch.stack(degraded)


def degrade_fixed(
    image: Tensor, task: str, level: float, generator: torch.Generator, diameter: float = 17.0
) -> Tensor:
    """Degrade one image with a strength of choice, as for the tests of Cellpose3.

    Parameters
    ----------
    image : Tensor
        ``(H, W)``.
    task : str
        A key of `TASKS`.
    level : float
        "denoise": Poisson scale (smaller is noisier); "deblur": blur scale, 0 for none, then
        Poisson noise of the mean scale of training; "upsample": factor of decimation from 1, after
        a blur of half a factor (in pixels) and before Poisson noise of the mean scale of training.

    Returns
    -------
    Tensor
        ``(H, W)``, 0 and 1 at the 1st and 99th percentile.
    """
    chosen = _task(task, TASKS)
    if not level > 0 and not (task == "deblur" and level == 0):
        raise InputError(f"the level of {task!r} must be positive, got {level}")
    if task == "denoise":
        return normalise(shoot(image, level, generator))
    if task == "deblur":
        image = blur(image, diameter / DIAMETER_UNIT * level)
    else:
        if level != int(level):
            raise InputError(f"the factor of decimation must be a whole number, got {level}")
        image = decimate(blur(image, level / 2 if level > 1 else 0.0), int(level))
    return normalise(shoot(image, 4 / chosen.rate, generator))


def blur(image: Tensor, sigma: float) -> Tensor:
    """Convolve ``(H, W)`` with a Gaussian of standard deviation `sigma` pixels, edges reflected.

    The kernel ends at four standard deviations, or where the image does.
    """
    if not 0 <= sigma < float("inf"):
        raise InputError(f"the standard deviation of a blur must be at least 0, got {sigma}")
    if sigma < _SMALLEST_BLUR:
        return image
    for axis in (-2, -1):
        radius = min(int(4 * sigma + 0.5), image.shape[axis] - 1)
        place = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
        kernel = torch.exp(-0.5 * (place / sigma) ** 2)
        padding = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        padded = functional.pad(image[None, None], padding, mode="reflect")
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        image = functional.conv2d(padded, (kernel / kernel.sum()).view(shape))[0, 0]
    return image


def decimate(image: Tensor, factor: int) -> Tensor:
    """Keep every `factor`-th pixel of ``(H, W)`` and interpolate linearly back to its size."""
    if factor < 1 or factor >= min(image.shape):
        raise InputError(f"a factor from 1 to below {min(image.shape)} is needed, got {factor}")
    few = image[::factor, ::factor]
    fine = functional.interpolate(
        few[None, None], size=tuple(image.shape), mode="bilinear", align_corners=False
    )
    return fine[0, 0]


def shoot(image: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Poisson counts with the mean ``scale * image`` (negative values count as 0)."""
    if not 0 < scale < float("inf"):
        raise InputError(f"the Poisson scale must be positive, got {scale}")
    mean = (scale * image).clamp(min=0)
    return torch.poisson(mean.cpu(), generator=generator).to(image)


def normalise(image: Tensor, low: float = 0.01, high: float = 0.99) -> Tensor:
    """Map the quantiles of ``(H, W)`` to 0 and 1; a constant image becomes 0."""
    flat = image.flatten().float().sort().values  # torch.quantile ends at 16 million pixels
    places = torch.tensor([low, high], dtype=torch.float64) * (len(flat) - 1)
    below = places.floor().long()
    above, part = places.ceil().long(), (places - below).to(flat)
    bottom, top = torch.lerp(flat[below], flat[above], part).unbind()
    width = top - bottom
    return (image - bottom) / width if width > 0 else torch.zeros_like(image)


def _task(task: str, known: Mapping[str, Task]) -> Task:
    if task not in known:
        raise InputError(f"unknown degradation {task!r}; choose one of {', '.join(known)}")
    return known[task]
