"""The figures of the first chapter; what they show is computed in the chapter itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from emlab.chapters.start_here import cases as cases_of
from emlab.chapters.start_here.cases import Mask, grid, three_islands
from emlab.priors import Prior
from emlab.priors.objectives import VPSchedule
from emlab.viz import COLOURS, panels, show_images

WIDTH = 7.5
HALF = 2.6


def one_sentence(samples: Tensor, posterior: Tensor, first: float, noise_sigma: float) -> Figure:
    """Prior, measurement and posterior of the islands, each with samples ``(n, 1, 2)`` on top."""
    prior, points = three_islands(), grid(HALF, 160)
    seen = (-((points[..., 0, 0] - first) / noise_sigma).square() / 2).exp()
    product = cases_of.log_posterior_on_grid(prior, points, first, noise_sigma)
    shades = prior.log_density(points).exp(), seen, (product - product.max()).exp()
    titles = ["specimen prior p(x)", "microscope p(y | x)", "posterior p(x | y), sampled"]
    figure, axes = _squares(titles)
    for axis, shade in zip(axes, shades, strict=True):
        _shade(axis, shade)
        axis.set_xlabel("$x_1$ (measured)")
    axes[0].set_ylabel("$x_2$ (not measured)")
    _dots(axes[0], samples[:400])
    axes[1].axvline(first, color=COLOURS["vermilion"])
    axes[1].annotate(f"measured: {first:g}", (first + 0.75, 2.2), color=COLOURS["vermilion"])
    _dots(axes[2], posterior[:400])
    return figure


def line_of_scores() -> Figure:
    """Density, score and denoiser of the two heights at three noise levels."""
    prior = cases_of.two_heights()
    x = torch.linspace(-3.5, 3.5, 400).reshape(-1, 1, 1)
    titles = ["density $p_\\sigma(x)$", "score $s_\\sigma(x)$", "denoiser $D(x, \\sigma)$"]
    figure, axes = panels(WIDTH, 2.5, 3)
    for sigma, colour in {0.1: "blue", 0.6: "orange", 2.0: "green"}.items():
        curves = [prior.log_density(x, sigma).exp(), prior.score(x, sigma), prior.denoise(x, sigma)]
        for axis, curve in zip(axes, curves, strict=True):
            axis.plot(x.flatten(), curve.flatten(), color=COLOURS[colour], label=f"σ = {sigma:g}")
    axes[1].set_ylim(-12, 12)
    axes[2].plot([-3.5, 3.5], [-3.5, 3.5], ":", color="grey", lw=1, label="x itself")
    axes[2].set_ylim(-2.2, 2.6)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="x")
    axes[0].set_ylim(0, 0.85)
    axes[0].legend(loc="upper right", fontsize=7)
    axes[2].legend(loc="lower right", fontsize=7)
    return figure


def score_arrows(
    priors: Mapping[str, Prior], sigma: float, errors: Mapping[str, Mapping[float, float]]
) -> Figure:
    """Score arrows of two priors over the noisy density, and score errors by noise level."""
    figure, axes = _squares([*priors, "error of the score"], most=2)
    points = grid(HALF, 17)
    for axis, prior in zip(axes, priors.values(), strict=False):
        _shade_islands(axis, sigma)
        with torch.no_grad():
            _arrows(axis, points, prior.score(points, sigma))
    for (name, error), marker in zip(errors.items(), "os^D", strict=False):
        axes[2].loglog(list(error), list(error.values()), marker + "-", ms=4, label=name)
    axes[2].set(xlabel="noise level σ", ylabel="relative error")
    axes[2].legend(fontsize=7)
    return figure


def learned_against_exact(pairs: Mapping[str, tuple[Tensor, Tensor]], label: str) -> Figure:
    """Learned against exact values, a scatter plot for each pair (exact, learned)."""
    figure, axes = _squares(list(pairs), 2.6 * len(pairs))
    for axis, (exact, learned) in zip(axes, pairs.values(), strict=True):
        x, y = exact.flatten()[:1500], learned.flatten()[:1500]
        limit = 1.05 * x.abs().max().item()
        axis.plot(x, y, ".", ms=2.5, alpha=0.5, color=COLOURS["blue"])
        axis.plot([-limit, limit], [-limit, limit], color=COLOURS["vermilion"], lw=1)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel=f"exact {label}")
    axes[0].set_ylabel(f"learned {label}")
    return figure


def flow_lines(paths: Tensor, velocity: Tensor, exact: Tensor, points: Tensor) -> Figure:
    """Paths ``(times, n, 1, 2)`` from noise to data, and learned over exact velocities."""
    figure, axes = _squares(["paths from noise (t = 0) to data (t = 1)", "velocity at t = 0.5"])
    _shade_islands(axes[0])
    for path in paths.unbind(1):
        axes[0].plot(path[:, 0, 0], path[:, 0, 1], color=COLOURS["black"], lw=0.5, alpha=0.5)
    axes[0].plot(*paths[0, :, 0].T, ".", ms=3, color=COLOURS["orange"], label="noise")
    axes[0].plot(*paths[-1, :, 0].T, ".", ms=3, color=COLOURS["vermilion"], label="data")
    for values, colour, width, name in (
        (exact, "sky", 0.012, "exact"),
        (velocity, "black", 0.004, "learned"),
    ):
        axes[1].quiver(
            *points.reshape(-1, 2).T, *values.reshape(-1, 2).T, color=COLOURS[colour],
            width=width, scale=25, label=name,
        )  # fmt: skip
    for axis in axes:
        axis.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF))
        axis.legend(fontsize=7, loc="lower right", framealpha=0.9, frameon=True)
    return figure


def three_clocks(image: float, noise: float, schedule: VPSchedule) -> Figure:
    """One pixel and one noise on three Gaussian paths: each on its clock, then on a common one."""
    sigma = torch.logspace(-2, 0.7, 200)
    t_vp, t_flow = schedule.time_at(sigma), 1 / (1 + sigma)
    plain = image + sigma * noise
    paths = {  # scale, clock, and how it is drawn
        "noise added": (sigma * 0 + 1, sigma / 5, "-", 5, "sky"),
        "VP diffusion": (schedule.alpha(t_vp), t_vp, "--", 2.5, "orange"),
        "flow": (t_flow, 1 - t_flow, ":", 2, "black"),
    }
    figure, (left, right) = panels(WIDTH, 2.7, 2)
    for name, (scale, clock, style, width, colour) in paths.items():
        told = {"color": COLOURS[colour], "label": name}
        left.plot(clock, scale * plain, **told)
        right.semilogx(sigma, scale * plain / scale, style, lw=width, **told)
    left.set(title="as each method tells it", xlabel="its own time, data to noise", ylabel="pixel")
    right.set(title="re-timed to σ and re-scaled", xlabel="noise level σ", ylabel="pixel / scale")
    left.legend()
    right.legend()
    return figure


def prior_samples(samples: Mapping[str, Tensor]) -> Figure:
    """Samples ``(n, 1, 2)`` of several priors over the exact density."""
    figure, axes = _squares(list(samples))
    for axis, points in zip(axes, samples.values(), strict=True):
        _shade_islands(axis)
        _dots(axis, points[:600])
    return figure


def posterior_images(
    truth: Tensor, measurement: Tensor, mask: Mask, panels: Mapping[str, Tensor]
) -> Figure:
    """Truth, what was seen of it, and further images on one grey range; unseen pixels are black."""
    lowest = truth.min()
    shown = torch.where(mask.mask > 0, measurement, lowest)
    limits = (lowest.item(), truth.max().item())
    return show_images({"truth": truth, "measurement": shown, **panels}, limits=limits, columns=5)


def coverage_curve(
    assumed: list[float], measured: list[float], prior_std: float, noise_sigma: float
) -> Figure:
    """Coverage of 90 % intervals against the noise level that the sampler was told."""
    figure, (axis,) = panels(4.6, 2.8)
    told = np.geomspace(min(assumed), max(assumed), 100)
    theory = [100 * cases_of.coverage_with_wrong_noise(prior_std, noise_sigma, s) for s in told]
    axis.semilogx(told / noise_sigma, theory, label="closed form")
    factors = [s / noise_sigma for s in assumed]
    axis.plot(factors, [100 * c for c in measured], "o", color=COLOURS["orange"], label="sampler")
    axis.axhline(90, color="grey", lw=1, ls=":")
    axis.set_xticks(factors, [f"{f:.3g}" for f in factors])
    axis.minorticks_off()
    axis.set(xlabel="assumed / true noise level", ylim=(0, 103))
    axis.set_ylabel("coverage of 90 % intervals (%)")
    axis.legend(loc="lower right")
    return figure


def mode_and_mean(x: Tensor, density: Tensor, measured: float, mode: float, mean: float) -> Figure:
    """A posterior of one number with its highest point and its mean."""
    figure, (axis,) = panels(5.2, 2.6)
    axis.fill_between(x, density, color=COLOURS["sky"], alpha=0.4, lw=0)
    axis.plot(x, density, label="posterior")
    for value, colour, style, name in (
        (measured, "black", ":", "measurement y"),
        (mode, "vermilion", "-", "MAP: highest point"),
        (mean, "green", "--", "posterior mean"),
    ):
        axis.axvline(value, color=COLOURS[colour], ls=style, label=f"{name} = {value:.2f}")
    axis.set(xlabel="x", ylabel="density", ylim=(0, None))
    axis.legend()
    return figure


def where_data_are(prior: Prior, points: Tensor, sigmas: tuple[float, ...]) -> Figure:
    """Training points, and the relative error of a learned score at some noise levels."""
    exact, half, n = three_islands(), 3.0, 120
    axis, wide = np.linspace(-half, half, n), grid(half, n)
    titles = ["training points", *(f"relative error, σ = {sigma:g}" for sigma in sigmas)]
    figure, axes = _squares(titles)
    axes[0].plot(*points[:1000, 0].T, ".", ms=2, color=COLOURS["blue"])
    axes[0].set(xlim=(-half, half), ylim=(-half, half))
    box = (-half, half, -half, half)
    for panel, sigma in zip(axes[1:], sigmas, strict=True):
        true = exact.score(wide, sigma)
        with torch.no_grad():
            error = (prior.score(wide, sigma) - true).norm(dim=-1) / true.norm(dim=-1)
        shown = panel.imshow(error[..., 0], "magma", origin="lower", extent=box, vmin=0, vmax=1)
        density, level = exact.log_density(wide, sigma), cases_of.contour_level(exact, sigma)
        panel.contour(axis, axis, density, levels=[level], colors="white", linestyles="-")
    figure.colorbar(shown, ax=axes, extend="max", shrink=0.7)
    return figure


def _squares(
    titles: Sequence[str], width: float = WIDTH, most: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Panels with titles of which the first so many, or all, are squares without a grid."""
    figure, axes = panels(width, width / len(titles) + 0.35, len(titles))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[:most]:
        axis.set_box_aspect(1)
        axis.grid(False)
    return figure, list(axes)


def _shade(axis: Axes, values: Tensor) -> None:
    axis.imshow(values, origin="lower", extent=(-HALF, HALF, -HALF, HALF), cmap="Blues")


def _shade_islands(axis: Axes, sigma: float = 0.0) -> None:
    _shade(axis, three_islands().log_density(grid(HALF, 160), sigma).exp())


def _dots(axis: Axes, points: Tensor) -> None:
    axis.plot(*points[:, 0].T, ".", ms=2.5, color=COLOURS["vermilion"], alpha=0.6)
    axis.set(xlim=(-HALF, HALF), ylim=(-HALF, HALF))


def _arrows(axis: Axes, points: Tensor, vectors: Tensor) -> None:
    """Arrows whose length is compressed, so that far ones do not hide near ones."""
    vectors = vectors / (1 + vectors.norm(dim=-1, keepdim=True) / 4)
    axis.quiver(*points.reshape(-1, 2).T, *vectors.reshape(-1, 2).T, width=0.005, scale=60)
