"""The chapter's table: every method on the same micrographs, judged by truth, picker and maps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import Column, Scores, Study, Values, pipe_table
from emlab.chapters.tsm.cases import LABELS, NO_PICKER, Denoised, Method, find_picks, of_noisy
from emlab.data.metadata import Metadata
from emlab.data.particles import fourier_resize, write_star
from emlab.errors import InputError
from emlab.external import relion
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks, f1_gain, matched_rotations
from emlab.external.topaz import Picked
from emlab.io import write_image
from emlab.metrics import Interval
from emlab.metrics.bands import BANDS_ANGSTROM, band_correlations, suppression
from emlab.metrics.fourier import Curve, fourier_shell_correlation
from emlab.metrics.picking import Counts, chance
from emlab.physics.micrograph import Micrograph

NOTE = "95 % bootstrap interval over micrographs"
BOX = 80  # of particles
FEWEST = 8  # windows that two halves are made of
MASK_ANGSTROM = 85.0  # radius of the sphere within which halves are compared
MASK_EDGE_ANGSTROM = 15.0
_SEED = 7


def counted(scores: Scores, name: str, targets: Values | None = None) -> Interval:
    """``precision``, ``recall`` or ``f1`` of all picks together; ``macro_f1``, over micrographs."""
    counts = Counts(*(np.asarray(scores[key], np.int64) for key in ("hits", "picks", "truths")))
    if name == "macro_f1" or len(counts.hits) < 2:
        value = counts.f1("macro") if name == "macro_f1" else getattr(counts, name)()
        return Interval(value, value, value)
    return counts.interval(name)


COLUMNS = (
    Column("recovery", "mean", note=NOTE),
    *(
        Column(f"recovery_{band}", f"{band.replace('_', ' to ')} A", show="{mean:.3f}", note=NOTE)
        for band in BANDS_ANGSTROM
    ),
    Column("suppression", "particle over background [dB]", show="{mean:.1f}", note=NOTE),
)
PICKING = (
    Column("precision", "precision", show="{mean:.3f}", note=NOTE, of=counted),
    Column("recall", "recall", show="{mean:.3f}", note=NOTE, of=counted),
    Column("f1", "F1 (micro)", note=NOTE, of=counted),
    Column("macro_f1", "F1 (macro)", show="{mean:.3f}", note="mean over micrographs", of=counted),
)

THE_TRUTH = "the true places"
MAPS = ("picks of", "windows", "of them particles", "halves, FSC .143 [A]", "truth, FSC .5 [A]")


@dataclass
class Table(Study):
    """A study of simulated micrographs, and what a picker and a reconstruction make of its images.

    Answers are `Denoised`; scores are correlations with the clean particles, by band and mean.

    By method: `thresholds`, scores that a pick needs, from validation micrographs; `picks` and
    `maps`, none where Topaz is not installed; `costs`, recorded processor seconds a megapixel;
    `windows`, the recorded middle of the first image.
    """

    columns: Sequence[Column] = COLUMNS
    labels: Mapping[str, str] = field(default_factory=lambda: LABELS)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    picks: dict[str, Picks] = field(default_factory=dict)
    maps: dict[str, Reconstruction] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    windows: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def threshold(self, method: str) -> float:
        """Of a method; that of raw micrographs for one that has none."""
        return float(self.thresholds.get(method, self.thresholds["raw"]))

    def counts(self, method: str) -> Counts:
        """Picks of each micrograph at the method's threshold, hits among them, and particles."""
        return self.picks[method].at(self.threshold(method))

    def kept(self, method: str) -> list[NDArray[np.float64]]:
        """Places of a method's picks by micrograph; of the particles for ``truth``."""
        if method == "truth":
            return [micrograph.coordinates for micrograph in self.cases]
        return self.picks[method].kept(self.threshold(method))

    def picking_gain(self, better: str, worse: str, number: str = "f1") -> Interval:
        """Difference of micro F1, precision or recall."""
        return f1_gain(self.counts(better), self.counts(worse), number)

    def picking(self) -> Study:
        """Precision, recall and F1 of the methods that have picks."""
        scores: dict[str, Scores] = {name: vars(self.counts(name)) for name in self.picks}
        kept = dict.fromkeys(scores) if self.said else {}
        return Study(self.cases, PICKING, LABELS, scores=scores, recorded=kept, said=self.said)

    def chance(self) -> float:
        """F1 of places drawn blindly, as many as there are particles."""
        shapes = [tuple(micrograph.noisy.shape) for micrograph in self.cases]
        return chance(self.kept("truth"), shapes, self.picks["raw"].radius).f1()

    @property
    def radius(self) -> float:
        """Of a hit, in pixels."""
        return HIT * DIAMETER_ANGSTROM / self.cases[0].pixel_size_angstrom

    def take(self, found: Mapping[str, list[Picked]]) -> None:
        """Take picks by method, one a micrograph."""
        truth = self.kept("truth")
        for name, picked in found.items():
            self.picks[name] = Picks(picked, truth[: len(picked)], self.radius)

    def pick(self, threads: int = 1) -> None:
        """Run the picker on all images of all methods; nothing happens without Topaz."""
        self.take(find_picks(self.answers, self.cases[0].pixel_size_angstrom, threads))

    def rebuild(self, methods: Sequence[str], truth: NDArray[np.float32]) -> None:
        """Reconstruct from the raw micrographs at each method's picks, and at the true places.

        A method with hardly any picks gets no map; without RELION there are none.
        """
        if relion.find() is None:
            return
        for name in ("truth", *methods):
            particles = self.extract(name, BOX)
            if len(particles.images) >= FEWEST:
                self.maps[name] = reconstruct(particles, truth)

    def extract(self, method: str, box: int) -> Extracted:
        """Particles of the raw micrographs at a method's picks, or at the true places."""
        places = self.kept(method)
        return extract(self.cases[: len(places)], places, self.radius, box, _SEED)

    def cost(self, method: str) -> float:
        """Processor seconds a megapixel; of one recorded run, where there is one."""
        if method in self.costs:
            return self.costs[method]
        made = self.answers[method]
        return 1e6 * made.cpu_seconds / sum(image.size for image in made.images)

    def markdown_recovery(self) -> str:
        """A row a method: correlation band by band, micrographs and cost."""
        told = {
            "micrographs": lambda name: str(self.seen(name)),
            "CPU-s a megapixel": lambda name: f"{self.cost(name):.2g}",
        }
        return self.markdown(extra=told)

    def markdown_picks(self) -> str:
        """A row a method: picks, precision, recall, F1, micro and macro."""
        if not self.picks:
            return NO_PICKER
        study, rows = self.picking(), []
        for name in study.methods:
            cells = [column.text(study.interval(name, column.name)) for column in PICKING]
            level, count = f"{self.threshold(name):.2f}", self.counts(name).picks.sum()
            precise = f"{self.picks[name].curve().average_precision:.3f}"
            rows.append([study.label(name), level, str(count), *cells, precise])
        if "raw" in self.picks:
            rows.append(["places at random", *[""] * 4, f"{self.chance():.3f}", "", ""])
        heads = ["picked from", "threshold", "picks", *(column.head for column in PICKING)]
        return pipe_table([*heads, "average precision"], rows, [study])

    def markdown_maps(self) -> str:
        """A row a method: particles and resolution."""
        if not self.maps:
            return "*skipped: no picks, no RELION, or a profile without maps*"
        rows = []
        for name, found in self.maps.items():
            particles = [str(found.particles), f"{found.right / found.particles:.1%}"]
            ends = [found.resolution_angstrom, found.true_resolution_angstrom]
            cells = [*particles, *(f"{end:.2f}" for end in ends), found.program]
            rows.append([LABELS.get(name, THE_TRUTH), *cells, f"{found.seconds:.1f}"])
        return pipe_table([*MAPS, "program", "CPU-s"], rows)

    def record_all(self, report: Report) -> None:
        """Record ``recovery.METHOD``, ``picking.NUMBER.METHOD``, ``map.resolution.METHOD``."""
        first = self.cases[0]
        constant = band_correlations(np.ones(tuple(first.noisy.shape)), first)["mean"]
        report.value("recovery.nothing", constant, note="of an image without contrast")
        self.record(report)
        pairs = [("tsm", name) for name in self.methods if name not in ("tsm", "guided")]
        pairs += [("dsm", name) for name in ("topaz", "gaussian", "bm3d", "wiener")]
        pairs += [("guided", name) for name in ("dsm", "tsm", "wiener", "topaz")]
        for pair in [pair for pair in pairs if self.scores.keys() >= {*pair}]:
            self.record_gains(report, *pair, columns=["recovery"])
        if "raw" in self.picks:
            report.value("picking.f1.chance", self.chance(), note="places at random")
        self.picking().record(report, "picking")
        for name, picks in self.picks.items():
            precise = picks.curve().average_precision
            report.value(f"picking.average_precision.{name}", precise)
            for better in [b for b in ("tsm", "guided") if b in self.picks and b != name]:
                for number in ("f1", "precision", "recall"):
                    gain = self.picking_gain(better, name, number)
                    report.value(f"picking.gain_{number}.{better}_over_{name}", *gain, note=NOTE)
        for name, found in self.maps.items():
            report.value(f"map.resolution.{name}", found.resolution_angstrom, unit="A")
            report.value(f"map.resolution_truth.{name}", found.true_resolution_angstrom, unit="A")
        for ours, worse in product(("tsm", "guided"), ("raw", "topaz")):
            if {ours, worse} <= self.maps.keys():
                ratio = self.maps[ours].resolution_angstrom / self.maps[worse].resolution_angstrom
                key = f"map.resolution_ratio.{ours}_over_{worse}"
                report.value(key, ratio, note="below 1 is finer")

    def record_set(self, report: Report, name: str) -> None:
        """Record ``set.NAME.NUMBER.METHOD``: correlation, precision, recall and F1."""
        key = f"set.{name.replace(' ', '_').replace('-', '_')}"
        replace(self, columns=COLUMNS[:1]).record(report, key)
        replace(self.picking(), columns=PICKING[:3]).record(report, key)


