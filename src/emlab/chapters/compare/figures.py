"""Curves of chapter 06, and its tables of text: methods, their training, when to use which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab import weights
from emlab.bench.claims import fill
from emlab.bench.study import pipe_table
from emlab.chapters import table
from emlab.chapters.compare.cases import SLUG
from emlab.chapters.compare.study import BAND_ANGSTROM, Judged, Nothing
from emlab.chapters.tsm.cases import LABELS
from emlab.chapters.tsm.figures import LINES, grey_range
from emlab.chapters.tsm.recorded import central
from emlab.physics.micrograph import Micrograph
from emlab.recipes.particles import RESTORER, SEGMENTER
from emlab.viz import COLOURS, panels, show_images

Image = NDArray[np.float32]
Values = Mapping[str, Mapping[str, Any]]


def rings(judged: Judged, names: Sequence[str]) -> Figure:
    """Fourier ring correlation with the clean image, and its gain over raw."""
    figure, axes = panels(7.8, 3.0, 2)
    raw = judged.scores["raw"]["rings"]
    for name in [name for name in names if name in judged.scores]:
        colour, style = LINES[name]
        seen = judged.scores[name]["rings"]
        curve, gain = seen.mean(0), (seen - raw[: len(seen)]).mean(0)
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
    known = {key for one in nothing.studies.values() for s in one.scores.values() for key in s}
    named = {"topaz": "Topaz", "own": "the segmenter"}
    judges = {key: title for key, title in named.items() if key in known}
    figure, axes = panels(3.9 * len(judges) + 0.6, 2.8, len(judges), sharey=True)
    place = np.arange(len(names))
    fields = (("ice", "ice without particles", "blue"), ("noise", "pure noise", "orange"))
    for axis, (key, title) in zip(axes, judges.items(), strict=True):
        for shift, (kind, label, colour) in enumerate(fields):
            scores = nothing.studies[kind].scores
            heights = [scores[n][key].mean() if n in scores else 0.0 for n in names]
            axis.barh(place + 0.4 * shift, heights, 0.38, color=COLOURS[colour], label=label)
        axis.set_title(f"found by {title}", fontsize=9)
        axis.set_xlabel("picks a field")
    axes[0].set_yticks(place + 0.2, [LABELS[name] for name in names])
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=8)
    return figure


def window(
    images: Mapping[str, Image], micrograph: Micrograph, side: int = 220
) -> dict[str, Image]:
    """The same window about a particle of every image, by label, and the clean one."""
    shown = {LABELS[name]: image for name, image in images.items()}
    shown["clean"] = micrograph.clean.numpy()
    return {name: central(image, micrograph, side) for name, image in shown.items()}


def corners(images: Mapping[str, Image], side: int, pixel_size_angstrom: float) -> Figure:
    """The upper left of a real micrograph through several methods, at the grey range of TSM's."""
    shown = {LABELS[name]: image[:side, :side] for name, image in images.items()}
    limits = grey_range(shown, LABELS["tsm"])
    return show_images(shown, limits, pixel_size_angstrom=pixel_size_angstrom, columns=3)


# The weights whose cards say what a method's prior has seen.
CHECKPOINTS = {
    "EM Generalist": ("generalist_depth",),
    "TSM": ("tsm_tsm",),
    "FlowDPS": ("flowdps_flow",),
    "MTD": ("mtd_mnist_vp",),
    "Cellpose3": ("cellpose3_denoise", "cellpose3_segmenter"),
    "Cellpose3's idea, here": (RESTORER, SEGMENTER),
}


def training_table() -> str:
    """Markdown, from the cards of the weights: what each prior has seen and what that took."""
    rows = []
    for method, names in CHECKPOINTS.items():
        for name in names:
            tensors, card = weights.load(name)
            count = sum(tensor.numel() for tensor in tensors.values())
            size, minutes = f"{count / 1e6:.2f} M", f"{card.seconds / 60:.0f}"
            rows.append([method, f"`{name}`", card.data, size, minutes])
    return pipe_table(["method", "weights", "trained on", "parameters", "minutes"], rows)


def decision_table(values: Values) -> str:
    """Markdown: when to use which, with the numbers of a metrics.json."""
    rows = [
        [one["have"], one["take"], fill(one["measured"], values)] for one in table(SLUG)["when"]
    ]
    return pipe_table(["you have", "take", "measured here"], rows)
