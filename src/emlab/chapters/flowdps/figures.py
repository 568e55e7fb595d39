"""The figures of the FlowDPS chapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.bench.study import Scores, Study
from emlab.chapters.flowdps.cases import CLASSICAL, MARGIN, WINDOW
from emlab.chapters.flowdps.experiments import Averaging, Nothing, RealStack, Sweep, sweep_studies
from emlab.chapters.flowdps.study import LABELS, LEVELS, PER_NM, particles, rings
from emlab.data.phase_maps import FIELD, PIXEL_ANGSTROM
from emlab.methods.flowdps import deviation
from emlab.physics import ComplexCTF, ExitWave
from emlab.runtime import make_generator
from emlab.viz import COLOURS, Picture, show, show_images, strip

Image = NDArray[np.float32]
LINES = {
    "phase_flip": ("black", ":"),
    "wiener": ("sky", "-"),
    "sparse": ("blue", "-"),
    "supervised": ("purple", "-"),
    "paper": ("orange", "-"),
    "kim": ("orange", ":"),
    "corrected": ("green", "-"),
    "ours": ("vermilion", "-"),
}
SHOWN = (*CLASSICAL, "prior_draw", "supervised", "posed", "paper", "kim", "corrected", "ours")
RADIANS = (-0.12, 0.32)  # what is black and what is white in pictures of phases
INNER = slice(MARGIN, -MARGIN)


def centred(image: Any) -> Image:
    """An image without its mean, which a single measurement does not tell."""
    pixels = np.asarray(image, np.float32)
    return pixels - pixels.mean()


def grid(images: Mapping[str, Any], columns: int | None = None) -> Figure:
    """Labelled phases, means removed, in one range."""
    shown = {name: centred(image) for name, image in images.items()}
    return show_images(shown, RADIANS, columns=columns or min(len(shown), 7))


def methods_of(study: Study, number: int = 0) -> dict[str, Image]:
    """One particle through every method of `SHOWN` that ran, and the truth."""
    ran = [name for name in SHOWN if name in study.answers]
    shown = {LABELS[name]: study.answers[name].image[number] for name in ran}
    return {**shown, "truth": particles(study).truth[number].numpy()}


def lens_of(micrometres: float = 1.5, **told: float) -> ComplexCTF:
    """A 300 kV lens at an underfocus, amplitude contrast .1, in the pixels of the maps."""
    return ComplexCTF(300.0, PIXEL_ANGSTROM, 1e4 * micrometres, amplitude_contrast=0.1, **told)


def expected_counts(phase: torch.Tensor, lens: ComplexCTF, electrons: float = 1.0) -> NDArray:
    """Counts ``(64, 64)`` of a phase through a lens, so many electrons a pixel, without noise."""
    dose = electrons / PIXEL_ANGSTROM**2
    return ExitWave(lens, dose, FIELD, WINDOW).A(phase)[INNER, INNER].numpy()


def lens_strip(
    phase: torch.Tensor, caption: str, values: Sequence[float], setting: str, start: int = 0
) -> Any:
    """A slider over one setting of `lens_of`: contrast transfer, and what it makes of a phase."""
    pictures = {}
    for value in values:
        lens, name = lens_of(**{setting: value}), caption.format(value)
        pictures[name] = _lens_picture(lens, expected_counts(phase, lens), name)
    alt = f"What {caption.format('this')} does to the contrast transfer and to the image"
    return strip(pictures, alt, start=start)


def _lens_picture(ctf: ComplexCTF, expected: NDArray, title: str) -> Picture:
    """The contrast transfer of a lens, and the counts it would show without noise."""
    figure = Figure(figsize=(5.0, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.5, 1)})
    frequency = torch.linspace(0, 0.19, 400)
    chi = ctf.chi(frequency)
    value = -(chi.sin() + ctf.kappa * chi.cos()) * ctf.envelope(frequency)
    left.plot(10 * frequency, value, color=COLOURS["blue"])
    left.axhline(0, color="grey", lw=0.8)
    left.set(xlabel="frequency (1/nm)", ylabel="contrast transfer", ylim=(-1.1, 1.1))
    left.set_title(title, fontsize=9)
    right.imshow(expected / expected.mean(), cmap="gray", vmin=0.7, vmax=1.3)
    right.set_title("counts without noise", fontsize=8)
    right.set_axis_off()
    return show(figure, f"Contrast transfer against frequency and the image of a particle, {title}")


def exposure(phase: torch.Tensor, micrometres: float, dose: float, seed: int) -> Figure:
    """A phase, its image without noise, and the electrons that are counted."""
    lens = lens_of(micrometres, b_factor_angstrom2=60.0)
    expected = expected_counts(phase, lens, dose * PIXEL_ANGSTROM**2)
    counted = torch.poisson(torch.from_numpy(expected), generator=make_generator(seed)).numpy()
    pictures = {
        "phase": phase.numpy(),
        "without noise": expected / expected.mean(),
        f"{dose} electrons / A²": counted / expected.mean(),
    }
    return show_images({name: centred(p) for name, p in pictures.items()}, (-0.35, 0.35))


def correlation(study: Study) -> Figure:
    """Fourier correlation with the truth: everywhere, and near the zeros of the lens."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"rings": "all coefficients", "zeros": "where the lens transfers less than .3"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for name in (name for name in LINES if name in study.scores):
            sums, (colour, style) = rings(study.scores[name], kind), LINES[name]
            curve = np.where((sums.second > 0).any(0), sums.correlation(), np.nan)
            x = PER_NM * sums.frequency
            axis.plot(x, curve, style, color=COLOURS[colour], label=LABELS[name])
        axis.axhline(0.5, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="frequency (1/nm)", ylim=(-0.1, 1.02))
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("Fourier ring correlation")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def sweeps(runs: Mapping[str, Sweep]) -> Figure:
    """Error and coverage against dose and defocus: ``{"dose": {...}, "defocus": {...}}``."""
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False, sharey="row")
    labels = {"dose": "dose (e/A²)", "defocus": "defocus (µm)"}
    for (upper, lower), (name, recorded) in zip(axes.T, runs.items(), strict=True):
        studies = sweep_studies(recorded)
        x = [(1e-4 if name == "defocus" else 1.0) * value for value in studies]
        first = next(iter(studies.values()))
        for axis, column, scale in ((upper, "rmse", 1e3), (lower, "covered", 1.0)):
            for method in (m for m in first.methods if column in first.scores[m]):
                colour, style = COLOURS[LINES[method][0]], LINES[method][1]
                found = [study.interval(method, column) for study in studies.values()]
                mean, low, high = scale * np.array(found).T
                axis.plot(x, mean, style, marker="o", ms=3, color=colour, label=LABELS[method])
                axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            if name == "dose":
                axis.set_xscale("log")
                axis.set_xticks(x, [f"{value:g}" for value in x])
                axis.minorticks_off()
        lower.axhspan(0.85, 0.95, color=COLOURS["green"], alpha=0.15, lw=0)
        lower.set(xlabel=labels[name], ylim=(0, 1.02))
        upper.set(ylim=(0, None))
    axes[0, 0].set_ylabel("phase error (mrad)")
    axes[1, 0].set_ylabel("90 % intervals cover")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4)
    return figure


