"""The figures of the multi-target detection chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from emlab.bench.study import pipe_table
from emlab.chapters.mtd.study import COLUMNS, LABELS, Fields
from emlab.physics.mtd import Measurement
from emlab.viz import COLOURS, panels, picture, show_images

LINES = {
    "prior_mean": ("black", ":"),
    "paper_no_prior": ("sky", "--"),
    "paper_prior": ("blue", "-"),
    "ours": ("vermilion", "-"),
    "oracle": ("green", "-."),
}
FAINT_LINES = {name: LINES[name] for name in ("prior_mean", "ours", "oracle")}
FAINT_LINES["detect_align_denoise"] = ("orange", "--")


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
    figure, axes = panels(9.5, 3.2, 2, sharey=True)
    for axis, column in zip(axes, reversed(COLUMNS), strict=True):
        for name, (colour, style) in lines.items():
            intervals = [study.interval(name, column.name) for study in fields.studies.values()]
            mean, low, high = np.array(intervals).T
            told = {"color": COLOURS[colour], "label": LABELS[name]}
            axis.plot(fields.snrs, mean, style, marker="o", **told)
            axis.fill_between(fields.snrs, low, high, color=COLOURS[colour], alpha=0.15, lw=0)
        axis.set(xlabel="SNR", xscale="log")
        axis.set_xticks(fields.snrs, [f"{snr:g}" for snr in fields.snrs])
        axis.minorticks_off()
        axis.set_title(f"after the best {column.head.removesuffix(' only')}")
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("relative error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def digits_figure(fields: Fields, methods: Sequence[str], snr: float) -> Figure:
    """One row a method, one column a target; estimates turned as the error turns them.

    Methods without images at that SNR are left out.
    """
    rows = {"truth": fields.truths}
    seen = {LABELS[name]: fields.images(name, snr) for name in methods}
    rows |= {label: images for label, images in seen.items() if images is not None}
    columns = min(10, len(fields.truths))
    figure, axes = panels(0.75 * columns + 1.6, 0.75 * len(rows), columns, len(rows))
    limits = 0.0, float(fields.truths.max())
    for row, (label, images) in zip(np.atleast_2d(axes), rows.items(), strict=True):
        for axis, image, truth in zip(row, images, fields.truths, strict=False):
            picture(axis, _best_turn(image, truth), limits=limits)
        row[0].set_ylabel(label.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    return figure


def posterior_figure(measurement: Measurement, placed: np.ndarray) -> Figure:
    """Noisy field, true field, and the field that the E-step believes in, at one grey range."""
    shown = {"measurement": measurement.field, "truth": measurement.clean}
    top, label = float(measurement.clean.max()), "expected copies, given the digit"
    return show_images({**shown, label: placed}, (-0.2 * top, top))


def lines_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str
) -> Figure:
    """Labelled curves ``{label: (x, y)}`` in one axis."""
    figure, (axis,) = panels(5.5, 3.2)
    for (label, (x, y)), colour in zip(curves.items(), COLOURS.values(), strict=False):
        axis.plot(x, y, label=label, color=colour, marker="o" if len(x) < 12 else None)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return figure


def _best_turn(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    turns = [np.rot90(image, k) for k in range(4)]
    return min(turns, key=lambda turned: float(np.linalg.norm(turned - truth)))
