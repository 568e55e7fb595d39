"""Experiments of chapter 02: how noisy the targets are, and where the published iteration goes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.methods.tsm import Config, denoise
from emlab.methods.tsm_guidance import standardise
from emlab.metrics import Interval, mean_interval
from emlab.metrics.bands import band_correlations
from emlab.physics.micrograph import Micrograph
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors.base import Prior
from emlab.priors.score_matching import dsm_target, target_variance
from emlab.solvers.one_step import IterationConfig, iterate

LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
STEPS_A = (0.2, 0.3, 0.4, 0.45, 0.5)


@dataclass(frozen=True)
class TargetNoise:
    r"""Noise in the targets of denoising score matching, in units of the microscope's.

    Attributes
    ----------
    sigma_a : ndarray
        Auxiliary noise.
    score : ndarray
        Squared norm of the target :math:`-u/\sigma_a` of the score, of an image of d pixels.
    clean : ndarray
        Variance a pixel of the target of the posterior mean.
    size : int
        d.
    """

    sigma_a: NDArray[np.float64]
    score: NDArray[np.float64]
    clean: NDArray[np.float64]
    size: int

    def exponent(self) -> float:
        """Slope of the logarithm of `score` against that of `sigma_a`; -2 is the claim."""
        return float(np.polyfit(np.log(self.sigma_a), np.log(self.score), 1)[0])

    def predicted(self) -> NDArray[np.float64]:
        """What `clean` should be, see `emlab.priors.score_matching.target_variance`."""
        return target_variance(torch.from_numpy(self.sigma_a)).numpy()

    def record(self, report: Report) -> None:
        """Record the slope and the variance at the smallest level over that at 1."""
        report.value("target_noise.exponent", self.exponent())
        at_one = self.clean[np.argmin(np.abs(self.sigma_a - 1))]
        report.value("target_noise.smallest_over_one", float(self.clean[0] / at_one))


def target_noise(seed: int, size: int = 64, images: int = 32) -> TargetNoise:
    """Measure the noise in the targets of DSM at `LEVELS` on images of noise alone."""
    generator = torch.Generator().manual_seed(seed)
    score, clean = [], []
    for level in LEVELS:
        noise, u = torch.randn(2, images, size, size, generator=generator)
        score.append(float((u / level).square().sum((1, 2)).mean()))
        clean.append(float(dsm_target(noise, u, torch.full((images,), level)).var()))
    return TargetNoise(np.array(LEVELS), np.array(score), np.array(clean), size**2)


def figure_target_noise(found: TargetNoise) -> Figure:
    """Both variances against the auxiliary noise, with the formulas."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    fine = np.geomspace(found.sigma_a[0], found.sigma_a[-1], 100)
    axes[0].loglog(fine, found.size / fine**2, color="0.6", label="d / σₐ²")
    axes[0].loglog(found.sigma_a, found.score, "o", label="measured")
    axes[0].set(xlabel="auxiliary noise σₐ / σₙ", ylabel="‖target of the score‖²")
    axes[1].loglog(fine, 1 + fine**-2, color="0.6", label="1 + 1/σₐ²")
    axes[1].loglog(found.sigma_a, found.clean, "o", label="measured")
    axes[1].axhline(1, ls=":", color="C3", label="Noise2Noise")
    axes[1].set(xlabel="auxiliary noise σₐ / σₙ", ylabel="noise in the clean target")
    for axis in axes:
        axis.legend(frameon=False)
    return figure


