"""Every method on the same micrographs: judged by truth and two pickers, on nothing, on halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import pipe_table, spanned
from emlab.chapters.tsm.cases import at_pixel
from emlab.chapters.tsm.peers import LABELS, Method
from emlab.chapters.tsm.recorded import join, picks_of
from emlab.chapters.tsm.study import NOTE, Table, run_study
from emlab.errors import InputError
from emlab.external import topaz
from emlab.external.picking import DIAMETER_ANGSTROM, Picks, f1_gain, pick_all
from emlab.metrics import Interval, fourier_ring_correlation, mean_interval, paired_difference
from emlab.metrics.bands import RADIUS_ANGSTROM, band_correlations, band_pass
from emlab.metrics.picking import Counts
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.micrograph import Micrograph
from emlab.recipes.particles import own_picks

BAND_ANGSTROM = (80.0, 10.0)  # rings that count
CONTRAST_ANGSTROM = (80.0, 16.0)
ANY_SCORE = -np.inf
_REFERENCES = {"gain": "raw", "gain_over_tsm": "tsm", "over_squares": "squares"}
_NUMBERS = {
    "correlation": "correlation in particles",
    "frc": "FRC",
    "f1": "F1, Topaz",
    "own_f1": "F1, segmenter",
}

Image = NDArray[np.float32]
Values = NDArray[np.float64]


@dataclass
class Judged:
    """What the methods made of micrographs, and what that is worth.

    Attributes
    ----------
    table : Table
        Images, correlations within particles, Topaz's picks.
    frequency : ndarray
        ``(rings,)`` in 1/nm.
    rings : dict of str to ndarray
        By method, ``(micrographs, rings)`` correlation with the clean image.
    own : dict of str to Picks
        By method, what the frozen segmenter finds.
    constant : dict of str to float
        What an image without contrast scores, by number.
    """

    table: Table
    frequency: Values
    rings: dict[str, Values]
    own: dict[str, Picks]
    constant: dict[str, float]

    def seen(self, method: str) -> int:
        """Micrographs that a method was given."""
        return len(self.rings[method])

    def agreement(self, method: str) -> Values:
        """Mean correlation of the rings between 80 and 10 A, one a micrograph."""
        period = 10 / self.frequency
        kept = (period <= BAND_ANGSTROM[0]) & (period >= BAND_ANGSTROM[1])
        return self.rings[method][:, kept].mean(1)

    def resolution(self, method: str) -> float:
        """Angstrom at which the mean correlation first falls below one half."""
        curve = self.rings[method].mean(0)
        below = np.flatnonzero(curve < 0.5)
        return float(10 / self.frequency[below[0]]) if below.size else 0.0

    def gain(self, better: str, worse: str, number: str) -> Interval:
        """Paired difference on the micrographs that both saw.

        Parameters
        ----------
        number : str
            ``correlation`` within particles, ``frc``, ``f1`` of Topaz or ``own_f1``.
        """
        if number == "f1":
            return self.table.picking_gain(better, worse)
        if number == "own_f1":
            return f1_gain(self.own[better].at(ANY_SCORE), self.own[worse].at(ANY_SCORE))
        found = {
            "correlation": lambda name: self.table.bands[name][:, -1],
            "frc": self.agreement,
        }[number]
        first, second = found(better), found(worse)
        n = min(len(first), len(second))
        if n < 2:
            return Interval(*3 * (float((first[:n] - second[:n]).mean()),))
        return paired_difference(first[:n], second[:n])

    def markdown(self) -> str:
        """A row a method; a dagger marks what was recorded."""
        mark = " †" * bool(self.table.costs)
        lines = [
            f"| method | correlation in particles | FRC 80 to 10 A | FRC .5 [A] | F1, Topaz{mark} "
            f"| F1, segmenter | micrographs | CPU-s a megapixel{mark} |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name in self.table.bands:
            picks = self.table.picks.get(name)
            f1 = f"{picks.at(self.table.threshold(name)).f1():.3f}" if picks else "-"
            own = f"{self.own[name].at(ANY_SCORE).f1():.3f}" if name in self.own else "-"
            label = LABELS[name] + " †" * (name in self.table.told)
            lines.append(
                f"| {label} | {_text(self.table.recovery(name))} "
                f"| {_text(_mean(self.agreement(name)))} | {self.resolution(name):.0f} | {f1} "
                f"| {own} | {self.seen(name)} | {self.table.cost(name):.2g} |"
            )
        return "\n".join(lines)

    def winners(self) -> dict[str, str]:
        """The best method by each judge, of those that saw all micrographs."""
        judges = {
            "correlation in particles": lambda name: self.table.bands[name][:, -1].mean(),
            "Fourier ring correlation": lambda name: self.agreement(name).mean(),
            "the segmenter": lambda name: self.own[name].at(ANY_SCORE).f1(),
        }
        if self.table.picks:
            judges["Topaz"] = lambda name: (
                self.table.picks[name].at(self.table.threshold(name)).f1()
            )
        whole = [name for name in self.rings if self.seen(name) == len(self.table.micrographs)]
        return {judge: max(whole, key=score) for judge, score in judges.items()}

    def markdown_gains(self, worse: str = "raw") -> str:
        """A row a method: paired differences with their intervals."""
        numbers = {number: known for number, known in self._numbers().items() if worse in known}
        lines = [
            f"| over {LABELS[worse]} | " + " | ".join(_NUMBERS[n] for n in numbers) + " |",
            "|---" * (len(numbers) + 1) + "|",
        ]
        for name in [n for n in self.table.bands if n != worse]:
            cells = [
                "{:+.3f} [{:+.3f}, {:+.3f}]".format(*self.gain(name, worse, number))
                if name in known
                else "-"
                for number, known in numbers.items()
            ]
            lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def record(self, report: Report) -> None:
        """Record ``correlation.METHOD``, ``frc.METHOD``, ``topaz.f1.METHOD``, ``own.f1.METHOD``,
        ``gain.NUMBER.METHOD`` over raw, ``gain_over_tsm`` and ``over_squares`` alike."""
        for name, value in self.constant.items():
            report.value(f"{name}.constant", value, note="of an image without contrast")
        for name in self.table.bands:
            n = self.seen(name)
            report.value(f"correlation.{name}", *self.table.recovery(name), note=NOTE, n=n)
            report.value(f"frc.{name}", *_mean(self.agreement(name)), note=NOTE, n=n)
            report.value(f"cost.{name}", self.table.cost(name), unit="s", note="a megapixel")
        for name, picks in self.table.picks.items():
            counts = picks.at(self.table.threshold(name))
            for number in ("f1", "precision", "recall"):
                report.value(f"topaz.{number}.{name}", *_counted(counts, number), note=NOTE)
        for name, picks in self.own.items():
            report.value(f"own.f1.{name}", *_counted(picks.at(ANY_SCORE), "f1"), note=NOTE)
        for key, worse in _REFERENCES.items():
            for number, known in self._numbers().items():
                for name in [n for n in known if n != worse and worse in known]:
                    gain = self.gain(name, worse, number)
                    n = min(self.seen(name), self.seen(worse))
                    report.value(f"{key}.{number}.{name}", *gain, note=NOTE, n=n)

    def _numbers(self) -> dict[str, Mapping]:
        return {
            "correlation": self.table.bands,
            "frc": self.rings,
            "f1": self.table.picks,
            "own_f1": self.own,
        }


def judge(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, float],
    segmenter: ResidualUNet,
    *,
    first: Mapping[str, int] | None = None,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Judged:
    """Denoise with every method and judge; Topaz picks where it is installed.

    Parameters as in `run_study`; ``segmenter`` is the frozen one that the restorer was trained
    through, ``kept`` are recorded rows: their picks, if they are of these very micrographs.
    """
    table = run_study(micrographs, methods, thresholds, first=first, progress=progress)
    rings, own, frequency = {}, {}, np.zeros(0)
    for name, made in table.denoised.items():
        seen = table.micrographs[: len(made.images)]
        curves = [ring_correlation(image, m) for image, m in zip(made.images, seen, strict=True)]
        frequency = curves[0][0]
        rings[name] = np.array([curve[1] for curve in curves])
        own[name] = own_picks(made.images, seen, segmenter)
    rows = kept or {}
    if not (rows and join(table, rows)):
        table.pick(threads)
    for name in table.told:
        rings[name] = np.array(rows[name]["rings"])
        own[name] = replace(table.picks[name], picked=picks_of({"picks": rows[name]["own"]}))
    return Judged(table, frequency, rings, own, _constant(table.micrographs[0], segmenter))


def ring_correlation(image: NDArray[np.float32], micrograph: Micrograph) -> tuple[Values, Values]:
    """Frequencies in 1/nm and Fourier ring correlation with the clean image; 0 for a constant."""
    clean, pixel = micrograph.clean.numpy(), micrograph.pixel_size_angstrom / 10
    if np.ptp(image) == 0:
        curve = fourier_ring_correlation(clean, clean, pixel)
        return curve.frequency, np.zeros_like(curve.correlation)
    curve = fourier_ring_correlation(image, clean, pixel)
    return curve.frequency, curve.correlation


def _constant(micrograph: Micrograph, segmenter: ResidualUNet) -> dict[str, float]:
    """What an image without contrast scores; no picker can find anything in it."""
    even = np.full(tuple(micrograph.noisy.shape), float(micrograph.noisy.mean()), np.float32)
    return {
        "correlation": band_correlations(even, micrograph)["mean"],
        "frc": float(ring_correlation(even, micrograph)[1].mean()),
        "own.f1": own_picks([even], [micrograph], segmenter).at(ANY_SCORE).f1(),
        "topaz.f1": 0.0,
    }


@dataclass(frozen=True)
class Nothing:
    """What methods make of fields that hold no particle.

    Attributes
    ----------
    fields : dict of str to list of Micrograph
        ``ice`` (all that a micrograph has but particles) and ``noise`` (counts of an even beam).
    denoised : dict of str to dict of str to list of ndarray
        By field and method; a method that refuses a field is not there.
    topaz, own : dict of str to dict of str to ndarray
        By field and method, picks of each field ``(n,)``.
    particles : dict of str to float
        Standard deviation within particles between 80 and 16 A, by method.
    refused : dict of str to str
        What a method said instead, by method.
    """

    fields: dict[str, list[Micrograph]]
    denoised: dict[str, dict[str, list[NDArray[np.float32]]]]
    topaz: dict[str, dict[str, NDArray[np.int64]]]
    own: dict[str, dict[str, NDArray[np.int64]]]
    particles: dict[str, float]
    refused: dict[str, str]

    def contrast(self, kind: str, method: str) -> float:
        """Standard deviation of nothing over that within particles, between 80 and 16 A."""
        images = self.denoised[kind][method]
        pixel = self.fields[kind][0].pixel_size_angstrom
        return (
            float(np.mean([_band(image, pixel).std() for image in images])) / self.particles[method]
        )

    def markdown(self) -> str:
        """A row a method."""
        lines = [
            "| method | Topaz: picks in ice | in noise | segmenter: in ice | in noise "
            "| contrast of ice | of noise |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in self.particles:
            cells = [
                f"{found[kind][name].mean():.1f}" if name in found.get(kind, {}) else "-"
                for found in (self.topaz, self.own)
                for kind in ("ice", "noise")
            ]
            cells += [
                f"{self.contrast(kind, name):.2f}" if name in self.denoised[kind] else "refused"
                for kind in ("ice", "noise")
            ]
            lines.append(f"| {LABELS[name]} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def record(self, report: Report) -> None:
        """Record ``nothing.PICKER.FIELD.METHOD`` and ``nothing.contrast.METHOD`` (of ice)."""
        for picker, found in (("topaz", self.topaz), ("own", self.own)):
            for kind, counts in found.items():
                for name, each in counts.items():
                    key, picks = f"nothing.{picker}.{kind}.{name}", each.astype(float)
                    report.value(key, *_mean(picks), note="picks a field", n=len(each))
        for kind in self.denoised:
            for name in self.denoised[kind]:
                key = "nothing.contrast" if kind == "ice" else "nothing.contrast_noise"
                report.value(f"{key}.{name}", self.contrast(kind, name), note="over particles'")


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
    denoised: dict[str, dict[str, list]] = {}
    refused: dict[str, str] = {}
    for kind, micrographs in fields.items():
        denoised[kind] = {}
        for name, method in methods.items():
            try:
                denoised[kind][name] = method([m.noisy.numpy() for m in micrographs]).images
            except InputError as problem:
                refused[name] = str(problem)
    own = {
        kind: {
            name: _numbers(own_picks(images, fields[kind], segmenter), ANY_SCORE)
            for name, images in every.items()
        }
        for kind, every in denoised.items()
    }
    particles = {name: _within_particles(judged.table, name) for name in methods}
    counts: dict[str, dict[str, NDArray[np.int64]]] = {}
    if kept and judged.table.costs:
        counts = {
            kind: {name: np.array(each) for name, each in found.items() if name in methods}
            for kind, found in kept.items()
        }
    elif topaz.find() is not None:
        together = {
            f"{kind} {name}": images
            for kind, every in denoised.items()
            for name, images in every.items()
        }
        pixel = judged.table.micrographs[0].pixel_size_angstrom
        found, _ = pick_all(together, pixel, DIAMETER_ANGSTROM, threads=threads)
        for label, picked in found.items():
            kind, _, name = label.partition(" ")
            level = judged.table.threshold(name)
            counts.setdefault(kind, {})[name] = np.array(
                [(each.scores >= level).sum() for each in picked]
            )
    given = {kind: list(every) for kind, every in fields.items()}
    return Nothing(given, denoised, counts, own, particles, refused)


def _numbers(picks: Picks, level: float) -> NDArray[np.int64]:
    return np.array([len(places) for places in picks.kept(level)])


def _within_particles(table: Table, method: str) -> float:
    spreads = []
    for image, micrograph in zip(table.denoised[method].images, table.micrographs, strict=False):
        inside = micrograph.mask(RADIUS_ANGSTROM).numpy()
        spreads.append(_band(image, micrograph.pixel_size_angstrom)[inside].std())
    return max(float(np.mean(spreads)), 1e-12)


def _band(image: NDArray[np.float32], pixel_size_angstrom: float) -> NDArray[np.float32]:
    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    return band_pass(values - values.mean(), pixel_size_angstrom, CONTRAST_ANGSTROM).numpy()


def _mean(values: Values) -> Interval:
    return mean_interval(values) if len(values) > 1 else Interval(*3 * (float(values[0]),))


def _counted(counts: Counts, number: str) -> Interval:
    if len(counts.hits) > 1:
        return counts.interval(number)
    return Interval(*3 * (getattr(counts, number)(),))


def _text(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def halves(image: Image) -> tuple[Image, Image]:
    """Two images ``(H // 2, W // 2)``: means of the pixels on either diagonal of each 2 x 2 square.

    Both halves have their pixels' centres in the middle of the squares, so they are in register;
    counting noise of a pixel is in one of them only.

    Raises
    ------
    InputError
        Not an image (H, W) of at least 4 pixels a side.
    """
    if image.ndim != 2 or min(image.shape) < 4:
        raise InputError(f"halves are cut from an image (H, W), got shape {image.shape}")
    height, width = (side // 2 * 2 for side in image.shape)
    a, b = image[:height:2, :width:2], image[1:height:2, 1:width:2]
    c, d = image[:height:2, 1:width:2], image[1:height:2, :width:2]
    return ((a + b) / 2).astype(np.float32), ((c + d) / 2).astype(np.float32)


@dataclass(frozen=True)
class Halves:
    """Ring correlations of the halves of a micrograph, window by window.

    Attributes
    ----------
    image : dict of str to ndarray
        By method, what it made of the first half.
    with_raw, with_itself : dict of str to ndarray
        By method, ``(windows,)`` mean correlation between 80 and 10 A of its first half with the
        *raw* second half, and with its own second half.
    pixel_size_angstrom : float
    """

    image: dict[str, Image]
    with_raw: dict[str, NDArray[np.float64]]
    with_itself: dict[str, NDArray[np.float64]]
    pixel_size_angstrom: float

    def gain(self, method: str) -> Interval:
        """Paired gain over raw of the correlation with the raw second half."""
        return paired_difference(self.with_raw[method], self.with_raw["raw"])

    def markdown(self) -> str:
        """A row a method."""
        heads = ["one half cleaned, the other raw", "gain over raw", "both halves cleaned"]
        rows = []
        for name, raw in self.with_raw.items():
            both = f"{self.with_itself[name].mean():.3f}"
            rows.append([LABELS[name], f"{raw.mean():.4f}", spanned(self.gain(name), "+.4f"), both])
        return pipe_table(["method", *heads], rows)

    def record(self, report: Report) -> None:
        """Record ``halves.with_raw.METHOD``, ``halves.gain.METHOD``, ``halves.itself.METHOD``."""
        for name in self.image:
            n = len(self.with_raw[name])
            report.value(f"halves.with_raw.{name}", *mean_interval(self.with_raw[name]), n=n)
            report.value(f"halves.itself.{name}", *mean_interval(self.with_itself[name]), n=n)
            if name != "raw":
                note = "95 % bootstrap interval over windows of one micrograph"
                report.value(f"halves.gain.{name}", *self.gain(name), note=note, n=n)


def split(
    image: Image, pixel_size_angstrom: float, methods: Mapping[str, Method], across: int = 3
) -> Halves:
    """Clean both halves of a micrograph with every method.

    Parameters
    ----------
    image : ndarray
        ``(H, W)`` at a pixel size of at most 1.3 A, so that the halves are as fine as the
        networks want them (2.63 A).
    across : int
        Windows along each side.

    Raises
    ------
    InputError
        Pixels that are too large.
    """
    if pixel_size_angstrom > 1.32:
        raise InputError("halves need pixels of at most 1.3 A; take a finer micrograph")
    raw = [at_pixel(half, 2 * pixel_size_angstrom) for half in halves(image)]
    pixel = 2 * pixel_size_angstrom * image.shape[0] / 2 / raw[0].shape[0]
    made = {name: method(raw).images for name, method in methods.items()}
    with_raw = {name: _windows(each[0], raw[1], pixel, across) for name, each in made.items()}
    itself = {name: _windows(each[0], each[1], pixel, across) for name, each in made.items()}
    return Halves({name: each[0] for name, each in made.items()}, with_raw, itself, pixel)


def _windows(first: Image, second: Image, pixel: float, across: int) -> NDArray[np.float64]:
    side = min(first.shape) // across
    found = []
    for row in range(across):
        for column in range(across):
            place = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            curve = fourier_ring_correlation(first[place], second[place], pixel / 10)
            period = 10 / curve.frequency
            kept = (period <= BAND_ANGSTROM[0]) & (period >= BAND_ANGSTROM[1])
            found.append(curve.correlation[kept].mean())
    return np.array(found)
