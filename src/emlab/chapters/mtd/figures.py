"""The figures of the multi-target detection chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from emlab.bench.study import pipe_table
from emlab.chapters.mtd.study import COLUMNS, LABELS, Fields
from emlab.physics.mtd import Measurement
from emlab.viz import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    "prior_mean": ("black", ":"),
    "paper_no_prior": ("sky", "--"),
    "paper_prior": ("blue", "-"),
    "ours": ("vermilion", "-"),
    "oracle": ("green", "-."),
}
FAINT_LINES = {
    "prior_mean": LINES["prior_mean"],
    "detect_align_denoise": ("orange", "--"),
    "ours": LINES["ours"],
    "oracle": LINES["oracle"],
}


def error_table(fields: Fields) -> str:
    """Markdown: a row a method, a column an SNR; error after the best rotation and shift.

    In brackets the paper's, after the best rotation only.
    """
    first = fields.studies[fields.snrs[0]]
    rotation, shift = COLUMNS
    rows = []
    for name in first.methods:
        cells = [
            f"{shift.text(study.interval(name, shift.name))} "
            f"({study.interval(name, rotation.name).mean:.3f})"
            for study in fields.studies.values()
        ]
        rows.append([first.label(name), *cells])
    heads = ["method", *(f"SNR {snr:g}" for snr in fields.snrs)]
    return pipe_table(heads, rows, list(fields.studies.values()))


def error_figure(
    fields: Fields, title: str, lines: Mapping[str, tuple[str, str]] = LINES
) -> Figure:
    """Error against SNR with 95 % intervals: rotation and shift, and rotation only."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, column in zip(axes, reversed(COLUMNS), strict=True):
        for name, (colour, style) in lines.items():
            intervals = [study.interval(name, column.name) for study in fields.studies.values()]
            mean, low, high = np.array(intervals).T
            axis.plot(
                fields.snrs, mean, style, color=COLOURS[colour], marker="o", label=LABELS[name]
            )
            axis.fill_between(fields.snrs, low, high, color=COLOURS[colour], alpha=0.15, lw=0)
        axis.set(xlabel="SNR", xscale="log")
        axis.set_xticks(fields.snrs, [f"{snr:g}" for snr in fields.snrs])
        axis.minorticks_off()
        axis.set_title(f"after the best {column.head.removesuffix(' only')}")
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("relative error")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def digits_figure(fields: Fields, methods: Sequence[str], snr: float, turn: bool = True) -> Figure:
    """One row a method, one column a target; estimates turned as the error turns them.

    Methods without images at that SNR are left out.
    """
    from matplotlib.figure import Figure

    rows = {"truth": fields.truths}
    seen = {LABELS[name]: fields.images(name, snr) for name in methods}
    rows |= {label: images for label, images in seen.items() if images is not None}
    columns = min(10, len(fields.truths))
    figure = Figure(figsize=(0.75 * columns + 1.6, 0.75 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    top = float(fields.truths.max())
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image, truth in zip(row, images, fields.truths, strict=False):
            shown = _best_turn(image, truth) if turn else image
            axis.imshow(shown, cmap="gray", vmin=0, vmax=top)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        row[0].set_ylabel(label.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    return figure


def posterior_figure(measurement: Measurement, placed: np.ndarray) -> Figure:
    """Noisy field, true field, and the field that the E-step believes in, at one grey range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    panels = {
        "measurement": measurement.field.numpy(),
        "truth": measurement.clean.numpy(),
        "expected copies, given the digit": placed,
    }
    top = float(measurement.clean.max())
    for axis, (label, image) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=-0.2 * top, vmax=top)
        axis.set(xticks=[], yticks=[], title=label)
        axis.grid(False)
    return figure


def lines_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    log: bool = False,
) -> Figure:
    """Labelled curves ``{label: (x, y)}`` in one axis; both axes logarithmic if asked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axis = figure.subplots()
    for (label, (x, y)), colour in zip(curves.items(), COLOURS.values(), strict=False):
        axis.plot(x, y, label=label, color=colour, marker="o" if len(x) < 12 else None)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        axis.set(xscale="log", yscale="log")
    axis.legend()
    return figure


def _best_turn(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    turns = [np.rot90(image, k) for k in range(4)]
    return min(turns, key=lambda turned: float(np.linalg.norm(turned - truth)))
