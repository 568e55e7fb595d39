"""The figures and tables of the EM Generalist chapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import Study, mean_of, pipe_table, spanned
from emlab.chapters.em_generalist.experiments import Calibration, Judged, Stitched, Training
from emlab.chapters.em_generalist.recorded import Run
from emlab.chapters.em_generalist.study import LABELS, Grey, Studies, best_classical, image_of
from emlab.recipes.generalist_tasks import GREY_RANGE
from emlab.viz import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = (20.0, 235.0)
NAMES = {**LABELS, "input": "measured"}
NETWORKS = {"ours": "vermilion", "supervised": "purple", "untrained": "black"}


def grid(rows: Mapping[str, Mapping[str, Grey]], title: str = "") -> Figure:
    """Rows of labelled images at one grey range: ``{row: {column: (H, W)}}``."""
    columns = max(len(row) for row in rows.values())
    shapes = [next(iter(row.values())).shape for row in rows.values()]
    heights = [shape[0] / shape[1] for shape in shapes]
    width = min(1.35 * columns + 0.4, 8.2)
    each = (width - 0.4) / columns
    figure = Figure(
        figsize=(width, sum(each * h + 0.22 for h in heights) + (0.3 if title else 0.05)),
        layout="constrained",
    )
    axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        for axis, (name, image) in zip(line, row.items(), strict=False):
            _image(axis, image, NAMES.get(name, name))
        for axis in line[len(row) :]:
            axis.set_visible(False)
        line[0].set_ylabel(label, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def first(study: Study, methods: Sequence[str]) -> dict[str, Grey]:
    """First case of a study as a row of `grid`: the methods that ran, then the truth."""
    shown = {name: image_of(study.answers[name][0]) for name in methods if name in study.answers}
    return {**shown, "truth": study.cases[0].truth}


def gains(studies: Studies, methods: Sequence[str]) -> Figure:
    """PSNR over the best classical peer, task by task, with intervals."""
    tasks = list(studies.values())
    figure = Figure(figsize=(8, 0.28 * len(tasks) + 0.8), layout="constrained")
    axis = figure.subplots()
    for offset, name in zip(np.linspace(-0.2, 0.2, len(methods)), methods, strict=True):
        rows = [i for i, study in enumerate(tasks) if name in study.scores]
        if not rows:
            continue
        found = np.array([tasks[i].gain(name, best_classical(tasks[i]), "psnr") for i in rows])
        error = np.abs(found[:, 1:].T - found[:, 0])
        colour = COLOURS[NETWORKS.get(name, "blue")]
        axis.errorbar(
            found[:, 0], np.array(rows) + offset, xerr=error, fmt="o", ms=4, color=colour,
            label=NAMES.get(name, name), capsize=2,
        )  # fmt: skip
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(tasks)), [study.cases[0].task.label for study in tasks])
    axis.invert_yaxis()
    axis.set(xlabel="PSNR over the best classical peer (dB)")
    figure.legend(loc="outside upper right", ncols=len(methods))
    return figure


def table(studies: Studies) -> str:
    """A row a method, of each task the error removed and PSNR; of two tasks or one also SSIM.

    A single task has the resolution and seconds as well. What answers one grey level is left out.
    """
    heads, every = ["method"], list(studies.values())
    names = dict.fromkeys(name for study in every for name in study.methods if name != "constant")
    labelled = {name: next(s for s in every if name in s.scores).label(name) for name in names}
    lines = {name: [label] for name, label in labelled.items()}
    for study in every:
        label = f"{study.cases[0].task.label}: " if len(every) > 1 else ""
        shown = {"removed": f"{label}error removed", "psnr": "PSNR [dB]"}
        shown |= {"ssim": "SSIM"} if len(every) < 3 else {}
        if len(every) == 1:
            shown |= {c.name: c.head for c in study.columns if c.name == "frc_nm"}
        heads += [*shown.values(), *["seconds"] * (len(every) == 1)]
        for name, cells in lines.items():
            if name not in study.scores:
                cells += [""] * len(shown)
                continue
            found = {column: study.interval(name, column) for column in shown}
            half = (found["psnr"].high - found["psnr"].low) / 2
            space = "\u00a0" if len(every) <= 3 else " "  # more columns have to break their lines
            psnr = f"{found['psnr'].mean:.2f}{space}±{space}{half:.2f}"
            texts = {"removed": f"{found['removed'].mean:.0%}", "psnr": psnr}
            cells += [
                texts.get(c) or f"{found[c].mean:{'.1f' if c == 'frc_nm' else '.3f'}}"
                for c in shown
            ]
            if len(every) == 1:
                cells.append(f"{study.seconds[name]:.2g}")
    return pipe_table(heads, lines.values(), every)


def rooms(studies: Studies, report: Report, methods: Sequence[str]) -> str:
    """Between the best linear answer and what the noise of the truth allows, how far is a method?

    A row a task: PSNR of linear MMSE, the ceiling, and of the mean square error between the two the
    share that each method takes away, with intervals over cases of its numerator alone.
    """
    lines = []
    for name, study in studies.items():
        error = {row: scores["mse"] for row, scores in study.scores.items()}
        case, linear = study.cases[0], error["linear"]
        room = float(linear.mean() - case.lost)
        ceiling = math.inf
        if case.lost > 0:
            ceiling = 10 * math.log10(GREY_RANGE**2 / case.lost)
            report.value(f"{name}.ceiling", ceiling, unit="dB", note="noise of the truth, if white")
        line = [case.task.label, f"{study.interval('linear', 'psnr').mean:.2f}", f"{ceiling:.2f}"]
        for row in methods:
            if row not in error:
                line.append("")
                continue
            n = min(len(error[row]), len(linear))
            share = (linear[:n] - error[row][:n]) / room
            gained = mean_of({row: share}, row, None)
            report.value(f"{name}.room.{row}", *gained, note="share of the room, see text", n=n)
            line.append(spanned(gained, ".0%"))
        lines.append(line)
    shown = [LABELS.get(row, row) for row in methods]
    return pipe_table(["task", "linear MMSE [dB]", "ceiling [dB]", *shown], lines)


def correlation_curves(curves: Mapping[str, tuple[NDArray, NDArray]], ylabel: str) -> Figure:
    """Fourier correlation against frequency, ``{method: (frequency per nm, correlation)}``."""
    figure = Figure(figsize=(4.8, 2.2), layout="constrained")
    axis = figure.subplots()
    palette = [COLOURS[name] for name in ("sky", "blue", "green", "vermilion", "purple")]
    for (name, (frequency, correlation)), colour in zip(curves.items(), palette, strict=False):
        axis.plot(1000 * frequency, correlation, color=colour, label=NAMES.get(name, name))
    axis.axhline(0.5, color="grey", lw=0.8, ls=":")
    axis.axhline(1 / 7, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="frequency (1/µm)", ylabel=ylabel, ylim=(-0.1, 1.02))
    axis.legend()
    return figure


def sweeps(settings: Mapping[str, Mapping[float, Run]]) -> Figure:
    """PSNR of every crop and power of fine detail against one setting or several."""
    figure = Figure(figsize=(min(7.2 * len(settings), 9.5), 2.1), layout="constrained")
    axes = figure.subplots(1, 2 * len(settings))
    for left, right, (label, runs) in zip(axes[::2], axes[1::2], settings.items(), strict=True):
        values = list(runs)
        scores = np.array([run.psnr for run in runs.values()])
        left.plot(values, scores, "o", ms=3, color=COLOURS["sky"])
        left.plot(values, scores.mean(1), "-o", color=COLOURS["blue"])
        fine = [run.fine_power for run in runs.values()]
        right.plot(values, fine, "-o", color=COLOURS["vermilion"])
        right.axhline(1, color="grey", lw=0.8, ls=":")
        left.set(xlabel=label, ylabel="PSNR (dB)")
        right.set(xlabel=label, ylabel="fine detail / truth's", yscale="log")
        for axis in (left, right):
            if min(values) > 0:
                axis.set_xscale("log")
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
    return figure


def samples_curve(once: float, means: NDArray) -> Figure:
    """PSNR of the mean of n samples, and the line that one evaluation draws."""
    figure = Figure(figsize=(4.6, 2.2), layout="constrained")
    axis = figure.subplots()
    counts = np.arange(1, len(means) + 1)
    axis.plot(counts, means, "-o", ms=3, color=COLOURS["blue"], label="mean of n samples")
    axis.axhline(once, color=COLOURS["vermilion"], label="one evaluation: posterior mean")
    axis.set(xlabel="samples n", ylabel="PSNR (dB)", xticks=counts[:: max(1, len(counts) // 8)])
    axis.legend(loc="lower right")
    return figure


def training(run: Training) -> Figure:
    """Denoising PSNR on validation stacks against steps; the last doubling is shaded."""
    levels = [level for level in run.scores if not level.endswith("_alone")]
    figure = Figure(figsize=(8.2, 2.2), layout="constrained")
    for axis, level in zip(np.atleast_1d(figure.subplots(1, len(levels))), levels, strict=True):
        axis.plot(run.steps, run.scores[level], "-o", ms=3, color=COLOURS["blue"])
        if (alone := run.scores.get(f"{level}_alone")) is not None:
            axis.plot(run.steps, alone, "-s", ms=3, color=COLOURS["sky"])
        axis.axvspan(run.steps[-1] / 2, run.steps[-1], color=COLOURS["sky"], alpha=0.2, lw=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(run.steps[[0, -1]], [f"{step:g}" for step in run.steps[[0, -1]]])
        title = f"noise {level}: last doubling {run.last_doubling(level):+.2f} dB"
        axis.set(xlabel="training steps", ylabel="PSNR (dB)")
        axis.set_title(title, fontsize=8)
    return figure


def kernels(pairs: Mapping[str, tuple[NDArray, NDArray]]) -> Figure:
    """True kernels over those that were found blindly."""
    figure = Figure(figsize=(1.5 * len(pairs) + 0.3, 3.1), layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for column, (label, (true, found)) in enumerate(pairs.items()):
        side = max(true.shape[0], found.shape[0])
        top = float(true.max())
        for axis, kernel, what in zip(
            axes[:, column], (true, found), ("true", "found"), strict=True
        ):
            axis.imshow(_padded(kernel, side), cmap="gray", vmin=0, vmax=top)
            axis.set(xticks=[], yticks=[], title=label if what == "true" else "")
            axis.grid(False)
            if column == 0:
                axis.set_ylabel(what)
    return figure


def stitching(found: Stitched, zoom: int) -> Figure:
    """A corner of tiles, pasted and blended, and the seam index of each border."""
    figure = Figure(figsize=(8.5, 2.4), layout="constrained")
    first, second, last = figure.subplots(1, 3)
    start = max(found.tile - zoom // 2, 0)
    place = (slice(start, found.tile + zoom // 2),) * 2
    limits = tuple(np.percentile(found.blended[place], [0.5, 99.5]))
    _image(first, found.pasted[place], "tiles side by side", limits)
    _image(second, found.blended[place], "blended", limits)
    for values, colour, label in (
        (found.pasted_seams, "vermilion", "side by side"),
        (found.seams, "blue", "blended"),
    ):
        last.plot(np.sort(values), "o-", ms=3, color=COLOURS[colour], label=label)
    chance = np.percentile(found.chance, [0.5, 99.5])
    last.axhspan(*chance, color=COLOURS["green"], alpha=0.2, lw=0, label="99 % of other places")
    last.set(xlabel="tile border, sorted", ylabel="seam index", title="1 = like anywhere else")
    last.legend()
    return figure


def uncertainty(
    noisy: Grey, mean: Grey, spread: Grey, truth: Grey, judged: Mapping[str, Calibration]
) -> Figure:
    """Mean, spread and error of a crop; error of pixels of similar spread, by task."""
    figure = Figure(figsize=(9.5, 2.2), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.6])
    error = np.abs(mean - truth)
    top = float(np.percentile(error, 99.5))
    _image(axes[0], noisy, "measured")
    _image(axes[1], mean, "posterior mean")
    for axis, values, label in (
        (axes[2], spread, "stated spread"),
        (axes[3], error, "actual error"),
    ):
        axis.imshow(values, cmap="magma", vmin=0, vmax=top)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{label}, 0 to {top:.0f}", fontsize=8)
        axis.grid(False)
    top = 0.0
    for (label, one), colour in zip(judged.items(), COLOURS.values(), strict=False):
        curve = one.curve
        axes[4].plot(curve.spread, curve.error, "-o", ms=2, lw=1, color=colour, label=label)
        top = max(top, *curve.spread, *curve.error)
    axes[4].plot([0, top], [0, top], color="grey", lw=0.8, ls=":")
    axes[4].set(xlabel="stated spread (grey levels)", ylabel="actual rms error")
    axes[4].legend(fontsize=7)
    return figure


def scores_without_truth(judged: Sequence[Judged]) -> Figure:
    """Decorrelation resolution and naturalness against PSNR; one colour a cause."""
    figure = Figure(figsize=(8.5, 2.3), layout="constrained")
    axes = figure.subplots(1, 2)
    judged = [item for item in judged if item.psnr < 60]  # the truth itself has no place
    kinds = dict.fromkeys(item.kind for item in judged)
    for axis, name, label in (
        (axes[0], "decorrelation_nm", "decorrelation resolution (nm)"),
        (axes[1], "naturalness", "NIQE"),
    ):
        for kind, colour in zip(kinds, COLOURS.values(), strict=False):
            those = [item for item in judged if item.kind == kind]
            axis.plot(
                [item.psnr for item in those], [getattr(item, name) for item in those],
                "o-", ms=4, color=colour, label=kind,
            )  # fmt: skip
        axis.set(xlabel="PSNR (dB)", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].set_title("lower is meant to be better")
    axes[1].legend()
    return figure


def _image(axis: Axes, image: Grey, label: str, limits: tuple[float, ...] = GREY) -> None:
    axis.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(label, fontsize=8)
    axis.grid(False)


def _padded(kernel: NDArray, side: int) -> NDArray:
    edge = (side - kernel.shape[0]) // 2
    return np.pad(kernel, edge)
