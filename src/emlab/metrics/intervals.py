"""Confidence intervals of means over targets that were drawn several times."""

from typing import NamedTuple

import numpy as np

from emlab.errors import InputError


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with a 95 % percentile-bootstrap interval.

    Parameters
    ----------
    values : ndarray
        ``(targets,)`` or ``(targets, draws)``. Targets are resampled, with all their draws: draws
        of one target are not independent.

    Raises
    ------
    InputError
        Fewer than two targets, or values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    per_target = values.reshape(len(values), -1).mean(axis=1) if values.size else values
    if len(per_target) < 2 or not np.isfinite(per_target).all():
        raise InputError("an interval needs finite values of at least two targets")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(per_target), size=(resamples, len(per_target)))
    low, high = np.percentile(per_target[chosen].mean(axis=1), [2.5, 97.5])
    return Interval(float(per_target.mean()), float(low), float(high))


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """Mean of ``first - second`` on the same targets and draws, with its interval."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise InputError(f"pairs need equal shapes, got {first.shape} and {second.shape}")
    return mean_interval(first - second, seed=seed)
