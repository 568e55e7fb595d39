"""What every metric asks of its images: numbers, finite, of the right shape."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from emlab.errors import InputError

Image = np.ndarray | Tensor


def as_array(image: Image, least: int, most: int | None = None) -> np.ndarray:
    """Image as float64 array, from NumPy or from torch on any device.

    Parameters
    ----------
    image : ndarray or Tensor
        Any shape with ``least`` to ``most`` axes (any number above ``least`` by default).

    Raises
    ------
    InputError
        Another number of axes, no pixels, or values that are not finite.
    """
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if not least <= values.ndim <= (values.ndim if most is None else most):
        wanted = f"at least {least}" if most is None else " or ".join(map(str, {least, most}))
        raise InputError(f"pass an image of {wanted} axes instead of shape {values.shape}")
    values = values.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        raise InputError("pass an image without NaN or infinity that has at least one pixel")
    return values


def as_pair(first: Image, second: Image, least: int, most: int | None = None) -> list[np.ndarray]:
    """Two images of one shape as float64 arrays; raises as `as_array` does."""
    pair = [as_array(image, least, most) for image in (first, second)]
    if pair[0].shape != pair[1].shape:
        raise InputError(f"pass images of one shape instead of {pair[0].shape}, {pair[1].shape}")
    return pair
