"""What FlowDPS invents, what averaging does, what it costs, real particles, and what is recorded.

Recorded are the slow rows of the chapter's table, sweeps over dose and defocus, and what validation
poses tell the method itself: the spread of its prior, and which misfit is strange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import data, metrics, weights
from emlab.bench import Report
from emlab.bench.study import Column, Scores, Study, mean_of
from emlab.chapters import table
from emlab.chapters.flowdps.cases import Cases, library, make_cases, nearest_view
from emlab.chapters.flowdps.study import (
    LABELS,
    PER_NM,
    Found,
    Phases,
    Sampling,
    Values,
    classical_rows,
    hurried,
    misfit,
    particles,
    posed_row,
    run_study,
    sampled_row,
    slow_rows,
)
from emlab.data.metadata import Particles
from emlab.data.particles import read_particles
from emlab.data.phase_maps import phase_maps
from emlab.errors import DataUnavailableError
from emlab.methods import flowdps
from emlab.methods.flowdps_config import Config, load_in_radians, on_images, rings_of
from emlab.metrics.bands import ring_sums
from emlab.metrics.calibration import auc
from emlab.metrics.intervals import paired_ratio
from emlab.physics import Poisson
from emlab.recorded import Recording
from emlab.runtime import Stopwatch, make_generator
from emlab.settings import read_settings

SLUG = "03_flowdps"


# --- what it invents


class Nothing(NamedTuple):
    """Counts ``(n, 96, 96)`` without any specimen, samples ``(s, n, 64, 64)``, numbers by name."""

    counts: Phases
    samples: Phases
    numbers: dict[str, float]


def from_nothing(
    report: Report, cases: Cases, sampling: Sampling, config: Config, seed: int
) -> Nothing:
    """Give pure noise of the same instruments and doses; record ``noise.*``."""
    empty = torch.zeros_like(cases.truth)
    counts = Poisson().sample(cases.instrument().A(empty), make_generator(seed))
    blank = replace(cases, counts=counts, truth=empty)
    samples = sampling.retrieve(blank, config, seed).samples
    maps = library(cases.specimen)
    mean = maps.mean(0).expand_as(cases.truth).numpy()
    typical = maps.std((1, 2)).mean().item()
    with_mean, between = ring_sums(samples[0], mean), ring_sums(samples[0], samples[1])
    contrast = [
        float(images.std((-2, -1)).mean()) / typical for images in (samples, samples.mean(0))
    ]
    told = {
        "frc_prior_mean_low": (with_mean.correlation()[:4].mean(), "mean of the four lowest rings"),
        "frc_prior_mean_per_nm": (PER_NM * with_mean.limit(), ""),
        "frc_between_samples_per_nm": (PER_NM * between.limit(), ""),
        "contrast": (contrast[0], "of a sample; a training map has 1"),
        "contrast_of_mean": (contrast[1], "of the mean of samples"),
        "chi2": (misfit(blank, samples)[0].mean(), "1: the answer explains the counts"),
    }
    numbers = {
        name: report.value(f"noise.{name}", value, note=note, n=len(counts))
        for name, (value, note) in told.items()
    }
    return Nothing(counts.numpy(), samples, numbers)


def strangers(
    names: list[str], n: int, sampling: Sampling, config: Config, seed: int
) -> dict[str, Study]:
    """A study of n particles of each of some other specimens, with the prior of the first."""
    rows = {"ours": sampled_row(sampling, config, seed)}
    return {name: run_study(make_cases(name, n, seed), rows) for name in names}


def record_strangers(report: Report, own: Scores, found: Mapping[str, Study]) -> None:
    """Record ``stranger.*`` and print a line for each of them; `own` are of the right protein.

    The AUC is the chance that chi^2 is higher for a stranger than for one of the right kind.
    """
    told = []
    for name, study in found.items():
        whole, coarse = (study.scores["ours"][column] for column in ("chi2", "chi2_low"))
        n = len(coarse)
        by_coarse, by_all = auc(own["chi2_low"], coarse), auc(own["chi2"], whole)
        told.append(report.value(f"stranger.auc.{name}", by_coarse, note="coarse chi^2", n=n))
        report.value(f"stranger.auc_all.{name}", by_all, n=n)
        low = report.value(f"stranger.chi2_low.{name}", coarse.mean(), n=n)
        print(f"{name}, {n} particles: coarse chi^2 {low:.2f}, AUC {told[-1]:.3f}; ", end="")
        print(f"AUC of chi^2 of all frequencies {by_all:.2f}")
    report.value("stranger.auc.worst", min(told))


def memory(report: Report, study: Study) -> dict[str, metrics.Interval]:
    r"""Where answers lie on the way from the truth T to the nearest training view V.

    :math:`\langle \hat x - T, V - T\rangle / \|V - T\|^2` is 0 at the truth, 1 at the view, and one
    half for a method that cannot tell them apart. Wiener's filter, which has seen no view, is the
    yardstick: what ours lies nearer to the view is memory. Records ``memory.leaning.*``.
    """
    cases, places = particles(study), {}
    truth = cases.truth.numpy()
    way = nearest_view(cases).numpy() - truth
    way = (way - way.mean((1, 2), keepdims=True)).astype(float)
    for name in ("wiener", "ours"):
        off = study.answers[name].image - truth
        places[name] = (off * way).sum((1, 2)) / np.square(way).sum((1, 2))
    places["ours_over_wiener"] = places["ours"] - places["wiener"]
    found = {name: mean_of(places, name, cases.directions) for name in places}
    for name, interval in found.items():
        note = "0 is the truth, 1 the training view" + "; difference" * ("over" in name)
        report.value(f"memory.leaning.{name}", *interval, note=note, n=len(truth))
    return found


# --- real particles


class RealStack(NamedTuple):
    """A stack of real particles and what was made of it."""

    name: str
    particles: Particles
    found: flowdps.Retrieval


STACKS = table(SLUG)["stacks"]


def real_particles(
    sampling: Sampling, config: Config, most: int, seed: int, report: Report
) -> list[RealStack]:
    """Real particle stacks end to end; none of them shows the prior's protein.

    Stacks that are not on this machine and cannot be fetched are left out.
    """
    stacks = []
    for name, stack in STACKS.items():
        try:
            dataset = data.load(name)
            files = list(data.paths(name).values())
        except DataUnavailableError:
            report.absent(name, "these real particles are left out")
            continue
        tables = [file for file in files if Path(file).suffix in (".star", ".cs")]
        particles = read_particles((tables or files)[0], **stack["known"]).subset(slice(most))
        report.data(dataset, wanted=name, note=f"real particles; {stack['note']}")
        found = flowdps.retrieve(
            particles, None, config, make_generator(seed), prior=sampling.prior,
            spread=sampling.spread, crop=True, device=sampling.device,
        )  # fmt: skip
        stacks.append(RealStack(name, particles, found))
    return stacks


# --- what averaging does


@dataclass(frozen=True)
class Averaging:
    """What the mean of 1, 2, ... `samples` holds beside the truth, as shares of the truth's power.

    Of each particle: power ``(s, n)`` of what is `invented`, uncorrelated with the truth; and
    ``(n,)`` what two halves of independent samples invent alike, so that it is `shared` by all,
    None of samples that are not independent.
    """

    samples: NDArray[np.int64]
    invented: Values
    shared: Values | None


def averaging(
    truth: NDArray, samples: NDArray, where: NDArray | None = None, *, independent: bool = True
) -> Averaging:
    r"""What the mean of 1, 2, ... samples holds that the truth does not.

    The mean's Fourier coefficients are split into :math:`a\,T + R` with R uncorrelated with the
    truth T; invented is :math:`|R|^2/|T|^2`.

    Parameters
    ----------
    truth, samples : ndarray
        ``(n, H, W)`` and ``(s, n, H, W)``, at least two.
    where : ndarray, optional
        ``(n, H, W // 2 + 1)`` coefficients that count, such as those near zeros of the lens.
    independent : bool
        Without it the power that all samples share is not told.
    """
    spectra = np.fft.rfft2(samples - samples.mean((2, 3), keepdims=True))
    true = np.fft.rfft2(truth - truth.mean((1, 2), keepdims=True))
    counted = np.ones(true.shape) if where is None else where.astype(float)
    power = (counted * np.abs(true) ** 2).sum((1, 2))

    def along(a: NDArray, b: NDArray) -> Values:
        return (counted * (a * b.conj()).real).sum((1, 2)) / power

    def rest(mean: NDArray) -> NDArray:
        return mean - along(mean, true)[:, None, None] * true

    counts = np.arange(1, len(samples) + 1)
    means = (rest(total / count) for count, total in zip(counts, spectra.cumsum(0), strict=True))
    invented = np.array([along(left, left) for left in means])
    halves = np.array_split(spectra, [len(samples) // 2])
    shared = along(*(rest(half.mean(0)) for half in halves)) if independent else None
    return Averaging(counts, invented, shared)


def averages(study: Study) -> dict[str, Averaging]:
    """What averaging does: of independent samples, recorded or of this run, and of ours."""
    count = study.seen("unpaired")
    few, ours = particles(study)[:count], study.answers["ours"]
    truth = few.truth.numpy()
    if "unpaired" in study.recorded:
        kept = ROWS.values["averaging"].values()
        found = [Averaging(**{key: np.array(v) for key, v in one.items()}) for one in kept]
    else:
        samples = study.answers["unpaired"].samples
        found = [averaging(truth, samples, where) for where in (None, few.near_zeros())]
    first, second = np.split(ours.samples[:, :count], [ours.independent])
    pairs = np.stack([first[: len(second)], second], axis=1).reshape(-1, *first.shape[1:])
    names = ("independent", "independent, near zeros of the lens")
    opposite = averaging(truth, pairs, independent=False)
    return {**dict(zip(names, found, strict=True)), "in opposite pairs": opposite}


def record_averaging(report: Report, name: str, found: Averaging) -> None:
    """Record ``NAME.invented.single``, ``.averaged``, ``.shared`` and ``.kept``."""
    first, last = found.invented[0], found.invented[-1]
    share = "of the truth's power"
    report.value(f"{name}.invented.single", *metrics.mean_interval(first), note=share)
    note = f"{share}, mean of {found.samples[-1]} samples"
    report.value(f"{name}.invented.averaged", *metrics.mean_interval(last), note=note)
    if found.shared is not None:
        shared = metrics.mean_interval(found.shared)
        report.value(f"{name}.invented.shared", *shared, note="what no averaging removes")
    report.value(f"{name}.invented.kept", *paired_ratio(last, first), note="averaged over single")


# --- what it costs


def race(
    report: Report,
    batched: Found,
    cases: Cases,
    sampling: Sampling,
    config: Config,
    seed: int,
) -> dict[str, float]:
    """Time a batched run beside a call for each sample of each particle; record ``speed.*``."""
    sampling.retrieve(cases[:1], config, seed, samples=1)  # warms up
    with Stopwatch() as watch:
        for i in range(len(cases)):
            for number in range(config.samples):
                sampling.retrieve(cases[i : i + 1], config, seed + number, samples=1)
    cost = batched.cost
    together, alone = len(batched.image) / cost.seconds, len(cases) / watch.seconds
    told = {
        "particles_per_second": (together, f"{config.samples} samples each, batched"),
        "one_at_a_time": (alone, "particles per second, a call a sample"),
        "speedup": (together / alone, "batched over one at a time, same run"),
        "network_share": (cost.network_seconds / cost.seconds, "of the batched time"),
    }
    return {
        name: report.value(f"speed.{name}", value, note=note)
        for name, (value, note) in told.items()
    }


# --- dose and defocus

Sweep = Mapping[str, Mapping[str, Any]]
SWEPT = (Column("rmse", unit="rad", note="recorded"), Column("covered", note="recorded"))


def sweep_studies(runs: Sweep) -> dict[float, Study]:
    """A study of error and coverage for each value of a recorded sweep."""
    found = {}
    for value, kept in runs.items():
        directions = np.array(next(iter(kept.values()))["groups"])
        study = found[float(value)] = Study((), SWEPT, LABELS, directions)
        for name, row in kept.items():
            told = {key: row[key] for key in ("rmse", "covered") if row[key] is not None}
            study.scores[name] = {key: np.array(one, float) for key, one in told.items()}
    return found


def record_sweep(report: Report, name: str, runs: Sweep) -> None:
    """Record ``NAME.rmse.METHOD.at_VALUE`` and ``NAME.coverage...`` of a recorded sweep."""
    for value, study in sweep_studies(runs).items():
        for method in study.methods:
            for column, key in zip(SWEPT, ("rmse", "coverage"), strict=True):
                if column.name in study.scores[method]:
                    found, n = study.interval(method, column.name), study.seen(method)
                    where = f"{name}.{key}.{method}.at_{value:g}"
                    report.value(where, *found, unit=column.unit, note=column.note, n=n)


# --- what is recorded


def _rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of slow rows, and what averaging independent samples does if those are among them."""
    samples, batch, seed = (settings[key] for key in ("samples", "batch", "seed"))
    cases, first = make_cases(settings["specimen"], settings["poses"], seed), settings["first"]
    sampling = Sampling.load(flowdps.load_config("ours"))
    rows = slow_rows(sampling, settings["steps"], samples, batch, seed) | {"posed": posed_row}
    study = run_study(cases, {name: rows[name] for name in first}, first)
    kept = {
        name: {"scores": scores, "seconds": study.seconds[name]}
        for name, scores in study.scores.items()
    }
    found = {"particles": cases[: max(first.values())].told(), "rows": kept}
    if "unpaired" not in first:
        return found
    seen = cases[: first["unpaired"]]
    drawn, truth = study.answers["unpaired"].samples, seen.truth.numpy()
    places = {"everywhere": None, "near_zeros": seen.near_zeros()}
    return found | {
        "averaging": {key: vars(averaging(truth, drawn, place)) for key, place in places.items()}
    }


def _sweeps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Errors and covered intervals ``{sweep: {value: {method: ...}}}``; the poses never change."""
    ours = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    rows = classical_rows(settings["peers"])
    rows["ours"] = sampled_row(Sampling.load(ours), ours, settings["seed"])
    found: dict[str, Any] = {}
    for sweep, value, cases in _instruments(settings):
        found.setdefault(sweep, {})[f"{value:g}"] = {
            name: {"rmse": scores["rmse"], "covered": scores.get("covered")}
            | {"groups": cases.directions}
            for name, scores in run_study(cases, rows).scores.items()
        }
    return {"particles": next(_instruments(settings))[2].told(), "sweeps": found}


def _instruments(settings: Mapping[str, Any]) -> Iterator[tuple[str, float, Cases]]:
    specimen, n, seed = (settings[key] for key in ("specimen", "poses", "seed"))
    for dose in settings["doses"]:
        yield "dose", dose, make_cases(specimen, n, seed, (dose,))
    for defocus in settings["defoci"]:
        cases = make_cases(specimen, n, seed, (45.0,), defocus_angstrom=defocus)
        yield "defocus", defocus, cases


def _validation(settings: Mapping[str, Any]) -> Iterator[Cases]:
    for name in settings["specimens"]:
        yield make_cases(name, settings["poses"], settings["seed"], split="validation")


def _choose_length(settings: Mapping[str, Any]) -> dict[str, float]:
    """The length of the best AUC, and among equals of the widest gap."""
    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    sampling, found = Sampling.load(config), []
    for cases in _validation(settings):
        samples = sampling.retrieve(cases, config, settings["seed"]).samples
        lengths = settings["lengths"]
        found.append({length: misfit(cases, samples, length)[1] for length in lengths})

    def worst(length: float) -> tuple[float, float]:
        own, *others = (one[length] for one in found)
        gaps = [(one.mean() - own.mean()) / np.hypot(one.std(), own.std()) for one in others]
        return min(auc(own, one) for one in others), float(min(gaps))

    return {"coarser_than_angstrom": max(settings["lengths"], key=worst)}


def _choose_limit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Coarse misfit above which 5 % of the prior's own particles lie, and the AUC of others.

    Asked of normalised particles, gain and offset fitted, the envelope unknown, as a user's are.
    """
    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    sampling = Sampling.load(config)
    own, *others = (
        flowdps.retrieve(
            cases.extracted(), None, config, make_generator(settings["seed"]), crop=True,
            prior=sampling.prior, spread=sampling.spread, contrast="dark",
        ).chi2_low
        for cases in _validation(settings)
    )  # fmt: skip
    found = zip(settings["specimens"][1:], others, strict=True)
    return {
        "warn_above": round(float(np.quantile(own, 0.95)), 2),
        "normalised_auc": {name: round(auc(own, low), 3) for name, low in found},
    }


def _spread(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Rings ``(levels, rings)`` of shipped weights, on validation views."""
    name = settings["weights"]
    images = phase_maps(settings["specimen"], settings["maps"], 1, "validation").phases
    with torch.no_grad():
        found = on_images(load_in_radians(name), images[: settings["asked"]])
    return {"sha256": {name: weights.card(name).sha256}, "rings": {name: rings_of(found)}}


_ASKED, _METHOD = table(SLUG)["recorded"], read_settings("methods/flowdps")
_OURS = {"configs": {"ours": _METHOD["configs"]["ours"]}, "phase": _METHOD["phase"]}
_ALL = {**_METHOD, "poses": table(SLUG)["cpu"]["poses"]}
_NETWORK = ("flowdps_flow",)
ROWS = Recording(SLUG, "rows", _rows, {**_ASKED["rows"], **_ALL}, _NETWORK)
FURTHER = Recording(SLUG, "further", _rows, {**_ASKED["further"], **_ALL}, _NETWORK)
SWEEPS = Recording(SLUG, "sweeps", _sweeps, {**_ASKED["sweeps"], **_OURS}, _NETWORK)
MISFIT = Recording(SLUG, "misfit", _choose_length, _ASKED["misfit"], _NETWORK)
WARNING = Recording(SLUG, "warning", _choose_limit, _ASKED["warning"], _NETWORK)
SPREAD = Recording(SLUG, "spread", _spread, _ASKED["spread"], _NETWORK)


def join_rows(study: Study, report: Report) -> None:
    """Put the recorded rows into a study of the same particles, with the seconds they took."""
    for recording in (ROWS, FURTHER):
        if particles(study).begin_with(recording.values["particles"]):
            rows = recording.values["rows"]
            scores = {name: row["scores"] for name, row in rows.items()}
            study.join_recorded(recording, scores, report)
            study.seconds |= {name: row["seconds"] for name, row in rows.items()}


def sweep_again(sampling: Sampling, report: Report) -> None:
    """Run ours on the first particles of the sweep's last dose again, beside what was recorded.

    Nothing happens where the particles cannot be made: their model or their optics are not here.
    """
    settings, dose = SWEEPS.settings, SWEEPS.settings["doses"][-1]
    try:
        cases = make_cases(settings["specimen"], settings["poses"], settings["seed"], (dose,))
    except DataUnavailableError:
        return
    if not cases.begin_with(SWEEPS.values["particles"]):
        return
    few = cases[: settings["batch"]]
    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    rows = {"ours": sampled_row(sampling, config, settings["seed"])}
    then = SWEEPS.values["sweeps"]["dose"][f"{dose:g}"]["ours"]["rmse"][: len(few)]
    run_study(few, rows).join_recorded(SWEEPS, {"ours": {"rmse": then}}, report, "sweep")
