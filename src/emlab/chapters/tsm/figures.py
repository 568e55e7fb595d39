"""Pictures and curves of chapter 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.chapters.tsm.cases import LABELS
from emlab.chapters.tsm.study import COLUMNS, THE_TRUTH, Table
from emlab.external.picking import Picks
from emlab.metrics.fourier import radial_frequency
from emlab.metrics.picking import match
from emlab.physics.micrograph import Micrograph
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
    "guided": ("green", "-"),
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
    truth, made = table.cases[0], table.answers
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
    """Correlation with the particles, band by band, a line a method."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axis = figure.subplots()
    bands = [column for column in COLUMNS if column.name.startswith("recovery_")]
    for name in table.methods:
        colour, style = LINES[name]
        values = np.stack([table.scores[name][band.name] for band in bands])
        axis.errorbar(
            range(len(bands)), values.mean(1), values.std(1) / np.sqrt(values.shape[1]),
            color=COLOURS[colour], ls=style, marker="o", ms=3, label=LABELS[name],
            zorder=_order(name),
        )  # fmt: skip
    axis.set_xticks(range(len(bands)), [band.head.replace("A", "Å") for band in bands])
    axis.set(ylabel="correlation with the particles", ylim=(None, 1.0))
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
        label = LABELS.get(name, THE_TRUTH)
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


def target_noise(found: Mapping[float, tuple[float, float]], size: int) -> Figure:
    """Squared norm of the score's target of `size` pixels, and noise in that of the clean image.

    Both were measured, ``found[sigma_a]``, and are drawn over their formulas.
    """
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    levels, measured = list(found), np.array(list(found.values())).T
    fine = np.geomspace(levels[0], levels[-1], 100)
    formulas = ("d / σₐ²", size / fine**2), ("1 + 1/σₐ²", 1 + fine**-2)
    for axis, (formula, curve), values in zip(axes, formulas, measured, strict=True):
        axis.loglog(fine, curve, color="0.6", label=formula)
        axis.loglog(levels, values, "o", label="measured")
        axis.set_xlabel("auxiliary noise σₐ / σₙ")
    axes[0].set_ylabel("‖target of the score‖²")
    axes[1].set_ylabel("noise in the clean target")
    axes[1].axhline(1, ls=":", color="C3", label="Noise2Noise")
    for axis in axes:
        axis.legend(frameon=False)
    return figure


def iteration(
    found: Mapping[float, tuple[Sequence[float], Sequence[float]]], one_step: float, raw: float
) -> Figure:
    """The published iteration (`solvers.one_step.iterate`) by step size a, step by step."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for a, (white, recovered) in found.items():
        axes[0].semilogy(white, "o-", ms=3, label=f"a = {a:g}")
        axes[1].plot(range(1, len(recovered) + 1), recovered, "o-", ms=3, label=f"a = {a:g}")
    axes[0].axhline(1, color="0.6", lw=0.8)
    axes[0].set(xlabel="step", ylabel="white noise left, exact score")
    axes[1].axhline(one_step, color="k", label="one Tweedie step")
    axes[1].axhline(raw, color="0.6", ls=":", label="raw")
    axes[1].set(xlabel="step", ylabel="correlation, trained score")
    for axis in axes:
        axis.legend(frameon=False, fontsize=7)
    return figure


def traces(found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """How alike accepted patches and targets are (the paper's Fig. 7), and how many there are.

    `found` has what the bank said at each refresh, by the label of the training.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for label, trace in found.items():
        step, guesses = np.array(trace["step"]), np.array(trace["guesses"])
        some = guesses > 0
        (line,) = axes[0].plot(step[some], np.array(trace["similarity"])[some], "o-", label=label)
        axes[0].plot(step, trace["null"], ":", color=line.get_color())
        axes[1].plot(step, guesses, "o-", color=line.get_color(), label=label)
    axes[0].plot([], [], ":", color="0.5", label="19 in 20 random places stay below")
    axes[0].set(xlabel="step", ylabel="largest cosine with a target")
    axes[1].set(xlabel="step", ylabel="accepted guesses", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def radial_power(
    image: Image, pixel_size_angstrom: float, bins: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies ``(bins,)`` in 1/angstrom, and power over rings.

    Power is in units of that of the finest tenth of the frequencies.
    """
    centred = image - image.mean()
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    frequency = radial_frequency(image.shape)
    number = np.minimum((frequency / 0.5 * bins).astype(int), bins)
    total = np.bincount(number.ravel(), power.ravel(), bins + 1)[:bins]
    members = np.bincount(number.ravel(), minlength=bins + 1)[:bins]
    mean = total / np.maximum(members.astype(np.float64), 1)
    floor = power[(frequency > 0.45) & (frequency <= 0.5)].mean()
    return (np.arange(bins) + 0.5) / (2 * bins) / pixel_size_angstrom, mean / floor


def coarse_excess(image: Image, pixel_size_angstrom: float) -> float:
    """Power between 100 and 25 angstrom over that of the finest frequencies: a kind of SNR."""
    frequency, power = radial_power(image, pixel_size_angstrom)
    return float(power[(frequency > 1 / 100) & (frequency < 1 / 25)].mean())


def central(image: Image, truth: Micrograph, side: int = 220) -> Image:
    """A window of a micrograph's image about the particle nearest to its middle."""
    middle = np.array(image.shape) / 2
    nearest = truth.coordinates[np.linalg.norm(truth.coordinates - middle, axis=1).argmin()]
    return square(image, nearest, min(side, *image.shape))


def square(image: Image, place: Sequence[float], side: int) -> Image:
    """A window of an image about a place, moved inside where it would leave it."""
    y, x = (
        int(np.clip(round(value) - side // 2, 0, length - side))
        for value, length in zip(place, image.shape, strict=True)
    )
    return image[y : y + side, x : x + side]


def _order(name: str) -> float:
    """DSM and TSM often coincide: the dashed line lies on the solid one."""
    return 3.0 if name == "dsm" else 2.0
