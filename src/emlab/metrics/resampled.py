"""Intervals of any number that is computed from targets: they are drawn again, with replacement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emlab.errors import InputError
from emlab.metrics.intervals import Interval, resampled


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    targets: int,
    resamples: int = 500,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Interval:
    """A statistic of all targets with its 95 % percentile-bootstrap interval.

    The interval is widened to hold the statistic where resampling moves it to one side.

    Parameters
    ----------
    statistic : callable
        Takes places of targets ``(targets,)``, some of them several times, and returns a number.
    targets : int
        At least two.
    groups : ndarray, optional
        See `emlab.metrics.intervals.resampled`.

    Raises
    ------
    InputError
        Fewer than two targets or groups.
    """
    value = float(statistic(np.arange(targets)))
    drawn = [statistic(chosen) for chosen in resampled(targets, resamples, seed, groups)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, min(float(low), value), max(float(high), value))


def paired_ratio(
    first: np.ndarray, second: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> Interval:
    """Ratio of the means of two quantities of the same targets ``(n,)``, with its interval."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(f"pairs need equal shapes (n,), got {first.shape} and {second.shape}")
    return bootstrap(
        lambda i: first[i].mean() / second[i].mean(), len(first), seed=seed, groups=groups
    )
