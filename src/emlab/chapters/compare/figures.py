"""Curves of chapter 06."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.chapters.compare.study import BAND_ANGSTROM, Judged, Nothing
from emlab.chapters.tsm.figures import LINES, grey_range
from emlab.chapters.tsm.peers import LABELS
from emlab.viz import COLOURS, show_images

Image = NDArray[np.float32]


def rings(judged: Judged, names: Sequence[str]) -> Figure:
    """Fourier ring correlation with the clean image, and its gain over raw."""
    figure = Figure(figsize=(7.8, 3.0), layout="constrained")
    axes = figure.subplots(1, 2)
    raw = judged.rings["raw"]
    for name in names:
        colour, style = LINES[name]
        curve = judged.rings[name].mean(0)
        gain = (judged.rings[name] - raw[: len(judged.rings[name])]).mean(0)
        for axis, values in zip(axes, (curve, gain), strict=True):
            axis.plot(judged.frequency, values, color=COLOURS[colour], ls=style, label=LABELS[name])
    for axis in axes:
        axis.set(xlabel="frequency (1/nm)", xlim=(0, 10 / BAND_ANGSTROM[1]))
    axes[0].axhline(0.5, color="grey", lw=0.8, ls=":")
    axes[0].set(ylabel="correlation with the clean image", ylim=(-0.05, 1.02))
    axes[1].set(ylabel="gain over raw", ylim=(-0.3, 0.3))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def inventions(nothing: Nothing, names: Sequence[str]) -> Figure:
    """Picks of both pickers in fields without particles, a bar a method."""
    judges = [
        (title, found)
        for title, found in (("Topaz", nothing.topaz), ("the segmenter", nothing.own))
        if found
    ]
    figure = Figure(figsize=(3.9 * len(judges) + 0.6, 2.8), layout="constrained")
    axes = figure.subplots(1, len(judges), squeeze=False, sharey=True)[0]
    place = np.arange(len(names))
    for axis, (title, found) in zip(axes, judges, strict=True):
        for shift, (kind, label, colour) in enumerate(
            (("ice", "ice without particles", "blue"), ("noise", "pure noise", "orange"))
        ):
            counts = found.get(kind, {})
            heights = [counts[n].mean() if n in counts else 0.0 for n in names]
            axis.barh(place + 0.4 * shift, heights, 0.38, color=COLOURS[colour], label=label)
        axis.set_title(f"found by {title}", fontsize=9)
        axis.set_xlabel("picks a field")
    axes[0].set_yticks(place + 0.2, [LABELS[name] for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8)
    return figure


def corners(images: Mapping[str, Image], side: int, pixel_size_angstrom: float) -> Figure:
    """The upper left of a real micrograph through several methods, at the grey range of TSM's."""
    shown = {LABELS[name]: image[:side, :side] for name, image in images.items()}
    limits = grey_range(shown, LABELS["tsm"])
    return show_images(shown, limits, pixel_size_angstrom=pixel_size_angstrom, columns=3)
