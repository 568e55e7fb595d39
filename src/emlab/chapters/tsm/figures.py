"""Pictures, curves and tables of chapter 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.bench.study import Study, pipe_table, signed, spanned
from emlab.chapters.tsm.cases import LABELS, central
from emlab.chapters.tsm.recorded import (
    ABLATIONS,
    LONG,
    MANY,
    MEMORY,
    SESSION,
    TEMPLATE,
    TRIAL,
    unpacked,
)
from emlab.chapters.tsm.study import COLUMNS, THE_TRUTH, Table
from emlab.external.picking import Picks, f1_gain
from emlab.metrics.fourier import radial_frequency
from emlab.metrics.picking import Counts, match
from emlab.recorded import Recording
from emlab.viz import COLOURS

Image = NDArray[np.float32]
TRACED = {"encoder": "annealed", "encoder_at_once": "at_once"}
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


def learning_curves(found: Mapping[str, Mapping[int, Sequence[float]]]) -> Figure:
    """Correlation against the number of micrographs trained on: means, and the range of seeds."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, row in found.items():
        counts, values = np.array(list(row)), np.array(list(row.values()))
        mean = values.mean(1)
        if values.shape[1] == 1:  # not trained
            axes.plot(counts, mean, ":", label=LABELS[name])
            continue
        moved = counts * (1.04 if name == "tsm" else 1.0)
        reach = np.abs(np.stack([values.min(1), values.max(1)]) - mean)
        label = LABELS.get(name, "TSM, a bank of another protein")
        axes.errorbar(moved, mean, reach, fmt="o-", capsize=3, label=label)
    ticks = sorted({count for row in found.values() for count in row})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(count) for count in ticks])
    axes.set(xlabel="micrographs trained on", ylabel="correlation with the particles")
    axes.legend(frameon=False, fontsize=8)
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


def _order(name: str) -> float:
    """DSM and TSM often coincide: the dashed line lies on the solid one."""
    return 3.0 if name == "dsm" else 2.0


def record_memory(report: Report) -> str:
    """Record ``memory.METHOD`` in megabytes and ``memory.over_topaz``; returns it in words."""
    rows, side = MEMORY.values, MEMORY.settings["side"]
    for name, row in rows.items():
        report.value(f"memory.{name}", row["peak_memory_mb"], unit="MB", note="recorded")
    ratio = rows["tsm"]["peak_memory_mb"] / rows["topaz"]["peak_memory_mb"]
    report.value("memory.over_topaz", ratio, note=f"{side} pixels a side")
    told = ", ".join(
        f"{LABELS[name]} {row['peak_memory_mb'] / 1000:.2f} GB in {row['cpu_seconds']:.0f} CPU-s"
        for name, row in rows.items()
    )
    return f"{side} x {side} pixels: {told}. {report.recorded(MEMORY)}"


def many_table(report: Report) -> str:
    """Markdown of picks of many micrographs.

    Records ``many.f1.NAME``, ``many.precision_at_recall.NAME``, ``many.empty.NAME``, picks in a
    micrograph without particles; of F1 and precision also ``many.gain_NUMBER.NAME_over_OTHER``.
    """
    counts = {
        name: {kind: Counts(*np.array(row[kind])) for kind in ("threshold", "recall")}
        for name, row in MANY.values.items()
    }
    cells = []
    for name, row in counts.items():
        f1, precision = row["threshold"].interval("f1"), row["recall"].interval("precision")
        report.value(f"many.f1.{name}", *f1, n=len(row["threshold"].hits))
        report.value(f"many.precision_at_recall.{name}", *precision)
        empty = report.value(f"many.empty.{name}", np.mean(MANY.values[name]["ice"]))
        cells.append([LABELS[name], spanned(f1), spanned(precision), f"{empty:.2f}"])
    for better, worse in (("dsm", "raw"), ("tsm", "raw"), ("tsm", "dsm"), ("guided", "dsm")):
        for kind, number in (("threshold", "f1"), ("recall", "precision")):
            gain = f1_gain(counts[better][kind], counts[worse][kind], number)
            report.value(f"many.gain_{number}.{better}_over_{worse}", *gain)
    heads = ["F1", "precision at the recall of raw ones", "picks without particles"]
    return pipe_table(["picked from", *heads], cells)


def trial_table(report: Report) -> str:
    """Markdown of references on trial.

    Records ``trial.NUMBER.NAME``: the median ``margin``, ``used`` and ``empty``, on what share of
    micrographs with and without particles it was used, ``recovery`` and its ``gain`` over none;
    ``trial.gain.template`` is the mean of the maps made from the data, with the range of seeds.
    """
    rows, cells, gains = {**TRIAL.values, **TEMPLATE.values["rows"]}, [], []
    count = TRIAL.settings["micrographs"]
    study = Study(list(range(count)), COLUMNS[:1], LABELS)
    study.scores |= {name: {"recovery": np.array(row["recovery"])} for name, row in rows.items()}
    for name, row in rows.items():
        key = name.replace(" ", "_")
        mean = report.value(f"trial.recovery.{key}", study.interval(name, "recovery").mean)
        if name == "none":
            cells.append(["no reference (DSM)", "", "", "", f"{mean:.3f}", ""])
            continue
        used = report.value(f"trial.used.{key}", np.mean(row["used"][:count]))
        empty = report.value(f"trial.empty.{key}", np.mean(row["used"][count:]))
        margin = report.value(f"trial.margin.{key}", np.median(row["margin"][:count]))
        gain = study.gain(name, "none", "recovery")
        report.value(f"trial.gain.{key}", *gain, n=count)
        gains += [gain.mean] if name in TEMPLATE.values["rows"] else []
        shares = f"{margin:.1f}", f"{used:.0%}", f"{empty:.0%}"
        cells.append([name, *shares, f"{mean:.3f}", signed(gain)])
    _record_gain(report, "trial.gain.template", gains, [0.0])
    heads = ["reference", "margin (median)", "used", "used without particles"]
    return pipe_table([*heads, "correlation", "over no reference"], cells)


