"""What FlowDPS invents: from noise, from another protein, from memory; and real particles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import data, metrics
from emlab.bench import Report
from emlab.chapters.flowdps.cases import Cases, make_cases
from emlab.chapters.flowdps.peers import library
from emlab.chapters.flowdps.rows import Answer, Sampling
from emlab.chapters.flowdps.scores import Scores, Values, misfit
from emlab.data.metadata import Particles
from emlab.data.particles import read_particles
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import DataUnavailableError
from emlab.methods import flowdps
from emlab.methods.flowdps_config import Config
from emlab.metrics.bands import RingSums, ring_sums
from emlab.metrics.calibration import auc
from emlab.physics import Poisson
from emlab.runtime import make_generator

Phases = NDArray[np.float32]


@dataclass(frozen=True)
class Nothing:
    """What becomes of images without any particle.

    Attributes
    ----------
    counts : ndarray
        ``(n, 96, 96)`` electrons, no specimen.
    samples : ndarray
        ``(s, n, 64, 64)`` radians.
    with_prior_mean, between_samples : RingSums
        Fourier correlation of what appears with the mean of the training maps, and of two samples
        of one image.
    chi2 : ndarray
        ``(n,)``.
    contrast : float
        Standard deviation of a sample over that of a training map.
    contrast_of_mean : float
        The same of the mean of the samples.
    """

    counts: Phases
    samples: Phases
    with_prior_mean: RingSums
    between_samples: RingSums
    chi2: Values
    contrast: float
    contrast_of_mean: float


def from_nothing(cases: Cases, sampling: Sampling, config: Config, seed: int) -> Nothing:
    """Give pure noise of the same instruments and doses."""
    instrument = cases.instrument()
    empty = instrument.A(torch.zeros_like(cases.truth))
    counts = Poisson().sample(empty, make_generator(seed))
    blank = replace(cases, counts=counts, truth=torch.zeros_like(cases.truth))
    samples = sampling.retrieve(blank, config, seed).samples
    assert samples is not None
    maps = library(cases.specimen, 128)
    mean = maps.mean(0).expand_as(cases.truth).numpy()
    typical = maps.std((1, 2)).mean().item()
    return Nothing(
        counts.numpy(),
        samples,
        ring_sums(samples[0], mean),
        ring_sums(samples[0], samples[1]),
        misfit(blank, samples)[0],
        float(samples.std((2, 3)).mean()) / typical,
        float(samples.mean(0).std((1, 2)).mean()) / typical,
    )


def record_nothing(report: Report, found: Nothing) -> dict[str, float]:
    """Record ``noise.*`` and return the numbers by name."""
    per_nm = 10 / PIXEL_ANGSTROM
    values = {
        "frc_prior_mean_low": found.with_prior_mean.correlation()[:4].mean(),
        "frc_prior_mean_per_nm": per_nm * found.with_prior_mean.limit(),
        "frc_between_samples_per_nm": per_nm * found.between_samples.limit(),
        "contrast": found.contrast,
        "contrast_of_mean": found.contrast_of_mean,
        "chi2": found.chi2.mean(),
    }
    notes = {
        "frc_prior_mean_low": "mean of the four lowest rings",
        "contrast": "of a sample; a training map has 1",
        "contrast_of_mean": "of the mean of samples",
        "chi2": "1: the answer explains the counts",
    }
    n = len(found.counts)
    return {
        name: report.value(f"noise.{name}", value, note=notes.get(name, ""), n=n)
        for name, value in values.items()
    }


@dataclass(frozen=True)
class Strangers:
    """Another protein, seen with the prior of the first.

    Attributes
    ----------
    cases : dict of str to Cases
    answers : dict of str to Answer
    whole, coarse : dict of str to ndarray
        ``(n,)`` chi^2 of all of the image, and of what is coarser than 33 A.
    own : Scores
        Of the prior's own protein.
    """

    cases: dict[str, Cases]
    answers: dict[str, Answer]
    whole: dict[str, Values]
    coarse: dict[str, Values]
    own: Scores

    def auc(self, name: str, *, coarse: bool = True) -> float:
        """Chance that chi^2 is higher for a stranger than for a particle of the right kind."""
        if coarse:
            return auc(self.own.chi2_low, self.coarse[name])
        return auc(self.own.chi2, self.whole[name])


def strangers(
    names: list[str], n: int, own: Scores, sampling: Sampling, config: Config, seed: int
) -> Strangers:
    """Retrieve n particles of each of some other specimens with the prior of the first.

    Parameters
    ----------
    own : Scores
        Of the right protein, with the same settings.
    """
    found = Strangers({}, {}, {}, {}, own)
    for name in names:
        cases = make_cases(name, n, seed)
        answer = sampling.retrieve(cases, config, seed)
        assert answer.samples is not None
        found.cases[name], found.answers[name] = cases, answer
        found.whole[name], found.coarse[name] = misfit(cases, answer.samples)
    return found


def record_strangers(report: Report, found: Strangers) -> None:
    """Record ``stranger.*`` and print a line for each of them."""
    for name, coarse in found.coarse.items():
        n = len(coarse)
        told = report.value(f"stranger.auc.{name}", found.auc(name), note="coarse chi^2", n=n)
        whole = report.value(f"stranger.auc_all.{name}", found.auc(name, coarse=False), n=n)
        low = report.value(f"stranger.chi2_low.{name}", coarse.mean(), n=n)
        print(f"{name}, {n} particles: coarse chi^2 {low:.2f}, AUC {told:.3f}; ", end="")
        print(f"AUC of chi^2 of all frequencies {whole:.2f}")
    report.value("stranger.auc.worst", min(found.auc(name) for name in found.coarse))


@dataclass(frozen=True)
class Memory:
    """Whether answers are training views.

    Attributes
    ----------
    view : ndarray
        ``(n, 64, 64)`` training view nearest in angle, at the truth's place.
    to_truth, to_view : ndarray
        ``(n,)`` root mean square distance of the answers to both, radians, means removed.
    apart : ndarray
        ``(n,)`` of the view to the truth.
    """

    view: Phases
    to_truth: Values
    to_view: Values
    apart: Values

    @property
    def closer_to_truth(self) -> metrics.Interval:
        """Share of answers that lie closer to the truth than to the training view."""
        wins = int((self.to_truth < self.to_view).sum())
        return metrics.wilson_interval(wins, len(self.to_truth))


def memory(truth: Phases, phases: Phases, view: Phases) -> Memory:
    """Compare answers ``(n, 64, 64)`` with the truth and with the nearest training view."""
    return Memory(view, _apart(phases, truth), _apart(phases, view), _apart(view, truth))


def record_memory(report: Report, found: Memory) -> None:
    """Record ``memory.*``."""
    n = len(found.apart)
    report.value("memory.closer_to_truth", *found.closer_to_truth, n=n)
    for name, values in (
        ("to_truth", found.to_truth), ("to_view", found.to_view), ("view_to_truth", found.apart),
    ):  # fmt: skip
        report.value(f"memory.{name}", values.mean(), unit="rad", n=n)


def _apart(first: Phases, second: Phases) -> Values:
    difference = first - second
    return difference.std((1, 2), dtype=np.float64)


# --- real particles


@dataclass(frozen=True)
class RealStack:
    """A stack of real particles and what was made of it.

    Attributes
    ----------
    name : str
        Of the data set.
    particles : Particles
    found : Retrieval
    """

    name: str
    particles: Particles
    found: flowdps.Retrieval


STACKS: dict[str, tuple[dict[str, float], str]] = {
    "particles_relion31": ({}, "beside its STAR file"),
    "particles_10076": (
        {
            "pixel_size_angstrom": 1.31,
            "voltage_kv": 300.0,
            "cs_mm": 2.7,
            "amplitude_contrast": 0.07,
            "defocus_angstrom": 15000.0,
        },
        "no metadata in the sample: the defocus is a guess",
    ),
    "particles_aspire": (
        {
            "pixel_size_angstrom": 2.6,
            "voltage_kv": 300.0,
            "cs_mm": 2.0,
            "amplitude_contrast": 0.1,
            "defocus_angstrom": 15000.0,
        },
        "no metadata in the sample: pixel size, defocus and lens are guesses",
    ),
}


def real_particles(
    sampling: Sampling, config: Config, most: int, seed: int, report: Report
) -> list[RealStack]:
    """Real particle stacks end to end; none of them shows the prior's protein.

    Stacks that are not on this machine and cannot be fetched are left out.
    """
    stacks = []
    for name, (known, note) in STACKS.items():
        try:
            dataset = data.load(name)
            file = _table_or_stack(name)
        except DataUnavailableError:
            report.absent(name, "these real particles are left out")
            continue
        particles = read_particles(file, **known)
        particles = particles.subset(slice(most))
        report.data(dataset, wanted=name, note=f"real particles; {note}")
        found = flowdps.retrieve(
            particles, None, config, make_generator(seed), prior=sampling.prior,
            spread=sampling.spread, crop=True, device=sampling.device,
        )  # fmt: skip
        stacks.append(RealStack(name, particles, found))
    return stacks


def _table_or_stack(name: str) -> Path:
    files = list(data.paths(name).values())
    tables = [file for file in files if file.suffix in (".star", ".cs")]
    return (tables or files)[0]
