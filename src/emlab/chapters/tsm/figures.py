"""Pictures and curves of chapter 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.chapters.tsm.cases import central, radial_power
from emlab.chapters.tsm.peers import LABELS
from emlab.chapters.tsm.study import Table
from emlab.external.picking import Picks
from emlab.metrics.bands import BANDS_ANGSTROM
from emlab.metrics.picking import match
from emlab.viz import COLOURS

Image = NDArray[np.float32]
LINES = {
    "raw": ("black", ":"),
    "gaussian": ("sky", "--"),
    "wiener": ("sky", "-"),
    "bm3d": ("purple", "--"),
    "noise2void": ("purple", "-"),
    "topaz": ("orange", "-"),
    "untrained": ("black", "-."),
    "dsm": ("blue", "--"),
    "tsm": ("vermilion", "-"),
    "generalist": ("orange", "--"),
    "squares": ("green", "--"),
    "cellpose3": ("green", "-"),
    "untrained_restorer": ("black", "-."),
    "truth": ("green", "-"),
}


def grey_range(images: Mapping[str, Image], reference: str) -> tuple[float, float]:
    """One grey range for all panels: what the reference fills, and as much again on each side."""
    low, high = np.percentile(images[reference], [1, 99])
    return float(low - (high - low)), float(high + (high - low))


def window(table: Table, names: Sequence[str]) -> dict[str, Image]:
    """The same window of every method's image of the first micrograph, and of the clean one."""
    truth, made = table.micrographs[0], table.denoised
    shown = {n: central(made[n].images[0], truth) for n in names if n in made} | table.windows
    kept = {LABELS[name]: shown[name] for name in names if name in shown}
    return {**kept, "clean": central(truth.clean.numpy(), truth)}


def spectra(images: Mapping[str, tuple[Image, float]]) -> Figure:
    """Radial power of micrographs, in units of their noise: label to (image, pixel size)."""
    figure = Figure(figsize=(6.4, 2.9), layout="constrained")
    axis = figure.subplots()
    colours = ("blue", "vermilion", "green", "orange", "purple", "sky", "black")
    for (label, (image, pixel)), colour in zip(images.items(), colours, strict=False):
        frequency, power = radial_power(image, pixel)
        axis.semilogy(10 * frequency, power, color=COLOURS[colour], label=label)
    axis.set(xlabel="frequency (1/nm)", ylabel="power / noise", ylim=(0.3, None))
    axis.legend()
    return figure


def recovery(table: Table) -> Figure:
    """Correlation with the clean particles, band by band, a line a method."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axis = figure.subplots()
    x = np.arange(len(BANDS_ANGSTROM))
    for name, values in table.bands.items():
        colour, style = LINES[name]
        mean, spread = values.mean(0)[:-1], values.std(0)[:-1]
        axis.errorbar(
            x, mean, spread / np.sqrt(len(values)), color=COLOURS[colour], ls=style, marker="o",
            ms=3, label=LABELS[name], zorder=_order(name),
        )  # fmt: skip
    axis.set_xticks(x, [f"{name.replace('_', ' to ')} Å" for name in BANDS_ANGSTROM])
    axis.set(ylabel="correlation with the clean", ylim=(None, 1.0))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def precision_recall(picks: Mapping[str, Picks], thresholds: Mapping[str, float]) -> Figure:
    """A curve a method, with a dot at the threshold of the validation micrographs."""
    figure = Figure(figsize=(5.4, 2.8), layout="constrained")
    axis = figure.subplots()
    for name, found in picks.items():
        colour, style = LINES[name]
        curve = found.curve()
        axis.plot(
            curve.recall, curve.precision, color=COLOURS[colour], ls=style, label=LABELS[name],
            zorder=_order(name),
        )  # fmt: skip
        counts = found.at(thresholds.get(name, thresholds["raw"]))
        axis.plot(counts.recall(), counts.precision(), "o", color=COLOURS[colour], ms=5)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    axis.legend(loc="lower left")
    return figure


def picks_over(
    images: Mapping[str, Image],
    picks: Mapping[str, NDArray[np.float64]],
    truth: NDArray[np.float64],
    radius: float,
    limits: tuple[float, float],
) -> Figure:
    """Picks over images: hits, false ones (also seconds on one particle), particles missed."""
    figure = Figure(figsize=(3.5 * len(images), 3.9), layout="constrained")
    axes = figure.subplots(1, len(images), squeeze=False)[0]
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        found = match(picks[name], truth, radius)
        right = found.pick_to_truth >= 0
        missed = np.setdiff1d(np.arange(len(truth)), found.pick_to_truth[right])
        axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
        marks = (
            (picks[name][right], "green", "o", f"{right.sum()} hits"),
            (picks[name][~right], "vermilion", "s", f"{(~right).sum()} false"),
            (truth[missed], "yellow", "D", f"{len(missed)} missed"),
        )
        for places, colour, marker, label in marks:
            axis.scatter(
                places[:, 1], places[:, 0], s=60, marker=marker, facecolors="none",
                edgecolors=COLOURS[colour], linewidths=1.0, label=label,
            )  # fmt: skip
        axis.set_title(LABELS[name], fontsize=9)
        axis.set_axis_off()
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=7, handletextpad=0.2
        )
    return figure


def shells(table: Table) -> Figure:
    """Fourier shell correlation of half maps, and of their mean with the truth."""
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for name, found in table.maps.items():
        colour, style = LINES[name]
        label = LABELS.get(name, "the true places")
        for axis, curve in zip(axes, (found.halves_curve, found.truth_curve), strict=True):
            axis.plot(
                curve.frequency, curve.correlation, style, color=COLOURS[colour], label=label,
                zorder=_order(name),
            )  # fmt: skip
    for axis, level, title in zip(
        axes, (0.143, 0.5), ("half maps", "mean with the truth"), strict=True
    ):
        axis.axhline(level, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="frequency (1/nm)", ylim=(-0.1, 1.02))
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("Fourier shell correlation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _order(name: str) -> float:
    """DSM and TSM often coincide: the dashed line lies on the solid one."""
    return 3.0 if name == "dsm" else 2.0
