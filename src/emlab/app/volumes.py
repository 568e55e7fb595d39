"""EM Generalist on volumes larger than memory: block by block, one grey scale, one noise field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emlab import weights
from emlab.app.blocks import BlockRun, Source, Target, block_shape_for, process_blocks
from emlab.app.noise_field import NoiseField
from emlab.app.tasks import Crew
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.methods.generalist import Found
from emlab.methods.generalist_config import Config
from emlab.methods.generalist_scale import GreyScale
from emlab.physics.noise_estimation import (
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
)
from emlab.priors import Prior
from emlab.priors.networks import load_prior
from emlab.runtime import choose_device, has_fast_bfloat16, make_generator
from emlab.solvers import ONE_ESTIMATE
from emlab.solvers.one_step import DiffuseBackConfig
from emlab.solvers.plug_and_play import RestoreConfig

# Fine pixels at each face of a block whose result is thrown away, and over which blocks blend.
MARGIN = 16
# float32 arrays of the size of its result that a solver holds at once, for one sample.
COPIES = 16
_SURVEYED_PLANES = 16


class VolumeTarget(Target, Protocol):
    """What is written: a `NewVolume`."""

    @property
    def resumed(self) -> bool:
        """Whether an earlier, unfinished run is gone on with."""

    @property
    def journal(self) -> Path:
        """Where the blocks that are done are noted."""

    def flush(self) -> None:
        """Bring what was written to the disk."""


@dataclass(frozen=True)
class Survey:
    """What all blocks of a volume share.

    Attributes
    ----------
    scale : GreyScale
        From the mean and variance of the whole volume.
    noise_sigma : float
        Standard deviation of the noise, in grey levels.
    spectrum : NoiseSpectrum or None
        Of coloured noise.
    """

    scale: GreyScale
    noise_sigma: float
    spectrum: NoiseSpectrum | None = None


def megabytes(voxels: int, samples: int = 1) -> float:
    """Working memory (2**20 bytes) to restore so many voxels of the result at once."""
    return voxels * 4 * COPIES * samples / 2**20


def survey(
    volume: Source,
    *,
    noise_sigma: float | None = None,
    coloured: bool = False,
    memory_mb: float = 256.0,
) -> Survey:
    """Read a volume ``(D, H, W)`` once, a few planes at a time: its grey levels and its noise.

    Parameters
    ----------
    noise_sigma : float, optional
        In grey levels; default: estimated from 16 planes spread over the volume.

    Raises
    ------
    InputError
        Voxels that are not finite, a constant volume, planes too small to estimate the noise from.
    """
    depth, height, width = volume.shape
    slab = min(64, max(1, int(memory_mb * 2**20 / (24 * height * width))))
    total = squares = 0.0
    offset: float | None = None
    for first in range(0, depth, slab):
        planes = np.asarray(volume[first : first + slab], dtype=np.float64)
        if not np.isfinite(planes).all():
            raise InputError(
                f"the volume has NaN or infinite voxels in planes {first} to "
                f"{first + len(planes) - 1}; replace them (for example by the median of their "
                f"neighbours)"
            )
        offset = float(planes.mean()) if offset is None else offset
        planes = planes - offset
        total += float(planes.sum())
        squares += float(np.square(planes).sum())
    count = math.prod(volume.shape)
    variance = squares / count - (total / count) ** 2
    spectrum = None
    if noise_sigma is None:
        places = np.unique(np.linspace(0, depth - 1, _SURVEYED_PLANES).astype(int))
        seen = np.stack([np.asarray(volume[int(z)], dtype=np.float32) for z in places])
        spectrum = estimate_noise_spectrum(seen) if coloured else None
        noise_sigma = estimate_noise_sigma(seen) if spectrum is None else spectrum.sigma
    mean = (offset or 0.0) + total / count
    return Survey(GreyScale.from_moments(mean, variance, noise_sigma), noise_sigma, spectrum)


def restore_volume(
    source: Source,
    target: VolumeTarget,
    config: Config,
    shared: Survey,
    *,
    factor: int = 1,
    axial: str = "average",
    samples: int = 1,
    spread: VolumeTarget | None = None,
    seed: int = 0,
    memory_mb: float = 2048.0,
    prior: Prior | None = None,
    device: torch.device | str = "cpu",
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew | None = None,
) -> BlockRun:
    """Denoise a volume plane by plane (factor 1), or make it isotropic, a block at a time.

    All blocks have the grey scale of the whole volume and see one noise field, so that neighbours
    agree where they overlap.

    Parameters
    ----------
    source
        ``(D, H, W)``, read box by box.
    target
        ``(D * factor, H, W)``, written box by box: mean of the samples in grey levels.
    factor, axial
        As for `generalist.isotropic`.
    samples : int
        Computed one after the other; `seed` and their number make their noise.
    spread
        Like `target`, for the standard deviation over the samples.
    memory_mb : float
        Megabytes (2**20 bytes) beyond what the process and its network take without any block.
    settings
        What a resumed run must have in common beyond the arguments here, such as the weights' hash.
    prior
        Default: that of the configuration; each worker of a crew then loads it once.
    crew
        Who restores the blocks, each with `memory_mb`; see `process_blocks`.

    Raises
    ------
    InputError
        A solver that cannot be fed with a noise field, too little memory, a journal of other
        settings.
    """
    coloured = shared.spectrum is not None
    task = "isotropic" if factor > 1 else "denoise_coloured" if coloured else "denoise"
    solver = config.solvers[task]
    if not isinstance(solver, (*ONE_ESTIMATE, RestoreConfig, DiffuseBackConfig)):
        raise InputError(
            f"a volume that does not fit into {memory_mb:g} MB needs the config ours or samples; "
            f"allow more memory or choose one of those"
        )
    if isinstance(solver, ONE_ESTIMATE):
        samples = 1
    if spread is not None and samples < 2:
        raise InputError("the spread needs at least 2 samples of a sampler")
    halo = (math.ceil(MARGIN / factor) if factor > 1 else 0, MARGIN, MARGIN)
    scale = (factor, 1, 1 if spread is None else 2)
    function = _Restorer(
        config, shared, factor, axial, samples, spread is not None, seed, prior, str(device)
    )
    facts = {
        "task": task,
        "axial": axial,
        "config": {"prior": config.prior, **asdict(solver), "tile": config.tile},
        "noise": shared.noise_sigma,
        "samples": samples,
        "seed": seed,
        **(settings or {}),
    }
    return process_blocks(
        source,
        target if spread is None else _Interleaved(target, spread),
        block_shape_for(memory_mb, source.shape, halo=halo, scale=scale, copies=COPIES),
        halo,
        function,
        scale=scale,
        settings=facts,
        progress=progress,
        crew=crew,
    )


@dataclass(frozen=True)
class _Restorer:
    """Restores a block; can be sent to a worker, which then loads the prior itself."""

    config: Config
    shared: Survey
    factor: int
    axial: str
    samples: int
    with_spread: bool
    seed: int
    prior: Prior | None
    device: str

    def __call__(self, block: np.ndarray, origin: tuple[int, int, int]) -> np.ndarray:
        mean = self._one(block, origin, 0).image
        squares = np.zeros_like(mean)
        for sample in range(1, self.samples):
            image = self._one(block, origin, sample).image
            change = image - mean
            mean += change / (sample + 1)
            squares += change * (image - mean)
        if not self.with_spread:
            return mean
        return np.stack([mean, np.sqrt(squares / self.samples)], -1).reshape(*mean.shape[:-1], -1)

    def _one(self, block: np.ndarray, origin: tuple[int, int, int], sample: int) -> Found:
        field = NoiseField(self.seed, sample)
        place = (origin[0] * self.factor, *origin[1:])

        def noise(step: int, shape: tuple[int, ...]) -> Tensor:
            return field.at(step, place, shape[-3:])[None]

        spectrum = self.shared.spectrum
        device = choose_device(self.device)
        options: dict[str, Any] = {
            "noise_sigma": self.shared.noise_sigma if spectrum is None else None,
            "spectrum": spectrum,
            "scale": self.shared.scale,
            "samples": 1,
            "prior": self.prior or _loaded(self.config.prior, device, self._version()),
            "device": device,
            "noise": noise,
        }
        turns = make_generator(self.seed + sample)  # the same in every block
        config = self.config
        if self.factor > 1:
            return generalist.isotropic(
                block, self.factor, config, turns, axial=self.axial, **options
            )
        coloured = spectrum is not None
        return generalist.denoise(block, config, turns, coloured=coloured, **options)

    def _version(self) -> str:
        return weights.card(self.config.prior).sha256


@lru_cache(maxsize=1)
def _loaded(name: str, device: torch.device, version: str) -> Prior:
    """The last one is kept, for the next block; a worker may live longer than its files."""
    return load_prior(name, device, half=has_fast_bfloat16(device))


class _Interleaved:
    """Two volumes as one of twice the width: even columns the estimate, odd ones the spread."""

    def __init__(self, estimate: VolumeTarget, spread: VolumeTarget) -> None:
        self.estimate, self.spread = estimate, spread
        self.shape = (*estimate.shape[:-1], 2 * estimate.shape[-1])
        self.dtype, self.journal = estimate.dtype, estimate.journal
        self.resumed = estimate.resumed and spread.resumed

    def __setitem__(self, index: tuple[slice, slice, slice], values: np.ndarray) -> None:
        z, y, x = index
        box = (z, y, slice(x.start // 2, x.stop // 2))
        self.estimate[box] = values[..., ::2]
        self.spread[box] = values[..., 1::2]

    def flush(self) -> None:
        self.estimate.flush()
        self.spread.flush()
