"""The chapter's table: every method on the same counts, scored against the same phases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab import metrics, models, weights
from emlab.bench import Report
from emlab.bench.study import Column, Scores, Study, mean_of, spanned
from emlab.chapters.flowdps.cases import (
    CLASSICAL,
    MARGIN,
    PEERS,
    Cases,
    classical,
    library,
    posed_view,
)
from emlab.data.phase_maps import FIELD, PIXEL_ANGSTROM
from emlab.methods import flowdps, flowdps_observation
from emlab.methods.estimate import Estimate
from emlab.methods.flowdps_config import Config, phase_scale
from emlab.metrics.bands import RingSums, band_averages, falls_below, ring_sums
from emlab.metrics.calibration import crps, rank_deviation, ranks
from emlab.metrics.image import contrasts
from emlab.metrics.intervals import bootstrap, paired_ratio
from emlab.physics import Poisson
from emlab.priors import Prior
from emlab.priors.base import ScaledPrior
from emlab.priors.networks import untrained_prior
from emlab.recipes.flowdps import SUPERVISED, Restorer
from emlab.runtime import make_generator
from emlab.solvers.denoiser_spread import Spread
from emlab.solvers.guided_phase import GuidedPhaseConfig

Values = NDArray[np.float64]
Phases = NDArray[np.float32]
LABELS = {
    "picture": "the picture taken for the phase",
    "nothing": "no phase at all",
    **CLASSICAL,
    "mean_map": "mean of the training maps",
    "prior_draw": "draw of the prior",
    "supervised": "supervised U-Net",
    "untrained": "ours, untrained network",
    "paper": "FlowDPS, eq. 13 (Zhang)",
    "kim": "FlowDPS, norm (Kim)",
    "corrected": "FlowDPS, corrected",
    "posed": "structure known, all poses searched",
    "unpaired": "ours, ten independent samples",
    "ours": "ours: guided sampler",
}
SAMPLERS = ("untrained", "paper", "kim", "corrected", "unpaired", "ours")
NETWORKS = {"supervised": SUPERVISED} | dict.fromkeys(SAMPLERS, "flowdps_flow")
RINGS = 8  # of the band averages
LEVELS = np.linspace(0.1, 0.95, 12)  # of intervals
PER_NM = 10 / PIXEL_ANGSTROM  # of a cycle per pixel
FREQUENCY = np.arange(1, FIELD // 2 + 1) / FIELD  # cycles per pixel of Fourier rings


@dataclass(frozen=True, kw_only=True)
class Answer(Estimate[Phases]):
    """Phases ``(n, 64, 64)``; calibration is judged by the first `independent` samples."""

    independent: int = 1


Found = Answer | flowdps.Retrieval
Method = Callable[[Any], Found]


def plain(phases: Tensor | Phases) -> Answer:
    """The answer of a method that draws no samples."""
    phases = np.asarray(phases, np.float32)
    return Answer(image=phases, samples=phases[None])


@dataclass(frozen=True)
class Sampling:
    """A prior in radians, its spread and how that was measured, and where its network is."""

    prior: Prior
    spread: Spread
    origin: str
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, config: Config, device: torch.device | str = "cpu") -> Sampling:
        """The prior of a configuration."""
        return cls(*flowdps.load(config, device), device)

    def retrieve(
        self, cases: Cases, config: Config, seed: int, samples: int | None = None
    ) -> flowdps.Retrieval:
        """What users call, told the dose and the envelope."""
        return flowdps.retrieve(
            cases.counts, cases.optics, config, make_generator(seed), samples=samples,
            prior=self.prior, spread=self.spread, dose_per_angstrom2=cases.dose,
            b_factor_angstrom2=cases.b_factor_angstrom2, device=self.device,
        )  # fmt: skip


# --- rows


def hurried(name: str, steps: int, samples: int, batch: int) -> Config:
    """A shipped configuration with other numbers of steps, samples and particles at a time."""
    config = flowdps.load_config(name)
    sampler = replace(config.sampler, steps=steps)
    return replace(config, sampler=sampler, samples=samples, batch=batch)


def sampled_row(sampling: Sampling, config: Config, seed: int) -> Method:
    """A sampler: the answer is the mean of its samples."""
    return lambda cases: sampling.retrieve(cases, config, seed)


def slow_rows(
    sampling: Sampling, steps: Mapping[str, int], samples: int, batch: int, seed: int
) -> dict[str, Method]:
    """FlowDPS in its forms, and ours in independent samples ("unpaired"), in so many steps."""
    rows = {}
    for name, count in steps.items():
        config = hurried("ours" if name == "unpaired" else name, count, samples, batch)
        if isinstance(config.sampler, GuidedPhaseConfig):
            config = replace(config, sampler=replace(config.sampler, antithetic=False))
        rows[name] = sampled_row(sampling, config, seed)
    return rows


def untrained_row(config: Config, spread: Spread, seed: int) -> Method:
    """Ours with the configuration's network before training: random weights, the same size."""
    scale = phase_scale()
    prior = ScaledPrior(untrained_prior(config.prior, seed), scale.std, scale.mean)
    return sampled_row(Sampling(prior, spread, "of the trained prior"), config, seed)


