"""The chapter's table: every method on the same counts, scored against the same phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emlab import metrics
from emlab.bench import Report
from emlab.bench.study import pipe_table, spanned
from emlab.chapters.flowdps.cases import Cases
from emlab.chapters.flowdps.peers import LABELS as CLASSICAL, best_peer
from emlab.chapters.flowdps.rows import LABELS, Answer, Method, judged
from emlab.chapters.flowdps.scores import Scores, finer_by, unpacked, zeros_gain
from emlab.metrics.calibration import rank_deviation
from emlab.metrics.intervals import paired_ratio

NOTE = "95 % bootstrap interval over viewing directions"


@dataclass
class Table:
    """Scores and answers of every method.

    Attributes
    ----------
    cases : Cases
    scores : dict
        By method. A method that saw the first m of the particles only has m scores.
    answers : dict
        By method.
    seconds : dict
        A particle, by method, of those that ran here.
    recorded : list of str
        Methods whose scores are recorded; their answers, if any, are of fewer particles.
    """

    cases: Cases
    scores: dict[str, Scores] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    recorded: list[str] = field(default_factory=list)

    def error(self, method: str) -> metrics.Interval:
        """Root mean square error of the phase in radians, mean over particles."""
        return self.scores[method].error

    def ratio(self, better: str, worse: str) -> metrics.Interval:
        """Error of one method over that of another, on the particles that both saw."""
        first, second = self.scores[better].rmse, self.scores[worse].rmse
        n = min(len(first), len(second))
        return paired_ratio(first[:n], second[:n], groups=self.scores[better].groups[:n])

    def coverage(self, method: str, dose: float | None = None) -> metrics.Interval:
        """Share of band averages inside their 90 % intervals, of one dose or of all."""
        scores = self.scores[method]
        if dose is None:
            return scores.coverage()
        return scores.coverage(np.isclose(self.cases.dose.numpy()[: len(scores.rmse)], dose))

    def join(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Put recorded rows of the same particles into the table.

        Parameters
        ----------
        rows : dict
            By method ``scores`` (packed) of the first particles.

        Returns
        -------
        dict
            Of methods that ran on some of them: error here over the recorded error.
        """
        agreement = {}
        for name, row in rows.items():
            kept = unpacked(row["scores"])
            if name in self.scores:
                here = self.scores.pop(name).rmse
                n = min(len(here), len(kept.rmse))
                agreement[name] = float(here[:n].mean() / kept.rmse[:n].mean())
            self.scores[name] = kept
            self.recorded.append(name)
        order = list(LABELS)
        self.scores = {name: self.scores[name] for name in sorted(self.scores, key=order.index)}
        return agreement

    @property
    def classical(self) -> list[str]:
        """Peers without a network that ran."""
        return [name for name in self.scores if name in CLASSICAL]

    @property
    def best_classical(self) -> str:
        """The one with the smallest error on validation poses, of those that ran."""
        return best_peer() if best_peer() in self.scores else self.classical[0]

    @property
    def finest_classical(self) -> str:
        """The peer of one image that reaches the finest detail here."""
        single = [name for name in self.classical if name != "transport"]
        return max(single, key=lambda name: self.scores[name].rings.limit())

    @property
    def sampled(self) -> list[str]:
        """Methods that draw samples."""
        return [name for name, scores in self.scores.items() if scores.covered is not None]

    def markdown(self) -> str:
        """A row a method: error, that over the best peer's, resolution, coverage."""
        reference = self.best_classical
        heads = ["method", "n", "phase RMSE [mrad]", f"of {LABELS[reference]}'s", "FRC .5 [A]"]
        rows = []
        for name, scores in self.scores.items():
            error = metrics.Interval(*(1e3 * end for end in self.error(name)))
            ratio = spanned(self.ratio(name, reference), ".2f")
            limits = [_angstrom(rings.limit()) for rings in (scores.rings, scores.zeros)]
            covered = "-" if scores.covered is None else f"{scores.covered.mean():.0%}"
            row = [self._label(name), str(len(scores.rmse)), spanned(error, ".1f"), ratio]
            rows.append([*row, *limits, covered])
        return pipe_table([*heads, "near zeros [A]", "90 % covers"], rows)

    def markdown_misfit(self) -> str:
        """A row a method: CRPS, misfit of the counts, seconds."""
        rows = []
        for name, scores in self.scores.items():
            seconds = f"{self.seconds[name]:.2g}" if name in self.seconds else "-"
            chi = [f"{scores.chi2.mean():.3f}", f"{scores.chi2_low.mean():.2f}"]
            rows.append([self._label(name), f"{1e3 * scores.crps.mean():.1f}", *chi, seconds])
        return pipe_table(["method", "CRPS [mrad]", "chi^2", "coarse chi^2", "s a particle"], rows)

    def _label(self, name: str) -> str:
        return LABELS[name] + (" \u2020" if name in self.recorded else "")

    def record(self, report: Report, ours: str = "ours") -> None:
        """Record ``METRIC.METHOD``, and ratios ``rmse_ratio.over_METHOD`` of ours."""
        for name, scores in self.scores.items():
            n = len(scores.rmse)
            report.value(f"rmse.{name}", *self.error(name), unit="rad", note=NOTE, n=n)
            report.value(f"frc_per_nm.{name}", *scores.resolution(), unit="1/nm", note=NOTE, n=n)
            report.value(
                f"frc_zeros_per_nm.{name}", *scores.resolution(zeros=True), unit="1/nm",
                note="near zeros of the contrast transfer", n=n,
            )  # fmt: skip
            report.value(f"crps.{name}", *scores.mean(scores.crps), unit="rad", n=n)
            report.value(f"chi2.{name}", *scores.mean(scores.chi2), n=n)
            report.value(f"chi2_low.{name}", *scores.mean(scores.chi2_low), n=n)
            self._record_calibration(report, name)
            if name != ours and ours in self.scores:
                for zeros, key in ((False, "finer_than"), (True, "finer_near_zeros_than")):
                    ratio = finer_by(self.scores[ours], scores, zeros)
                    report.value(f"{key}.{name}", *ratio, note="ratio of frequencies at FRC .5")
                report.value(f"rmse_ratio.over_{name}", *self.ratio(ours, name), note=NOTE)
                gain = zeros_gain(self.scores[ours], scores)
                report.value(f"frc_zeros_gain.over_{name}", *gain, note="mean FRC near zeros")
        best = self.best_classical
        report.value("rmse_ratio.over_best_classical", *self.ratio(ours, best), note=LABELS[best])

    def _record_calibration(self, report: Report, name: str) -> None:
        scores, answer = self.scores[name], self.answers.get(name)
        if scores.covered is None or scores.ranks is None:
            return
        for dose in dict.fromkeys(self.cases.dose[: len(scores.rmse)].tolist()):
            report.value(f"coverage.{name}.dose_{dose:g}", *self.coverage(name, dose))
        report.value(f"coverage.{name}.all", *self.coverage(name), note="of 90 % intervals")
        for ring, share in enumerate(scores.covered.mean(0)):
            report.value(f"coverage_ring.{name}.{ring}", share, note="from coarse to fine")
        deviation = rank_deviation(scores.ranks, scores.samples)
        report.value(f"rank_deviation.{name}", deviation, note="0 is calibrated")
        if name in self.seconds:
            report.value(f"seconds_a_particle.{name}", self.seconds[name], unit="s")
        if answer and answer.network_seconds:
            share = answer.network_seconds / answer.seconds
            report.value(f"network_share.{name}", share, note="of the time")


def run_study(
    cases: Cases,
    methods: Mapping[str, Method],
    *,
    first: Mapping[str, int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run every method.

    Parameters
    ----------
    methods : dict of str to callable
        See `emlab.chapters.flowdps.rows`.
    first : dict, optional
        Methods that get the first so many particles only.
    """
    table = Table(cases)
    for name, method in methods.items():
        seen = cases.first((first or {}).get(name, len(cases)))
        table.answers[name], table.scores[name] = judged(method, seen)
        table.seconds[name] = table.answers[name].seconds / len(seen)
        if progress is not None:
            progress(f"{LABELS.get(name, name)}: {1e3 * table.scores[name].rmse.mean():.1f} mrad")
    return table


def _angstrom(cycles_per_pixel: float) -> str:
    from emlab.data.phase_maps import PIXEL_ANGSTROM

    return f"{PIXEL_ANGSTROM / cycles_per_pixel:.1f}" if cycles_per_pixel else "none"
