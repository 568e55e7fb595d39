"""Whether the borders of tiles can be seen in what was stitched from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emlab.errors import InputError
from emlab.metrics.arrays import Image, as_array


def seam_index(
    image: Image, positions: Sequence[int], axis: int, reference: Image | None = None
) -> float:
    """Mean absolute difference across all tile borders over that of all other neighbours.

    1 means that borders are like any other place, more that they show, less that they are
    smoothed. A border cuts through whatever the specimen shows there, so that single borders of a
    seamless image scatter around 1 (a few per cent for borders of a thousand pixels). Divide by a
    reference to remove that.

    Parameters
    ----------
    image : ndarray or Tensor
        ``(..., H, W)`` or ``(..., D, H, W)``, any value range.
    positions : sequence of int
        Borders along the axis: ``p`` stands between pixels ``p - 1`` and ``p``.
    axis : int
        Axis that the borders cut.
    reference : ndarray or Tensor, optional
        The same content without borders at these positions, for example stitched from other
        tiles: the index is divided by that of this image.

    Raises
    ------
    InputError
        No border, a border outside the image, borders everywhere, or an image that is constant
        away from them.
    """
    return float(border_indices(image, positions, axis, reference, pooled=True)[0])


def border_indices(
    image: Image,
    positions: Sequence[int],
    axis: int,
    reference: Image | None = None,
    *,
    pooled: bool = False,
) -> np.ndarray:
    """`seam_index` of each border: ``(borders,)`` in the order of the positions.

    Parameters
    ----------
    pooled : bool
        One index of all borders together, ``(1,)``.
    """
    indices = _indices(as_array(image, 2), positions, axis, pooled)
    if reference is None:
        return indices
    if tuple(reference.shape) != tuple(image.shape):
        raise InputError("the reference of a seam index must have the shape of the image")
    return indices / _indices(as_array(reference, 2), positions, axis, pooled)


def _indices(image: np.ndarray, positions: Sequence[int], axis: int, pooled: bool) -> np.ndarray:
    if not -image.ndim <= axis < image.ndim:
        raise InputError(f"the image has {image.ndim} axes, there is no axis {axis}")
    steps = np.abs(np.diff(image, axis=axis))
    steps = np.moveaxis(steps, axis, 0).reshape(image.shape[axis] - 1, -1).mean(axis=1)
    borders = np.array(positions, dtype=int) - 1
    if not borders.size or borders.min() < 0 or borders.max() >= len(steps):
        raise InputError(f"pass tile borders between 1 and {len(steps)} along axis {axis}")
    elsewhere = np.delete(steps, borders)
    if not elsewhere.size or elsewhere.mean() == 0:
        raise InputError("a seam index needs contrast away from the borders, here there is none")
    at_borders = steps[borders]
    return (at_borders.mean(keepdims=True) if pooled else at_borders) / elsewhere.mean()
