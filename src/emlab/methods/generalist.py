"""EM Generalist: one prior of electron-microscopy images, every restoration task.

A task is an operator and a noise level; the prior and the solver stay the same. Images go in and
come out in their own grey levels: an affine map gives them the mean and spread of the tissue that
the prior was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emlab.errors import InputError
from emlab.methods.generalist_config import TASKS, Config, OneStepConfig, Solver, load_config
from emlab.methods.generalist_scale import TISSUE_STD, GreyScale
from emlab.physics.noise import ColouredGaussianNoise
from emlab.physics.noise_estimation import (
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
)
from emlab.physics.operators import (
    Axial,
    Blur,
    Downsample,
    Identity,
    Scaled,
    ShapedOperator,
    operator_norm,
)
from emlab.priors import EquivariantPrior, Prior, load_prior
from emlab.runtime import has_fast_bfloat16
from emlab.solvers.blind import BlindConfig, blind_deblur
from emlab.solvers.classical import cubic_axial, cubic_upsample
from emlab.solvers.dps import DPSConfig, dps
from emlab.solvers.guided_flow import GuidedFlowConfig, guided_flow
from emlab.solvers.half_quadratic import HalfQuadraticConfig, half_quadratic
from emlab.solvers.one_step import DiffuseBackConfig, diffuse_back, one_step_denoise
from emlab.solvers.plug_and_play import (
    NoiseSource,
    PlugAndPlayConfig,
    RestoreConfig,
    Samples,
    across_axes,
    plug_and_play_flow,
    restore,
)
from emlab.solvers.tiling import TiledPrior

# A measurement that claims to have no noise at all is given this share of the tissue's contrast.
LEAST_NOISE = 0.01

Progress = Callable[[int, int], None]

__all__ = [
    "TASKS",
    "Config",
    "GreyScale",
    "OneStepConfig",
    "Restoration",
    "Solver",
    "deblur",
    "deblur_blind",
    "denoise",
    "isotropic",
    "load",
    "load_config",
    "solve",
    "upsample",
]


@dataclass(frozen=True)
class Restoration:
    """A restored image or volume.

    Attributes
    ----------
    image : ndarray
        float32, mean of the samples, in the grey levels of the input.
    spread : ndarray or None
        Standard deviation over the samples in the same units; None for a single one.
    samples : ndarray
        ``(n, ...)``.
    noise_sigma : float
        Noise of the input that was given or estimated, in its grey levels.
    evaluations : int
        How often the prior saw the whole image.
    seconds, network_seconds : float
        Wall time, and the part of it spent inside the network.
    notes : list of str
        What the reader should know: estimates, padding.
    """

    image: NDArray[np.float32]
    spread: NDArray[np.float32] | None
    samples: NDArray[np.float32]
    noise_sigma: float
    evaluations: int
    seconds: float
    network_seconds: float
    notes: list[str] = field(default_factory=list)


def load(config: Config, device: torch.device | str = "cpu") -> Prior:
    """Return the configuration's prior, in bfloat16 where that is faster."""
    return load_prior(config.prior, device, half=has_fast_bfloat16(device))


class TimedPrior:
    """A prior that knows how long it took."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.seconds = 0.0

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        started = time.perf_counter()
        answer = self.prior.denoise(x, sigma)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        self.seconds += time.perf_counter() - started
        return answer

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Score; see `Prior.score`."""
        return (self.denoise(x, sigma) - x) / torch.as_tensor(sigma, device=x.device).square()


def denoise(
    image: ArrayLike, config: Config, generator: torch.Generator, **options: Any
) -> Restoration:
    """Remove noise from ``(H, W)``, or from every plane of ``(D, H, W)``.

    Takes the options of `solve`, and ``coloured=True`` for noise whose spectrum is estimated from
    the image itself.
    """
    coloured = options.pop("coloured", False)
    task = "denoise_coloured" if coloured else "denoise"
    return solve(task, Identity(), image, config, generator, **options)


def deblur(
    image: ArrayLike,
    kernel: ArrayLike,
    config: Config,
    generator: torch.Generator,
    **options: Any,
) -> Restoration:
    """Undo a known blur of ``(H, W)``; the kernel is odd, non-negative and sums to 1."""
    operator = Blur(torch.as_tensor(np.asarray(kernel, dtype=np.float32)))
    return solve("deblur", operator, image, config, generator, **options)