def classical_rows(names: Iterable[str]) -> dict[str, Method]:
    """The tuned peers."""

    def row(name: str) -> Method:
        return lambda cases: plain(classical(name, cases, PEERS.values[name]))

    return {name: row(name) for name in names}


def reference_rows(drawn: Phases) -> dict[str, Method]:
    """Answers that are no retrieval: trivial ones, and draws of the prior alone."""

    def picture(cases: Cases) -> Answer:
        """Dark where there is matter, half of twice the phase."""
        contrast = cases.counts / cases.instrument().counts.to(cases.counts) - 1
        inner = slice(MARGIN, -MARGIN)
        return plain(-contrast[:, inner, inner] / 2)

    def prior_draw(cases: Cases) -> Answer:
        samples = np.repeat(drawn[:, None], len(cases), axis=1)
        first = drawn[np.arange(len(cases)) % len(drawn)]
        return Answer(image=first, samples=samples, independent=len(drawn))

    return {
        "picture": picture,
        "nothing": lambda cases: plain(torch.zeros_like(cases.truth)),
        "mean_map": lambda cases: plain(library(cases.specimen).mean(0).expand_as(cases.truth)),
        "prior_draw": prior_draw,
    }


def posed_row(cases: Cases) -> Answer:
    """The structure is known, the pose is searched: see `posed_view`."""
    return plain(torch.cat([posed_view(part) for part in _parts(cases)]))


def supervised_row(restorer: Restorer) -> Method:
    """The trained competitor."""

    def restored(cases: Cases) -> Answer:
        each = [restorer.restore(part.instrument(), part.counts) for part in _parts(cases)]
        return plain(torch.cat(each))

    return restored


def _parts(cases: Cases, size: int = 8) -> list[Cases]:
    return [cases[start : start + size] for start in range(0, len(cases), size)]


# --- scores


