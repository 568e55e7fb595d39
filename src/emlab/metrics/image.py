"""Errors of an estimate whose truth is known, perhaps up to a rotation and a shift."""

from __future__ import annotations

import math

import numpy as np
import skimage
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


WINDOW = 11  # pixels across which SSIM looks: 3.5 standard deviations of 1.5 pixels each way


def check_positive(value: float, name: str = "data_range") -> None:
    """Raise `InputError` for what is not a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive number, got {value}")


def psnr(estimate: Image, truth: Image, data_range: float) -> float:
    r"""Peak signal-to-noise ratio :math:`10 \log_{10}(R^2 / \mathrm{MSE})` in decibels.

    Parameters
    ----------
    estimate, truth : ndarray or Tensor
        One shape, any value range; the error is averaged over all axes.
    data_range : float
        :math:`R`, the width of the range that grey levels may take (255 for 8 bits): not taken
        from the images, so that numbers of different images compare.

    Returns
    -------
    float
        Infinity for a perfect estimate.

    Raises
    ------
    InputError
        Different shapes, values that are not finite, or a range that is not positive.
    """
    check_positive(data_range)
    first, second = as_pair(estimate, truth, 1)
    error = float(np.mean((first - second) ** 2))
    return 10 * math.log10(data_range**2 / error) if error else math.inf


def ssim(estimate: Image, truth: Image, data_range: float) -> float:
    """Mean structural similarity, at most 1.

    The setting of Wang, Bovik, Sheikh and Simoncelli (2004, section III-C): Gaussian weights of
    1.5 pixels standard deviation, constants .01 and .03, population covariance. In scikit-image:
    ``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``. The
    mean leaves out the border of 5 pixels where a window would reach outside.

    Parameters
    ----------
    estimate, truth : ndarray or Tensor
        An image ``(H, W)``, or a volume ``(D, H, W)`` whose windows are three-dimensional; every
        side at least 11 pixels.
    data_range : float
        Width of the range that grey levels may take.

    Raises
    ------
    InputError
        Other or different shapes, values that are not finite, or a range that is not positive.
    """
    check_positive(data_range)
    first, second = as_pair(estimate, truth, 2, 3)
    if min(first.shape) < WINDOW:
        raise InputError(f"SSIM needs sides of {WINDOW} pixels or more: pass a larger image")
    return float(
        skimage.metrics.structural_similarity(
            first,
            second,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def relative_error(estimate: np.ndarray, truth: np.ndarray, max_shift: int = 0) -> float:
    r"""Smallest :math:`\|S_a R_k \hat F - F\| / \|F\|` over quarter turns and shifts.

    Parameters
    ----------
    estimate, truth : ndarray
        ``(L, L)``, any range.
    max_shift : int
        Largest shift along rows and columns in pixels; what leaves the frame is lost, zeros come
        in. 0 is the error of Zabatani, Kreymer and Bendory (2023, eq. 20): rotation only.

    Raises
    ------
    InputError
        Different or non-square shapes, values that are not finite, or a truth of zeros.
    """
    if estimate.shape != truth.shape or truth.ndim != 2 or truth.shape[0] != truth.shape[1]:
        raise InputError(f"need two square images, got {estimate.shape} and {truth.shape}")
    if not (np.isfinite(estimate).all() and np.isfinite(truth).all()):
        raise InputError("the images contain NaN or infinity")
    norm = float(np.linalg.norm(truth))
    if norm == 0:
        raise InputError("the truth is zero everywhere: a relative error has no meaning")
    size = len(truth)
    smallest = np.inf
    for turns in range(4):
        padded = np.pad(np.rot90(estimate, turns), max_shift)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
        distances = np.linalg.norm(windows - truth, axis=(-2, -1))
        smallest = min(smallest, float(distances.min()))
    return smallest / norm


def contrasts(estimate: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    r"""Contrast of images by what the truth shows, so that noise does not raise it.

    ``contrast``, relative, is the slope of the estimate over the truth, 1 for all of the truth's.
    ``michelson`` is :math:`(b - d)/(b + d)` (Michelson 1927) with b and d the mean of the estimate
    where the truth lies above and below its own mean. Estimates are given the mean of the truth.

    Parameters
    ----------
    estimate, truth : ndarray
        ``(..., H, W)`` of one unit, the truth not constant.

    Returns
    -------
    dict of ndarray
        ``(...)`` each, float64.
    """
    shown, true = as_pair(estimate, truth, 2)
    level = true.mean((-2, -1), keepdims=True)
    if (true == level).all((-2, -1)).any():
        raise InputError("a truth without contrast has none to be compared with")
    shown, true = shown - shown.mean((-2, -1), keepdims=True), true - level
    bright = true > 0
    high, low = (
        ((shown + level) * mask).sum((-2, -1)) / mask.sum((-2, -1)) for mask in (bright, ~bright)
    )
    slope = (shown * true).sum((-2, -1)) / np.square(true).sum((-2, -1))
    return {"contrast": slope, "michelson": (high - low) / (high + low)}
