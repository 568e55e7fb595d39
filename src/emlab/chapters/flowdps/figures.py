"""The figures of the FlowDPS chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.chapters.flowdps.audit import Memory, Nothing, RealStack
from emlab.chapters.flowdps.cases import WINDOW
from emlab.chapters.flowdps.experiments import Averaging, Sweep, sweep_intervals
from emlab.chapters.flowdps.peers import LABELS as PEERS, MARGIN
from emlab.chapters.flowdps.rows import LABELS
from emlab.chapters.flowdps.scores import LEVELS
from emlab.chapters.flowdps.study import Table
from emlab.data.phase_maps import FIELD, PIXEL_ANGSTROM
from emlab.methods.flowdps import deviation
from emlab.physics import ComplexCTF, ExitWave
from emlab.runtime import make_generator
from emlab.viz import COLOURS, Picture, show, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Image = NDArray[np.float32]
LINES = {
    "phase_flip": ("black", ":"),
    "wiener": ("sky", "-"),
    "sparse": ("blue", "-"),
    "supervised": ("purple", "-"),
    "paper": ("orange", "-"),
    "corrected": ("green", "-"),
    "ours": ("vermilion", "-"),
}

SHOWN = (*PEERS, "prior_draw", "supervised", "paper", "corrected", "ours")


def grid(
    rows: Mapping[str, Mapping[str, Image]],
    limits: tuple[float, float] | None = (-0.12, 0.32),
    columns: int | None = None,
) -> Figure:
    """Rows of labelled images ``{row: {label: (H, W)}}``; phases share a range in radians.

    Without limits each image has its own; a single row may be broken into `columns`.
    """
    if columns is not None and len(rows) == 1:
        (label, row), items = next(iter(rows.items())), []
        items = list(row.items())
        rows = {
            f"{label}{' ' * i}": dict(items[i : i + columns]) for i in range(0, len(items), columns)
        }
    across = max(len(row) for row in rows.values())
    width = min(1.5 * across + 0.4, 9.5)
    each = (width - 0.4) / across
    figure = Figure(figsize=(width, len(rows) * (each + 0.25) + 0.1), layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False)
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        for axis, (name, image) in zip(line, row.items(), strict=False):
            _image(axis, image, LABELS.get(name, name), limits)
        for axis in line[len(row) :]:
            axis.set_visible(False)
        line[0].set_ylabel(label.strip(), fontsize=8)
    return figure


def methods_of(table: Table, number: int = 0) -> dict[str, Image]:
    """One particle through every method of `SHOWN` that ran, means removed, and the truth."""
    shown = {
        LABELS[name]: centred(table.answers[name].phases[number])
        for name in SHOWN
        if name in table.answers
    }
    return {**shown, "truth": centred(table.cases.truth[number].numpy())}


def centred(image: Image) -> Image:
    """An image without its mean, which a single measurement does not tell."""
    return image - image.mean()


def lens_picture(ctf: ComplexCTF, expected: NDArray, title: str) -> Picture:
    """The contrast transfer of a lens, and the counts it would show without noise."""
    figure = Figure(figsize=(5.0, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.5, 1)})
    frequency = torch.linspace(0, 0.19, 400)
    chi = ctf.chi(frequency)
    value = -(chi.sin() + ctf.kappa * chi.cos()) * ctf.envelope(frequency)
    left.plot(10 * frequency, value, color=COLOURS["blue"])
    left.axhline(0, color="grey", lw=0.8)
    left.set(xlabel="frequency (1/nm)", ylabel="contrast transfer", ylim=(-1.1, 1.1))
    left.set_title(title, fontsize=9)
    _image(right, expected / expected.mean(), "counts without noise", (0.7, 1.3))
    return show(figure, f"Contrast transfer against frequency and the image of a particle, {title}")


def lens_of(micrometres: float = 1.5, **told: float) -> ComplexCTF:
    """A 300 kV lens at an underfocus, amplitude contrast .1, in the pixels of the maps."""
    return ComplexCTF(300.0, PIXEL_ANGSTROM, 1e4 * micrometres, amplitude_contrast=0.1, **told)


def expected_counts(phase: torch.Tensor, lens: ComplexCTF, electrons: float = 1.0) -> NDArray:
    """Counts ``(64, 64)`` of a phase through a lens, so many electrons a pixel, without noise."""
    inner = slice(MARGIN, -MARGIN)
    dose = electrons / PIXEL_ANGSTROM**2
    return ExitWave(lens, dose, FIELD, WINDOW).A(phase)[inner, inner].numpy()


def lens_strip(
    phase: torch.Tensor, caption: str, values: Sequence[float], setting: str, start: int = 0
) -> Any:
    """A slider over one setting of `lens_of`: contrast transfer, and what it makes of a phase."""
    pictures = {}
    for value in values:
        lens, name = lens_of(**{setting: value}), caption.format(value)
        pictures[name] = lens_picture(lens, expected_counts(phase, lens), name)
    alt = f"What {caption.format('this')} does to the contrast transfer and to the image"
    return strip(pictures, alt, start=start)


def exposure(phase: torch.Tensor, micrometres: float, dose: float, seed: int) -> Figure:
    """A phase, its image without noise, and the electrons that are counted."""
    lens = lens_of(micrometres, b_factor_angstrom2=60.0)
    expected = expected_counts(phase, lens, dose * PIXEL_ANGSTROM**2)
    counted = torch.poisson(torch.from_numpy(expected), generator=make_generator(seed)).numpy()
    pictures = {
        "phase": phase.numpy(),
        "without noise": expected / expected.mean(),
        f"{dose} electrons / A²": counted / expected.mean(),
    }
    return grid({"": {name: centred(p) for name, p in pictures.items()}}, (-0.35, 0.35))


def correlation(table: Table) -> Figure:
    """Fourier correlation with the truth: everywhere, and near the zeros of the lens."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, zeros, title in (
        (axes[0], False, "all coefficients"),
        (axes[1], True, "where the lens transfers less than .3"),
    ):
        for name, (colour, style) in LINES.items():
            if name in table.scores:
                x, y = table.scores[name].curve(zeros)
                axis.plot(x, y, style, color=COLOURS[colour], label=LABELS[name])
        axis.axhline(0.5, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="frequency (1/nm)", ylim=(-0.1, 1.02))
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("Fourier ring correlation")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def sweeps(runs: Mapping[str, Sweep]) -> Figure:
    """Error and coverage against dose and defocus: ``{"dose": {...}, "defocus": {...}}``."""
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharey="row")
    labels = {"dose": "dose (e/A²)", "defocus": "defocus (µm)"}
    for (upper, lower), (name, recorded) in zip(axes.T, runs.items(), strict=True):
        found = sweep_intervals(recorded)
        x = [(1e-4 if name == "defocus" else 1.0) * value for value in found]
        for method in next(iter(found.values())):
            colour, style = COLOURS[LINES[method][0]], LINES[method][1]
            errors, shares = zip(*(methods[method] for methods in found.values()), strict=True)
            mean, low, high = 1e3 * np.array(errors).T
            upper.plot(x, mean, style, marker="o", ms=3, color=colour, label=LABELS[method])
            upper.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            if None not in shares:
                mean, low, high = np.array(shares).T
                lower.plot(x, mean, style, marker="o", ms=3, color=colour)
                lower.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        lower.axhspan(0.85, 0.95, color=COLOURS["green"], alpha=0.15, lw=0)
        lower.set(xlabel=labels[name], ylim=(0, 1.02))
        upper.set(ylim=(0, None))
        if name == "dose":
            for axis in (upper, lower):
                axis.set_xscale("log")
                axis.set_xticks(x, [f"{value:g}" for value in x])
                axis.minorticks_off()
    axes[0, 0].set_ylabel("phase error (mrad)")
    axes[1, 0].set_ylabel("90 % intervals cover")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    return figure


