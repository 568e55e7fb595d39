"""Sweeps and costs of the FlowDPS chapter: what is asked, with how much computing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench import Report
from emlab.chapters.flowdps.cases import Cases
from emlab.chapters.flowdps.rows import Answer, Sampling
from emlab.methods.flowdps_config import Config
from emlab.metrics.intervals import paired_ratio
from emlab.runtime import Stopwatch
from emlab.settings import read_profile, smaller

Values = NDArray[np.float64]
_SHIPPED = {
    "poses": "particles in the table",
    "samples": "samples of a particle",
    "steps": "network evaluations of a sample of ours",
    "published_poses": "particles that FlowDPS as published gets in this run",
    "strangers": "particles of each other protein",
    "noise_images": "images of pure noise",
    "real_particles": "real particles of each stack",
}


def settings(profile: str) -> dict[str, Any]:
    """How much the chapter computes: ``[PROFILE]`` of ``chapter.toml``."""
    return read_profile("chapters/flowdps/chapter", profile)


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    return smaller(_SHIPPED, settings(profile), settings("paper"))


Sweep = Mapping[str, Mapping[str, Any]]


def sweep_intervals(
    runs: Sweep,
) -> dict[float, dict[str, tuple[metrics.Interval, metrics.Interval | None]]]:
    """Error and coverage ``{value: {method: (error, coverage)}}`` of a recorded sweep."""
    found: dict[float, dict[str, tuple[metrics.Interval, metrics.Interval | None]]] = {}
    for value, methods in runs.items():
        for name, kept in methods.items():
            groups, covered = np.array(kept["groups"]), kept["covered"]
            error = metrics.mean_interval(np.array(kept["rmse"]), groups=groups)
            share = None
            if covered is not None:
                share = metrics.mean_interval(np.array(covered), groups=groups)
            found.setdefault(float(value), {})[name] = (error, share)
    return found


def record_sweep(report: Report, name: str, runs: Sweep) -> None:
    """Record ``NAME.METRIC.METHOD.at_VALUE`` of a recorded sweep."""
    for value, methods in sweep_intervals(runs).items():
        for method, (error, share) in methods.items():
            key, n = f"{method}.at_{value:g}", len(runs[f"{value:g}"][method]["rmse"])
            report.value(f"{name}.rmse.{key}", *error, unit="rad", note="recorded", n=n)
            if share is not None:
                report.value(f"{name}.coverage.{key}", *share, note="recorded", n=n)


# --- what averaging does


@dataclass(frozen=True)
class Averaging:
    """Power of what is not in the truth, as a share of the truth's power.

    Attributes
    ----------
    samples : ndarray
        ``(s,)`` 1, 2, ... how many were averaged.
    invented : ndarray
        ``(s, n)`` of each particle: power of the part of the mean that is uncorrelated with the
        truth.
    shared : ndarray
        ``(n,)`` the same after infinitely many samples: what two halves of independent samples
        invent alike; None if they are not independent.
    missed : ndarray
        ``(s, n)`` power of the truth that the mean lacks: the error beside the invention.
    """

    samples: NDArray[np.int64]
    invented: Values
    shared: Values | None
    missed: Values


def opposite_pairs(answer: Answer) -> NDArray:
    """Samples ``(s, n, H, W)`` of an answer, each followed by its opposite."""
    assert answer.samples is not None
    first, second = np.split(answer.samples, [answer.independent])
    return np.stack([first[: len(second)], second], axis=1).reshape(-1, *first.shape[1:])


def averaging(
    truth: NDArray, samples: NDArray, where: NDArray | None = None, *, independent: bool = True
) -> Averaging:
    r"""What the mean of 1, 2, ... samples holds that the truth does not.

    The mean's Fourier coefficients are split into :math:`a\,T + R` with R uncorrelated with the
    truth T; invented is :math:`|R|^2/|T|^2`, missed is :math:`(1-a)^2`.

    Parameters
    ----------
    truth : ndarray
        ``(n, H, W)``.
    samples : ndarray
        ``(s, n, H, W)``, at least two.
    where : ndarray, optional
        ``(n, H, W // 2 + 1)`` coefficients that count, such as those near zeros of the lens.
    independent : bool
        Without it the power that all samples share is not told.
    """
    spectra = np.fft.rfft2(samples - samples.mean((2, 3), keepdims=True))
    true = np.fft.rfft2(truth - truth.mean((1, 2), keepdims=True))
    counted = np.ones(true.shape) if where is None else where.astype(float)
    power = (counted * np.abs(true) ** 2).sum((1, 2))

    def rest(mean: NDArray) -> tuple[NDArray, Values]:
        share = (counted * (mean * true.conj()).real).sum((1, 2)) / power
        return mean - share[:, None, None] * true, share

    counts = np.arange(1, len(samples) + 1)
    invented, missed = [], []
    running = np.zeros_like(true)
    for count, spectrum in zip(counts, spectra, strict=True):
        running = running + spectrum
        left, share = rest(running / count)
        invented.append((counted * np.abs(left) ** 2).sum((1, 2)) / power)
        missed.append((1 - share) ** 2)
    if not independent:
        return Averaging(counts, np.array(invented), None, np.array(missed))
    half = len(samples) // 2
    first, second = (rest(spectra[part].mean(0))[0] for part in (slice(half), slice(half, None)))
    shared = (counted * (first * second.conj()).real).sum((1, 2)) / power
    return Averaging(counts, np.array(invented), shared, np.array(missed))


def record_averaging(report: Report, name: str, found: Averaging) -> None:
    """Record ``NAME.invented.single``, ``.averaged``, ``.shared`` and ``.kept``, and what lacks."""
    first, last = found.invented[0], found.invented[-1]
    share = "of the truth's power"
    report.value(f"{name}.invented.single", *metrics.mean_interval(first), note=share)
    note = f"{share}, mean of {found.samples[-1]} samples"
    report.value(f"{name}.invented.averaged", *metrics.mean_interval(last), note=note)
    if found.shared is not None:
        shared = metrics.mean_interval(found.shared)
        report.value(f"{name}.invented.shared", *shared, note="what no averaging removes")
    report.value(f"{name}.invented.kept", *paired_ratio(last, first), note="averaged over single")
    report.value(f"{name}.missed.averaged", found.missed[-1].mean(), note=share)


# --- what it costs


@dataclass(frozen=True)
class Speed:
    """Seconds of the same work in two orders.

    Attributes
    ----------
    batched, alone : float
        Particles per second: particles and samples side by side, and one image at a time.
    network_share : float
        Of the time of the batched run.
    """

    batched: float
    alone: float
    network_share: float

    @property
    def speedup(self) -> float:
        """Batched over one at a time."""
        return self.batched / self.alone


def race(
    batched: Answer, cases: Cases, sampling: Sampling, config: Config, alone: int, seed: int
) -> Speed:
    """Time `config.samples` samples of some particles one by one, beside a batched run.

    One at a time means a call for each sample of each particle, as a loop over published code is.
    """
    few = cases.first(alone)
    sampling.retrieve(few.first(1), config, seed, samples=1)  # warms up
    with Stopwatch() as watch:
        for i in range(len(few)):
            for number in range(config.samples):
                sampling.retrieve(few.part(slice(i, i + 1)), config, seed + number, samples=1)
    share = batched.network_seconds / batched.seconds
    return Speed(len(batched.phases) / batched.seconds, len(few) / watch.seconds, share)


def record_speed(report: Report, found: Speed, samples: int) -> None:
    """Record ``speed.*``."""
    note = f"{samples} samples each, batched"
    report.value("speed.particles_per_second", found.batched, note=note)
    note = "particles per second, a call a sample"
    report.value("speed.one_at_a_time", found.alone, note=note)
    report.value("speed.speedup", found.speedup, note="batched over one at a time, same run")
    report.value("speed.network_share", found.network_share, note="of the batched time")
