"""What a biologist looks for in a volume: boundaries, vesicles, and whether slices go on."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.feature import peak_local_max
from skimage.filters import sato

from emlab import data
from emlab.bench import Report
from emlab.errors import DataUnavailableError, InputError
from emlab.metrics import Interval, wilson_interval

Grey = NDArray[np.float32]
VESICLE_SIGMA = 1.8  # pixels of 10 nm: dark blobs of about 50 nm
TEST_CORNER = (95, 77, 77)  # of `generalist_specimens.block` in flyem_sample2
REACH = 3.0  # pixels between a blob and its match


def neuron_labels(corner: tuple[int, int, int], shape: tuple[int, int, int]) -> NDArray | None:
    """Neuron of each voxel of a block of flyem_sample2, or None where the labels cannot be had.

    Raises
    ------
    InputError
        h5py is not installed.
    """
    try:
        path = data.path("flyem_sample2_labels")
    except DataUnavailableError:
        return None
    try:
        h5py = import_module("h5py")
    except ImportError:
        raise InputError("h5py is not installed; pip install 'emlab-book[volumes]'") from None
    place = tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
    with h5py.File(io.BytesIO(gzip.decompress(path.read_bytes()))) as file:
        pieces, body = file["stack"][place], file["transforms"][:]
    order = np.argsort(body[:, 0])
    return body[order, 1][np.searchsorted(body[order, 0], pieces)]


def boundaries(labels: NDArray) -> NDArray[np.bool_]:
    """Voxels of a label volume ``(D, H, W)`` at which xz or yz neighbours belong to another one."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in range(3):
        differ = np.diff(labels, axis=axis) != 0
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        edge[lower] |= differ
        edge[upper] |= differ
    return edge


def boundary_agreement(volume: Grey, labels: NDArray, margin: int = 3) -> float:
    """How well dark ridges of xz and yz sections tell boundaries of neurons from their inside.

    Area under the receiver operating characteristic: the chance that the ridge filter answers more
    at a random boundary voxel than at a random one further than `margin` from any boundary.
    1 is perfect, .5 is chance.
    """
    edge = boundaries(labels)
    if not edge.any() or edge.all():
        raise InputError("boundary agreement needs labels of at least two neurons")
    inside = ndimage.distance_transform_edt(~edge) > margin
    ridge = np.mean([_ridges(np.moveaxis(volume, axis, 0), axis) for axis in (1, 2)], axis=0)
    return _auc(ridge[edge], ridge[inside])


def _ridges(sections: Grey, axis: int) -> NDArray[np.float64]:
    answer = np.stack([sato(section, sigmas=[1.5], black_ridges=True) for section in sections])
    return np.moveaxis(answer, 0, axis)


def _auc(positive: NDArray, negative: NDArray) -> float:
    ranks = np.searchsorted(np.sort(negative), positive, side="left")
    ties = np.searchsorted(np.sort(negative), positive, side="right") - ranks
    return float((ranks + ties / 2).mean() / len(negative))


@dataclass(frozen=True)
class Blobs:
    """Dark blobs of the size of synaptic vesicles in a volume.

    Attributes
    ----------
    places : ndarray
        ``(n, 3)`` voxels.
    strength : ndarray
        ``(n,)`` answer of the filter in grey levels.
    flattening : ndarray
        ``(n,)`` curvature along z over that in the plane; 1 for a round blob, less for one that is
        drawn out along z.
    """

    places: NDArray
    strength: NDArray
    flattening: NDArray


def find_blobs(volume: Grey, threshold: float) -> Blobs:
    """Maxima of the scale-normalised Laplacian of Gaussian above a threshold in grey levels."""
    curvature = (
        np.stack(
            [
                ndimage.gaussian_filter(
                    volume, VESICLE_SIGMA, order=[2 if a == axis else 0 for a in range(3)]
                )
                for axis in range(3)
            ]
        )
        * VESICLE_SIGMA**2
    )
    answer = curvature.sum(0)
    places = peak_local_max(answer, min_distance=2, threshold_abs=threshold, exclude_border=3)
    z, y, x = curvature[:, places[:, 0], places[:, 1], places[:, 2]]
    flat = z / np.maximum((y + x) / 2, 1e-6)
    return Blobs(places, answer[tuple(places.T)], flat)


def blob_threshold(truth: Grey) -> float:
    """The threshold of this chapter: the 97th percentile of the filter's answer on clean tissue."""
    answer = VESICLE_SIGMA**2 * ndimage.gaussian_laplace(truth, VESICLE_SIGMA)
    return float(np.percentile(answer, 97))


@dataclass(frozen=True)
class Detection:
    """Blobs of a restored volume against those of the true one.

    Attributes
    ----------
    recall, precision : Interval
        With 95 % intervals of Wilson.
    true, found : int
        Blobs there are, and blobs found.
    roundness : float
        Median `flattening` over that of the true volume.
    """

    recall: Interval
    precision: Interval
    true: int
    found: int
    roundness: float

    @property
    def count_ratio(self) -> float:
        """Blobs found over blobs there are."""
        return self.found / self.true

    def record(self, report: Report, task: str, method: str) -> None:
        """Tell a report ``TASK.blobs.WHAT.METHOD``."""
        rates = {"recall": self.recall, "precision": self.precision}
        for what, rate in rates.items():
            name = f"{task}.blobs.{what}.{method}"
            report.value(name, *rate, note="Wilson 95 %", n=self.true)
        report.value(f"{task}.blobs.count_ratio.{method}", self.count_ratio)
        name, note = f"{task}.blobs.roundness.{method}", "1: as the truth's"
        report.value(name, self.roundness, note=note)

    def __str__(self) -> str:
        return (
            f"{self.found:4d} of {self.true} blobs; recall {self.recall.mean:.2f}, "
            f"precision {self.precision.mean:.2f}, roundness {self.roundness:.2f}"
        )


def compare_blobs(volume: Grey, truth: Grey) -> Detection:
    """Match blobs one to one, nearest first, within 3 pixels; one threshold for both volumes."""
    threshold = blob_threshold(truth)
    found, there = find_blobs(volume, threshold), find_blobs(truth, threshold)
    if not len(there.places):
        raise InputError("no blobs in the true volume; pass a larger block")
    matched = len(match_points(found.places, there.places)) if len(found.places) else 0
    return Detection(
        wilson_interval(matched, len(there.places)),
        wilson_interval(matched, max(len(found.places), 1)),
        len(there.places),
        len(found.places),
        _median(found.flattening) / _median(there.flattening),
    )


def _median(values: NDArray) -> float:
    return float(np.median(values)) if len(values) else 0.0


def match_points(first: NDArray, second: NDArray, reach: float = REACH) -> list[tuple[int, int]]:
    """Pairs of points ``(n, d)`` and ``(m, d)``, nearest first, each point in one pair at most."""
    near = cKDTree(first).sparse_distance_matrix(cKDTree(second), reach, output_type="ndarray")
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for row, column, _ in np.sort(near, order="v"):
        if row not in taken[0] and column not in taken[1]:
            pairs.append((int(row), int(column)))
            taken[0].add(row)
            taken[1].add(column)
    return pairs
