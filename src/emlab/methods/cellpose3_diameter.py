"""How large the objects of an image are, where nobody says."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.methods.cellpose3 import DIAMETER, resize, restore, segment
from emlab.metrics.segmentation import mean_diameter
from emlab.models.residual_unet import ResidualUNet

CANDIDATES = (8.0, 12.0, 17.0, 24.0, 34.0, 48.0, 68.0)  # pixels, half an octave apart
LARGEST = 384  # side at which an image is looked at


def estimate_diameter(
    image: NDArray[np.floating],
    segmenter: ResidualUNet,
    restorer: ResidualUNet | None = None,
) -> float:
    """Diameter that objects have when they are segmented with just this diameter, in pixels.

    The middle of the image is segmented at several sizes. A size at which the objects found are as
    large as was assumed is a fixed point; of those the one is taken at which objects cover the
    most.

    Parameters
    ----------
    image : ndarray
        ``(H, W)``.
    restorer : ResidualUNet, optional
        Applied before segmenting, where the image is noisy or blurred.

    Returns
    -------
    float
        17, the working size, if nothing is found at any size.
    """
    best, most = DIAMETER, 0.0
    for assumed in CANDIDATES:
        side = max(48, int(LARGEST * assumed / DIAMETER))
        part = _middle(np.asarray(image, np.float32), side)
        size = [max(16, round(length * DIAMETER / assumed)) for length in part.shape]
        small = resize(torch.from_numpy(part.copy()), tuple(size)).numpy()
        if small.min() == small.max():
            continue
        if restorer is not None:
            small = restore(small, restorer).image
        labels = segment(small, segmenter, rescale_intensity=restorer is None).labels
        found = mean_diameter(labels)
        if found == 0:
            continue
        agreement = np.exp(-((np.log2(found / DIAMETER) / 0.35) ** 2))
        weight = agreement * float((labels > 0).mean())
        if weight > most:
            best, most = assumed * found / DIAMETER, weight
    return float(best)


def _middle(image: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    places = tuple(
        slice(start := max(0, (length - side) // 2), start + side) for length in image.shape
    )
    return image[places]