def posterior(study: Study, number: int = 0, several: int = 3) -> Figure:
    """Counts, mean, truth, some samples, spread and error of one particle."""
    answer, cases = study.answers["ours"], particles(study)
    truth, counts = centred(cases.truth[number]), cases.counts[number, INNER, INNER].numpy()
    samples = np.stack([centred(image) for image in answer.samples[:, number]])
    mean = samples.mean(0)
    pictures = {"counts": centred(counts / counts.mean()), f"mean of {len(samples)}": mean}
    pictures["truth"] = truth
    pictures |= {f"sample {i + 1}": image for i, image in enumerate(samples[:several])}
    error, spread = np.abs(mean - truth), deviation(samples, answer.independent)
    top = 1e3 * float(np.percentile(error, 99.5))
    pictures |= {
        f"{name}, 0 to {top:.0f} mrad": 1e3 * image
        for name, image in (("spread", spread), ("error of mean", error))
    }
    figure = show_images(pictures, RADIANS, columns=4)
    for axis in figure.axes[len(pictures) - 2 : len(pictures)]:
        axis.images[0].set(cmap="magma", clim=(0, top))
    return figure


def calibration(study: Study, names: Sequence[str]) -> Figure:
    """How often intervals hold the truth: by level, by ring; and ranks of the truth."""
    figure = Figure(figsize=(11.0, 2.9), layout="constrained")
    first, by_ring, *others = figure.subplots(1, 2 + len(names))
    for axis, name in zip(others, names, strict=True):
        scores, colour = study.scores[name], COLOURS[LINES[name][0]]
        covered, samples = scores["covered"], int(scores["independent"][0])
        first.plot(LEVELS, scores["by_level"].mean(0), "-o", ms=3, color=colour)
        number = 1 + np.arange(covered.shape[1])
        by_ring.plot(number, covered.mean(0), "-o", ms=3, color=colour, label=LABELS[name])
        share = np.bincount(scores["ranks"].astype(int).ravel(), minlength=samples + 1)
        share = share / share.sum() * (samples + 1)
        axis.bar(range(samples + 1), share, color=colour, width=0.9)
        axis.axhline(1, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="rank of the truth", ylim=(0, max(2.5, share.max())))
        axis.set_xticks(range(0, samples + 1, max(1, samples // 5)))
        axis.set_title(LABELS[name], fontsize=9)
    by_ring.axhspan(0.85, 0.95, color=COLOURS["green"], alpha=0.12, lw=0)
    by_ring.set(xlabel="ring, coarse to fine", ylabel="90 % intervals cover", ylim=(0.5, 1))
    by_ring.legend(fontsize=7, loc="lower right")
    first.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    first.set(xlabel="level of the interval", ylabel="share that holds the truth", xlim=(0, 1))
    others[0].set_ylabel("frequency, 1 = even")
    return figure


def nothing(found: Nothing, mean_map: Image) -> Figure:
    """Pure noise and what becomes of it, beside the mean of the training maps."""
    noise = found.counts[0, INNER, INNER]
    pictures = {"pure noise": noise / noise.mean()}
    pictures |= {f"sample {i + 1}": found.samples[i, 0] for i in range(3)}
    pictures[f"mean of {len(found.samples)}"] = found.samples[:, 0].mean(0)
    return grid({**pictures, "mean training map": mean_map})


def misfits(groups: Mapping[str, Scores]) -> Figure:
    """Coarse chi^2 of groups of particles, a dot each."""
    figure = Figure(figsize=(5.6, 2.5), layout="constrained")
    axis = figure.subplots()
    for row, (scores, colour) in enumerate(zip(groups.values(), COLOURS.values(), strict=False)):
        values = scores["chi2_low"]
        jitter = np.random.default_rng(row).uniform(-0.25, 0.25, len(values))
        axis.plot(values, row + jitter, "o", ms=3, alpha=0.7, color=colour)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set(xlabel="coarse chi² of the counts; 1 = noise")
    axis.axvline(1, color="grey", lw=0.8, ls=":")
    return figure


def averages(found: Mapping[str, Averaging]) -> Figure:
    """Invented power against the number of samples that are averaged.

    Of samples in opposite pairs even numbers are drawn, and no power that all share.
    """
    figure = Figure(figsize=(5.6, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, one), colour in zip(found.items(), ("blue", "vermilion", "green"), strict=False):
        shown = slice(1, None, 2) if one.shared is None else slice(None)
        x, y = one.samples[shown], one.invented.mean(1)[shown]
        axis.plot(x, y, "-o", ms=3, color=COLOURS[colour], label=name)
        if one.shared is not None:
            axis.axhline(one.shared.mean(), color=COLOURS[colour], lw=1, ls=":")
    axis.set(xlabel="samples averaged", ylabel="invented power / truth's", ylim=(0, None))
    samples = next(iter(found.values())).samples
    axis.set_xticks(samples[:: max(1, len(samples) // 10)])
    axis.set_title("dotted: what all samples invent alike", fontsize=9)
    axis.legend()
    return figure


def real(stacks: Sequence[RealStack], most: int = 4) -> Figure:
    """Images of each stack, in units of their deviation, and the answers beside them."""
    pictures: dict[str, Image] = {}
    for name, stack, found in stacks:
        side = round(FIELD * PIXEL_ANGSTROM / stack.pixel_size_angstrom)
        for i, answer in enumerate(found.image[:most]):
            image = stack.images[i]
            start = max(0, (len(image) - side) // 2)
            middle = centred(image[start : start + side, start : start + side])
            label = f"{name.removeprefix('particles_')} {i + 1}"
            pictures |= {label: 0.1 * middle / middle.std(), f"answer {label}": answer}
    return grid(pictures, columns=2 * min(most, len(stacks[0].found.image)))
