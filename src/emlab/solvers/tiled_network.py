"""A network applied to an image of any size, in overlapping tiles where it is large."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.solvers.tiling import blend_weights, tile_positions


@torch.no_grad()
def apply_tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, tile: int = 512, overlap: int = 96
) -> Tensor:
    """Answers of `network` for an image, blended over tiles so that no seam is left.

    Parameters
    ----------
    network : callable
        Maps ``(1, h, w)`` to ``(1, outputs, h, w)``.
    image : Tensor
        ``(H, W)``; an image no larger than a tile is given to the network whole.
    tile, overlap : int
        Side of a tile and pixels that neighbours share at least.

    Returns
    -------
    Tensor
        ``(outputs, H, W)``.
    """
    if image.ndim != 2 or image.numel() == 0:
        raise InputError(f"tiles are cut from an image (H, W), got shape {tuple(image.shape)}")
    sides = [min(tile, length) for length in image.shape]
    places = [
        tile_positions(length, side, min(overlap, side - 1))
        for length, side in zip(image.shape, sides, strict=True)
    ]
    weights = [
        blend_weights(place, side).to(image) for place, side in zip(places, sides, strict=True)
    ]
    blended = torch.zeros(())
    for (i, y), (j, x) in product(enumerate(places[0]), enumerate(places[1])):
        answer = network(image[None, y : y + sides[0], x : x + sides[1]])[0]
        if blended.ndim == 0:
            blended = answer.new_zeros(len(answer), *image.shape)
        weight = weights[0][i][:, None] * weights[1][j]
        blended[:, y : y + sides[0], x : x + sides[1]] += weight * answer
    return blended
