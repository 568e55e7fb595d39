"""How a phase is scored against the truth: error, Fourier correlation, calibration in bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import metrics
from emlab.chapters.flowdps.cases import Cases
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.methods import flowdps_observation
from emlab.metrics.bands import RingSums, band_averages, falls_below, ring_sums
from emlab.metrics.calibration import crps, ranks
from emlab.metrics.intervals import bootstrap
from emlab.physics import Poisson

Values = NDArray[np.float64]
Phases = NDArray[np.float32]
RINGS = 8  # of the band averages
LEVELS = np.linspace(0.1, 0.95, 12)  # of intervals


@dataclass(frozen=True)
class Scores:
    """Of n particles.

    Attributes
    ----------
    rmse : ndarray
        ``(n,)`` radians, means removed: a single image does not tell them.
    chi2, chi2_low : ndarray
        ``(n,)`` mean squared misfit of the counts in variances of the noise, and that of its coarse
        part; see `misfit`.
    crps : ndarray
        ``(n,)`` of band averages, radians; the absolute error for a method without samples.
    rings, zeros : RingSums
        Of the Fourier correlation with the truth: all coefficients, and those near zeros of the
        contrast transfer.
    groups : ndarray
        ``(n,)`` see `Cases.groups`.
    covered : ndarray or None
        ``(n, rings)`` share of band averages inside their 90 % intervals, from coarse to fine.
    ranks : ndarray or None
        ``(n, bands, 2)`` of the truth among the samples.
    by_level : ndarray or None
        ``(12,)`` share of band averages inside their intervals of `LEVELS`.
    samples : int
        Independent ones, behind the last three.
    """

    rmse: Values
    chi2: Values
    chi2_low: Values
    crps: Values
    rings: RingSums
    zeros: RingSums
    groups: NDArray[np.intp]
    covered: Values | None = None
    ranks: NDArray[np.int64] | None = None
    by_level: Values | None = None
    samples: int = 1

    @property
    def error(self) -> metrics.Interval:
        """Mean phase error in radians; whole viewing directions are resampled."""
        return self.mean(self.rmse)

    def mean(self, values: Values) -> metrics.Interval:
        """Mean over particles of one number each."""
        return metrics.mean_interval(values, groups=self.groups)

    def coverage(self, chosen: NDArray[np.bool_] | slice = slice(None)) -> metrics.Interval:
        """Share of band averages of some particles inside their 90 % intervals."""
        if self.covered is None:
            raise InputError("a method that draws no samples claims no interval")
        covered, groups = self.covered[chosen], self.groups[chosen]
        if len(np.unique(groups)) < 2:
            return metrics.Interval(*3 * (float(covered.mean()),))
        return metrics.mean_interval(covered, groups=groups)

    def packed(self) -> dict[str, Any]:
        """What JSON can hold; see `unpacked`."""
        table = {item.name: getattr(self, item.name) for item in fields(self)}
        rings = {name: vars(table.pop(name)) for name in ("rings", "zeros")}
        return {
            **{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in table.items()},
            **{k: {name: v.tolist() for name, v in sums.items()} for k, sums in rings.items()},
        }

    def resolution(self, zeros: bool = False, threshold: float = 0.5) -> metrics.Interval:
        """Frequency in 1/nm at which the correlation with the truth falls below a threshold."""
        sums = self.zeros if zeros else self.rings
        found = bootstrap(
            lambda i: sums.limit(threshold, i), len(self.rmse), resamples=200, groups=self.groups
        )
        return metrics.Interval(*(_per_nm(v) for v in found))

    def curve(self, zeros: bool = False) -> tuple[Values, Values]:
        """Frequency in 1/nm and Fourier correlation of all particles together."""
        sums = self.zeros if zeros else self.rings
        empty = ~(sums.second > 0).any(0)
        return _per_nm(sums.frequency), np.where(empty, np.nan, sums.correlation())


def unpacked(table: Mapping[str, Any]) -> Scores:
    """Scores that `Scores.packed` wrote."""
    kept: dict[str, Any] = {k: np.array(v) if isinstance(v, list) else v for k, v in table.items()}
    for name in ("rings", "zeros"):
        kept[name] = RingSums(**{k: np.array(v) for k, v in table[name].items()})
    return Scores(**kept)


def finer_by(ours: Scores, other: Scores, zeros: bool = False) -> metrics.Interval:
    """Ratio of the frequencies at a correlation of .5 on the same particles; above 1 is finer.

    A method whose correlation is nowhere above .5 counts as reaching the first ring.
    """
    first, second = (s.zeros if zeros else s.rings for s in (ours, other))
    n = min(len(ours.rmse), len(other.rmse))

    def ratio(chosen: np.ndarray) -> float:
        ends = [
            max(falls_below(s.frequency, s.correlation(chosen)), s.frequency[0])
            for s in (first, second)
        ]
        return ends[0] / ends[1]

    return bootstrap(ratio, n, resamples=200, groups=ours.groups[:n])


def zeros_gain(ours: Scores, other: Scores) -> metrics.Interval:
    """Mean Fourier correlation near zeros of the lens, of rings that have some: ours less other's.

    On the same particles; unlike a limit it does not jump where a curve runs along .5.
    """
    n = min(len(ours.rmse), len(other.rmse))
    counted = ours.zeros.second[:n].sum(0) > 0

    def gain(chosen: np.ndarray) -> float:
        first, second = (s.zeros.correlation(chosen)[counted] for s in (ours, other))
        return float(np.nanmean(first) - np.nanmean(second))

    return bootstrap(gain, n, resamples=200, groups=ours.groups[:n])


def score(
    cases: Cases, phases: Phases, samples: Phases | None = None, independent: int | None = None
) -> Scores:
    """Score phases ``(n, 64, 64)`` in radians, and samples ``(s, n, 64, 64)`` if there are any.

    Calibration is judged by the first `independent` samples; default: all are.
    """
    truth = cases.truth.numpy()
    centred = [image - image.mean((1, 2), keepdims=True) for image in (phases, truth)]
    true_bands = band_averages(truth)
    alone = None if samples is None else samples[:independent]
    drawn = band_averages(phases[None] if alone is None else alone)
    covered, placed, by_level = None, None, None
    if len(drawn) > 1:
        covered = np.array(
            [
                [
                    metrics.coverage(drawn[:, i, ring], true_bands[i, ring], interval="normal")
                    for ring in np.split(np.arange(drawn.shape[2]), RINGS)
                ]
                for i in range(len(truth))
            ]
        )
        placed = ranks(drawn, true_bands)
        by_level = np.array([metrics.coverage(drawn, true_bands, q, "normal") for q in LEVELS])
    chi2, low = misfit(cases, phases if samples is None else samples)
    return Scores(
        rmse=np.sqrt(np.square(centred[0] - centred[1]).mean((1, 2), dtype=np.float64)),
        chi2=chi2,
        chi2_low=low,
        crps=crps(drawn, true_bands).mean((1, 2)),
        rings=ring_sums(phases, truth),
        zeros=ring_sums(phases, truth, cases.near_zeros()),
        groups=cases.groups,
        covered=covered,
        ranks=placed,
        by_level=by_level,
        samples=len(drawn),
    )


def misfit(cases: Cases, phases: Phases) -> tuple[Values, Values]:
    """Misfit of the counts to phases ``([s,] n, 64, 64)``, and that of the coarse part.

    See `emlab.methods.flowdps_observation.misfit`.

    Returns
    -------
    ndarray, ndarray
        ``(n,)`` each, means over samples.
    """
    instrument = cases.instrument()
    found = [
        flowdps_observation.misfit(cases.counts, instrument.A(one), Poisson(), PIXEL_ANGSTROM)
        for one in torch.from_numpy(phases.reshape(-1, *phases.shape[-3:]))
    ]
    whole, low = (
        torch.stack(values).mean(0).double().numpy() for values in zip(*found, strict=True)
    )
    return whole, low


Frequency = TypeVar("Frequency", float, Values)


def _per_nm(cycles_per_pixel: Frequency) -> Frequency:
    return cycles_per_pixel * 10 / PIXEL_ANGSTROM