def score(cases: Cases, found: Found) -> dict[str, Values]:
    """Scores of phases, a row a particle.

    ``rmse``
        Radians, means removed: a single image does not tell them.
    ``contrast``, ``michelson``
        See `emlab.metrics.image.contrasts`.
    ``chi2``, ``chi2_low``
        See `misfit`.
    ``crps``
        Of band averages, radians; the absolute error for a method without samples.
    ``rings``, ``zeros``
        ``(n, 3, 32)`` cross and both powers of the Fourier correlation with the truth: of all
        coefficients, and of those near zeros of the contrast transfer.
    ``covered``
        ``(n, 8)`` share of band averages inside their 90 % intervals, from coarse to fine.
    ``ranks``
        ``(n, bands, 2)`` of the truth among the samples.
    ``by_level``
        ``(n, 12)`` share of all particles' band averages inside their intervals of `LEVELS`.
    ``independent``
        Samples behind the last three, which a method without samples lacks.
    """
    truth, n = cases.truth.numpy(), len(cases)
    first, second = (image - image.mean((1, 2), keepdims=True) for image in (found.image, truth))
    drawn, actual = band_averages(found.samples[: found.independent]), band_averages(truth)
    chi2, chi2_low = misfit(cases, found.samples)
    sums = {"rings": ring_sums(found.image, truth)}
    sums["zeros"] = ring_sums(found.image, truth, cases.near_zeros())
    scores = {
        "rmse": np.sqrt(np.square(first - second).mean((1, 2), dtype=np.float64)),
        **contrasts(found.image, truth),
        "chi2": chi2,
        "chi2_low": chi2_low,
        "crps": crps(drawn, actual).mean((1, 2)),
        **{name: np.stack([s.cross, s.first, s.second], 1) for name, s in sums.items()},
    }
    if len(drawn) < 2:
        return scores

    def covered(i: int, rings: NDArray[np.intp]) -> float:
        return metrics.coverage(drawn[:, i, rings], actual[i, rings], interval="normal")

    bands = np.split(np.arange(drawn.shape[2]), RINGS)
    by_level = [metrics.coverage(drawn, actual, level, "normal") for level in LEVELS]
    return scores | {
        "covered": np.array([[covered(i, rings) for rings in bands] for i in range(n)]),
        "ranks": ranks(drawn, actual),
        "by_level": np.tile(by_level, (n, 1)),
        "independent": np.full(n, len(drawn)),
    }


def misfit(
    cases: Cases, samples: Phases, coarser_than_angstrom: float | None = None
) -> tuple[Values, Values]:
    """Misfit of the counts to phases ``(s, n, 64, 64)``, and that of the coarse part.

    ``(n,)`` each, means over samples; see `emlab.methods.flowdps_observation.misfit`.
    """
    instrument, noise = cases.instrument(), Poisson()
    each = [
        flowdps_observation.misfit(
            cases.counts, instrument.A(one), noise, PIXEL_ANGSTROM, coarser_than_angstrom
        )
        for one in torch.from_numpy(samples)
    ]
    whole, low = (torch.stack(v).mean(0).double().numpy() for v in zip(*each, strict=True))
    return whole, low


def rings(scores: Scores, kind: str = "rings", n: int | None = None) -> RingSums:
    """Fourier correlation with the truth of the first n particles: ``rings`` or ``zeros``."""
    return RingSums(FREQUENCY, *np.moveaxis(scores[kind][:n], 1, 0))


def _resolution(scores: Scores, name: str, directions: Values | None) -> metrics.Interval:
    """Frequency in 1/nm at which the correlation with the truth falls below .5."""
    sums, groups = rings(scores, "zeros" if "zeros" in name else "rings"), _apart(directions)
    found = bootstrap(lambda i: sums.limit(0.5, i), len(sums.cross), resamples=200, groups=groups)
    return metrics.Interval(*(PER_NM * end for end in found))


NOTE = "95 % bootstrap interval over viewing directions"
CONTRASTS = ("contrast", "michelson")
ZEROS = "near zeros of the contrast transfer"
COLUMNS = (
    Column("rmse", better="lower", unit="rad", note=NOTE),
    Column("contrast", note=NOTE),
    Column("michelson", note=NOTE),
    Column("frc_per_nm", unit="1/nm", note=NOTE, of=_resolution),
    Column("frc_zeros_per_nm", unit="1/nm", note=ZEROS, of=_resolution),
    Column("crps", better="lower", unit="rad", note=NOTE),
    Column("chi2", note=NOTE),
    Column("chi2_low", note=NOTE),
)

# --- the table


def run_study(
    cases: Cases, methods: Mapping[str, Method], first: Mapping[str, int] | None = None
) -> Study:
    """Run and score methods; `first` names those that get the first so many particles only."""
    study = Study(cast(Any, cases), COLUMNS, LABELS, cases.directions)
    return study.run(methods, cast(Any, score), first=first)


def particles(study: Study) -> Cases:
    """The cases of a study."""
    return cast(Cases, study.cases)


def sampled(study: Study) -> list[str]:
    """Methods that draw samples."""
    return [name for name in study.methods if "covered" in study.scores[name]]


