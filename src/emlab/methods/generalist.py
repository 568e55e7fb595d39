"""EM Generalist: one prior of electron-microscopy images, every restoration task.

A task is an operator and a noise level; the prior and the solver stay the same. Images go in and
come out in their own grey levels: an affine map gives them the mean and spread of the tissue that
the prior was trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from emlab.errors import InputError
from emlab.methods.estimate import Estimate, TimedPrior
from emlab.methods.generalist_config import TASKS, Config, OneStepConfig, Solver, load_config
from emlab.methods.generalist_scale import TISSUE_STD, GreyScale
from emlab.physics.noise import ColouredGaussianNoise, GaussianNoise
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
from emlab.solvers import solver_of
from emlab.solvers.blind import BlindConfig, blind_deblur
from emlab.solvers.classical import cubic_axial, cubic_upsample
from emlab.solvers.contract import NoiseSource, Progress, Samples
from emlab.solvers.plug_and_play import PlugAndPlayConfig, across_axes
from emlab.solvers.tiling import TiledPrior

# A measurement that claims to have no noise at all is given this share of the tissue's contrast.
LEAST_NOISE = 0.01

Found = Estimate[NDArray[np.float32]]

__all__ = [
    "TASKS",
    "Config",
    "Estimate",
    "GreyScale",
    "OneStepConfig",
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


def load(config: Config, device: torch.device | str = "cpu") -> Prior:
    """Return the configuration's prior, in bfloat16 where that is faster."""
    return load_prior(config.prior, device, half=has_fast_bfloat16(device))


def denoise(image: ArrayLike, config: Config, generator: torch.Generator, **options: Any) -> Found:
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
) -> Found:
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
) -> tuple[Found, NDArray[np.float32]]:
    """Undo an unknown blur of ``(H, W)``; also returns the kernel that was found."""
    grey = _checked(image, (2,))
    sigma, notes = _noise(grey, noise_sigma)
    scale = GreyScale.of(grey, sigma)
    timed = TimedPrior(load(config, device) if prior is None else prior)
    result, kernel = blind_deblur(
        _tiled(timed, config),
        scale.to_units(grey, device),
        _white(sigma, scale),
        blind or BlindConfig(),
        generator,
    )
    return _estimate(result, scale, sigma, timed, notes), kernel.cpu().numpy()


def upsample(
    image: ArrayLike, factor: int, config: Config, generator: torch.Generator, **options: Any
) -> Found:
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
) -> Found:
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
) -> Found:
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
        Grey scale, noise spectrum and a solver's random numbers of a larger volume that
        this image is a block of; default: from the image itself.
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
    settings = config.solvers[task]
    shape = tuple((grey if start is None else start).shape)
    first = y if start is None else scale.to_units(start, device)
    detector: GaussianNoise | ColouredGaussianNoise = _white(sigma, scale)
    if spectrum is not None:
        detector = ColouredGaussianNoise(spectrum.scaled(1 / scale.scale))
    timed = TimedPrior(load(config, device) if prior is None else prior)
    known: Prior = _tiled(timed, config)
    if not isinstance(settings, OneStepConfig):
        known = EquivariantPrior(known, generator)
    if isinstance(settings, PlugAndPlayConfig):
        # The published step is a gradient step of length 1: it wants an operator of norm 1,
        # and averages over blocks have a smaller one.
        unit = 1 / (operator_norm(operator, shape, device=y.device) or 1.0)
        operator, y = Scaled(operator, unit), unit * y
    result = solver_of(settings)(
        across_axes(known) if task == "isotropic" else known,
        operator, y, detector, settings, noise or generator,
        shape=shape, samples=count, start=first, progress=progress,
    )  # fmt: skip
    return _estimate(result, scale, sigma, timed, notes)


def _estimate(
    result: Samples, scale: GreyScale, sigma: float, timed: TimedPrior, notes: list[str]
) -> Found:
    several = len(result.images) > 1
    return Estimate(
        image=scale.to_grey(result.mean),
        samples=scale.to_grey(result.images),
        spread=result.spread.cpu().numpy() * np.float32(scale.scale) if several else None,
        noise_sigma=sigma,
        notes=notes,
        cost=timed.cost(result.evaluations),
    )


def _white(sigma: float, scale: GreyScale) -> GaussianNoise:
    """White noise in the prior's units."""
    return GaussianNoise(max(sigma / scale.scale, LEAST_NOISE * TISSUE_STD))


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
