"""Errors of an image that is known only up to rotation, or rotation and shift."""

import numpy as np

from emlab.errors import InputError


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
