"""The chapter's table: every method on the same micrographs, judged by truth, picker and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.chapters.tsm.peers import LABELS, Denoised, Method
from emlab.chapters.tsm.reconstruction import FEWEST, Reconstruction, extract, reconstruct
from emlab.errors import InputError
from emlab.external import topaz
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks, f1_gain, pick_all
from emlab.metrics import Interval, mean_interval, paired_difference
from emlab.metrics.bands import BANDS_ANGSTROM, band_correlations
from emlab.metrics.picking import Counts, chance
from emlab.physics.micrograph import Micrograph

NOTE = "95 % bootstrap interval over micrographs"
_SEED = 7


@dataclass
class Table:
    """What every method made of the micrographs, and what that was worth.

    Attributes
    ----------
    micrographs : list of Micrograph
    thresholds : dict of str to float
        Score that a pick needs, by method, from validation micrographs.
    denoised, bands : dict
        By method; ``bands`` holds ``(micrographs, bands + 1)``, the last is the mean.
    picks, maps : dict
        By method; empty where Topaz is not installed.
    costs, windows : dict
        By method, recorded processor seconds a megapixel, and the middle of the first image.
    told : set
        Methods whose bands were recorded, at least in part: marked in tables.
    picker_seconds : float
        Processor time of the picker.
    """

    micrographs: list[Micrograph]
    thresholds: Mapping[str, float]
    denoised: dict[str, Denoised] = field(default_factory=dict)
    bands: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    picks: dict[str, Picks] = field(default_factory=dict)
    maps: dict[str, Reconstruction] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    windows: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    picker_seconds: float = 0.0

    def recovery(self, method: str) -> Interval:
        """Correlation with the clean particles, mean over bands and micrographs."""
        return _mean(self.bands[method][:, -1])

    def gain(self, better: str, worse: str) -> Interval:
        """Paired difference of the mean correlation, on the micrographs that both saw."""
        first, second = self.bands[better][:, -1], self.bands[worse][:, -1]
        n = min(len(first), len(second))
        return _paired(first[:n], second[:n])

    def threshold(self, method: str) -> float:
        """Of a method; that of raw micrographs for one that has none."""
        return float(self.thresholds.get(method, self.thresholds["raw"]))

    def picking_gain(self, better: str, worse: str, number: str = "f1") -> Interval:
        """Difference of micro F1, precision or recall."""
        return f1_gain(self.counts(better), self.counts(worse), number)

    def counts(self, method: str) -> Counts:
        """Picks of each micrograph at the method's threshold, hits among them, and particles."""
        return self.picks[method].at(self.threshold(method))

    def judged(self) -> list[str]:
        """Methods with picks."""
        return [name for name in LABELS if name in self.picks]

    def chance(self) -> float:
        """F1 of places drawn blindly, as many as there are particles."""
        truth = [micrograph.coordinates for micrograph in self.micrographs]
        shapes = [tuple(micrograph.noisy.shape) for micrograph in self.micrographs]
        return chance(truth, shapes, self.picks["raw"].radius).f1()

    def pick(self, threads: int = 1) -> None:
        """Run the picker on all images of all methods; nothing happens without Topaz."""
        if topaz.find() is None:
            return
        pixel = self.micrographs[0].pixel_size_angstrom
        images = {name: each.images for name, each in self.denoised.items()}
        found, self.picker_seconds = pick_all(images, pixel, DIAMETER_ANGSTROM, threads=threads)
        truth = [micrograph.coordinates for micrograph in self.micrographs]
        radius = HIT * DIAMETER_ANGSTROM / pixel
        for name, picked in found.items():
            self.picks[name] = Picks(picked, truth[: len(picked)], radius)

    def rebuild(self, methods: Sequence[str], truth: NDArray[np.float32]) -> None:
        """Reconstruct from the raw micrographs at each method's picks, and at the true places.

        A method with hardly any picks gets no map.
        """
        radius = HIT * DIAMETER_ANGSTROM / self.micrographs[0].pixel_size_angstrom
        places = {name: self.picks[name].kept(self.threshold(name)) for name in methods}
        places |= {"truth": [micrograph.coordinates for micrograph in self.micrographs]}
        for name, found in places.items():
            particles = extract(self.micrographs[: len(found)], found, radius, seed=_SEED)
            if len(particles.images) >= FEWEST:
                self.maps[name] = reconstruct(particles, truth)

    def markdown_recovery(self) -> str:
        """A row a method: correlation band by band."""
        bands = " | ".join(f"{name.replace('_', ' to ')} A" for name in BANDS_ANGSTROM)
        lines = [
            f"| method | {bands} | mean | micrographs | CPU-s a megapixel |",
            "|---" * (len(BANDS_ANGSTROM) + 4) + "|",
        ]
        for name, values in self.bands.items():
            mean = self.recovery(name)
            cells = " | ".join(f"{value:.3f}" for value in values.mean(0)[:-1])
            lines.append(
                f"| {LABELS[name]}{' †' * (name in self.told)} | {cells} "
                f"| {_cell(mean, len(values))} "
                f"| {len(values)} | {self.cost(name):.2g} |"
            )
        return "\n".join(lines)

    def markdown_picks(self) -> str:
        """A row a method: picks, precision, recall, F1, micro and macro."""
        if not self.picks:
            return "*skipped: Topaz is not installed*"
        lines = [
            "| picked from | threshold | picks | precision | recall | F1 (micro) | F1 (macro) "
            "| average precision |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name in self.judged():
            counts = self.counts(name)
            precise = f"{self.picks[name].curve().average_precision:.3f}"
            f1 = counts.interval("f1") if len(counts.hits) > 1 else Interval(*3 * (counts.f1(),))
            lines.append(
                f"| {LABELS[name]} | {self.threshold(name):.2f} | {counts.picks.sum()} "
                f"| {counts.precision():.3f} | {counts.recall():.3f} "
                f"| {_cell(f1, len(counts.hits))} | {counts.f1('macro'):.3f} "
                f"| {precise} |"
            )
        if "raw" in self.picks:
            lines.append(f"| places at random | | | | | {self.chance():.3f} | | |")
        return "\n".join(lines)

    def markdown_maps(self) -> str:
        """A row a method: particles and resolution."""
        if not self.maps:
            return "*skipped: there are no picks, or this profile makes no maps*"
        lines = [
            "| picks of | windows | of them particles | halves, FSC .143 [A] | truth, FSC .5 [A] "
            "| program | CPU-s |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in self.maps.items():
            lines.append(
                f"| {LABELS.get(name, 'the true places')} | {found.particles} "
                f"| {found.right / found.particles:.1%} | {found.resolution_angstrom:.2f} "
                f"| {found.true_resolution_angstrom:.2f} | {found.program} "
                f"| {found.seconds:.1f} |"
            )
        return "\n".join(lines)

    def cost(self, method: str) -> float:
        """Processor seconds a megapixel; of one recorded run, where there is one."""
        if method in self.costs:
            return self.costs[method]
        pixels = sum(image.size for image in self.denoised[method].images)
        return 1e6 * self.denoised[method].cpu_seconds / pixels

    def record(self, report: Report) -> None:
        """Record ``recovery.METHOD``, ``picking.NUMBER.METHOD``, ``map.resolution.METHOD``."""
        first = self.micrographs[0]
        constant = band_correlations(np.ones(tuple(first.noisy.shape)), first)["mean"]
        report.value("recovery.nothing", constant, note="of an image without contrast")
        for name, values in self.bands.items():
            n = len(values)
            report.value(f"recovery.{name}", *self.recovery(name), note=NOTE, n=n)
            for band, column in zip(BANDS_ANGSTROM, values.T, strict=False):
                report.value(f"recovery_{band}.{name}", *_mean(column), n=n)
            if name != "tsm" and "tsm" in self.bands:
                report.value(f"recovery_gain.over_{name}", *self.gain("tsm", name), note=NOTE)
        for name in ("topaz", "gaussian", "bm3d"):
            if {"dsm", name} <= self.bands.keys():
                gain = self.gain("dsm", name)
                report.value(f"recovery_gain.dsm_over_{name}", *gain, note=NOTE)
        if "raw" in self.picks:
            report.value("picking.f1.chance", self.chance(), note="places at random")
        for name in self.judged():
            counts = self.counts(name)
            for number in ("precision", "recall", "f1"):
                report.value(f"picking.{number}.{name}", getattr(counts, number)())
            report.value(f"picking.macro_f1.{name}", counts.f1("macro"))
            precise = self.picks[name].curve().average_precision
            report.value(f"picking.average_precision.{name}", precise)
            if name != "tsm" and "tsm" in self.picks:
                for number in ("f1", "precision", "recall"):
                    gain = self.picking_gain("tsm", name, number)
                    report.value(f"picking.{number}_gain.over_{name}", *gain, note=NOTE)
        for name, found in self.maps.items():
            report.value(f"map.resolution.{name}", found.resolution_angstrom, unit="A")
            report.value(f"map.resolution_truth.{name}", found.true_resolution_angstrom, unit="A")
        for better, worse in (("tsm", "raw"), ("tsm", "topaz")):
            if {better, worse} <= self.maps.keys():
                ratio = self.maps[better].resolution_angstrom / self.maps[worse].resolution_angstrom
                report.value(f"map.resolution_ratio.over_{worse}", ratio, note="below 1 is finer")


def run_study(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, float],
    *,
    first: Mapping[str, int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Denoise with every method and compare with the clean particles.

    Parameters
    ----------
    first : dict, optional
        Methods that get the first so many micrographs only.

    Raises
    ------
    InputError
        An answer of another number or shape than the micrographs.
    """
    table = Table(list(micrographs), thresholds)
    noisy = [micrograph.noisy.numpy() for micrograph in micrographs]
    for name, method in methods.items():
        seen = noisy[: (first or {}).get(name, len(noisy))]
        answer = method(seen)
        if [image.shape for image in answer.images] != [image.shape for image in seen]:
            raise InputError(f"{name} returned other shapes than the micrographs'")
        table.denoised[name] = answer
        table.bands[name] = np.array(
            [
                list(band_correlations(image, truth).values())
                for image, truth in zip(answer.images, micrographs, strict=False)
            ]
        )
        if progress is not None:
            progress(f"{LABELS[name]}: {table.recovery(name).mean:.3f}")
    return table


def choose_threshold(picks: Picks) -> float:
    """The threshold of the largest F1, for validation micrographs."""
    return picks.curve().best


def _cell(found: Interval, n: int) -> str:
    """A number with its interval, if it is of more than one micrograph."""
    interval = f" [{found.low:.3f}, {found.high:.3f}]" if n > 1 else ""
    return f"{found.mean:.3f}{interval}"


def _mean(values: NDArray[np.float64]) -> Interval:
    return mean_interval(values) if len(values) > 1 else Interval(*3 * (float(values[0]),))


def _paired(first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval:
    return paired_difference(first, second) if len(first) > 1 else _mean(first - second)