@dataclass(frozen=True)
class Iteration:
    """The published iteration at several step sizes beside one Tweedie step.

    Attributes
    ----------
    exact : dict of float to ndarray
        By a: ``(steps + 1,)`` standard deviation of white noise under an exact score.
    recovery : dict of float to ndarray
        By a: ``(steps,)`` mean correlation with the clean particles after each step.
    one_step : float
        That of one Tweedie step.
    raw : float
        That of the micrograph itself.
    """

    exact: dict[float, NDArray[np.float64]]
    recovery: dict[float, NDArray[np.float64]]
    one_step: float
    raw: float

    def record(self, report: Report) -> None:
        """Record what is left after the last step at each a."""
        report.value("iteration.one_step", self.one_step)
        for a, values in self.recovery.items():
            report.value(f"iteration.last.a{a:g}", float(values[-1]))
            report.value(f"iteration.exact_noise.a{a:g}", float(self.exact[a][-1]))

    def spread(self) -> float:
        """Largest difference between step sizes after the last step."""
        last = [values[-1] for values in self.recovery.values()]
        return float(max(last) - min(last))


def iteration_study(denoiser: Prior, micrograph: Micrograph, steps: int = 5) -> Iteration:
    """Denoise one micrograph with the iteration at `STEPS_A`, and white noise with an exact score.

    Parameters
    ----------
    denoiser : Prior
        The network's score.
    micrograph : Micrograph
        Simulated; small is enough.
    """
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    standard = standardise(micrograph.noisy, PIXEL_ANGSTROM)
    exact, recovery = {}, {}
    for a in STEPS_A:
        config = IterationConfig(a=a, steps=steps)
        left = _after_each_step(_White(), noise, replace(config, b=0.0))
        exact[a] = np.array([1.0, *(float(image.std()) for image in left)])
        made = [standard.restore(x) for x in _after_each_step(denoiser, standard.image, config)]
        recovery[a] = np.array([band_correlations(x, micrograph)["mean"] for x in made])
    raw = band_correlations(micrograph.noisy, micrograph)["mean"]
    return Iteration(exact, recovery, _recovery(denoiser, micrograph, Config()), raw)


def _after_each_step(
    prior: Prior, image: torch.Tensor, config: IterationConfig
) -> list[torch.Tensor]:
    """What the iteration makes of an image with unit noise, step by step: it has no memory."""
    once, found = replace(config, steps=1), [image]
    for _ in range(config.steps):
        made = iterate(prior, Identity(), found[-1], GaussianNoise(1.0), once)
        found.append(made.images[0])
    return found[1:]


def figure_iteration(found: Iteration) -> Figure:
    """White noise under an exact score, and the correlation with the truth, step by step."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    steps = max(map(len, found.recovery.values()))
    for a, values in found.exact.items():
        axes[0].semilogy(values, "o-", ms=3, label=f"a = {a:g}")
    axes[0].axhline(1, color="0.6", lw=0.8)
    axes[0].set(xlabel="step", ylabel="white noise left, exact score")
    for a, values in found.recovery.items():
        axes[1].plot(range(1, len(values) + 1), values, "o-", ms=3, label=f"a = {a:g}")
    axes[1].axhline(found.one_step, color="k", label="one Tweedie step")
    axes[1].axhline(found.raw, color="0.6", ls=":", label="raw")
    axes[1].set(xlabel="step", ylabel="correlation, trained score", xticks=range(1, steps + 1))
    for axis in axes:
        axis.legend(frameon=False, fontsize=7)
    return figure


def variation(
    denoiser: Prior, micrographs: list[Micrograph], levels: tuple[float, ...]
) -> dict[float, Interval]:
    """Mean correlation when the network is told a noise level other than the estimate.

    Returns
    -------
    dict of float to Interval
        By the told level over the estimate.
    """
    found: dict[float, Interval] = {}
    for level in levels:
        scores = [_recovery(denoiser, m, Config(strength=level)) for m in micrographs]
        found[level] = mean_interval(np.array(scores))
    return found


class _White:
    """The exact score of images that are nothing but noise."""

    def score(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return -x / torch.as_tensor(sigma).square()

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def _recovery(denoiser: Prior, micrograph: Micrograph, config: Config) -> float:
    image = denoise(micrograph.noisy, PIXEL_ANGSTROM, denoiser, config).image
    return band_correlations(image, micrograph)["mean"]
