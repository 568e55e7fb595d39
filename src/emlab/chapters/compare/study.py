"""Every method on the same micrographs: judged by truth and two pickers, on nothing, on halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import DAGGER, Column, Scores, Study, Values, pipe_table, signed
from emlab.chapters.tsm.cases import LABELS, Image, Method, find_picks, of_noisy
from emlab.chapters.tsm.recorded import Kept, join
from emlab.chapters.tsm.study import NOTE, PICKING, Table, correlations, picks_of
from emlab.errors import InputError
from emlab.external.picking import Picks, f1_gain
from emlab.methods import tsm
from emlab.metrics import Interval, fourier_ring_correlation
from emlab.metrics.bands import RADIUS_ANGSTROM, band_correlations, band_pass
from emlab.metrics.picking import Counts
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.micrograph import Micrograph
from emlab.recipes.particles import own_picks

BAND_ANGSTROM = (80.0, 10.0)  # rings that count
CONTRAST_ANGSTROM = (80.0, 16.0)
ANY_SCORE = -np.inf
COLUMNS = (
    Column("correlation", "correlation in particles", note=NOTE),
    Column("frc", "FRC 80 to 10 A", note=NOTE),
)
NUMBERS = {  # their heads in tables, and who judges by them
    "correlation": ("correlation in particles", "correlation in particles"),
    "frc": ("FRC", "Fourier ring correlation"),
    "f1": ("F1, Topaz", "Topaz"),
    "own_f1": ("F1, segmenter", "the segmenter"),
}


@dataclass
class Judged(Table):
    """A `Table` whose images rings and the frozen segmenter judge as well.

    Scores have ``rings``, ``(micrographs, rings)`` correlations with the clean image, too, at
    frequencies ``(rings,)`` in 1/nm; ``own`` is what the segmenter finds, by method, and
    ``constant`` what an image without contrast scores, by number.
    """

    columns: Sequence[Column] = COLUMNS
    frequency: Values = field(default_factory=lambda: np.zeros(0))
    own: dict[str, Picks] = field(default_factory=dict)
    constant: dict[str, float] = field(default_factory=dict)

    def add(self, method: str, rings: Sequence[Any], own: Picks) -> None:
        """Add to a method's scores what rings and the segmenter say of its images."""
        scores, curves = self.scores[method], np.array(rings, float)
        counted = curves[:, in_band(self.frequency)].mean(1)
        more = {"correlation": scores["recovery"], "frc": counted, "rings": curves}
        self.scores[method], self.own[method] = {**scores, **more}, own

    def resolution(self, method: str) -> float:
        """Angstrom at which the mean correlation first falls below one half."""
        below = np.flatnonzero(self.scores[method]["rings"].mean(0) < 0.5)
        return float(10 / self.frequency[below[0]]) if below.size else 0.0

    def counted(self, method: str) -> dict[str, Counts]:
        """Picks and hits of Topaz (where it was there) and of the segmenter, by number."""
        found = {"f1": self.counts(method)} if method in self.picks else {}
        return {**found, "own_f1": self.own[method].at(ANY_SCORE)}

    def gains(self, better: str, worse: str) -> dict[str, Interval]:
        """Paired differences, on the micrographs that both saw, of all numbers of `NUMBERS`."""
        found = {column.name: self.gain(better, worse, column.name) for column in COLUMNS}
        first, second = self.counted(better), self.counted(worse)
        return found | {key: f1_gain(first[key], second[key]) for key in first if key in second}

    def markdown_all(self) -> str:
        """A row a method; a dagger marks what was recorded."""
        mark = f" {DAGGER}" * bool(self.costs)

        def f1(number: str, name: str) -> str:
            counts = self.counted(name).get(number)
            return "-" if counts is None else f"{counts.f1():.3f}"

        more: dict[str, Callable[[str], str]] = {
            "FRC .5 [A]": lambda name: f"{self.resolution(name):.0f}",
            f"F1, Topaz{mark}": partial(f1, "f1"),
            "F1, segmenter": partial(f1, "own_f1"),
            "micrographs": lambda name: str(self.seen(name)),
            f"CPU-s a megapixel{mark}": lambda name: f"{self.cost(name):.2g}",
        }
        return self.markdown(extra=more)

    def winners(self) -> dict[str, str]:
        """The best method by each judge, of those that saw all micrographs."""
        scores: dict[str, dict[str, float]] = {number: {} for number in NUMBERS}
        for name in [name for name in self.methods if self.seen(name) == len(self.cases)]:
            means = {c.name: float(self.scores[name][c.name].mean()) for c in COLUMNS}
            counted = {number: counts.f1() for number, counts in self.counted(name).items()}
            for number, value in (means | counted).items():
                scores[number][name] = value
        judged = {NUMBERS[number][1]: found for number, found in scores.items() if found}
        return {judge: max(found, key=lambda n: found[n]) for judge, found in judged.items()}

    def markdown_gains(self, worse: str = "raw") -> str:
        """A row a method: paired differences with their intervals."""
        known = self.gains("raw", worse)
        numbers = {key: head for key, (head, _) in NUMBERS.items() if key in known}
        rows = []
        for name in [name for name in self.methods if name != worse]:
            gains = self.gains(name, worse)
            cells = [signed(gains[key]) if key in gains else "-" for key in numbers]
            rows.append([LABELS[name], *cells])
        return pipe_table([f"over {LABELS[worse]}", *numbers.values()], rows)

    def record_all(self, report: Report) -> None:
        """Record all numbers of all methods, and their gains over raw, ``tsm`` and ``squares``."""
        for name, value in self.constant.items():
            report.value(f"{name}.constant", value, note="of an image without contrast")
        self.record(report)
        replace(self.picking(), columns=PICKING[:3]).record(report, "topaz")
        own: dict[str, Scores] = {n: vars(self.counted(n)["own_f1"]) for n in self.methods}
        Study(self.cases, PICKING[2:3], LABELS, scores=own).record(report, "own")
        for name in self.methods:
            report.value(f"cost.{name}", self.cost(name), unit="s", note="a megapixel")
        for worse in ("raw", "tsm", "squares"):
            for name in [n for n in self.methods if n != worse and worse in self.scores]:
                n = min(self.seen(name), self.seen(worse))
                for number, gain in self.gains(name, worse).items():
                    report.value(f"gain_{number}.{name}_over_{worse}", *gain, note=NOTE, n=n)


