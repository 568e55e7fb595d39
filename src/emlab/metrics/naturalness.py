"""How far the local statistics of an image are from those of clean images: NIQE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy

from emlab.errors import InputError
from emlab.metrics.image import Image, as_array, check_positive

SCALES = 2
FEATURES = 18 * SCALES
SHARPNESS = 0.75  # patches of the model: at least this share of the sharpest of their image
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True)
class Naturalness:
    r"""Natural image quality evaluator (Mittal, Soundararajan and Bovik, 2013).

    .. math:: D = \sqrt{(\nu_1 - \nu_2)^T \left(\tfrac{\Sigma_1 + \Sigma_2}{2}\right)^{-1}
              (\nu_1 - \nu_2)}

    (their equation 10) between the Gaussian that describes the features of sharp patches of clean
    images and the one of all patches of the image in question. The 18 features of a patch at each
    of two scales are parameters of generalised Gaussians fitted by their moments: to the
    normalised luminance (window of 7 pixels, standard deviation 7/6; their equations 1 to 5) and
    to products of neighbours in four directions (equations 6 to 9). The second scale averages
    blocks of two by two pixels.

    Fitted in a second on a few planes of the tissue at hand, so no model is shipped. Lower is
    better; comparable only between images of one model. It rewards texture like that of the
    training tissue, invented or not.

    Attributes
    ----------
    mean : ndarray
        ``(36,)`` mean of the features.
    covariance : ndarray
        ``(36, 36)``.
    data_range : float
        Width of the range that grey levels may take; images are scaled to 0..255, on which the
        constant 1 of the normalisation depends.
    patch : int
        Side of a patch in pixels, even; 96 in the paper.
    """

    mean: np.ndarray
    covariance: np.ndarray
    data_range: float
    patch: int

    @classmethod
    def fit(cls, images: Image, data_range: float = 255.0, patch: int = 96) -> Naturalness:
        """Model of clean images.

        Parameters
        ----------
        images : ndarray or Tensor
            ``(H, W)`` or ``(n, H, W)``, never of the specimen that will be scored.
        patch : int
            Side of a patch in pixels, even, at least 16.

        Raises
        ------
        InputError
            Fewer sharp patches than the 37 that a covariance of 36 features needs, images smaller
            than a patch, or a range or patch that is not as described.
        """
        check_positive(data_range)
        if patch < 16 or patch % 2:
            raise InputError(f"choose an even patch of 16 pixels or more instead of {patch}")
        kept = []
        for image in _stack(images):
            features, sharpness = _features(image, data_range, patch)
            kept.append(features[sharpness >= SHARPNESS * sharpness.max()])
        features = np.concatenate(kept)
        if len(features) <= FEATURES:
            raise InputError(
                f"the model needs more than {FEATURES} sharp patches of {patch} pixels, here are "
                f"{len(features)}: pass more images, or a smaller patch"
            )
        return cls(features.mean(axis=0), np.cov(features, rowvar=False), data_range, patch)

    def score(self, images: Image) -> float:
        """Distance of an image, or of a stack whose patches are pooled, from the model.

        Parameters
        ----------
        images : ndarray or Tensor
            ``(H, W)`` or ``(n, H, W)`` in the grey levels of the model. What does not fill a patch
            at the right and lower border is left out. A single patch counts as having no
            covariance: scores of few patches are larger than those of many.

        Raises
        ------
        InputError
            Another shape, images smaller than a patch, constant, or not finite.
        """
        found = [_features(image, self.data_range, self.patch)[0] for image in _stack(images)]
        features = np.concatenate(found)
        spread = np.cov(features, rowvar=False) if len(features) > 1 else 0.0
        difference = features.mean(axis=0) - self.mean
        inverse = np.linalg.pinv((self.covariance + spread) / 2, hermitian=True)
        return float(np.sqrt(difference @ inverse @ difference))


def _stack(images: Image) -> np.ndarray:
    values = as_array(images, 2, 3)
    return values.reshape(-1, *values.shape[-2:])


def _features(image: np.ndarray, data_range: float, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Features ``(patches, 36)`` of an image and the mean local deviation of each patch."""
    rows, columns = (size // patch for size in image.shape)
    if not rows * columns:
        raise InputError(
            f"NIQE needs images of at least {patch} x {patch} pixels: pass larger ones"
        )
    if np.ptp(image) == 0:
        raise InputError("a constant image has no statistics: pass one with contrast")
    image = image[: rows * patch, : columns * patch] * (255 / data_range)
    found = []
    for scale in range(SCALES):
        normalised, deviation = _normalise(image)
        side = patch >> scale
        patches = _split(normalised, side)
        if scale == 0:
            sharpness = _split(deviation, side).mean(axis=(1, 2))
        found += [_luminance(patches), *(_neighbours(patches, step) for step in NEIGHBOURS)]
        image = image.reshape(len(image) // 2, 2, -1, 2).mean(axis=(1, 3))
    return np.concatenate(found, axis=1), sharpness


def _normalise(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def local(values: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(values, 7 / 6, mode="nearest", radius=3)

    mean = local(image)
    deviation = np.sqrt(np.maximum(local(image**2) - mean**2, 0))
    return (image - mean) / (deviation + 1), deviation


def _split(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape
    blocks = image.reshape(height // side, side, width // side, side)
    return blocks.swapaxes(1, 2).reshape(-1, side, side)


def _luminance(patches: np.ndarray) -> np.ndarray:
    shape, left, right = _asymmetric_gaussian(patches)
    return np.stack([shape, (left + right) / 2], axis=1)


def _neighbours(patches: np.ndarray, step: tuple[int, int]) -> np.ndarray:
    down, right = step
    height, width = patches.shape[1:]
    first = patches[:, : height - down, max(-right, 0) : width - max(right, 0)]
    second = patches[:, down:, max(right, 0) : width + min(right, 0)]
    shape, left_scale, right_scale = _asymmetric_gaussian(first * second)
    gamma = scipy.special.gamma
    mean = (right_scale - left_scale) * gamma(2 / shape) / gamma(1 / shape)
    return np.stack([shape, mean, left_scale, right_scale], axis=1)


def _asymmetric_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape and two scales of each patch's values (Lasmar, Stitou and Berthoumieu, 2009)."""
    values = values.reshape(len(values), -1)

    def one_sided(side: np.ndarray) -> np.ndarray:
        count = np.maximum(side.sum(axis=1), 1)
        return np.sqrt((values**2 * side).sum(axis=1) / count) + 1e-12

    left, right = one_sided(values < 0), one_sided(values > 0)
    balance = left / right
    moments = np.abs(values).mean(axis=1) ** 2 / np.maximum((values**2).mean(axis=1), 1e-24)
    ratio = moments * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    gamma = scipy.special.gamma
    shape = np.interp(ratio, *_ratios_and_shapes())
    unit = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * unit, right * unit


@cache
def _ratios_and_shapes() -> tuple[np.ndarray, np.ndarray]:
    """E[|x|]^2 / E[x^2] of generalised Gaussians, and their shapes."""
    gamma = scipy.special.gamma
    shapes = np.arange(0.2, 10.001, 0.001)
    return gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes)), shapes
