"""EM Generalist: one prior of electron-microscopy images, every restoration task.

A task is an operator and a noise level; the prior and the solver stay the same. Images go in and
come out in their own grey levels: an affine map gives them the mean and spread of the tissue that
the prior was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.methods.estimate import Estimate, TimedPrior
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
    Sampling,
    Scaled,
    ShapedOperator,
    operator_norm,
)
from emlab.priors import DepthPrior, EquivariantPrior, Prior, load_prior
from emlab.runtime import has_fast_bfloat16
from emlab.settings import of_kind, read_config
from emlab.solvers import solver_of
from emlab.solvers.blind import BlindConfig, blind_deblur
from emlab.solvers.classical import cubic_axial, cubic_upsample
from emlab.solvers.contract import NoiseSource, Progress, Samples
from emlab.solvers.one_step import DiffuseBackConfig, OneStepConfig
from emlab.solvers.plug_and_play import (
    HalfQuadraticConfig,
    PlugAndPlayConfig,
    RestoreConfig,
    across_axes,
)
from emlab.solvers.sampling import DPSConfig
from emlab.solvers.tiling import TiledPrior

TASKS = ("denoise", "denoise_coloured", "deblur", "upsample", "isotropic")
# Mean and standard deviation of the training patches after jitter, in the prior's units.
TISSUE_MEAN, TISSUE_STD = 0.0135, 0.30
# Pixel sizes that the prior was trained with and can be told; outside it judges by the image.
KNOWN_ANGSTROM = 25.0, 300.0
# A measurement that claims to have no noise at all is given this share of the tissue's contrast.
LEAST_NOISE = 0.01

Found = Estimate[NDArray[np.float32]]
Solver = (
    HalfQuadraticConfig
    | RestoreConfig
    | PlugAndPlayConfig
    | DPSConfig
    | OneStepConfig
    | DiffuseBackConfig
)
_SOLVERS: Mapping[str, type] = {
    "half_quadratic": HalfQuadraticConfig,
    "restore": RestoreConfig,
    "plug_and_play": PlugAndPlayConfig,
    "dps": DPSConfig,
    "one_step": OneStepConfig,
    "diffuse_back": DiffuseBackConfig,
}


@dataclass(frozen=True)
class Config:
    """Which prior, which solver for each task, and how large images are cut."""

    prior: str  #: name of the weights
    solvers: Mapping[str, Solver]  #: a solver's settings for each of `TASKS`
    samples: int = 1  #: that are averaged unless the caller asks for another number
    tile: int = 128  #: patches of large images, as `overlap` and `batch`: see `TiledPrior`
    overlap: int = 32
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if missing := [task for task in TASKS if task not in self.solvers]:
            raise InputError(f"no solver is set for {', '.join(missing)}")
        if self.samples < 1 or self.batch < 1 or not 0 <= self.overlap < self.tile:
            raise InputError("restoring needs samples, batch >= 1 and 0 <= overlap < tile")


def load_config(name: str = "ours") -> Config:
    """Return ``[configs.NAME]``: ``ours``, ``samples``, ``paper`` or ``paper_dps``."""
    table = read_config("generalist", name)
    found = {task: of_kind(_SOLVERS, "solver", table.pop(task)) for task in TASKS if task in table}
    return Config(solvers=found, **table)


@dataclass(frozen=True)
class GreyScale:
    """Affine map between grey levels and the prior's units: ``unit = (grey - zero) / scale``."""

    zero: float
    scale: float

    @classmethod
    def of(cls, image: NDArray[np.float32], noise_sigma: float = 0.0) -> GreyScale:
        """The map that gives an image of known noise the mean and spread of the training tissue."""
        moments = image.mean(dtype=np.float64), image.var(dtype=np.float64)
        return cls.from_moments(float(moments[0]), float(moments[1]), noise_sigma)

    @classmethod
    def from_moments(cls, mean: float, variance: float, noise_sigma: float = 0.0) -> GreyScale:
        """The same from the mean and variance of the noisy image."""
        tissue = variance - noise_sigma**2
        if tissue <= 1e-3 * variance:
            raise InputError(
                "the image is constant or nothing but noise: check the file, or lower noise_sigma"
                if variance > 0
                else "the image is constant: there is nothing to restore"
            )
        scale = tissue**0.5 / TISSUE_STD
        return cls(mean - TISSUE_MEAN * scale, scale)

    def to_units(self, grey: NDArray[np.float32], device: torch.device | str) -> Tensor:
        """Grey levels to the prior's units, as a tensor."""
        return torch.from_numpy((grey - self.zero) / self.scale).float().to(device)

    def to_grey(self, units: Tensor) -> NDArray[np.float32]:
        """The prior's units to grey levels, as an array."""
        return (units.cpu().numpy() * self.scale + self.zero).astype(np.float32)