def judge(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, float],
    segmenter: ResidualUNet,
    *,
    first: Mapping[str, int] | None = None,
    threads: int = 1,
    kept: Kept = (),
    report: Report | None = None,
) -> Judged:
    """Denoise with every method and judge; Topaz picks where it is installed.

    See `chapters.tsm.study.run_study`; the segmenter is the frozen one that the restorer was
    trained through, ``kept`` are recorded rows, which join if they are of these very micrographs.
    """
    judged = Judged(list(micrographs), thresholds=thresholds)
    asked = {name: partial(of_noisy, method) for name, method in methods.items()}
    judged.run(asked, correlations, first=first)
    blank = judged.cases[0]
    even = np.full(tuple(blank.noisy.shape), float(blank.noisy.mean()), np.float32)
    judged.frequency, none = ring_correlation(even, blank)
    judged.constant = {
        "correlation": band_correlations(even, blank)["mean"],
        "frc": float(none.mean()),
        "own.f1": own_picks([even], [blank], segmenter).at(ANY_SCORE).f1(),
        "topaz.f1": 0.0,  # no picker can find anything in it
    }
    for name, made in judged.answers.items():
        seen = judged.cases[: len(made.images)]
        pairs = zip(made.images, seen, strict=True)
        rings = [ring_correlation(image, micrograph)[1] for image, micrograph in pairs]
        judged.add(name, rings, own_picks(made.images, seen, segmenter))
    if not (kept and report and join(judged, kept, report)):
        judged.pick(threads)
    for name, row in [pair for _, rows in kept for pair in rows.items()]:
        if name in judged.recorded:
            picks = replace(judged.picks[name], picked=picks_of(row["own"]))
            judged.add(name, row["rings"], picks)
    return judged


