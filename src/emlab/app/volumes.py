"""EM Generalist on volumes larger than memory: block by block, one grey scale, one noise field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlab import weights
from emlab.app.blocks import BlockRun, Source, block_shape_for, process_blocks
from emlab.app.tasks import Crew
from emlab.errors import InputError
from emlab.io.images import check_finite
from emlab.io.volumes import NewVolume
from emlab.methods import generalist
from emlab.methods.generalist import Config, Found, GreyScale
from emlab.physics.noise_estimation import (
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
)
from emlab.priors import Prior
from emlab.runtime import choose_device, make_generator
from emlab.solvers import ONE_ESTIMATE
from emlab.solvers.one_step import DiffuseBackConfig, OneStepConfig
from emlab.solvers.plug_and_play import RestoreConfig

# Fine pixels at each face of a block whose result is thrown away, and over which blocks blend.
MARGIN = 16
# float32 arrays of the size of its result that a solver holds at once, for one sample.
COPIES = 16
_SURVEYED_PLANES = 16
# Side of the cells of noise that are drawn at once, by number of axes: about 4096 values each.
CELLS = {1: 4096, 2: 64, 3: 16}


class NoiseField:
    """Endless white Gaussian noise, one independent field for every step of a sampler.

    Two blocks that overlap see the same noise where they overlap, whatever their shapes and
    whichever is computed first, so a sampler that is run block by block draws one sample and not a
    patchwork. The values come from a counter-based generator (Philox, Salmon et al. 2011, "Parallel
    random numbers: as easy as 1, 2, 3"): its key is (seed, stream and step), its counter starts at
    the coordinates of a cell, and so any place can be drawn without the places before it. Streams,
    one a sample, are independent.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        if not 0 <= seed < 2**63 or not 0 <= stream < 2**31:
            raise InputError(
                f"a noise field needs a seed from 0 to 2**63 - 1 and a stream from 0 to 2**31 - 1, "
                f"got {seed} and {stream}"
            )
        self.seed, self.stream = int(seed), int(stream)

    def at(self, step: int, origin: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the noise of a step in a box: float32, N(0, 1), independent from pixel to pixel.

        The step is from 0 to 2**32 - 1; the origin has the global coordinates of the first pixel,
        one to three axes, which may be negative.
        """
        axes = len(shape)
        if axes not in CELLS or len(origin) != axes:
            raise InputError(
                f"noise needs an origin and a shape of 1 to 3 axes, got {tuple(origin)} and "
                f"{tuple(shape)}"
            )
        if not 0 <= step < 2**32:
            raise InputError(f"the step of a noise field must be from 0 to 2**32 - 1, got {step}")
        side = CELLS[axes]
        first = [start // side for start in origin]
        last = [-(-(start + size) // side) for start, size in zip(origin, shape, strict=True)]
        key = [self.seed, step + (self.stream << 32)]
        noise = np.empty(tuple(shape), np.float32)
        for place in product(*(range(a, b) for a, b in zip(first, last, strict=True))):
            counter = np.array([0, *(c % 2**64 for c in place), *[0] * (3 - axes)], np.uint64)
            random = np.random.Generator(np.random.Philox(counter=counter, key=key))
            cell = random.standard_normal((side,) * axes, np.float32)
            inside, outside = [], []
            for c, start, size in zip(place, origin, shape, strict=True):
                low, high = max(c * side, start), min((c + 1) * side, start + size)
                inside.append(slice(low - c * side, high - c * side))
                outside.append(slice(low - start, high - start))
            noise[tuple(outside)] = cell[tuple(inside)]
        return torch.from_numpy(noise)


@dataclass(frozen=True)
class Survey:
    """What all blocks of a volume share."""

    scale: GreyScale  #: from the mean and variance of the whole volume
    noise_sigma: float  #: in grey levels
    spectrum: NoiseSpectrum | None = None  #: of coloured noise


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

    Noise is estimated from 16 planes spread over the volume, unless it is given, in grey levels.
    Voxels that are not finite, a constant volume and too small planes are refused.
    """
    depth, height, width = volume.shape
    slab = min(64, max(1, int(memory_mb * 2**20 / (24 * height * width))))
    total = squares = 0.0
    offset: float | None = None
    for first in range(0, depth, slab):
        planes = np.asarray(volume[first : first + slab], dtype=np.float64)
        check_finite(planes, f"the volume, in planes {first} to {first + len(planes) - 1},")
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


@dataclass(frozen=True)
class Restorer:
    """Denoises a block (factor 1), or makes it isotropic, as a part of its volume.

    It can be sent to a worker, which then loads the prior of the configuration once. Samples are
    computed one after the other; the seed and their number make their noise. The result is their
    mean in grey levels; with a spread, columns of mean and standard deviation take turns. Options
    are those of `generalist.isotropic` (a factor among them) or of `generalist.denoise`, the pixel
    size is that of `generalist.load`.
    """

    config: Config
    shared: Survey
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 1
    with_spread: bool = False
    seed: int = 0
    prior: Prior | None = None
    device: str = "cpu"
    pixel_angstrom: float | None = None

    @property
    def factor(self) -> int:
        """How many times finer the result is along axis 0."""
        return self.options.get("factor", 1)

    @property
    def task(self) -> str:
        """Name of the solver in the configuration."""
        if "factor" in self.options:
            return "isotropic"
        return "denoise" if self.shared.spectrum is None else "denoise_coloured"

    @property
    def drawn(self) -> int:
        """Samples that the solver draws; one if it draws none."""
        return 1 if isinstance(self.config.solvers[self.task], ONE_ESTIMATE) else self.samples

    @property
    def reach(self) -> int:
        """Planes on each side that an answer depends on, or nearly so for a sampler."""
        if self.prior is not None:
            planes = getattr(self.prior, "reach", 0)
        else:
            card = weights.card(self.config.prior)
            sees = card.objective.get("kind") == "depth"
            planes = card.model.get("planes", 5) // 2 if sees else 0
        planes = MARGIN if planes and self.options.get("cubic") else planes
        return planes if isinstance(self.config.solvers[self.task], OneStepConfig) else 4 * planes

    def __call__(self, block: np.ndarray, origin: tuple[int, ...]) -> np.ndarray:
        """Restore a block ``(d, h, w)`` whose first voxel lies at ``origin`` in the volume."""
        mean = self._one(block, origin, 0).image
        squares = np.zeros_like(mean)
        for sample in range(1, self.drawn):
            image = self._one(block, origin, sample).image
            change = image - mean
            mean += change / (sample + 1)
            squares += change * (image - mean)
        if not self.with_spread:
            return mean
        return np.stack([mean, np.sqrt(squares / self.drawn)], -1).reshape(*mean.shape[:-1], -1)

    def _one(self, block: np.ndarray, origin: tuple[int, ...], sample: int) -> Found:
        field = NoiseField(self.seed, sample)
        place = (origin[0] * self.factor, *origin[1:])
        spectrum, device = self.shared.spectrum, choose_device(self.device)
        version = weights.card(self.config.prior).sha256
        told: dict[str, Any] = {
            "noise_sigma": self.shared.noise_sigma if spectrum is None else None,
            "spectrum": spectrum,
            "scale": self.shared.scale,
            "samples": 1,
            "prior": self.prior or _loaded(self.config.prior, device, self.pixel_angstrom, version),
            "device": device,
            "noise": lambda step, shape: field.at(step, place, shape[-3:])[None],
        }
        turns = make_generator(self.seed + sample)  # the same in every block
        method = generalist.isotropic if self.task == "isotropic" else generalist.denoise
        return method(block, config=self.config, generator=turns, **self.options, **told)


def restore_volume(
    source: Source,
    targets: Sequence[NewVolume],
    restorer: Restorer,
    *,
    memory_mb: float = 2048.0,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew | None = None,
) -> BlockRun:
    """Restore a volume ``(D, H, W)`` a block at a time, with one grey scale and one noise field.

    Targets are ``(D * factor, H, W)``, written box by box; a second one takes the spread. The
    memory is in megabytes (2**20 bytes) beyond what the process (each worker) and its network take
    without any block; the settings are what a resumed run must have in common beyond the restorer,
    such as the weights' hash. A solver that cannot be fed with a noise field, too little memory and
    a journal of other settings are refused.
    """
    config, solver = restorer.config, restorer.config.solvers[restorer.task]
    if not isinstance(solver, (*ONE_ESTIMATE, RestoreConfig, DiffuseBackConfig)):
        raise InputError(
            f"a volume that does not fit into {memory_mb:g} MB needs the config ours or samples; "
            f"allow more memory or choose one of those"
        )
    deep = math.ceil(MARGIN / restorer.factor) if restorer.factor > 1 else restorer.reach
    halo = (deep, MARGIN, MARGIN)
    scale = (restorer.factor, 1, len(targets))
    facts = {
        "task": restorer.task,
        "options": restorer.options,
        "config": {"prior": config.prior, **asdict(solver), "tile": config.tile},
        "noise": restorer.shared.noise_sigma,
        "samples": restorer.drawn,
        "seed": restorer.seed,
        **(settings or {}),
    }
    return process_blocks(
        source,
        targets[0] if len(targets) == 1 else _Interleaved(*targets),
        block_shape_for(memory_mb, source.shape, halo=halo, scale=scale, copies=COPIES),
        halo,
        restorer,
        scale=scale,
        settings=facts,
        progress=progress,
        crew=crew,
    )


@lru_cache(maxsize=1)
def _loaded(name: str, device: torch.device, pixel_angstrom: float | None, version: str) -> Prior:
    """The last one is kept, for the next block; a worker may live longer than its files."""
    return generalist.load(name, device, pixel_angstrom)


class _Interleaved:
    """Two volumes as one of twice the width: even columns the estimate, odd ones the spread."""

    def __init__(self, estimate: NewVolume, spread: NewVolume) -> None:
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