def load(
    name: str, device: torch.device | str = "cpu", pixel_angstrom: float | None = None
) -> Prior:
    """Return the prior of a configuration by its name, in bfloat16 where that is faster.

    A prior that can be told the pixel size *of the result* is told it, from 25 to 300 angstroms.
    """
    prior = load_prior(name, device, half=has_fast_bfloat16(device))
    known = pixel_angstrom is not None and KNOWN_ANGSTROM[0] <= pixel_angstrom <= KNOWN_ANGSTROM[1]
    return prior.told(pixel_angstrom) if known and isinstance(prior, DepthPrior) else prior


def denoise(image: ArrayLike, config: Config, generator: torch.Generator, **options: Any) -> Found:
    """Remove noise from ``(H, W)``, or from ``(D, H, W)``: each plane together with its neighbours.

    Takes the options of `solve`; ``coloured=True`` for noise whose spectrum is estimated from the
    image itself; and for volumes of cubic voxels ``cubic=True``, the mean over all three axes.
    """
    coloured = options.pop("coloured", False)
    task = "denoise_coloured" if coloured else "denoise"
    return solve(task, Identity(), image, config, generator, **options)


def deblur(
    image: ArrayLike, kernel: ArrayLike, config: Config, generator: torch.Generator, **options: Any
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
    timed = TimedPrior(load(config.prior, device) if prior is None else prior)
    measured, noise = scale.to_units(grey, device), _white(sigma, scale)
    tiled, settings = _tiled(timed, config), blind or BlindConfig()
    result, kernel = blind_deblur(tiled, measured, noise, settings, generator)
    return _estimate(result, scale, sigma, timed, notes), kernel.cpu().numpy()


def upsample(
    image: ArrayLike,
    factor: int,
    config: Config,
    generator: torch.Generator,
    *,
    sampling: Sampling = "average",
    **options: Any,
) -> Found:
    """Make ``(H, W)`` finer by a whole factor.

    Its pixels are averages of the fine ones, or one of each block (``"decimate"``: a sparse scan).

    Coarse pixels alias fine detail, which an estimate would take for noise: unless `noise_sigma`
    tells otherwise the image counts as free of noise.
    """
    operator = Downsample(_factor(factor), mode=sampling)
    start = cubic_upsample(_checked(image, (2,)), factor, sampling)
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
    sampling: Sampling = "average",
    **options: Any,
) -> Found:
    """Make ``(D, H, W)`` as fine along axis 0 as along the others: ``(D * factor, H, W)``.

    The factor is the thickness of a slice in pixels of the other axes. A slice is the average of
    the planes that it stands for (block-face, sections), or one of them (``"decimate"``). Sections
    are seen alone: what thick slices lack is alike in all neighbours, and not noise.
    """
    operator = Axial(_factor(factor), sampling)
    start = cubic_axial(_checked(volume, (3,)), factor, sampling)
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
    cubic: bool = False,
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
    samples, prior : optional
        Default: the configuration's.
    start : ndarray, optional
        First guess on the fine grid, in grey levels; default: the image itself.
    scale, spectrum, noise : optional
        Grey scale, noise spectrum and a solver's random numbers of a larger volume that
        this image is a block of; default: from the image itself.
    cubic : bool
        Planes across all three axes of a volume are seen; only for denoising.
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
    known: Prior = load(config.prior, device) if prior is None else prior
    depth = isinstance(known, DepthPrior) and grey.ndim == 3 and task != "isotropic"
    timed = TimedPrior(known.of_volumes(config.batch, cubic) if depth else known)  # type: ignore[attr-defined]
    tiled = known = _tiled(timed, config, depth)
    once = isinstance(settings, OneStepConfig)
    if once:  # tells of tiles, as there are no steps
        timed.progress, timed.total = progress, math.prod(shape[:-2]) * tiled.tiles(*shape[-2:])
    else:
        known = EquivariantPrior(known, generator)
    if isinstance(settings, PlugAndPlayConfig):
        # The published step is a gradient step of length 1: it wants an operator of norm 1,
        # and averages over blocks have a smaller one.
        unit = 1 / (operator_norm(operator, shape, device=y.device) or 1.0)
        operator, y = Scaled(operator, unit), unit * y
    result = solver_of(settings)(
        across_axes(known) if task == "isotropic" else known,
        operator, y, detector, settings, noise or generator,
        shape=shape, samples=count, start=first,
        progress=None if once else progress,
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


def _tiled(prior: Prior, config: Config, depth: bool = False) -> TiledPrior:
    batch, dimensions = (1, 3) if depth else (config.batch, 2)
    return TiledPrior(prior, config.tile, config.overlap, batch, smallest=16, dimensions=dimensions)


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
