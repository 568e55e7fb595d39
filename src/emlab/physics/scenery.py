"""What else is in a micrograph: carbon edges, ice crystals, structured background."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from emlab.errors import InputError

_HOLE_PIXELS = 2300.0  # a hole of 1.2 micrometres seen at 2.6 A a pixel


def power_law_field(shape: tuple[int, int], exponent: float, generator: torch.Generator) -> Tensor:
    r"""Gaussian random field of unit variance and zero mean with amplitude :math:`k^{-p}`.

    Parameters
    ----------
    exponent : float
        p; 0 is white, the larger the smoother.
    """
    spectrum = torch.fft.rfft2(torch.randn(shape, generator=generator))
    rows, columns = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])
    frequency = torch.hypot(rows, columns)
    frequency[0, 0] = math.inf
    field = torch.fft.irfft2(spectrum * frequency ** -float(exponent), s=shape)
    return (field - field.mean()) / field.std()


def hole_edge(
    shape: tuple[int, int], share: float, border: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Carbon film beside a round hole.

    Parameters
    ----------
    share : float
        Of the field that the film covers, in [0, 1); 0 is no film at all.
    border : int
        Pixels around the field that do not count in the share.

    Returns
    -------
    film, phase : Tensor
        ``(H, W)`` in {0, 1}; and the same with a soft edge and without its mean, for the fringe.
    """
    if not 0 <= share < 1:
        raise InputError(f"the share of carbon must be in [0, 1), got {share}")
    if share == 0:
        return torch.zeros(shape), torch.zeros(shape)
    angle = 2 * math.pi * torch.rand((), generator=generator).item()
    rows, columns = (torch.arange(side) - side / 2 for side in shape)
    y = rows[:, None] + _HOLE_PIXELS * math.sin(angle)
    distance = torch.hypot(y, columns + _HOLE_PIXELS * math.cos(angle))
    inner = distance[border : shape[0] - border, border : shape[1] - border]
    edge = inner.flatten().sort().values[int((1 - share) * (inner.numel() - 1))]
    film = (distance > edge).float()
    soft = torch.sigmoid((distance - edge) / 1.5)
    return film, soft - soft.mean()


def blobs(
    shape: tuple[int, int],
    count: int,
    border: int,
    pixel_size_angstrom: float,
    generator: torch.Generator,
) -> Tensor:
    """Height in angstrom of ice crystals on the surface: clusters of flattened balls.

    Parameters
    ----------
    count : int
        Crystals, 150 to 500 A across, centred on the field.
    border : int
        Pixels around the field in which no crystal is centred.
    """
    height = torch.zeros(shape)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in shape)
    for _ in range(count):
        place = torch.rand(2, generator=generator)
        centre = border + place * (torch.tensor(shape) - 2 * border)
        radius = (75 + 175 * torch.rand((), generator=generator)) / pixel_size_angstrom
        for _ in range(4):
            y, x = centre + 0.5 * radius * torch.randn(2, generator=generator)
            size = radius * (0.4 + 0.4 * torch.rand((), generator=generator))
            square = ((rows[:, None] - y).square() + (columns - x).square()) / size**2
            ball = (1 - square).clamp_min(0).sqrt() * size * pixel_size_angstrom
            height = torch.maximum(height, ball)
    return functional.avg_pool2d(height[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
