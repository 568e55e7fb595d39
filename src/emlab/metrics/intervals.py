"""Confidence intervals: of means and other statistics over targets, and of rates."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from emlab.errors import InputError


class Interval(NamedTuple):
    """A mean, or a rate, and its confidence interval: 95 % unless another level was asked for."""

    mean: float
    low: float
    high: float


def resampled(
    targets: int, resamples: int, seed: int = 0, groups: np.ndarray | None = None
) -> list[np.ndarray]:
    """Places of targets drawn with replacement, ``resamples`` times.

    Parameters
    ----------
    groups : ndarray, optional
        ``(targets,)`` names of groups whose members resemble each other: whole groups are drawn
        then (cluster bootstrap), and a resample holds about as many targets.

    Raises
    ------
    InputError
        Fewer than two targets, or than two groups.
    """
    members = [np.array([i]) for i in range(targets)]
    if groups is not None:
        members = [np.flatnonzero(groups == name) for name in np.unique(groups[:targets])]
    if len(members) < 2:
        raise InputError("an interval needs at least two targets, or groups of them")
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    if groups is None:
        return list(drawn)
    return [np.concatenate([members[i] for i in row]) for row in drawn]


def mean_interval(
    values: np.ndarray, resamples: int = 2000, seed: int = 0, groups: np.ndarray | None = None
) -> Interval:
    """Mean with a 95 % percentile-bootstrap interval.

    Parameters
    ----------
    values : ndarray
        ``(targets,)`` or ``(targets, draws)``. Targets are resampled, with all their draws: draws
        of one target are not independent.
    groups : ndarray, optional
        See `resampled`.

    Raises
    ------
    InputError
        Fewer than two targets or groups, or values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    per_target = values.reshape(len(values), -1).mean(axis=1) if values.size else values
    if len(per_target) < 2 or not np.isfinite(per_target).all():
        raise InputError("an interval needs finite values of at least two targets")
    drawn = [per_target[i].mean() for i in resampled(len(per_target), resamples, seed, groups)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(per_target.mean()), float(low), float(high))


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """Mean of ``first - second`` on the same targets and draws, with its interval."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise InputError(f"pairs need equal shapes, got {first.shape} and {second.shape}")
    return mean_interval(first - second, seed=seed)


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
        See `resampled`.

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


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    r"""Rate of successes with the score interval of Wilson (1927), which never leaves [0, 1].

    The rates :math:`p` that the observed one, :math:`\hat p`, does not contradict:
    :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`, solved for :math:`p`.

    Parameters
    ----------
    successes, trials : int
        ``0 <= successes <= trials``, at least one trial.
    level : float
        Confidence inside (0, 1).

    Raises
    ------
    InputError
        Counts or a level outside these ranges.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise InputError(f"need at least one trial and no more successes: {successes} of {trials}")
    if not 0 < level < 1:
        raise InputError(f"the level must lie between 0 and 1, got {level}")
    rate = successes / trials
    squared = NormalDist().inv_cdf((1 + level) / 2) ** 2 / trials
    centre = rate + squared / 2
    half = math.sqrt(squared * (rate * (1 - rate) + squared / 4))
    low = (centre - half) / (1 + squared) if successes else 0.0
    high = (centre + half) / (1 + squared) if successes < trials else 1.0
    return Interval(rate, low, high)
