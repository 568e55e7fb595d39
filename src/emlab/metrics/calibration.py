"""Whether the spread of posterior samples is the error it claims to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from emlab.errors import InputError
from emlab.metrics.image import Image, as_array, as_pair


def coverage(samples: Image, truth: Image, level: float = 0.9, interval: str = "quantile") -> float:
    r"""Share of pixels whose truth lies in the central interval of the samples there.

    Calibrated samples and the truth are draws of one distribution, and the result is the level
    whatever the number :math:`n` of samples: ``quantile`` takes order statistics at
    :math:`p (n + 1)`, of which the outermost hold :math:`(n - 1) / (n + 1)`; ``normal`` is the
    prediction interval of a Gaussian, mean :math:`\pm\, t_{n-1}\, s \sqrt{1 + 1/n}`.

    Parameters
    ----------
    samples : ndarray or Tensor
        ``(n, ...)``.
    truth : ndarray or Tensor
        ``(...)``, the same value range.
    level : float
        Inside (0, 1).
    interval : {"quantile", "normal"}
        ``quantile`` assumes nothing and needs :math:`2 / (1 - \mathrm{level}) - 1` samples (19
        for .9); ``normal`` needs two and posteriors of about Gaussian shape.

    Raises
    ------
    InputError
        Shapes that do not fit, too few samples, values that are not finite, a level outside
        (0, 1) or an unknown interval.
    """
    drawn, actual = _pair(samples, truth)
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    if interval not in ("quantile", "normal"):
        raise InputError(f"choose the interval quantile or normal instead of {interval!r}")
    count = len(drawn)
    needed = math.ceil(2 / (1 - level) - 1 - 1e-9) if interval == "quantile" else 2
    if count < needed:
        raise InputError(
            f"{interval} intervals of level {level} need {needed} samples, here are {count}: "
            "draw more, or pass interval='normal' with two or more"
        )
    if interval == "quantile":
        tail = (1 - level) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="weibull")
    else:
        reach = scipy.special.stdtrit(count - 1, (1 + level) / 2) * math.sqrt(1 + 1 / count)
        half = reach * drawn.std(axis=0, ddof=1)
        low, high = drawn.mean(axis=0) - half, drawn.mean(axis=0) + half
    return float(((low <= actual) & (actual <= high)).mean())


@dataclass(frozen=True)
class Reliability:
    """Error of the pixels of similar spread; calibrated where the two are equal.

    Attributes
    ----------
    spread, error : ndarray
        ``(bins,)`` root mean square of spread and error of each bin's pixels, by rising spread.
    counts : ndarray
        ``(bins,)`` pixels in each bin.
    """

    spread: np.ndarray
    error: np.ndarray
    counts: np.ndarray

    @property
    def ratio(self) -> float:
        """Error over spread of all pixels together: above 1 is overconfident."""
        error, spread = (np.average(v**2, weights=self.counts) for v in (self.error, self.spread))
        return float(np.sqrt(error / spread)) if spread else math.inf


def error_against_spread(mean: Image, spread: Image, truth: Image, bins: int = 10) -> Reliability:
    r"""Root mean square error of pixels sorted by their spread into bins of equal counts.

    Parameters
    ----------
    mean : ndarray or Tensor
        Posterior mean, any shape and value range. The mean of :math:`n` samples has itself an
        error: calibrated errors are then :math:`\sqrt{1 + 1/n}` times the spread.
    spread : ndarray or Tensor
        Posterior standard deviation of each pixel, not negative.
    bins : int
        From 1 to the number of pixels.

    Raises
    ------
    InputError
        Different shapes, a negative spread, values that are not finite, or bins that stay empty.
    """
    middle, actual = as_pair(mean, truth, 0)
    width, _ = as_pair(spread, truth, 0)
    if width.min() < 0:
        raise InputError("a spread is a standard deviation: pass values of zero or more")
    if not 1 <= bins <= width.size:
        raise InputError(f"choose between 1 and {width.size} bins, got {bins}")
    order = np.argsort(width, axis=None, kind="stable")
    squares = ((middle - actual) ** 2).ravel()[order], (width**2).ravel()[order]
    error, wide = ([np.mean(part) for part in np.array_split(v, bins)] for v in squares)
    counts = np.array([len(part) for part in np.array_split(order, bins)])
    return Reliability(np.sqrt(wide), np.sqrt(error), counts)


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
    return drawn, actual
