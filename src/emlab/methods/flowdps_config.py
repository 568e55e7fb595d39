"""Settings of FlowDPS, its prior in radians, and how far the truth lies from the prior's answers.

The guided sampler needs that spread at each noise level and frequency. For shipped weights it was
measured on views that the network was not trained on. For other weights the prior is asked about
draws of its own, once: the result is kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from emlab import weights
from emlab.checks import check_fields
from emlab.data import cache_folder
from emlab.data.phase_maps import FIELD
from emlab.errors import InputError
from emlab.priors import Prior, load_prior
from emlab.priors.base import ScaledPrior
from emlab.runtime import atomic_path, has_fast_bfloat16, make_generator
from emlab.settings import of_kind, read_config, read_settings
from emlab.solvers.denoiser_spread import MeasuredSpread, Spread, measure_spread
from emlab.solvers.flowdps import FlowDPSConfig
from emlab.solvers.guided_phase import GuidedPhaseConfig
from emlab.solvers.sampling import sample_prior

MEASURED = "methods/flowdps_measured"  # settings that `tools.record` writes
LEVELS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)  # in units of the prior
DRAWS, STEPS = 16, 10
Sampler = GuidedPhaseConfig | FlowDPSConfig
_SAMPLERS: Mapping[str, type[Sampler]] = {"guided": GuidedPhaseConfig, "flowdps": FlowDPSConfig}


@dataclass(frozen=True)
class Config:
    """Settings of `emlab.methods.flowdps.retrieve`.

    Attributes
    ----------
    prior : str
        Name of the weights.
    sampler : GuidedPhaseConfig or FlowDPSConfig
        How the posterior is sampled.
    samples : int
        Of each particle, unless the caller asks for another number.
    batch : int
        Particles that are sampled at the same time, with all their samples.
    window : int
        Largest side of the detector's window in the prior's pixels; what of a larger image lies
        outside serves to measure the background only.
    dose_per_angstrom2 : float
        Electrons per square angstrom that the fit of normalised particles starts from.
    fit_rounds, fit_samples, fit_steps : int
        How often gain and offset of normalised particles are fitted, to how many samples of how
        many steps; 0 rounds take the dose above for true.
    """

    prior: str
    sampler: Sampler
    samples: int = 10
    batch: int = 8
    window: int = 96
    dose_per_angstrom2: float = 40.0
    fit_rounds: int = 3
    fit_samples: int = 2
    fit_steps: int = 12

    def __post_init__(self) -> None:
        check_fields(self)
        if self.samples < 1 or self.batch < 1 or self.fit_samples < 1:
            raise InputError("FlowDPS needs samples, batch and fit_samples of at least 1")
        if self.window < 16 or self.window % 2:
            raise InputError(f"the window must be an even number of pixels from 16: {self.window}")
        if not 0 < self.dose_per_angstrom2 < 1e6:
            raise InputError(
                f"the dose is given in electrons per square angstrom: {self.dose_per_angstrom2}"
            )
        if self.fit_rounds < 0 or self.fit_steps < 2:
            raise InputError("the fit of gain and offset needs fit_rounds >= 0 and fit_steps >= 2")

    @cached_property
    def quick(self) -> Sampler:
        """The sampler in the few steps that the fit of gain and offset takes."""
        return replace(self.sampler, steps=min(self.fit_steps, self.sampler.steps))


def load_config(name: str = "ours") -> Config:
    """Return ``[configs.NAME]`` of the settings: ``ours``, ``paper``, ``kim`` or ``corrected``.

    Raises
    ------
    InputError
        Unknown name or settings.
    """
    table = read_config("flowdps", name)
    sampler = of_kind(_SAMPLERS, "kind", table.pop("sampler"))
    if isinstance(sampler, FlowDPSConfig):  # it needs to know how much images differ
        sampler = replace(sampler, scale=phase_scale().std)
    return Config(sampler=sampler, **table)


@dataclass(frozen=True)
class PhaseScale:
    """Between radians and the units of the prior, ``(phase - mean) / std`` of the training maps."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        check_fields(self)
        if self.std <= 0:
            raise InputError(f"the scale of the phase needs std > 0, got {self.std}")

    def to_prior(self, phase: Tensor) -> Tensor:
        """Radians to prior units."""
        return (phase - self.mean) / self.std

    def to_radians(self, x: Tensor) -> Tensor:
        """Prior units to radians."""
        return x * self.std + self.mean

    def of(self, prior: Prior) -> ScaledPrior:
        """A prior in radians as one in prior units."""
        return ScaledPrior(prior, 1 / self.std, -self.mean / self.std)


def phase_scale() -> PhaseScale:
    """The scale that priors of phases share."""
    return PhaseScale(**read_settings("methods/flowdps")["phase"])


def load_in_radians(name: str, device: torch.device | str = "cpu") -> Prior:
    """A prior of phases by name, in bfloat16 where that is faster."""
    scale, network = phase_scale(), load_prior(name, device, half=has_fast_bfloat16(device))
    return ScaledPrior(network, scale.std, scale.mean)


def draw_phases(
    prior: Prior,
    n: int,
    generator: torch.Generator,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Phase maps ``(n, 64, 64)`` in radians that a prior in radians draws without a measurement."""
    scale, shape = phase_scale(), (n, FIELD, FIELD)
    with torch.no_grad():
        drawn = sample_prior(
            scale.of(prior), shape, generator, steps=steps, sigma_max=40.0, device=device
        )
    return scale.to_radians(drawn)


def spread_of(name: str, prior: Prior, device: torch.device | str = "cpu") -> tuple[Spread, str]:
    """Spread of shipped or other weights by name, in squared radians, and where it is from.

    Parameters
    ----------
    prior : Prior
        The prior of these weights in radians.
    """
    digest, known = weights.card(name).sha256, read_settings(MEASURED)["spread"]
    if known["sha256"].get(name) == digest:
        return _spread(np.array(known["rings"][name])), "measured on held-out views"
    file = cache_folder() / "spread" / f"{name}_{digest[:16]}.npy"
    if not file.is_file():
        found = on_own_draws(prior, device)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, rings_of(found))
    return _spread(np.load(file, allow_pickle=False)), "measured on draws of the prior itself"


def on_own_draws(prior: Prior, device: torch.device | str = "cpu") -> MeasuredSpread:
    """Spread around the answers of a prior in radians, asked about images that it drew itself."""
    return on_images(prior, draw_phases(prior, DRAWS, make_generator(0), STEPS, device))


def on_images(prior: Prior, images: Tensor) -> MeasuredSpread:
    """Spread around the answers of a prior in radians, asked about images ``(n, H, W)``."""
    std = phase_scale().std
    return measure_spread(prior, images, [std * level for level in LEVELS], make_generator(1))


def rings_of(spread: MeasuredSpread) -> np.ndarray:
    """Its variances ``(levels, rings)``, one for each whole spatial frequency."""
    rings = _rings()
    return np.stack(
        [
            np.bincount(rings.flatten(), level.flatten()) / np.bincount(rings.flatten())
            for level in spread.variances.double().numpy()
        ]
    )


def _spread(rings: np.ndarray) -> MeasuredSpread:
    levels = torch.tensor(LEVELS) * phase_scale().std
    return MeasuredSpread(levels, torch.from_numpy(rings[:, _rings()]).float())


def _rings() -> np.ndarray:
    rows = np.fft.fftfreq(FIELD, 1 / FIELD)
    return np.round(np.hypot(rows[:, None], np.arange(FIELD // 2 + 1))).astype(int)