def posterior(table: Table, number: int = 0, several: int = 3) -> Figure:
    """Counts, mean, some samples, spread and error of one particle."""
    answer, truth = table.answers["ours"], centred(table.cases.truth[number].numpy())
    assert answer.samples is not None
    samples = np.stack([centred(image) for image in answer.samples[:, number]])
    mean = samples.mean(0)
    figure = Figure(figsize=(9.5, 3.5), layout="constrained")
    axes = figure.subplots(2, 4)
    inner = slice(MARGIN, -MARGIN)
    counts = table.cases.counts[number, inner, inner].numpy()
    _image(axes[0, 0], counts, "counts", None)
    _image(axes[0, 1], mean, f"mean of {len(samples)}")
    _image(axes[0, 2], truth, "truth")
    for axis, image, i in zip(
        (axes[0, 3], *axes[1, :2]), samples[:several], range(several), strict=False
    ):
        _image(axis, image, f"sample {i + 1}")
    error, spread = np.abs(mean - truth), deviation(samples, answer.independent)
    top = float(np.percentile(error, 99.5))
    for axis, image, label in (
        (axes[1, 2], spread, "spread"),
        (axes[1, 3], error, "error of mean"),
    ):
        axis.imshow(1e3 * image, cmap="magma", vmin=0, vmax=1e3 * top)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{label}, 0 to {1e3 * top:.0f} mrad", fontsize=8)
        axis.grid(False)
    return figure