def ring_correlation(image: Image, micrograph: Micrograph) -> tuple[Values, Values]:
    """Frequencies in 1/nm and Fourier ring correlation with the clean image; 0 for a constant."""
    clean, even = micrograph.clean.numpy(), np.ptp(image) == 0
    pixel = micrograph.pixel_size_angstrom / 10
    curve = fourier_ring_correlation(clean if even else image, clean, pixel)
    return curve.frequency, np.where(even, 0.0, curve.correlation)


def in_band(frequency: Values) -> NDArray[np.bool_]:
    """Which rings, in 1/nm, are between 80 and 10 A."""
    period = 10 / frequency
    return (period <= BAND_ANGSTROM[0]) & (period >= BAND_ANGSTROM[1])


# --- fields that hold no particle


@dataclass(frozen=True)
class Nothing:
    """What methods make of fields that hold no particle.

    Fields are ``ice`` (all that a micrograph has but particles) and ``noise`` (counts of an even
    beam). Scores are picks by Topaz and by the segmenter (``own``), and contrast: the standard
    deviation over that within particles, between 80 and 16 A.
    """

    studies: dict[str, Study]
    refused: dict[str, str]  #: what methods said where they refused

    def markdown(self) -> str:
        """A row a method."""
        both, rows = self.studies.values(), []
        for name in [n for n in LABELS if any(n in study.scores for study in both)]:
            cells = []
            for key, show in (("topaz", ".1f"), ("own", ".1f"), ("contrast", ".2f")):
                for study in both:
                    values = study.scores.get(name, {}).get(key)
                    gone = "refused" if key == "contrast" else "-"
                    cells.append(gone if values is None else f"{values.mean():{show}}")
            rows.append([LABELS[name], *cells])
        heads = ["Topaz: picks in ice", "in noise", "segmenter: in ice", "in noise"]
        return pipe_table(["method", *heads, "contrast of ice", "of noise"], rows)

    def record(self, report: Report) -> None:
        """Record ``nothing.PICKER.FIELD.METHOD`` and ``nothing.contrast.METHOD`` (of ice)."""
        for kind, study in self.studies.items():
            for picker in ("topaz", "own"):
                column = Column(f"{picker}.{kind}", note="picks a field")
                seen = [name for name, one in study.scores.items() if picker in one]
                found = Study(study.cases, [column], LABELS)
                found.scores |= {n: {column.name: study.scores[n][picker]} for n in seen}
                found.record(report, "nothing")
            key = "nothing.contrast" if kind == "ice" else f"nothing.contrast_{kind}"
            for name, scores in study.scores.items():
                report.value(f"{key}.{name}", scores["contrast"].mean(), note="over particles'")


def audit(
    fields: Mapping[str, Sequence[Micrograph]],
    methods: Mapping[str, Method],
    judged: Judged,
    segmenter: ResidualUNet,
    threads: int = 1,
    kept: Mapping[str, Mapping[str, list[int]]] | None = None,
) -> Nothing:
    """Give methods nothing, and count what two pickers find in their answers.

    What Topaz finds is read from ``kept`` where its other picks were, too.
    """
    particles = {name: _within_particles(judged, name) for name in methods}
    found = Nothing({}, {})
    for kind, micrographs in fields.items():
        study = found.studies[kind] = Study(list(micrographs), (), LABELS)
        for name, method in methods.items():
            try:
                made = study.answers[name] = of_noisy(method, micrographs)
            except InputError as problem:
                found.refused[name] = str(problem)
                continue
            own = own_picks(made.images, micrographs, segmenter).kept(ANY_SCORE)
            spreads = [_band(image, judged).std() / particles[name] for image in made.images]
            found_own = np.array([len(places) for places in own], float)
            study.scores[name] = {"own": found_own, "contrast": np.array(spreads)}
        counts: Mapping[str, Sequence[int]] = (kept or {}).get(kind, {})
        if not (kept and judged.costs):
            pixel = micrographs[0].pixel_size_angstrom
            counts = {
                name: [int((one.scores >= judged.threshold(name)).sum()) for one in every]
                for name, every in find_picks(study.answers, pixel, threads).items()
            }
        for name in [name for name in counts if name in study.scores]:
            picks = np.array(counts[name], float)
            study.scores[name] = {"topaz": picks, **study.scores[name]}
    return found


