"""The five methods as one sentence: a prior, a model of the physics, a solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlab import weights
from emlab.bench.claims import fill
from emlab.recipes.particles_network import RESTORER, SEGMENTER

Values = Mapping[str, Mapping[str, Any]]


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
    lines = ["| method | prior | physics | solver |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"[{row.name}]({row.chapter}.ipynb)", row.prior, row.physics, row.solver)
        lines.append("| " + " | ".join(cells).replace(r"\mid", r"\vert ") + " |")
    return "\n".join(lines)


def training_table(rows: Sequence[Row] = ROWS) -> str:
    """Markdown, from the cards of the weights: what each prior has seen and what that took."""
    lines = ["| method | weights | trained on | parameters | minutes |", "|---|---|---|---|---|"]
    here = Row("Cellpose3's idea, here", "", "", "", "", (RESTORER, SEGMENTER))
    for row in (*rows, here):
        for name in row.checkpoints:
            if name not in weights.names():
                continue
            tensors, card = weights.load(name)
            count = sum(tensor.numel() for tensor in tensors.values())
            lines.append(
                f"| {row.name} | `{name}` | {card.data} | {count / 1e6:.2f} M "
                f"| {card.seconds / 60:.0f} |"
            )
    return "\n".join(lines)


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
    lines = ["| you have | take | measured here |", "|---|---|---|"]
    return "\n".join(
        lines + [f"| {have} | {take} | {fill(numbers, values)} |" for have, take, numbers in _WHEN]
    )
