"""What a biologist looks for in a volume: boundaries, small dark spots, whether slices go on."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy
import skimage
from numpy.typing import NDArray

from emlab.errors import InputError
from emlab.metrics.intervals import Interval, wilson_interval

Grey = NDArray[np.float32]
SPOT_SIGMA = 1.8  # pixels: at 10 nm dark spots of about 50 nm, the size of synaptic vesicles
REACH = 3.0  # pixels between a spot and its match


def boundaries(labels: NDArray) -> NDArray[np.bool_]:
    """Voxels of a label volume ``(D, H, W)`` at which one of the neighbours has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        along = np.moveaxis(edge, axis, 0)  # a view
        differ = np.diff(np.moveaxis(labels, axis, 0), axis=0) != 0
        along[:-1] |= differ
        along[1:] |= differ
    return edge


def boundary_agreement(volume: Grey, labels: NDArray, margin: int = 3) -> float:
    """How well dark ridges of xz and yz sections tell boundaries of cells from their inside.

    Area under the receiver operating characteristic: the chance that the ridge filter answers more
    at a random boundary voxel than at a random one further than `margin` from any boundary.
    1 is perfect, .5 is chance.
    """
    edge = boundaries(labels)
    if not edge.any() or edge.all():
        raise InputError("boundary agreement needs labels of at least two neurons")
    inside = scipy.ndimage.distance_transform_edt(~edge) > margin
    ridge = np.mean([_ridges(volume, axis) for axis in (1, 2)], axis=0)
    higher, lower = ridge[edge], ridge[inside]
    wins = scipy.stats.mannwhitneyu(higher, lower, method="asymptotic").statistic
    return float(wins / len(higher) / len(lower))


def _ridges(volume: Grey, axis: int) -> NDArray[np.float64]:
    sections = np.moveaxis(volume, axis, 0)
    ridges = [skimage.filters.sato(one, sigmas=[1.5], black_ridges=True) for one in sections]
    return np.moveaxis(np.stack(ridges), 0, axis)


def slice_correlation(volume: NDArray) -> float:
    """Mean correlation of neighbouring planes of ``(D, H, W)``; a plane without contrast has 0."""
    flat = volume.reshape(len(volume), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat / np.where(norms > 0, norms, 1)
    return float(np.mean([a @ b for a, b in pairwise(flat)]))


def find_spots(volume: Grey, threshold: float) -> tuple[NDArray, NDArray]:
    """Maxima of the scale-normalised Laplacian of Gaussian above a threshold in grey levels.

    Returns places ``(n, 3)`` in voxels, and the curvature along z over that in the plane ``(n,)``:
    1 for a round spot, less for one that is drawn out along z.
    """
    second = [
        scipy.ndimage.gaussian_filter(volume, SPOT_SIGMA, order=order)
        for order in ([2, 0, 0], [0, 2, 0], [0, 0, 2])
    ]
    curvature = np.stack(second) * SPOT_SIGMA**2
    places = skimage.feature.peak_local_max(
        curvature.sum(0), min_distance=2, threshold_abs=threshold, exclude_border=3
    )
    z, y, x = curvature[:, places[:, 0], places[:, 1], places[:, 2]]
    return places, z / np.maximum((y + x) / 2, 1e-6)


def spot_threshold(truth: Grey) -> float:
    """The 97th percentile of the filter's answer on a clean volume."""
    answer = SPOT_SIGMA**2 * scipy.ndimage.gaussian_laplace(truth, SPOT_SIGMA)
    return float(np.percentile(answer, 97))


class Spots(NamedTuple):
    """Dark spots of a restored volume against those of the true one.

    Attributes
    ----------
    recall, precision : Interval
        With 95 % intervals of Wilson.
    true, found : int
        Spots there are, and spots found.
    roundness : float
        Median curvature along z over that in the plane, over the same of the true volume.
    """

    recall: Interval
    precision: Interval
    true: int
    found: int
    roundness: float

    def __str__(self) -> str:
        return (
            f"{self.found:4d} of {self.true} blobs; recall {self.recall.mean:.2f}, "
            f"precision {self.precision.mean:.2f}, roundness {self.roundness:.2f}"
        )


def compare_spots(volume: Grey, truth: Grey) -> Spots:
    """Match spots one to one, nearest first, within 3 pixels; one threshold for both volumes."""
    threshold = spot_threshold(truth)
    (found, flat), (there, truly_flat) = (find_spots(one, threshold) for one in (volume, truth))
    if not len(there):
        raise InputError("no spots in the true volume; pass a larger block")
    matched = len(match_points(found, there)) if len(found) else 0
    recall = wilson_interval(matched, len(there))
    precision = wilson_interval(matched, max(len(found), 1))
    roundness = float(np.median(flat) / np.median(truly_flat)) if len(found) else 0.0
    return Spots(recall, precision, len(there), len(found), roundness)


def match_points(first: NDArray, second: NDArray, reach: float = REACH) -> list[tuple[int, int]]:
    """Pairs of points ``(n, d)`` and ``(m, d)``, nearest first, each point in one pair at most."""
    trees = scipy.spatial.cKDTree(first), scipy.spatial.cKDTree(second)
    near = trees[0].sparse_distance_matrix(trees[1], reach, output_type="ndarray")
    pairs: dict[int, int] = {}
    for row, column, _ in np.sort(near, order="v"):
        if row not in pairs and column not in pairs.values():
            pairs[int(row)] = int(column)
    return list(pairs.items())
