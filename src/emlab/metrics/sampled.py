"""Checks of posterior samples against the truth, number by number."""

from __future__ import annotations

import math

import numpy as np

from emlab.errors import InputError
from emlab.metrics.arrays import Image, as_array


def crps(samples: Image, truth: Image) -> np.ndarray:
    r"""Continuous ranked probability score, smaller is better, in the units of the truth.

    .. math:: \frac1n\sum_i |x_i - y| - \frac1{2n(n-1)}\sum_{ij} |x_i - x_j|

    The fair estimate (Ferro 2014), whose mean does not depend on the number of samples. Of a
    single answer it is the absolute error.

    Parameters
    ----------
    samples : ndarray or Tensor
        ``(n, ...)``.
    truth : ndarray or Tensor
        ``(...)``.

    Returns
    -------
    ndarray
        ``(...)``.
    """
    drawn, actual = _pair(samples, truth)
    count = len(drawn)
    error = np.abs(drawn - actual).mean(0)
    if count == 1:
        return error
    places = 2 * np.arange(count) - count + 1
    apart = np.tensordot(places, np.sort(drawn, axis=0), axes=1)
    return error - apart / (count * (count - 1))


def ranks(samples: Image, truth: Image) -> np.ndarray:
    """How many of n samples lie below the truth, ``(...)`` whole numbers from 0 to n.

    Of calibrated samples every rank is equally frequent (simulation-based calibration, Talts et
    al. 2018): a pit in the middle says that they spread too little, a hill too much.
    """
    drawn, actual = _pair(samples, truth)
    return (drawn < actual).sum(0)


def rank_deviation(ranks: np.ndarray, samples: int) -> float:
    """Largest distance of the cumulated ranks from even ones, 0 (calibrated) to 1."""
    values = np.asarray(ranks).ravel()
    if samples < 1 or not values.size or values.min() < 0 or values.max() > samples:
        raise InputError(f"ranks among {samples} samples lie between 0 and {samples}")
    share = np.bincount(values, minlength=samples + 1).cumsum() / values.size
    even = np.arange(1, samples + 2) / (samples + 1)
    return float(np.abs(share - even).max())


def auc(lower: Image, higher: Image) -> float:
    """Chance that one of `higher` exceeds one of `lower`: the area under the ROC curve."""
    low, high = as_array(lower, 1).ravel(), as_array(higher, 1).ravel()
    wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    return float(wins)


def _pair(samples: Image, truth: Image) -> tuple[np.ndarray, np.ndarray]:
    drawn, actual = as_array(samples, 1), as_array(truth, 0)
    if drawn.shape[1:] != actual.shape:
        raise InputError(f"pass samples (n, {actual.shape}) to compare with a truth of that shape")
    if not math.isfinite(float(drawn.sum())):
        raise InputError("samples hold values that are not finite")
    return drawn, actual
