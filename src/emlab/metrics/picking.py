"""How good picks are: matched one to one with the true places, then counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from emlab.errors import InputError
from emlab.metrics.intervals import Interval, bootstrap

Places = NDArray[np.float64]


@dataclass(frozen=True)
class Matched:
    """Picks of one micrograph beside its true places.

    Attributes
    ----------
    pick_to_truth : ndarray
        ``(picks,)`` place in the list of true ones that a pick was given, or -1.
    distances : ndarray
        ``(picks,)`` pixels to it; infinity for a pick without one.
    """

    pick_to_truth: NDArray[np.int64]
    distances: Places
    truths: int

    @property
    def hits(self) -> int:
        """How many picks were given a true place."""
        return int((self.pick_to_truth >= 0).sum())


@dataclass(frozen=True)
class Counts:
    """Hits, picks and true places of n micrographs, each ``(n,)``."""

    hits: NDArray[np.int64]
    picks: NDArray[np.int64]
    truths: NDArray[np.int64]

    def precision(self, average: str = "micro") -> float:
        """Share of the picks that are particles; 1 where there are no picks."""
        return self._average(average, lambda h, p, t: h / p if p else 1.0)

    def recall(self, average: str = "micro") -> float:
        """Share of the particles that were picked; 1 where there are none."""
        return self._average(average, lambda h, p, t: h / t if t else 1.0)

    def f1(self, average: str = "micro") -> float:
        r""":math:`2h/(p + t)`, the harmonic mean of precision and recall; 1 of nothing at all."""
        return self._average(average, lambda h, p, t: 2 * h / (p + t) if p + t else 1.0)

    def part(self, chosen: NDArray[np.int64]) -> Counts:
        """Counts of some micrographs."""
        return Counts(self.hits[chosen], self.picks[chosen], self.truths[chosen])

    def interval(self, number: str, average: str = "micro", seed: int = 0) -> Interval:
        """``precision``, ``recall`` or ``f1`` with its 95 % interval over micrographs."""
        return bootstrap(
            lambda i: getattr(self.part(i), number)(average), len(self.hits), seed=seed
        )

    def _average(self, average: str, formula: Callable[[int, int, int], float]) -> float:
        if average == "micro":
            return float(formula(self.hits.sum(), self.picks.sum(), self.truths.sum()))
        if average == "macro":
            rows = zip(self.hits, self.picks, self.truths, strict=True)
            return float(np.mean([formula(*row) for row in rows]))
        raise InputError(f"average is micro (all picks together) or macro, not {average!r}")


def match(picks: Places, truth: Places, radius: float) -> Matched:
    """Give each pick at most one true place within a radius, and each place at most one pick.

    Of all such assignments the one with the most pairs, and of those the one with the smallest
    sum of distances (Hungarian algorithm). Nearest-first assignments count fewer hits where
    particles touch, and many-to-one ones reward several picks on one particle.

    Parameters
    ----------
    picks, truth : ndarray
        ``(n, 2)`` and ``(m, 2)`` in pixels.
    radius : float
        Largest distance of a hit, positive.

    Raises
    ------
    InputError
        Other shapes, or a radius that is not positive.
    """
    picks, truth = (np.asarray(places, float).reshape(-1, 2) for places in (picks, truth))
    if not radius > 0:
        raise InputError(f"the radius of a hit must be positive, got {radius}")
    given = np.full(len(picks), -1)
    apart = np.full(len(picks), np.inf)
    if len(picks) and len(truth):
        distances = scipy.spatial.distance.cdist(picks, truth)
        near = distances <= radius
        rows, columns = near.any(1), near.any(0)
        # A pair out of reach costs more than any number of pairs within it can save.
        cost = np.where(near, distances, 2 * radius * (min(distances.shape) + 1))
        first, second = scipy.optimize.linear_sum_assignment(cost[np.ix_(rows, columns)])
        first, second = np.flatnonzero(rows)[first], np.flatnonzero(columns)[second]
        kept = near[first, second]
        given[first[kept]] = second[kept]
        apart[first[kept]] = distances[first[kept], second[kept]]
    return Matched(given, apart, len(truth))


def count(
    picks: Sequence[Places],
    scores: Sequence[Places],
    truth: Sequence[Places],
    radius: float,
    threshold: float = -np.inf,
) -> Counts:
    """Counts of several micrographs, of the picks that score at least a threshold."""
    if not len(picks) == len(scores) == len(truth):
        raise InputError("give picks, scores and true places of the same micrographs")
    rows = []
    for places, sure, true in zip(picks, scores, truth, strict=True):
        kept = np.asarray(places).reshape(-1, 2)[np.asarray(sure) >= threshold]
        rows.append((match(kept, true, radius).hits, len(kept), len(true)))
    return Counts(*np.array(rows, np.int64).reshape(-1, 3).T)


def chance(
    truth: Sequence[Places],
    shapes: Sequence[tuple[int, ...]],
    radius: float,
    draws: int = 20,
    seed: int = 0,
) -> Counts:
    """Counts of picks at random places, as many as there are particles, over `draws` draws.

    Where particles cover much of a field, places drawn blindly hit many of them: an F1 says
    something only beside this one. As a picker keeps picks apart, so do these, by 2/3 of `radius`
    (fewer where no more fit).

    Parameters
    ----------
    truth : sequence of ndarray
        ``(n, 2)`` (y, x) in pixels, one a micrograph.
    shapes : sequence of (int, int)
        Of the micrographs.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for places, shape in zip(truth, shapes, strict=True):
        for _ in range(draws):
            picks = np.zeros((0, 2))
            for place in generator.random((20 * len(places), 2)) * shape:
                if len(picks) == len(places):
                    break
                if not (np.hypot(*(picks - place).T) < 2 * radius / 3).any():
                    picks = np.vstack([picks, place])
            rows.append((match(picks, places, radius).hits, len(picks), len(places)))
    return Counts(*np.array(rows, np.int64).reshape(-1, 3).T)


@dataclass(frozen=True)
class Curve:
    """Precision and recall over thresholds, all ``(k,)``, from the strictest threshold on."""

    thresholds: Places
    precision: Places
    recall: Places
    f1: Places

    @property
    def best(self) -> float:
        """Threshold of the largest F1: to be chosen on validation micrographs."""
        return float(self.thresholds[self.f1.argmax()])

    @property
    def average_precision(self) -> float:
        """Area under precision as a function of recall, in steps."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).clip(0).sum())


def curve(
    picks: Sequence[Places],
    scores: Sequence[Places],
    truth: Sequence[Places],
    radius: float,
    levels: int = 100,
) -> Curve:
    """Precision-recall curve over thresholds; picks are matched anew at each.

    Parameters
    ----------
    levels : int
        Thresholds; denser among the best picks, where precision and recall trade.

    Raises
    ------
    InputError
        Not a single pick, or lists of different lengths.
    """
    together = np.concatenate([np.asarray(values, float) for values in scores] or [np.zeros(0)])
    if not together.size:
        raise InputError("there is no pick; lower the score at which the picker ends")
    thresholds = np.unique(
        np.quantile(together, 1 - np.linspace(0, 1, levels) ** 2, method="nearest")
    )[::-1]
    found = [count(picks, scores, truth, radius, float(t)) for t in thresholds]
    numbers = np.array([(each.precision(), each.recall(), each.f1()) for each in found])
    return Curve(thresholds, *numbers.T)
