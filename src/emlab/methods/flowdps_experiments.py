"""Sweeps and costs of the FlowDPS chapter: what is asked, with how much computing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab import metrics
from emlab.methods.flowdps_cases import Cases, make_cases
from emlab.methods.flowdps_config import Config
from emlab.methods.flowdps_rows import Answer, Method, Sampling
from emlab.methods.flowdps_scores import finer_by
from emlab.methods.flowdps_study import Table, run_study
from emlab.methods.settings import read_profile, smaller
from emlab.metrics.resampled import paired_ratio
from emlab.report import Report
from emlab.runtime import Stopwatch

__all__ = [
    "Averaging",
    "Speed",
    "averaging",
    "finer_by",
    "race",
    "record_averaging",
    "record_sweep",
    "settings",
    "shortcuts",
    "sweep",
]

Values = NDArray[np.float64]
_SHIPPED = {
    "poses": "particles in the table",
    "samples": "samples of a particle",
    "steps": "network evaluations of a sample of ours",
    "published_poses": "particles that FlowDPS as published gets",
    "sweep_poses": "particles of each dose and each defocus",
    "strangers": "particles of each other protein",
    "noise_images": "images of pure noise",
    "real_particles": "real particles of each stack",
}


def settings(profile: str) -> dict[str, Any]:
    """How much the chapter computes: ``[PROFILE.chapter]`` of ``profiles/flowdps.toml``."""
    return read_profile("flowdps", profile)["chapter"]


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    here, full = settings(profile), settings("paper")
    return smaller(_SHIPPED, here, full)


def sweep(
    specimen: str,
    methods: Mapping[str, Method],
    poses: int,
    seed: int,
    *,
    doses: Sequence[float] = (),
    defoci_angstrom: Sequence[float] = (),
) -> dict[float, Table]:
    """The table again at single doses (defocus as in the metadata), or at single defoci (dose 45).

    The same poses everywhere, so that only the instrument changes.
    """
    tables = {}
    for dose in doses:
        tables[dose] = run_study(make_cases(specimen, poses, seed, (dose,)), methods)
    for defocus in defoci_angstrom:
        cases = make_cases(specimen, poses, seed, (45.0,), defocus_angstrom=defocus)
        tables[defocus] = run_study(cases, methods)
    return tables


def record_sweep(report: Report, name: str, tables: Mapping[float, Table]) -> None:
    """Record ``NAME.METRIC.METHOD.at_VALUE``."""
    for value, table in tables.items():
        for method, scores in table.scores.items():
            key = f"{method}.at_{value:g}"
            n = len(scores.rmse)
            report.value(f"{name}.rmse.{key}", *table.error(method), unit="rad", n=n)
            if scores.covered is not None:
                report.value(f"{name}.coverage.{key}", *table.coverage(method), n=n)


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


def race(cases: Cases, sampling: Sampling, config: Config, one_at_a_time: int, seed: int) -> Speed:
    """Time `config.samples` samples of particles batched, and of some particles one by one.

    One at a time means a call for each sample of each particle, as a loop over published code is.
    """
    few = cases.first(one_at_a_time)
    sampling.retrieve(few.first(1), config, seed, samples=1)  # warms up
    found = sampling.retrieve(cases, config, seed)
    with Stopwatch() as watch:
        for i in range(len(few)):
            for number in range(config.samples):
                sampling.retrieve(few.part(slice(i, i + 1)), config, seed + number, samples=1)
    share = found.network_seconds / found.seconds
    return Speed(len(cases) / found.seconds, len(few) / watch.seconds, share)
