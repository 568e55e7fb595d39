"""Bring a restored image onto another image of the same field before it is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
import skimage

from emlab.errors import InputError
from emlab.metrics.image import Image, as_array

MATCHES = 8  # agreeing SIFT matches that make a shift believable
TOLERANCE = 2.0  # pixels within which matches agree
RADIUS = 16  # pixels; the flow is constant over windows of this radius


@dataclass(frozen=True)
class Registered:
    """An image that was moved onto another, and how.

    Attributes
    ----------
    image : ndarray
        ``(H, W)`` float64 in the grey levels of the moving image.
    shift : ndarray
        ``(2,)`` rows and columns in pixels by which the moving image was displaced; a positive
        shift moves it down and to the right.
    flow : ndarray
        ``(2, H, W)`` what was displaced on top of the shift, same sign; zeros without flow.
    valid : ndarray of bool
        ``(H, W)`` False where the pixel comes from outside of the moving image: score the others.
    matches : int
        SIFT matches that agree with the shift.
    """

    image: np.ndarray
    shift: np.ndarray
    flow: np.ndarray
    valid: np.ndarray
    matches: int


def register(moving: Image, fixed: Image, *, flow: bool = True) -> Registered:
    """Register by the common shift of SIFT matches, then by optical flow.

    SIFT (Lowe, 2004) with scikit-image's settings, without doubling the image first; only matches
    whose second best is at least a quarter further away; the shift is the median of the largest
    group that agrees within 2 pixels. Iterative Lucas-Kanade flow (Le Besnerais and Champagnat,
    2005) over windows of 16 pixels radius. Both are applied in one cubic interpolation. Meant for
    *restored* images: of a raw one it would smooth the noise.

    Parameters
    ----------
    moving, fixed : ndarray or Tensor
        ``(H, W)``, any grey levels, each side at least 64 pixels.
    flow : bool
        False leaves it at the shift: a rigid answer, which cannot fit itself to the noise of the
        fixed image.

    Raises
    ------
    InputError
        Different or too small images, values that are not finite, no contrast, or fewer than 8
        matches that agree.
    """
    pair = [as_array(image, 2, 2) for image in (moving, fixed)]
    if pair[0].shape != pair[1].shape or min(pair[0].shape) < 64:
        raise InputError("pass two images of one shape with sides of 64 pixels or more")
    if min(np.ptp(image) for image in pair) == 0:
        raise InputError("a constant image cannot be registered: pass one with contrast")
    source, target = ((image - image.mean()) / image.std() for image in pair)
    shift, matches = _common_shift(source, target)
    residual = np.zeros((2, *source.shape))
    if flow:
        moved, _ = _displace(source, np.zeros_like(residual) + shift[:, None, None])
        residual = -skimage.registration.optical_flow_ilk(target, moved, radius=RADIUS)
    image, valid = _displace(pair[0], residual + shift[:, None, None])
    return Registered(image, shift, residual, valid, matches)


def _displace(image: np.ndarray, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.indices(image.shape) - displacement
    last = np.array(image.shape)[:, None, None] - 1
    valid = ((places >= 0) & (places <= last)).all(axis=0)
    return scipy.ndimage.map_coordinates(image, places, order=3, mode="nearest"), valid


def _common_shift(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int]:
    (here, first), (there, second) = _keypoints(source), _keypoints(target)
    pairs = skimage.feature.match_descriptors(first, second, max_ratio=0.8, cross_check=True)
    if not len(pairs):
        raise _too_few(0)
    steps = there[pairs[:, 1]] - here[pairs[:, 0]]
    tree = scipy.spatial.cKDTree(steps)
    centre = steps[tree.query_ball_point(steps, TOLERANCE, return_length=True).argmax()]
    group = tree.query_ball_point(centre, TOLERANCE)
    if len(group) < MATCHES:
        raise _too_few(len(group))
    return np.median(steps[group], axis=0), len(group)


def _keypoints(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sub-pixel positions ``(n, 2)`` and descriptors ``(n, 128)``."""
    detector = skimage.feature.SIFT(upsampling=1)
    low, high = np.percentile(image, [0.5, 99.5])
    try:
        detector.detect_and_extract(np.clip((image - low) / (high - low), 0, 1))
    except RuntimeError:
        raise _too_few(0) from None
    return np.asarray(detector.positions), np.asarray(detector.descriptors)


def _too_few(matches: int) -> InputError:
    return InputError(
        f"only {matches} SIFT matches agree and {MATCHES} are needed: pass a larger field, or "
        "restore the image further first"
    )
