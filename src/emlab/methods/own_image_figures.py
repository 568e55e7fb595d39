"""Plots of the report of a comparison: spectra of image and noise, and ring correlation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emlab.methods.own_image import Answer, Question
from emlab.methods.own_image_scores import FRC_THRESHOLD, halves_curve, pixel_nm
from emlab.metrics.fourier import apodisation, radial_frequency
from emlab.viz import COLOURS, Picture, show, use_style

_SIZE = (5.0, 3.1)  # inches


def spectra(question: Question) -> Picture:
    """Power of the window and of its noise over frequency, mean over rings."""
    from matplotlib.figure import Figure

    use_style()
    pixels = question.pixels
    window = apodisation(pixels.shape)
    power = np.abs(np.fft.rfft2((pixels - pixels.mean()) * window)) ** 2 / (window**2).sum()
    frequency = radial_frequency(pixels.shape)
    rings = np.rint(frequency * min(pixels.shape)).astype(int)
    kept = slice(1, min(pixels.shape) // 2)
    noise = question.noise.spectrum(pixels.shape).double().numpy()
    axis_unit = "1/pixel" if question.pixel_size_angstrom is None else "1/nm"
    x = np.arange(rings.max() + 1)[kept] / min(pixels.shape) / pixel_nm(question)
    figure = Figure(figsize=_SIZE)
    axis = figure.subplots()
    for values, label, colour in (
        (power, "image", COLOURS["blue"]),
        (noise, "noise", COLOURS["vermilion"]),
    ):
        total = np.bincount(rings.ravel(), values.ravel())[kept]
        axis.semilogy(
            x, total / np.bincount(rings.ravel())[kept], label=label, color=colour,
            linestyle="-" if label == "image" else "--",
        )  # fmt: skip
    axis.set(xlabel=f"spatial frequency ({axis_unit})", ylabel="power (grey levels²)")
    axis.set_title("Where image and noise have their power")
    axis.legend()
    kind = "coloured" if question.noise.coloured else "white"
    return show(
        figure,
        f"Power of the image falls with frequency towards that of its noise, which is {kind}.",
    )


def curves(answers: Mapping[str, Answer], question: Question) -> Picture | None:
    """Fourier ring correlation of the halves, raw and restored; None where there are none."""
    from matplotlib.figure import Figure

    found = {label: halves_curve(answer, question) for label, answer in answers.items()}
    drawn = {label: curve for label, curve in found.items() if curve is not None}
    if not drawn:
        return None
    use_style()
    figure = Figure(figsize=_SIZE)
    axis = figure.subplots()
    styles = ("-", "--", ":", "-.")
    for number, (label, curve) in enumerate(drawn.items()):
        axis.plot(
            curve.frequency,
            curve.correlation,
            label=label,
            linestyle=styles[number // 4 % len(styles)],
            linewidth=2.2 if number == 0 else 1.2,
            color="black" if number == 0 else None,
        )
    axis.axhline(FRC_THRESHOLD, color="#777777", linewidth=0.8)
    unit = "1/pixel" if question.pixel_size_angstrom is None else "1/nm"
    axis.set(xlabel=f"spatial frequency ({unit})", ylabel="correlation of the halves")
    axis.set(ylim=(-0.1, 1.05))
    axis.set_title("Fourier ring correlation of the two halves; line: 1/7")
    axis.legend(fontsize=6.5, ncols=2)
    return show(figure, "Correlation of the two halves over frequency, raw and for each method.")