def best_classical(study: Study) -> str:
    """The peer of one image with the smallest error on validation poses, of those that ran."""
    return min(_single(study), key=lambda name: PEERS.values[name]["validation_rmse"])


def finest_classical(study: Study) -> str:
    """The peer of one image that reaches the finest detail here."""
    return max(_single(study), key=lambda name: rings(study.scores[name]).limit())


def strongest_classical(study: Study, column: str = "contrast") -> str:
    """The peer of one image with the most contrast here."""
    return max(_single(study), key=lambda name: study.interval(name, column).mean)


def _single(study: Study) -> list[str]:
    return [name for name in study.methods if name in CLASSICAL and name != "transport"]


def ratio(study: Study, better: str, worse: str) -> metrics.Interval:
    """Error of one method over that of another, on the particles that both saw."""
    n = min(study.seen(better), study.seen(worse))
    first, second = (study.scores[name]["rmse"][:n] for name in (better, worse))
    return paired_ratio(first, second, groups=_apart(particles(study).directions[:n]))


def _compare(
    study: Study, pair: tuple[str, str], kind: str, statistic: Callable[[Values, Values], float]
) -> metrics.Interval:
    """A statistic of the Fourier correlations of two methods, on the particles that both saw."""
    n = min(study.seen(name) for name in pair)
    sums = [rings(study.scores[name], kind, n) for name in pair]
    groups = _apart(particles(study).directions[:n])

    def of(chosen: NDArray[np.intp]) -> float:
        return statistic(*(one.correlation(chosen) for one in sums))

    return bootstrap(of, n, resamples=200, groups=groups)


def _apart(directions: Values | None) -> Values | None:
    """Directions to resample; None, so that particles are, where they share one."""
    return None if directions is None or len(np.unique(directions)) < 2 else directions


def finer_by(study: Study, better: str, worse: str, kind: str = "rings") -> metrics.Interval:
    """Ratio of the frequencies at a correlation of .5 on the same particles; above 1 is finer.

    A method whose correlation is nowhere above .5 counts as reaching the first ring.
    """

    def of(*pair: Values) -> float:
        first, second = (max(falls_below(FREQUENCY, one), FREQUENCY[0]) for one in pair)
        return first / second

    return _compare(study, (better, worse), kind, of)


def zeros_gain(study: Study, better: str, worse: str) -> metrics.Interval:
    """Mean Fourier correlation near zeros of the lens, of rings that have some: paired difference.

    Unlike a limit it does not jump where a curve runs along .5.
    """
    counted = rings(study.scores[better], "zeros", study.seen(worse)).second.sum(0) > 0

    def of(first: Values, second: Values) -> float:
        return float(np.nanmean(first[counted]) - np.nanmean(second[counted]))

    return _compare(study, (better, worse), "zeros", of)


def coverage(study: Study, name: str, dose: float | None = None) -> metrics.Interval:
    """Share of band averages inside their 90 % intervals, of one dose or of all."""
    covered, n = study.scores[name]["covered"], study.seen(name)
    doses, directions = particles(study).dose.numpy()[:n], particles(study).directions[:n]
    chosen = np.full(n, True) if dose is None else np.isclose(doses, dose)
    return mean_of({name: covered[chosen]}, name, directions[chosen])


def table(study: Study) -> str:
    """A row a method: error, that over the best peer's, resolution, coverage."""
    reference = best_classical(study)

    def angstrom(name: str, kind: str) -> str:
        limit = rings(study.scores[name], kind).limit()
        return f"{PIXEL_ANGSTROM / limit:.1f}" if limit else "none"

    def error(name: str) -> str:
        mrad = (1e3 * end for end in study.interval(name, "rmse"))
        return spanned(metrics.Interval(*mrad), ".1f")

    def covered(name: str) -> str:
        return f"{coverage(study, name).mean:.0%}" if name in sampled(study) else "-"

    extra = {
        "n": lambda name: str(study.seen(name)),
        "phase RMSE [mrad]": error,
        "contrast": lambda name: f"{study.interval(name, 'contrast').mean:.3f}",
        f"of {LABELS[reference]}'s": lambda name: spanned(ratio(study, name, reference), ".2f"),
        "FRC .5 [A]": lambda name: angstrom(name, "rings"),
        "near zeros [A]": lambda name: angstrom(name, "zeros"),
        "90 % covers": covered,
    }
    return study.markdown(extra=extra)


