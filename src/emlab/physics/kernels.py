"""Blur kernels ``(k, k)``: odd, non-negative, sum 1, centred on the middle pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from emlab.errors import InputError


def delta_kernel(size: int = 1) -> Tensor:
    """No blur at all: 1 in the middle of ``(size, size)``, float32.

    Raises
    ------
    InputError
        A size that is not odd and positive.
    """
    _check_odd(size)
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


def gaussian_kernel(sigma_px: float, size: int | None = None) -> Tensor:
    """Gaussian sampled at the pixel centres, float32.

    Parameters
    ----------
    sigma_px : float
        Standard deviation in pixels; 0 gives the delta.
    size : int, optional
        Odd side; four standard deviations to each side by default.

    Raises
    ------
    InputError
        Negative or infinite sigma, or a size that is not odd and positive.
    """
    if not 0 <= sigma_px < math.inf:
        raise InputError(f"the sigma of a blur must be 0 or more pixels, got {sigma_px}")
    side = 2 * math.ceil(4 * sigma_px) + 1 if size is None else size
    _check_odd(side)
    if sigma_px == 0:
        return delta_kernel(side)
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    profile = (-0.5 * (offsets / sigma_px).square()).exp()
    kernel = torch.outer(profile, profile)
    return (kernel / kernel.sum()).float()


def defocus_kernel(radius_px: float) -> Tensor:
    """Disc of confusion of an out-of-focus lens: each pixel weighs its area inside the circle.

    Parameters
    ----------
    radius_px : float
        Radius in pixels, not necessarily whole; 0 gives the delta.

    Returns
    -------
    Tensor
        float32, the smallest odd square that holds the disc.

    Raises
    ------
    InputError
        Negative or infinite radius.
    """
    if not 0 <= radius_px < math.inf:
        raise InputError(f"the radius of a defocus must be 0 or more pixels, got {radius_px}")
    if radius_px == 0:
        return delta_kernel()
    reach, fine = max(math.ceil(radius_px - 0.5), 0), 128
    pixels = torch.arange(-reach, reach + 1, dtype=torch.float64)
    # Exact down each of many thin columns, midpoint rule across them.
    columns = pixels[:, None] + (torch.arange(fine, dtype=torch.float64) + 0.5) / fine - 0.5
    half = (radius_px**2 - columns.square()).clamp(min=0).sqrt()[..., None]
    inside = torch.minimum(half, pixels + 0.5) - torch.maximum(-half, pixels - 0.5)
    area = inside.clamp(min=0).mean(1)
    area = area + area.T
    return (area / area.sum()).float()


def _check_odd(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise InputError(f"a kernel has an odd number of pixels a side, got {size}")