def deblur_blind(
    image: ArrayLike,
    config: Config,
    generator: torch.Generator,
    *,
    blind: BlindConfig | None = None,
    noise_sigma: float | None = None,
    prior: Prior | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Restoration, NDArray[np.float32]]:
    """Undo an unknown blur of ``(H, W)``; also returns the kernel that was found."""
    grey = _checked(image, (2,))
    sigma, notes = _noise(grey, noise_sigma)
    scale = GreyScale.of(grey, sigma)
    timed = TimedPrior(load(config, device) if prior is None else prior)
    level = max(sigma / scale.scale, LEAST_NOISE * TISSUE_STD)
    started = time.perf_counter()
    result, kernel = blind_deblur(
        _tiled(timed, config),
        scale.to_units(grey, device),
        level,
        blind or BlindConfig(),
        generator,
    )
    restored = _restoration(result, scale, sigma, time.perf_counter() - started, timed, notes)
    return restored, kernel.cpu().numpy()


def upsample(
    image: ArrayLike, factor: int, config: Config, generator: torch.Generator, **options: Any
) -> Restoration:
    """Make ``(H, W)`` finer by a whole factor; its pixels are averages of the fine ones.

    Coarse pixels alias fine detail, which an estimate would take for noise: unless `noise_sigma`
    tells otherwise the image counts as free of noise.
    """
    operator = Downsample(_factor(factor))
    start = cubic_upsample(_checked(image, (2,)), factor)
    told = options.pop("noise_sigma", None)
    options |= {"noise_sigma": told or 0.0, "start": start}
    restored = solve("upsample", operator, image, config, generator, **options)
    if told is None:
        restored.notes.append("taken to be free of noise: say its noise_sigma if it is not")
    return restored


def isotropic(
    volume: ArrayLike,
    factor: int,
    config: Config,
    generator: torch.Generator,
    *,
    axial: str = "average",
    **options: Any,
) -> Restoration:
    """Make ``(D, H, W)`` as fine along axis 0 as along the others.

    Parameters
    ----------
    factor : int
        Thickness of a slice in pixels of the other axes; the result is ``(D * factor, H, W)``.
    axial : str
        A slice is the ``"average"`` of the planes that it stands for (block-face, sections), or
        one of them (``"decimate"``).
    """
    if axial not in ("average", "decimate"):
        raise InputError(f"axial must be 'average' or 'decimate', got {axial!r}")
    start = cubic_axial(_checked(volume, (3,)), _factor(factor), axial)
    operator = Axial(factor, axial)  # type: ignore[arg-type]
    return solve("isotropic", operator, volume, config, generator, start=start, **options)