def misfit_table(study: Study) -> str:
    """A row a method: CRPS, misfit of the counts, seconds."""

    def mean(name: str, column: str) -> float:
        return study.interval(name, column).mean

    extra = {
        "Michelson": lambda name: f"{mean(name, 'michelson'):.3f}",
        "CRPS [mrad]": lambda name: f"{1e3 * mean(name, 'crps'):.1f}",
        "chi^2": lambda name: f"{mean(name, 'chi2'):.3f}",
        "coarse chi^2": lambda name: f"{mean(name, 'chi2_low'):.2f}",
        "s a particle": lambda name: f"{study.seconds.get(name, np.nan):.2g}".replace("nan", "-"),
        "network: size, training, passes": lambda name: network_cost(study, name),
    }
    return study.markdown(extra=extra)


def network_cost(study: Study, name: str) -> str:
    """Parameters of a row's network, minutes that training it took, passes through it a particle.

    From its card and its run; a dash where no network has a part.
    """
    if name not in NETWORKS or name not in study.answers:
        return "-"
    card, answer = weights.card(NETWORKS[name]), study.answers[name]
    millions = sum(p.numel() for p in models.build(card.model).parameters()) / 1e6
    minutes = 0 if name == "untrained" else card.seconds / 60
    passes = answer.cost.evaluations // (1 if name == "supervised" else len(answer.image))
    return f"{millions:.1f} M, {minutes:.0f} min, {passes}"


def record(study: Study, report: Report) -> None:
    """Record ``METRIC.METHOD``, calibration, and comparisons of ours with every other method."""
    study.record(report)
    for name in sampled(study):
        _record_calibration(study, report, name)
    for name in (name for name in study.methods if name != "ours"):
        for kind, key in (("rings", "finer_than"), ("zeros", "finer_near_zeros_than")):
            found = finer_by(study, "ours", name, kind)
            report.value(f"{key}.{name}", *found, note="ratio of frequencies at FRC .5")
        report.value(f"rmse_ratio.ours_over_{name}", *ratio(study, "ours", name), note=NOTE)
        study.record_gains(report, "ours", name, columns=CONTRASTS)
        gain = zeros_gain(study, "ours", name)
        report.value(f"gain_frc_zeros.ours_over_{name}", *gain, note="mean FRC near zeros")
    for column in CONTRASTS:
        strongest = strongest_classical(study, column)
        gain = study.gain("ours", strongest, column)
        report.value(f"gain_{column}.ours_over_strongest", *gain, note=LABELS[strongest])
    best, key = best_classical(study), "rmse_ratio.ours_over_best_classical"
    report.value(key, *ratio(study, "ours", best), note=LABELS[best])


def _record_calibration(study: Study, report: Report, name: str) -> None:
    scores = study.scores[name]
    for dose in dict.fromkeys(particles(study).dose[: study.seen(name)].tolist()):
        report.value(f"coverage.{name}.dose_{dose:g}", *coverage(study, name, dose))
    report.value(f"coverage.{name}.all", *coverage(study, name), note="of 90 % intervals")
    for ring, share in enumerate(scores["covered"].mean(0)):
        report.value(f"coverage_ring.{name}.{ring}", share, note="from coarse to fine")
    deviation = rank_deviation(scores["ranks"].astype(int), int(scores["independent"][0]))
    report.value(f"rank_deviation.{name}", deviation, note="0 is calibrated")
    if name in study.answers:
        report.value(f"seconds_a_particle.{name}", study.seconds[name], unit="s")
        cost = study.answers[name].cost
        if cost.network_seconds:
            share = cost.network_seconds / cost.seconds
            report.value(f"network_share.{name}", share, note="of the time")
