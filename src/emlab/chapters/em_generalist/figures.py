"""The figures and tables of the EM Generalist chapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import Study, mean_of, pipe_table, spanned
from emlab.chapters.em_generalist.experiments import Calibration, Judged, Stitched, Training
from emlab.chapters.em_generalist.recorded import Run
from emlab.chapters.em_generalist.study import LABELS, Grey, Studies, best_classical, image_of
from emlab.recipes.generalist_tasks import GREY_RANGE
from emlab.viz import COLOURS, panels, picture

GREY = (20.0, 235.0)
NAMES = {**LABELS, "input": "measured"}
NETWORKS = {"ours": "vermilion", "supervised": "purple"}


def grid(rows: Mapping[str, Mapping[str, Grey]]) -> Figure:
    """Rows of labelled images at one grey range: ``{row: {column: (H, W)}}``."""
    columns = max(len(row) for row in rows.values())
    shapes = [next(iter(row.values())).shape for row in rows.values()]
    heights = [shape[0] / shape[1] for shape in shapes]
    width = min(1.35 * columns + 0.4, 8.2)
    height = sum((width - 0.4) / columns * each + 0.22 for each in heights) + 0.05
    figure, axes = panels(width, height, columns, len(rows), height_ratios=heights)
    for line, (label, row) in zip(np.atleast_2d(axes), rows.items(), strict=True):
        for axis, (name, image) in zip(line, row.items(), strict=False):
            picture(axis, image, NAMES.get(name, name), GREY)
        for axis in line[len(row) :]:
            axis.set_visible(False)
        line[0].set_ylabel(label, fontsize=8)
    return figure


def first(study: Study, methods: Sequence[str]) -> dict[str, Grey]:
    """First case of a study as a row of `grid`: the methods that ran, then the truth."""
    shown = {name: image_of(study.answers[name][0]) for name in methods if name in study.answers}
    return {**shown, "truth": study.cases[0].truth}


def gains(studies: Studies, methods: Sequence[str]) -> Figure:
    """PSNR over the best classical peer, task by task, with intervals."""
    tasks = list(studies.values())
    figure, (axis,) = panels(8, 0.28 * len(tasks) + 0.8)
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
    space = "\u00a0" if len(every) <= 3 else " "  # more columns have to break their lines
    names = dict.fromkeys(name for study in every for name in study.methods if name != "constant")
    lines = {name: [next(s for s in every if name in s.scores).label(name)] for name in names}
    for study in every:
        columns = study.columns[: {1: 4, 2: 3}.get(len(every), 2)]
        label = f"{study.cases[0].task.label}: " if len(every) > 1 else ""
        heads += [label + columns[0].head, *(column.head for column in columns[1:])]
        heads += ["seconds"] * (len(every) == 1)
        for name, cells in lines.items():
            if name not in study.scores:
                cells += [""] * len(columns)
                continue
            for column in columns:
                found = study.interval(name, column.name)
                half = f"{space}±{space}{(found.high - found.low) / 2:.2f}"
                mean = column.show.partition(" [")[0].format(**found._asdict())
                cells.append(mean + half * (column.name == "psnr"))
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
    figure, (axis,) = panels(4.8, 2.2)
    palette = [COLOURS[name] for name in ("sky", "blue", "green", "vermilion", "purple")]
    for (name, (frequency, correlation)), colour in zip(curves.items(), palette, strict=False):
        axis.plot(1000 * frequency, correlation, color=colour, label=NAMES.get(name, name))
    for level in (0.5, 1 / 7):
        axis.axhline(level, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="frequency (1/µm)", ylabel=ylabel, ylim=(-0.1, 1.02))
    axis.legend()
    return figure


def sweeps(settings: Mapping[str, Mapping[float, Run]]) -> Figure:
    """PSNR of every crop and power of fine detail against one setting or several."""
    figure, axes = panels(min(7.2 * len(settings), 9.5), 2.1, 2 * len(settings))
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
    figure, (axis,) = panels(4.6, 2.2)
    counts = np.arange(1, len(means) + 1)
    axis.plot(counts, means, "-o", ms=3, color=COLOURS["blue"], label="mean of n samples")
    axis.axhline(once, color=COLOURS["vermilion"], label="one evaluation: posterior mean")
    axis.set(xlabel="samples n", ylabel="PSNR (dB)", xticks=counts[:: max(1, len(counts) // 8)])
    axis.legend(loc="lower right")
    return figure


def training(run: Training) -> Figure:
    """Denoising PSNR on validation stacks against steps; the last doubling is shaded."""
    levels = [level for level in run.scores if not level.endswith("_alone")]
    figure, axes = panels(8.2, 2.2, len(levels))
    for axis, level in zip(axes, levels, strict=True):
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
    figure, axes = panels(1.5 * len(pairs) + 0.3, 3.1, len(pairs), rows=2)
    for column, (label, (true, found)) in zip(axes.T, pairs.items(), strict=True):
        side = max(len(true), len(found))
        for axis, kernel, title in zip(column, (true, found), (label, ""), strict=True):
            whole = np.pad(kernel, (side - len(kernel)) // 2)
            picture(axis, whole, title, (0, float(true.max())))
    axes[0, 0].set_ylabel("true")
    axes[1, 0].set_ylabel("found")
    return figure


def stitching(found: Stitched, zoom: int) -> Figure:
    """A corner of tiles, pasted and blended, and the seam index of each border."""
    figure, (first, second, last) = panels(8.5, 2.4, 3)
    start = max(found.tile - zoom // 2, 0)
    place = (slice(start, found.tile + zoom // 2),) * 2
    low, high = np.percentile(found.blended[place], [0.5, 99.5])
    picture(first, found.pasted[place], "tiles side by side", (low, high))
    picture(second, found.blended[place], "blended", (low, high))
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
    figure, axes = panels(9.5, 2.2, 5, width_ratios=[1, 1, 1, 1, 1.6])
    error = np.abs(mean - truth)
    top = float(np.percentile(error, 99.5))
    picture(axes[0], noisy, "measured", GREY)
    picture(axes[1], mean, "posterior mean", GREY)
    picture(axes[2], spread, f"stated spread, 0 to {top:.0f}", (0, top), "magma")
    picture(axes[3], error, f"actual error, 0 to {top:.0f}", (0, top), "magma")
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
    figure, axes = panels(8.5, 2.3, 2)
    judged = [item for item in judged if item.psnr < 60]  # the truth itself has no place
    kinds = dict.fromkeys(item.kind for item in judged)
    scores = {"decorrelation_nm": "decorrelation resolution (nm)", "naturalness": "NIQE"}
    for axis, (name, label) in zip(axes, scores.items(), strict=True):
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