def solve(
    task: str,
    operator: ShapedOperator,
    image: ArrayLike,
    config: Config,
    generator: torch.Generator,
    *,
    noise_sigma: float | None = None,
    samples: int | None = None,
    start: NDArray[np.float32] | None = None,
    prior: Prior | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    scale: GreyScale | None = None,
    spectrum: NoiseSpectrum | None = None,
    noise: NoiseSource | None = None,
) -> Restoration:
    """Restore a measurement: map it to the prior's units, run the task's solver, map it back.

    Parameters
    ----------
    task : str
        One of `TASKS`: which solver of the configuration to use.
    operator : ShapedOperator
        What the instrument did to the image.
    image : array_like
        ``(H, W)`` or ``(D, H, W)``, any grey levels.
    noise_sigma : float, optional
        Standard deviation of the noise in these grey levels; default: estimated from the image.
    samples : int, optional
        Default: the configuration's.
    start : ndarray, optional
        First guess on the fine grid, in grey levels; default: the image itself.
    prior : Prior, optional
        Default: the configuration's, loaded anew.
    scale, spectrum, noise : optional
        Grey scale, noise spectrum and a sampler's noise (of `restore`) of a larger volume that
        this image is a block of; default: from the image itself.

    Raises
    ------
    InputError
        Wrong dimensions, values that are not finite, a constant image, a noise level above the
        image's own contrast.
    """
    grey = _checked(image, (2, 3))
    count = config.samples if samples is None else samples
    if count < 1:
        raise InputError(f"samples must be at least 1, got {count}")
    coloured = task == "denoise_coloured"
    if coloured and noise_sigma is None and spectrum is None:
        spectrum = estimate_noise_spectrum(grey)
    sigma, notes = (spectrum.sigma, []) if spectrum else _noise(grey, noise_sigma)
    scale = scale or GreyScale.of(grey, sigma)
    y = scale.to_units(grey, device)
    level = max(sigma / scale.scale, LEAST_NOISE * TISSUE_STD)
    timed = TimedPrior(load(config, device) if prior is None else prior)
    turned = EquivariantPrior(_tiled(timed, config), generator)
    views: Prior | Sequence[Prior] = across_axes(turned) if task == "isotropic" else turned
    solver, started = config.solvers[task], time.perf_counter()
    shape = tuple((grey if start is None else start).shape)
    first = y if start is None else scale.to_units(start, device)
    precision = None
    if spectrum is not None:
        precision = ColouredGaussianNoise(spectrum.scaled(1 / scale.scale)).precision
    common: dict[str, Any] = {"shape": shape, "samples": count, "progress": progress}
    match solver:
        case OneStepConfig():
            clean = one_step_denoise(_tiled(timed, config), y, level)
            result = Samples(clean[None], 1)
        case DiffuseBackConfig():
            result = diffuse_back(
                turned, y, level, solver, generator, samples=count, noise=noise, progress=progress
            )
        case HalfQuadraticConfig():
            if count > 1:
                raise InputError(
                    "this configuration gives one estimate and no samples; take the configuration "
                    "'samples' for samples and their spread"
                )
            planes = views[1:] if isinstance(views, Sequence) else views
            result = half_quadratic(
                planes,
                operator,
                y,
                level,
                solver,
                shape=shape,
                start=first,
                precision=precision,
                progress=progress,
            )
        case RestoreConfig():
            common |= {"start": first, "precision": precision}
            result = restore(views, operator, y, level, solver, generator, noise=noise, **common)
        case PlugAndPlayConfig():
            # The published step is a gradient step of length 1: it wants an operator of norm 1,
            # and averages over blocks have a smaller one.
            unit = 1 / (operator_norm(operator, shape, device=y.device) or 1.0)
            result = plug_and_play_flow(
                views, Scaled(operator, unit), unit * y, solver, generator, **common
            )
        case DPSConfig():
            result = dps(views, operator, y, solver, generator, **common)
        case GuidedFlowConfig():
            if isinstance(views, Sequence):
                raise InputError("guided_flow restores images, not volumes; use restore")
            result = guided_flow(views, operator, y, level, solver, generator, **common)
    return _restoration(result, scale, sigma, time.perf_counter() - started, timed, notes)


def _restoration(
    result: Samples,
    scale: GreyScale,
    sigma: float,
    seconds: float,
    timed: TimedPrior,
    notes: list[str],
) -> Restoration:
    several = len(result.images) > 1
    return Restoration(
        image=scale.to_grey(result.mean),
        spread=result.spread.cpu().numpy() * np.float32(scale.scale) if several else None,
        samples=scale.to_grey(result.images),
        noise_sigma=sigma,
        evaluations=result.evaluations,
        seconds=seconds,
        network_seconds=timed.seconds,
        notes=notes,
    )


def _tiled(prior: Prior, config: Config) -> TiledPrior:
    return TiledPrior(prior, config.tile, config.overlap, config.batch, smallest=16)


def _noise(image: NDArray[np.float32], given: float | None) -> tuple[float, list[str]]:
    if given is not None:
        if not np.isfinite(given) or given < 0:
            raise InputError(f"noise_sigma must be a number of at least 0, got {given}")
        return float(given), []
    sigma = estimate_noise_sigma(image)
    return sigma, [f"noise estimated from the image: sigma = {sigma:.4g} grey levels"]


def _checked(image: ArrayLike, dimensions: tuple[int, ...]) -> NDArray[np.float32]:
    array = np.asarray(image, dtype=np.float32)
    if array.ndim not in dimensions:
        wanted = " or ".join("(H, W)" if n == 2 else "(D, H, W)" for n in dimensions)
        raise InputError(f"this task takes {wanted}, got an array of shape {array.shape}")
    if array.size == 0 or not np.isfinite(array).all():
        raise InputError("the image is empty, or contains NaN or infinity; replace those first")
    return array


def _factor(factor: int) -> int:
    if isinstance(factor, bool) or factor != int(factor) or factor < 2:
        raise InputError(f"the factor must be a whole number of at least 2, got {factor}")
    return int(factor)