def calibration(table: Table, names: Sequence[str]) -> Figure:
    """How often intervals hold the truth: by level, by ring; and ranks of the truth."""
    figure = Figure(figsize=(11.0, 2.9), layout="constrained")
    first, rings, *others = figure.subplots(1, 2 + len(names))
    for name in names:
        colour = COLOURS[LINES[name][0]]
        covered, by_level = table.scores[name].covered, table.scores[name].by_level
        assert covered is not None
        assert by_level is not None
        first.plot(LEVELS, by_level, "-o", ms=3, color=colour)
        number = 1 + np.arange(covered.shape[1])
        rings.plot(number, covered.mean(0), "-o", ms=3, color=colour, label=LABELS[name])
    rings.axhspan(0.85, 0.95, color=COLOURS["green"], alpha=0.12, lw=0)
    rings.set(xlabel="ring, coarse to fine", ylabel="90 % intervals cover", ylim=(0.5, 1))
    rings.legend(fontsize=7, loc="lower right")
    first.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    first.set(xlabel="level of the interval", ylabel="share that holds the truth", xlim=(0, 1))
    for axis, name in zip(others, names, strict=True):
        scores = table.scores[name]
        assert scores.ranks is not None
        share = np.bincount(scores.ranks.ravel(), minlength=scores.samples + 1)
        share = share / share.sum() * (scores.samples + 1)
        axis.bar(range(scores.samples + 1), share, color=COLOURS[LINES[name][0]], width=0.9)
        axis.axhline(1, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="rank of the truth", ylim=(0, max(2.5, share.max())))
        axis.set_xticks(range(0, scores.samples + 1, max(1, scores.samples // 5)))
        axis.set_title(LABELS[name], fontsize=9)
    others[0].set_ylabel("frequency, 1 = even")
    return figure


def nothing(found: Nothing, mean_map: Image) -> Figure:
    """Pure noise and what becomes of it, beside the mean of the training maps."""
    inner = slice(MARGIN, -MARGIN)
    pictures = {f"sample {i + 1}": centred(found.samples[i, 0]) for i in range(3)}
    pictures |= {
        f"mean of {len(found.samples)}": centred(found.samples[:, 0].mean(0)),
        "mean training map": centred(mean_map),
    }
    figure = grid({"": {"noise": found.counts[0, inner, inner], **pictures}})
    _image(figure.axes[0], found.counts[0, inner, inner], "pure noise", None)
    return figure


def misfits(own: NDArray, others: Mapping[str, NDArray]) -> Figure:
    """chi^2 of the particles of the table and of others."""
    figure = Figure(figsize=(5.6, 2.5), layout="constrained")
    axis = figure.subplots()
    groups = {"the table's particles": own, **others}
    for row, ((name, values), colour) in enumerate(
        zip(groups.items(), COLOURS.values(), strict=False)
    ):
        jitter = np.random.default_rng(row).uniform(-0.25, 0.25, len(values))
        axis.plot(values, row + jitter, "o", ms=3, alpha=0.7, color=colour, label=name)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set(xlabel="coarse chi² of the counts; 1 = noise")
    axis.axvline(1, color="grey", lw=0.8, ls=":")
    return figure


def averages(found: Mapping[str, Averaging]) -> Figure:
    """Invented power against the number of samples that are averaged.

    Of samples in opposite pairs even numbers are drawn, and no power that all share.
    """
    figure = Figure(figsize=(5.6, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, one), colour in zip(found.items(), ("blue", "vermilion", "green"), strict=False):
        shown = slice(1, None, 2) if one.shared is None else slice(None)
        axis.plot(
            one.samples[shown], one.invented.mean(1)[shown], "-o", ms=3, color=COLOURS[colour],
            label=name,
        )  # fmt: skip
        if one.shared is not None:
            axis.axhline(one.shared.mean(), color=COLOURS[colour], lw=1, ls=":")
    axis.set(xlabel="samples averaged", ylabel="invented power / truth's", ylim=(0, None))
    samples = next(iter(found.values())).samples
    axis.set_xticks(samples[:: max(1, len(samples) // 10)])
    axis.set_title("dotted: what all samples invent alike", fontsize=9)
    axis.legend()
    return figure


def memories(found: Memory) -> Figure:
    """Distance of answers to the nearest training view against that to the truth."""
    figure = Figure(figsize=(3.4, 3.0), layout="constrained")
    axis = figure.subplots()
    axis.plot(1e3 * found.to_truth, 1e3 * found.to_view, "o", ms=3, color=COLOURS["blue"])
    top = 1e3 * max(found.to_truth.max(), found.to_view.max()) * 1.05
    axis.plot([0, top], [0, top], color="grey", lw=0.8, ls=":")
    axis.set(
        xlabel="distance to the truth (mrad)", ylabel="to the training view (mrad)",
        xlim=(0, top), ylim=(0, top),
    )  # fmt: skip
    return figure


def real(stacks: Sequence[RealStack], most: int = 4) -> Figure:
    """Rows of each stack: the image, the answer and its spread."""
    rows: dict[str, dict[str, Image]] = {}
    for stack in stacks:
        label = stack.name.removeprefix("particles_")
        row: dict[str, Image] = {}
        for i in range(min(most, len(stack.found.image))):
            row[f"image {i + 1}"] = _middle(stack.particles.images[i], stack)
            row[f"answer {i + 1}"] = stack.found.image[i]
        rows[label] = row
    figure = grid(rows)
    for axis in figure.axes:
        if axis.get_title(loc="left").startswith("image"):
            axis.images[0].autoscale()
    return figure


def _middle(image: Image, stack: RealStack) -> Image:
    side = round(64 * PIXEL_ANGSTROM / stack.particles.pixel_size_angstrom)
    start = max(0, (image.shape[0] - side) // 2)
    return image[start : start + side, start : start + side]


def _image(
    axis: Axes, image: NDArray, label: str, limits: tuple[float, float] | None = (-0.12, 0.32)
) -> None:
    axis.clear()
    low, high = np.percentile(image, [0.5, 99.5]) if limits is None else limits
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(label, fontsize=8)
    axis.grid(False)
