"""Curves of chapter 06, and its tables of text: methods, their training, when to use which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab import weights
from emlab.bench.claims import fill
from emlab.bench.study import pipe_table
from emlab.chapters.compare.study import BAND_ANGSTROM, Judged, Nothing
from emlab.chapters.tsm.cases import LABELS
from emlab.chapters.tsm.figures import LINES, grey_range
from emlab.recipes.particles import RESTORER, SEGMENTER
from emlab.viz import COLOURS, show_images

Image = NDArray[np.float32]
Values = Mapping[str, Mapping[str, Any]]


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


@dataclass(frozen=True)
class Row:
    """One method, in the notation of the book.

    Attributes
    ----------
    name, chapter : str
        What it is called, and the notebook that explains it.
    prior, physics, solver : str
        In words and signs: x is the specimen, y the measurement, A the instrument, D the
        denoiser and s the score of the prior.
    checkpoints : tuple of str
        The weights whose cards say what the prior has seen.
    """

    name: str
    chapter: str
    prior: str
    physics: str
    solver: str
    checkpoints: tuple[str, ...]


ROWS = (
    Row(
        "EM Generalist",
        "01_em_generalist",
        r"flow of tissue, $D_\sigma(x)=$ $E[x_0\mid x_0+\sigma u=x]$",
        r"any linear $A$ and white noise, $y=Ax+\sigma_y u$",
        r"$\min_x \lVert Ax-y\rVert^2/\sigma_y^2$ $+\lVert x-D_\sigma(x)\rVert^2/\sigma^2$ while "
        r"$\sigma$ falls; for noise alone one step, $\hat x=D_{\sigma_y}(y)$",
        ("generalist_flow",),
    ),
    Row(
        "TSM",
        "02_tsm",
        r"score of *noisy* micrographs, $s=\nabla\log p_\sigma$, guided by projections",
        r"$A=I$, $y=x+\sigma_n u$, $\sigma_n$ estimated",
        r"Tweedie, $\hat x=y+\sigma_n^2\,s(y)$",
        ("tsm_tsm",),
    ),
    Row(
        "FlowDPS",
        "03_flowdps",
        r"flow of phase maps of one protein, $D_\sigma$",
        r"counts of mean $N\lvert \mathrm{lens} * e^{i\varphi}\rvert^2$",
        r"$\varphi_k\sim$ $p(\varphi\mid D_{\sigma_k},\,y)$ along the flow: samples, not one "
        "answer",
        ("flowdps_flow",),
    ),
    Row(
        "MTD",
        "04_mtd",
        r"score of digits (or none), $s_\tau$",
        r"$y=\sum_j R_{\theta_j}x(\cdot-t_j)$ $+\sigma u$, places and turns unknown",
        r"expectation-maximisation, $x\leftarrow\arg\max_x Q(x\mid x')$ $+\gamma\log p_\tau(x)$",
        ("mtd_mnist_vp",),
    ),
    Row(
        "Cellpose3",
        "05_cellpose3",
        r"none of its own: a frozen network $F$ that finds objects, and its features",
        r"noise, blur or coarse pixels, applied in training: $y=A(x)+u$",
        r"$\hat x=R(y)$ with $\min_R\ 1.5\,\mathcal L_\mathrm{seg}(F(\hat x))$ "
        r"$+\mathcal L_\mathrm{perc}(F(\hat x),F(x))$",
        ("cellpose3_denoise", "cellpose3_segmenter"),
    ),
)


def methods_table(rows: Sequence[Row] = ROWS) -> str:
    """Markdown: a row a method. The chapter holds it as text, where formulas and links are set."""
    cells = [
        [f"[{row.name}]({row.chapter}.ipynb)", row.prior, row.physics, row.solver] for row in rows
    ]
    return pipe_table(["method", "prior", "physics", "solver"], cells).replace(r"\mid", r"\vert ")


def training_table(rows: Sequence[Row] = ROWS) -> str:
    """Markdown, from the cards of the weights: what each prior has seen and what that took."""
    cells = []
    here = Row("Cellpose3's idea, here", "", "", "", "", (RESTORER, SEGMENTER))
    for row in (*rows, here):
        for name in row.checkpoints:
            if name not in weights.names():
                continue
            tensors, card = weights.load(name)
            count = sum(tensor.numel() for tensor in tensors.values())
            size, minutes = f"{count / 1e6:.2f} M", f"{card.seconds / 60:.0f}"
            cells.append([row.name, f"`{name}`", card.data, size, minutes])
    return pipe_table(["method", "weights", "trained on", "parameters", "minutes"], cells)


# Situation, what to take, the numbers of this run that speak for it or against it.
_WHEN = (
    (
        "particles are to be seen and picked; there are only noisy micrographs",
        "TSM (chapter 02)",
        "correlation over raw {gain.correlation.tsm}, F1 of Topaz over raw {gain.f1.tsm}; "
        "{cost.tsm} processor seconds a megapixel",
    ),
    (
        "the same, and there are simulations with truth that look like the data",
        "a network trained on them by squared error, or through a segmenter if that is what "
        "comes next (Cellpose3, chapter 05)",
        "correlation over TSM: squared error {gain_over_tsm.correlation.squares}, through the "
        "segmenter {gain_over_tsm.correlation.cellpose3}; F1 of the segmenter {own.f1.raw} raw, "
        "{own.f1.squares} and {own.f1.cellpose3}",
    ),
    (
        "tissue, and more tasks than one (blur, pixels, thick sections)",
        "EM Generalist (chapter 01)",
        "nothing of tissue; on ice, which its prior never saw: correlation over raw "
        "{gain.correlation.generalist}, F1 of Topaz {gain.f1.generalist}, against TSM "
        "{gain_over_tsm.correlation.generalist} and {gain_over_tsm.f1.generalist}; "
        "{cost.generalist} processor seconds a megapixel",
    ),
    (
        "one particle, its defocus known, and an error bar wanted",
        "FlowDPS (chapter 03)",
        "not measured here: no method of this chapter gives an error bar",
    ),
    (
        "particles that nobody can pick, all alike",
        "MTD (chapter 04)",
        "not measured here; where Topaz finds F1 {topaz.f1.raw} in raw micrographs, picking works",
    ),
    (
        "a measurement is to be made on the result",
        "none of them: measure on the raw image",
        "contrast made of nothing over that of particles: TSM {nothing.contrast.tsm}, squared "
        "error {nothing.contrast.squares}, through the segmenter {nothing.contrast.cellpose3}",
    ),
)


def decision_table(values: Values) -> str:
    """Markdown: when to use which, with the numbers of a metrics.json."""
    rows = [[have, take, fill(numbers, values)] for have, take, numbers in _WHEN]
    return pipe_table(["you have", "take", "measured here"], rows)
