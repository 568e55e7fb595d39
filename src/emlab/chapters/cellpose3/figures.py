"""The figures of the Cellpose3 chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from skimage.segmentation import find_boundaries

from emlab import metrics
from emlab.bench.study import Study
from emlab.chapters.cellpose3.cases import Case, Image, Labels, busiest
from emlab.chapters.cellpose3.study import LABELS, Answer
from emlab.methods.cellpose3 import Segmentation
from emlab.metrics.segmentation import THRESHOLDS, intersection_over_union
from emlab.viz import COLOURS, Picture, panels, picture, show

LINES = {
    "clean": ("black", ":"),
    "degraded": ("black", "-"),
    "gaussian": ("sky", ":"),
    "bm3d": ("sky", "-"),
    "noise2void": ("blue", "-"),
    "noise2self": ("blue", "--"),
    "richardson_lucy": ("blue", "-"),
    "cubic": ("sky", "-"),
    "noisy_segmenter": ("purple", "-"),
    "reconstruction": ("orange", "-"),
    "perceptual": ("orange", ":"),
    "segmentation": ("green", "--"),
    "oneclick": ("green", "-"),
    "ours": ("vermilion", "-"),
}
RIGHT, WRONG, MISSED = "green", "vermilion", "sky"
COMPASS = ("orange", "vermilion", "blue", "sky")  # right, down, left, up
WINDOW = 140  # side of what is shown of an image


def outlined(image: Image, labels: Labels, truth: Labels) -> NDArray[np.float64]:
    """Grey image ``(H, W, 3)`` with outlines: green found, red wrong, blue missed."""
    grey = np.clip(image, 0, 1.3)[..., None] / 1.3 * np.ones(3)
    right, wrong, missed = sorted_objects(labels, truth)
    for mask, colour in ((missed, MISSED), (wrong, WRONG), (right, RIGHT)):
        grey[find_boundaries(mask, mode="inner")] = to_rgb(COLOURS[colour])
    return grey


def sorted_objects(labels: Labels, truth: Labels) -> tuple[Labels, Labels, Labels]:
    """Objects that match a true one at .5, those that match none, and true ones that are missed."""
    overlap = intersection_over_union(truth, labels) >= 0.5
    true, found = (np.unique(image[image > 0]) for image in (truth, labels))
    right = np.isin(labels, found[overlap.any(0)])
    missed = np.isin(truth, true[~overlap.any(1)])
    return labels * right, labels * ~right, truth * missed


def examples(table: Study, number: int, names: Sequence[str]) -> Figure:
    """One case through every method with an answer to it, with outlines."""
    case = table.cases[number]
    place = busiest(case.labels, WINDOW)
    pictures = {}
    for name in [name for name in names if number < len(table.answers.get(name, ()))]:
        answer, ap = table.answers[name][number], table.scores[name]["ap_50"][number]
        pictures[f"{LABELS[name]}: {ap:.2f}"] = outlined(
            answer.image[place], answer.labels[place], case.labels[place]
        )
    figure = grid(pictures, 4)
    handles = [
        Line2D([], [], color=COLOURS[colour], label=label)
        for colour, label in ((RIGHT, "found"), (WRONG, "wrong"), (MISSED, "missed"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def strip_picture(case: Case, labels: Labels, ap: float) -> Picture:
    """A degraded image with outlines, for a slider through levels."""
    place = busiest(case.labels, WINDOW)
    seen = outlined(case.degraded[place], labels[place], case.labels[place])
    figure = grid({f"level {case.level:.3g}: AP {ap:.2f}": seen}, 1, 3.2)
    return show(figure, f"Nuclei at level {case.level:.3g} with what was found outlined")


def curves(tables: Mapping[str, Study], names: Sequence[str]) -> Figure:
    """AP against the overlap that counts as a match, a panel a task."""
    figure, axes = panels(2.6 + 2.9 * len(tables), 3.0, len(tables), sharey=True)
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        for name in names:
            if name not in table.scores:
                continue
            colour, style = LINES[name]
            ap = table.scores[name]["ap"][:, :-1]
            axis.plot(THRESHOLDS[:-1], ap.mean(0), style, color=COLOURS[colour], label=LABELS[name])
            if name in ("ours", "reconstruction", "degraded"):
                low, high = np.array([metrics.mean_interval(one)[1:] for one in ap.T]).T
                shade = {"color": COLOURS[colour], "alpha": 0.12, "lw": 0}
                axis.fill_between(THRESHOLDS[:-1], low, high, **shade)
        axis.set(xlabel="overlap (IoU) that counts", ylim=(0, 1), title=title)
    axes[0].set_ylabel("average precision")
    handles = {line.get_label(): line for axis in axes for line in axis.lines}
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    return figure


def changes(table: Study, names: Sequence[str]) -> Figure:
    """AP of every image before and after restoration."""
    shown = [name for name in names if name in table.scores]
    figure, axes = panels(9.0, 2.5, len(shown), sharey=True)
    before = table.scores["degraded"]["ap_50"]
    for axis, name in zip(axes, shown, strict=True):
        after = table.scores[name]["ap_50"]
        worse = after < before - 1e-9
        axis.plot(before[~worse], after[~worse], "o", ms=3, color=COLOURS["blue"])
        axis.plot(before[worse], after[worse], "v", ms=4, color=COLOURS["vermilion"])
        axis.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
        axis.set(xlabel="AP, noisy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
        axis.set_title(f"{LABELS[name].split(':')[0]}\n{worse.sum()} of {len(worse)} worse", size=8)
    axes[0].set_ylabel("AP, restored")
    return figure


def rates(tables: Mapping[str, Study], names: Sequence[str]) -> Figure:
    """Found and wrong objects for each true one, two panels a table."""
    shown = [name for name in names if all(name in t.scores for t in tables.values())][::-1]
    figure, axes = panels(9.0, 0.8 + 0.22 * len(shown), 2 * len(tables), sharey=True)
    seen = [(title, table, kind) for title, table in tables.items() for kind in ("tp", "fp")]
    for axis, (title, table, kind) in zip(axes, seen, strict=True):
        found = [table.interval(name, f"{kind}_rate") for name in shown]
        mean = np.array([one.mean for one in found])
        error = np.abs(np.array([[one.low, one.high] for one in found]).T - mean)
        colour = COLOURS[RIGHT if kind == "tp" else WRONG]
        axis.barh(range(len(shown)), mean, xerr=error, color=colour, height=0.7)
        if kind == "fp":
            axis.axvline(table.interval("degraded", "fp_rate").mean, color="grey", lw=0.8, ls=":")
        axis.set_title(f"{title}:\n{'found (TP)' if kind == 'tp' else 'wrong (FP)'}", size=8)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(shown)), [LABELS[name] for name in shown], size=8)
    return figure


def level_histograms(levels: Mapping[str, Mapping[str, float]]) -> Figure:
    """How strongly images had to be spoilt."""
    names = ("photons at brightness 1", "blur scale", "factor of decimation")
    figure, axes = panels(8.4, 2.2, len(levels))
    for axis, name, (task, found) in zip(axes, names, levels.items(), strict=False):
        values = np.array(list(found.values()))
        edges = np.geomspace(values.min() / 1.1, values.max() * 1.1, 15)
        if task == "upsample":
            edges = np.arange(values.min() - 0.5, values.max() + 1)
        else:
            axis.set_xscale("log")
            axis.minorticks_off()
            ticks = [float(f"{t:.2g}") for t in np.geomspace(edges[0], edges[-1], 4)]
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.hist(values, edges, color=COLOURS["blue"])
        axis.set(xlabel=name, title=task)
    axes[0].set_ylabel("images")
    return figure


def domains(tables: Mapping[str, Study], names: Sequence[str]) -> Figure:
    """AP at .5 in every domain, for restorers of one and of all domains."""
    figure, (axis,) = panels(7.6, 2.6)
    shown = [name for name in names if all(name in table.scores for table in tables.values())]
    width = 0.8 / len(shown)
    for i, name in enumerate(shown):
        x = np.arange(len(tables)) + (i - (len(shown) - 1) / 2) * width
        y = [table.scores[name]["ap_50"].mean() for table in tables.values()]
        colour, style = LINES[name]
        axis.bar(x, y, width * 0.92, color=COLOURS[colour], label=LABELS[name],
                 alpha=0.45 if style == ":" else 1.0)  # fmt: skip
    axis.set_xticks(range(len(tables)), list(tables))
    axis.set(ylabel="AP at .5", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside right center")
    return figure


def nothing(found: Study, names: Sequence[str], most: int = 3) -> Figure:
    """Images without any object, and what every method makes of them, objects outlined in red."""
    shown = [name for name in names if name in found.answers]
    rows = min(most, len(found.cases))
    figure, axes = panels(9.0, 1.55 * rows + 0.5, len(shown), rows)
    for number, line in enumerate(np.atleast_2d(axes)):
        for axis, name in zip(line, shown, strict=True):
            answer = found.answers[name][number]
            empty = np.zeros_like(answer.labels)
            title = fill(LABELS[name].split(":")[0], 18) if number == 0 else ""
            picture(axis, outlined(answer.image, answer.labels, empty), title)
    return figure


def brightness(found: Study) -> Figure:
    """Measured against true brightness of every object."""
    ways = found.methods
    figure, axes = panels(2.3 * len(ways), 2.7, len(ways), sharey=True)
    truth = found.scores["raw"]["truth"]
    top = float(np.percentile(truth, 99.5)) * 1.15
    for axis, name in zip(axes, ways, strict=True):
        measured = found.scores[name]["measured"]
        axis.plot(truth, measured, ".", ms=2, alpha=0.5, color=COLOURS["blue"])
        axis.plot([0, top], [0, top], color="grey", lw=0.8, ls=":")
        slope = found.interval(name, "slope").mean
        axis.set_title(f"{found.label(name).split(':')[0]}\nslope {slope:.2f}", size=8)
        axis.set(xlabel="true brightness", xlim=(0, top), ylim=(-0.05, top))
    axes[0].set_ylabel("measured")
    return figure


def flow_pictures(case: Case, flows: NDArray, found: Segmentation) -> dict[str, NDArray]:
    """Truth and prediction of a segmenter: direction as hue, probability as grey."""
    place = busiest(case.labels, WINDOW)
    probability = 1 / (1 + np.exp(-found.cell_probability))
    return {
        "true outlines": outlined(case.clean, case.labels, case.labels)[place],
        "true flows": hues(flows)[place],
        "predicted flows": hues(found.flows / 5)[place],
        "probability": probability[place],
        "objects": outlined(case.clean, found.labels, case.labels)[place],
    }


def hues(flows: NDArray) -> NDArray[np.float64]:
    """Direction of ``(2, H, W)`` as hue and length, at most 1, as brightness.

    Columns run from blue to yellow and rows from light to dark hues, which all eyes tell apart.
    """
    y, x = flows
    turns = (np.arctan2(y, x) / (2 * np.pi)) % 1
    corners = np.array([to_rgb(COLOURS[name]) for name in (*COMPASS, COMPASS[0])])
    at = np.linspace(0, 1, len(corners))
    wheel = np.stack([np.interp(turns, at, channel) for channel in corners.T], -1)
    return wheel * np.clip(np.hypot(y, x), 0, 1)[..., None]


def grid(pictures: Mapping[str, NDArray], columns: int, width: float = 9.0) -> Figure:
    """Pictures ``(H, W)`` or ``(H, W, 3)`` in 0..1 side by side."""
    rows = -(-len(pictures) // columns)
    figure, axes = panels(width, rows * (width + 0.2) / columns + 0.3, columns, rows)
    for axis, (title, image) in zip(axes.ravel(), pictures.items(), strict=False):
        picture(axis, image, title)
    for axis in axes.ravel()[len(pictures) :]:
        axis.set_visible(False)
    return figure


def pair(case: Case, answer: Answer) -> tuple[Image, Image]:
    """The part of a degraded and a restored image that is shown."""
    place = busiest(case.labels, 2 * WINDOW)
    return case.degraded[place], answer.image[place]