def template_views(truth: NDArray[np.floating]) -> dict[str, Image]:
    """Views along three axes of the first map made from the data, and of the ``(n, n, n)`` truth.

    The map has the direction that chance gave it; both have voxels of their own.
    """
    views = {f"map, view {i + 1}": unpacked(v) for i, v in enumerate(TEMPLATE.values["views"])}
    return views | {f"structure, view {i + 1}": truth.sum(i) for i in (0, 2)}


def ablation_table(report: Report) -> str:
    """Markdown of the short trainings: correlation on the bank's proteins and on another particle.

    Records ``ablation.NAME.seen`` and ``.unseen``, ``ablation.gain.NAME_over_dsm`` on the proteins
    of the bank with its range over seeds, and for encoder features what became of the
    similarity: ``ablation.similarity.NAME_change`` is how far the largest cosine of accepted
    patches, less what chance gives, moved from the first refresh to the last (0 where nothing was
    accepted).
    """
    rows = ABLATIONS.values["rows"]
    for name in ("oracle", "tsm"):
        pair = rows[name]["seen"], rows["dsm"]["seen"]
        _record_gain(report, f"ablation.gain.{name}_over_dsm", *pair)
    for name, key in TRACED.items():
        trace = {part: np.array(one) for part, one in ABLATIONS.values["traces"][name].items()}
        above = np.where(trace["guesses"] > 0, trace["similarity"] - trace["null"], 0.0)
        report.value(f"ablation.similarity.{key}_change", above[-1] - above[0])
        report.value(f"ablation.guesses.{key}_last", trace["guesses"][-1])
    kinds = {"seen": "proteins of the bank", "unseen": "a particle not in it"}
    return _trainings(report, ABLATIONS, "ablation", kinds)


def long_table(report: Report) -> str:
    """Markdown of the longer trainings on micrographs of the protein to be denoised.

    Records ``long.NAME.test`` and, with its range over seeds, ``long.gain.NAME_over_PEER``.
    """
    rows = {name: row["test"] for name, row in LONG.values["rows"].items()}
    for name in [name for name in rows if name not in ("wiener", "dsm")]:
        _record_gain(report, f"long.gain.{name}_over_dsm", rows[name], rows["dsm"])
    for name in ("dsm", "poses"):
        _record_gain(report, f"long.gain.{name}_over_wiener", rows[name], rows["wiener"])
    return _trainings(report, LONG, "long", {"test": "correlation with the particles"})


def session_curves(report: Report) -> dict[str, dict[int, list[float]]]:
    """Correlations by method and number of micrographs trained on, a value for every seed.

    Records ``session.NAME.at_COUNT`` and, with ranges over seeds, ``session.gain.NAME_over_PEER``.
    """
    rows = {name: row["test"] for name, row in SESSION.values["rows"].items()}
    curves: dict[str, dict[int, list[float]]] = {}
    for name, variant in SESSION.settings["variants"].items():
        method, count = name.rsplit("_", 1)
        report.value(f"session.{method}.at_{count}", np.mean(rows[name]))
        curves.setdefault(method, {})[variant["micrographs"]] = rows[name]
        peer = "wiener" if method == "dsm" else f"dsm_{count}"
        key = f"session.gain.{method}_over_{peer.split('_')[0]}.at_{count}"
        _record_gain(report, key, rows[name], rows[peer])
    every = [count for row in curves.values() for count in row]
    for name in SESSION.settings["peers"]:
        curves[name] = dict.fromkeys((min(every), max(every)), rows[name])
    return curves


def _record_gain(
    report: Report, key: str, better: Sequence[float], worse: Sequence[float], over: str = "seeds"
) -> None:
    """Mean and range of the differences of same seeds; an untrained peer has but one value."""
    gain = np.array([one - worse[min(seed, len(worse) - 1)] for seed, one in enumerate(better)])
    report.value(key, gain.mean(), gain.min(), gain.max(), note=f"range of {over}", n=len(gain))


def _trainings(report: Report, recording: Recording, key: str, kinds: Mapping[str, str]) -> str:
    """Markdown of a recording of trainings; records ``KEY.NAME.KIND``, means over seeds."""
    variants, cells = recording.settings["variants"], []
    for name, row in recording.values["rows"].items():
        cells.append([variants[name]["label"] if name in variants else LABELS[name]])
        for kind in kinds:
            mean, values = report.value(f"{key}.{name}.{kind}", np.mean(row[kind])), row[kind]
            ends = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
            cells[-1].append(f"{mean:.4f}{ends}")
    return pipe_table(["trained with", *(f"{head} (seeds)" for head in kinds.values())], cells)