def _within_particles(judged: Judged, method: str) -> float:
    pairs = zip(judged.answers[method].images, judged.cases, strict=False)
    spreads = [_band(a, judged)[b.mask(RADIUS_ANGSTROM).numpy()].std() for a, b in pairs]
    return max(float(np.mean(spreads)), 1e-12)


def _band(image: Image, judged: Judged) -> Image:
    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    pixel = judged.cases[0].pixel_size_angstrom
    return band_pass(values - values.mean(), pixel, CONTRAST_ANGSTROM).numpy()


# --- halves of a micrograph


def halves(image: Image) -> tuple[Image, Image]:
    """Two images ``(H // 2, W // 2)``: means of the pixels on either diagonal of each 2 x 2 square.

    Both halves have their pixels' centres in the middle of the squares, so they are in register;
    counting noise of a pixel is in one of them only. An `InputError` below 4 pixels a side.
    """
    if image.ndim != 2 or min(image.shape) < 4:
        raise InputError(f"halves are cut from an image (H, W), got shape {image.shape}")
    height, width = (side // 2 * 2 for side in image.shape)
    a, b = image[:height:2, :width:2], image[1:height:2, 1:width:2]
    c, d = image[:height:2, 1:width:2], image[1:height:2, :width:2]
    return ((a + b) / 2).astype(np.float32), ((c + d) / 2).astype(np.float32)


HALVES = (
    Column("with_raw", "one half cleaned, the other raw", show="{mean:.4f}", note="", gain="gain"),
    Column("itself", "both halves cleaned", show="{mean:.3f}", note=""),
)


@dataclass
class Halves(Study):
    """Ring correlations of a micrograph's halves: cases are windows, answers the first halves.

    Scores are mean correlations between 80 and 10 A of a method's first half with the *raw* second
    half, and with its own second half.
    """

    pixel_size_angstrom: float = 0.0

    def markdown_all(self) -> str:
        """A row a method, with its paired gain over raw."""

        def gain(name: str) -> str:
            return signed(self.gain(name, "raw", "with_raw"), 4)

        return self.markdown(extra={"gain over raw": gain})

    def record_all(self, report: Report) -> None:
        """Record ``halves.NUMBER.METHOD`` and ``halves.gain.METHOD_over_raw``."""
        self.record(report, "halves")
        for name in [name for name in self.methods if name != "raw"]:
            self.record_gains(report, name, "raw", "halves", ["with_raw"])


def split(
    image: Image, pixel_size_angstrom: float, methods: Mapping[str, Method], across: int = 3
) -> Halves:
    """Clean both halves of a micrograph ``(H, W)`` with every method; windows lie `across` it.

    Its pixels are at most 1.3 A, so that the halves are as fine as the networks want them (2.63 A);
    an `InputError` for larger ones.
    """
    if pixel_size_angstrom > 1.32:
        raise InputError("halves need pixels of at most 1.3 A; take a finer micrograph")
    raw = [tsm.to_working_size(half, 2 * pixel_size_angstrom)[0] for half in halves(image)]
    pixel = 2 * pixel_size_angstrom * image.shape[0] / 2 / raw[0].shape[0]
    side = min(raw[0].shape) // across
    pieces = [slice(number * side, (number + 1) * side) for number in range(across)]
    windows = list(product(pieces, pieces))

    def score(first: Image, second: Image) -> Values:
        curves = [fourier_ring_correlation(first[w], second[w], pixel / 10) for w in windows]
        return np.array([one.correlation[in_band(one.frequency)].mean() for one in curves])

    found = Halves(windows, HALVES, LABELS, pixel_size_angstrom=pixel)
    for name, method in methods.items():
        first, second = method(raw).images
        found.answers[name] = first
        found.scores[name] = {"with_raw": score(first, raw[1]), "itself": score(first, second)}
    return found