def run_study(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, float],
    *,
    first: Mapping[str, int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Denoise with every method and compare with the clean particles, see `Study.run`."""
    table = Table(list(micrographs), thresholds=thresholds)
    seeing = {name: partial(of_noisy, method) for name, method in methods.items()}
    table.run(seeing, correlations, first=first, progress=progress)
    return table


def correlations(micrographs: Sequence[Micrograph], answer: Denoised) -> dict[str, Values]:
    """Correlations of denoised images with the particles, and more, by column of `COLUMNS`.

    An `InputError` for images of other shapes.
    """
    if [image.shape for image in answer.images] != [tuple(m.noisy.shape) for m in micrographs]:
        raise InputError("a method returned other shapes than the micrographs'")
    pairs = zip(answer.images, micrographs, strict=True)
    return by_column([judge(image, truth) for image, truth in pairs])


def with_background(
    images: Sequence[NDArray[np.float32]], micrographs: Sequence[Micrograph]
) -> float:
    """Mean correlation with noise-free micrographs, background, carbon and crystals included."""
    pairs = zip(images, micrographs, strict=True)
    whole = ((a, replace(m, noise_free_sources={"particles": m.clean})) for a, m in pairs)
    return float(np.mean([band_correlations(*pair)["mean"] for pair in whole]))


def judge(image: NDArray[np.float32], truth: Micrograph) -> list[float]:
    """A row of `by_column`."""
    bands = list(band_correlations(image, truth).values())
    return [bands[-1], *bands[:-1], suppression(image, truth)]


def by_column(rows: Sequence[Sequence[float]]) -> dict[str, Values]:
    """Scores from rows, one a micrograph, in the order of `COLUMNS`."""
    names = [column.name for column in COLUMNS]
    return dict(zip(names, np.array(rows, float).T, strict=True))


def by_row(scores: Scores) -> list[list[float]]:
    """What `by_column` takes, of its result."""
    return np.stack([scores[column.name] for column in COLUMNS], 1).tolist()


def rows_of(table: Table) -> dict[str, dict[str, Any]]:
    """Picks, processor seconds a megapixel and bands of each method, as `join` takes them."""
    picks = plain_picks({name: picks.picked for name, picks in table.picks.items()})
    return {
        name: {**picks[name], "cost": table.cost(name), "bands": by_row(table.scores[name])}
        for name in table.answers
    }


def plain_picks(picked: Mapping[str, Sequence[Picked]]) -> dict[str, dict[str, Any]]:
    """Picks by method, as `picks_by` takes them."""
    return {
        name: {"picks": [np.c_[one.coordinates, one.scores].tolist() for one in every]}
        for name, every in picked.items()
    }


def picks_of(picks: Sequence[Any]) -> list[Picked]:
    """Recorded picks of one method, one a micrograph."""
    tables = [np.array(one, float).reshape(-1, 3) for one in picks]
    return [Picked(table[:, :2], table[:, 2]) for table in tables]


def picks_by(rows: Mapping[str, Any]) -> dict[str, list[Picked]]:
    """Picks of recorded rows by method."""
    return {name: picks_of(row["picks"]) for name, row in rows.items()}


@dataclass(frozen=True)
class Extracted:
    """Particles from raw micrographs.

    ``images`` are ``(n, box, box)`` float32, protein *bright*, mean 0 and standard deviation 1
    outside the particle, as RELION wants them; ``metadata`` has the poses, and as shifts what the
    picks were off; ``right``, ``(n,)``, tells where a particle is.
    """

    images: NDArray[np.float32]
    metadata: Metadata
    right: NDArray[np.bool_]

    def half(self, number: int) -> Extracted:
        """Every other particle, from 0 or 1."""
        chosen = np.arange(number, len(self.images), 2)
        return Extracted(self.images[chosen], self.metadata.subset(chosen), self.right[chosen])


@dataclass(frozen=True)
class Reconstruction:
    """Two half maps and what they share.

    `halves` are ``(n, n, n)``, axes (z, y, x), None of a recorded one. The curves are Fourier shell
    correlations of the masked halves with each other, and of their mean with the true potential.
    Of `particles` windows `right` show particles; `program` took so many processor `seconds`.
    """

    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    halves_curve: Curve
    truth_curve: Curve
    particles: int
    right: int
    program: str
    seconds: float

    @property
    def resolution_angstrom(self) -> float:
        """At a correlation of .143 of the halves."""
        return 10 * self.halves_curve.resolution_nm(0.143)

    @property
    def true_resolution_angstrom(self) -> float:
        """At a correlation of .5 with the truth."""
        return 10 * self.truth_curve.resolution_nm(0.5)


def extract(
    micrographs: Sequence[Micrograph],
    picks: Sequence[NDArray[np.float64]],
    radius: float,
    box: int = BOX,
    seed: int = 0,
) -> Extracted:
    """Cut windows out of the *raw* micrographs; those that leave the field are left out.

    An `InputError` if no window fits.
    """
    images, turns, shifts, right, defoci = [], [], [], [], []
    pixel = micrographs[0].pixel_size_angstrom
    for number, (micrograph, places) in enumerate(zip(micrographs, picks, strict=True)):
        raw = micrograph.noisy.numpy()
        rotations, centres, found = matched_rotations(
            places, micrograph.coordinates, micrograph.rotations, radius, seed + number
        )
        corners = np.round(places).astype(int).reshape(-1, 2) - box // 2
        fits = ((corners >= 0) & (corners + box <= raw.shape)).all(1)
        for i in np.flatnonzero(fits):
            y, x = corners[i]
            images.append(raw[y : y + box, x : x + box])
            shifts.append((centres[i] - corners[i] - box // 2)[::-1] * pixel)
        turns.append(rotations[fits])
        right.append(found[fits])
        config = micrograph.config
        half = config.astigmatism_angstrom / 2
        row = (config.defocus_angstrom + half, config.defocus_angstrom - half)
        defoci += [(*row, config.astigmatism_deg)] * int(fits.sum())
    if not images:
        raise InputError(f"no window of {box} pixels fits; take a smaller box or pick more")
    config, table = micrographs[0].config, np.array(defoci)
    metadata = Metadata(
        pixel_size_angstrom=pixel,
        voltage_kv=config.voltage_kv,
        cs_mm=config.cs_mm,
        amplitude_contrast=config.amplitude_contrast,
        defocus_u_angstrom=table[:, 0],
        defocus_v_angstrom=table[:, 1],
        astigmatism_deg=table[:, 2],
        phase_shift_deg=np.zeros(len(images)),
        optics_group=np.ones(len(images), np.int64),
        rotations=np.concatenate(turns),
        shifts_angstrom=np.array(shifts),
    )
    return Extracted(_normalised(np.stack(images), pixel), metadata, np.concatenate(right))


def reconstruct(particles: Extracted, truth: NDArray[np.float32]) -> Reconstruction:
    """Reconstruct both halves of particles of known poses by RELION, and compare them.

    `truth` is the ``(m, m, m)`` potential with the same voxels, m at most the box. Fourier shell
    correlations are of the maps within `_soft_sphere`.
    """
    (first, took), (second, took_too) = (_half_map(particles.half(number)) for number in (0, 1))
    pixel = particles.metadata.pixel_size_angstrom
    mask, wide = _soft_sphere(len(first), pixel), np.zeros_like(first)
    start = (len(wide) - len(truth)) // 2
    inner = slice(start, start + len(truth))
    wide[inner, inner, inner] = truth

    def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> Curve:
        return fourier_shell_correlation(one * mask, other * mask, pixel / 10, "none")

    return Reconstruction(
        (first, second),
        correlation(first, second),
        correlation(first + second, wide),
        len(particles.images),
        int(particles.right.sum()),
        f"RELION {relion.version()}",
        took + took_too,
    )


def _soft_sphere(side: int, pixel_size_angstrom: float) -> NDArray[np.float32]:
    """1 within 85 A of the centre voxel ``side // 2``, falling to 0 over 15 A."""
    axis = (np.arange(side) - side // 2) * pixel_size_angstrom
    away = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    beyond = np.clip((away - MASK_ANGSTROM) / MASK_EDGE_ANGSTROM, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * beyond)).astype(np.float32)


def _half_map(part: Extracted) -> tuple[NDArray[np.float32], float]:
    """What RELION makes of particles, and its processor seconds."""
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        volume, _, done = relion.reconstruct(_written(part, Path(made)))
    return volume, done.cpu_seconds


def initial_map(
    particles: Extracted, iterations: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.float32], float]:
    """A first map by RELION, which is told no pose, and its voxel size: twice that of the pixels.

    `iterations` and `seed` as `emlab.external.relion.initial_model` takes them.
    """
    pixel = 2 * particles.metadata.pixel_size_angstrom
    small = _normalised(-fourier_resize(particles.images, particles.images.shape[-1] // 2), pixel)
    table = replace(
        particles.metadata, pixel_size_angstrom=pixel, rotations=None, shifts_angstrom=None
    )
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        star = _written(Extracted(small, table, particles.right), Path(made))
        volume, _, _ = relion.initial_model(star, 2 * MASK_ANGSTROM + 20, iterations, seed)
    return volume, pixel


def _written(part: Extracted, folder: Path) -> Path:
    """A STAR file of particles beside their stack."""
    star = folder / "particles.star"
    write_image(star.with_suffix(".mrcs"), part.images, part.metadata.pixel_size_angstrom)
    write_star(star, part.metadata, "particles.mrcs", part.images.shape[-1])
    return star


def _normalised(images: NDArray[np.float32], pixel: float) -> NDArray[np.float32]:
    side = images.shape[-1]
    y, x = np.indices((side, side)) - side // 2
    around = np.hypot(y, x) * pixel > MASK_ANGSTROM
    outside = images[:, around]
    mean, spread = outside.mean(1), outside.std(1)
    return -((images - mean[:, None, None]) / spread[:, None, None]).astype(np.float32)
