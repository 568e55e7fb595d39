"""How well instance labels agree with the truth, and how large the objects are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from emlab.errors import InputError

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(11))


class Precision(NamedTuple):
    """Agreement at each threshold of intersection over union.

    Attributes
    ----------
    ap : ndarray
        ``TP / (TP + FP + FN)`` in [0, 1]; NaN where neither image has an object.
    tp, fp, fn : ndarray of int
        Matched objects, predicted ones without a true one, true ones without a predicted one.
    """

    ap: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]


def average_precision(
    truth: ArrayLike, predicted: ArrayLike, thresholds: Sequence[float] = THRESHOLDS
) -> Precision:
    """Match predicted to true objects one to one and count (Stringer et al. 2021, methods).

    At each threshold the assignment has the most pairs whose intersection over union reaches it.

    Parameters
    ----------
    truth, predicted : array_like of int
        Instance labels ``(H, W)``, 0 is background.
    thresholds : sequence of float
        In (0, 1].

    Raises
    ------
    InputError
        Images of different shape, or a threshold outside (0, 1].
    """
    levels = np.asarray(thresholds, float)
    if levels.ndim != 1 or not ((levels > 0) & (levels <= 1)).all():
        raise InputError(f"thresholds of the overlap lie in (0, 1], got {list(thresholds)}")
    overlap = intersection_over_union(truth, predicted)
    n_true, n_predicted = overlap.shape
    matched = np.zeros(len(levels), np.int64)
    for k, level in enumerate(levels):
        reached = overlap >= level
        if reached.any():
            gain = reached + overlap / (2 * min(overlap.shape))
            rows, columns = scipy.optimize.linear_sum_assignment(gain, maximize=True)
            matched[k] = reached[rows, columns].sum()
    fp, fn = n_predicted - matched, n_true - matched
    found = matched + fp + fn
    ap = np.divide(matched, found, out=np.full(len(levels), np.nan), where=found > 0)
    return Precision(ap, matched, fp, fn)


def intersection_over_union(truth: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Overlap in [0, 1] of every true with every predicted object, in order of their labels."""
    a, b = _labels(truth), _labels(predicted)
    if a.shape != b.shape:
        raise InputError(f"label images must have one shape, got {a.shape} and {b.shape}")
    keys_a, index_a = np.unique(a, return_inverse=True)
    keys_b, index_b = np.unique(b, return_inverse=True)
    pairs = np.ravel(index_a) * len(keys_b) + np.ravel(index_b)
    counts = np.bincount(pairs, minlength=len(keys_a) * len(keys_b))
    together = counts.reshape(len(keys_a), len(keys_b))
    union = together.sum(1, keepdims=True) + together.sum(0, keepdims=True) - together
    return (together / union)[keys_a > 0][:, keys_b > 0]


def mean_diameter(labels: ArrayLike) -> float:
    """Diameter in pixels of the circle whose area is typical: median root area, times 2/sqrt(pi).

    Zero if there is no object.
    """
    values, areas = np.unique(_labels(labels), return_counts=True)
    areas = areas[values > 0]
    return float(np.median(np.sqrt(areas)) * 2 / np.sqrt(np.pi)) if len(areas) else 0.0


def _labels(labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "iu" or array.size == 0:
        raise InputError(
            f"labels are a 2-D image of integers, got {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0:
        raise InputError("labels are numbered from 1 with 0 as background; got a negative one")
    return array.astype(np.int64)
