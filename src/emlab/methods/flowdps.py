r"""FlowDPS: the phase of a single particle image, with samples that tell how sure it is.

A flow knows what phase maps look like, the exit wave what a detector counts of one. Samples of the
posterior start as noise; at each noise level

1. the flow answers with the clean map that it expects;
2. the answer is moved towards what the counts say, as far as the two deserve belief;
3. it goes to the next level, with noise drawn anew.

`guided_phase` does step 2 by a draw from a Gaussian, `flowdps` by steps down the misfit. Particles
and samples are evaluated together. The mean of the samples is the estimate, their spread its doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emlab.data.metadata import Metadata, Particles
from emlab.data.phase_maps import FIELD
from emlab.errors import InputError
from emlab.methods.estimate import Estimate, TimedPrior
from emlab.methods.flowdps_config import (
    Config,
    load_config,
    load_in_radians,
    on_own_draws,
    spread_of,
)
from emlab.methods.flowdps_observation import (
    CONTRASTS,
    Contrast,
    Observation,
    check,
    find_contrast,
    misfit,
    observe,
    observe_counts,
)
from emlab.priors import Prior
from emlab.solvers import solver_of
from emlab.solvers.contract import Progress, Samples
from emlab.solvers.denoiser_spread import Spread

__all__ = [
    "Config",
    "Retrieval",
    "load",
    "load_config",
    "prepare",
    "retrieve",
]


@dataclass(frozen=True, kw_only=True)
class Retrieval(Estimate[NDArray[np.float32]]):
    """Phases of n particles, ``image`` ``(n, 64, 64)`` in radians.

    Each has mean zero, for a single image does not tell the mean phase, and the spread is that of
    samples without their means; `samples` are as drawn.

    Attributes
    ----------
    chi2 : ndarray
        ``(n,)`` mean squared misfit of the counts to the samples, in variances of the noise: 1
        where prior and instrument explain the image, with a standard deviation of
        ``sqrt(2 / pixels)``; more where they do not.
    chi2_low : ndarray
        ``(n,)`` that of the coarse part, which tells another specimen; see `misfit`.
    dose_per_angstrom2 : ndarray
        ``(n,)`` electrons that would give this noise: as given, or fitted.
    gain, offset : ndarray
        ``(n,)``: value in the file = gain * expected electrons per pixel + offset.
    pixel_size_angstrom : float
        Of the phases.
    pixels : int
        Of the window that was compared.
    independent : int
        How many of the samples, the first ones, are independent of each other.
    """

    chi2: NDArray[np.float32]
    chi2_low: NDArray[np.float32]
    dose_per_angstrom2: NDArray[np.float32]
    gain: NDArray[np.float32]
    offset: NDArray[np.float32]
    pixel_size_angstrom: float
    pixels: int
    independent: int


def load(config: Config, device: torch.device | str = "cpu") -> tuple[Prior, Spread, str]:
    """The configuration's prior in radians, its spread, and how that was measured."""
    prior = load_in_radians(config.prior, device)
    return prior, *spread_of(config.prior, prior, device)


def retrieve(
    images: ArrayLike | Tensor | Particles,
    optics: Metadata | None,
    config: Config,
    generator: torch.Generator,
    *,
    samples: int | None = None,
    prior: Prior | None = None,
    spread: Spread | None = None,
    dose_per_angstrom2: float | Sequence[float] | Tensor | None = None,
    contrast: Contrast = "auto",
    crop: bool = False,
    b_factor_angstrom2: float = 0.0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Retrieval:
    """Draw phases of particles from their posterior.

    Parameters
    ----------
    images : Particles or array_like
        Particles of any pixel size up to the prior's 2.63 A, resampled here; or counts of
        electrons ``(n, window, window)`` in the prior's pixels, particles in the middle.
    optics : Metadata or None
        One row for each of the counts; None for `Particles`, which bring theirs.
    samples : int, optional
        Of each particle; default: the configuration's.
    prior : Prior, optional
        In radians. Default: the configuration's, loaded anew (`load`).
    spread : Spread, optional
        Variance of the truth around the prior's answers. Default: the one that comes with the
        configuration's prior; of another prior it is measured on its own draws.
    dose_per_angstrom2 : float, optional
        The values are electrons, of so many per square angstrom (one number, or with an array n).
        Without it particles are normalised, and gain and offset are fitted.
    contrast : str
        How matter looks in normalised particles: ``"bright"``, ``"dark"`` or ``"auto"``.
    crop : bool
        Restore the middle 64 pixels of boxes that are larger.
    b_factor_angstrom2 : float
        Envelope of source, drift and detector: the B factor of the amplitude, 0 for none.
    progress : callable, optional
        Called with (done, total) network evaluations of a batch.
    """
    count = config.samples if samples is None else samples
    if count < 1:
        raise InputError(f"samples must be at least 1, got {count}")
    told = (dose_per_angstrom2, contrast, crop, b_factor_angstrom2)
    look, size, notes = prepare(images, optics, config, *told)
    if prior is None:
        prior, found, origin = load(config, device)
        spread = found if spread is None else spread
        notes.append(f"spread of the prior's answers: {origin}")
    timed = TimedPrior(prior)
    spread = on_own_draws(timed, device) if spread is None else spread
    batches = [slice(start, start + config.batch) for start in range(0, size, config.batch)]
    given = (timed, spread, config, generator, count, device, progress)
    numbered = ((look(rows), (i, len(batches))) for i, rows in enumerate(batches))
    made = [_batch(part, number, *given) for part, number in numbered]
    seen, images, chi2 = zip(*made, strict=True)
    several = np.concatenate(images, axis=1)
    centred = several - several.mean((2, 3), keepdims=True)
    independent = config.sampler.independent(count)

    def values(name: str) -> NDArray[np.float32]:
        return torch.cat([getattr(one, name) for one in seen]).float().numpy()

    return Retrieval(
        image=centred.mean(0),
        spread=deviation(centred, independent) if count > 1 else None,
        samples=several,
        chi2=np.concatenate([whole for whole, _ in chi2]),
        chi2_low=np.concatenate([coarse for _, coarse in chi2]),
        dose_per_angstrom2=values("dose_per_angstrom2"),
        gain=values("gain"),
        offset=values("offset"),
        pixel_size_angstrom=seen[0].pixel_size_angstrom,
        pixels=seen[0].counts[0].numel(),
        independent=independent,
        notes=notes,
        cost=timed.cost(timed.seen),
    )


def deviation(samples: NDArray[np.float32], independent: int) -> NDArray[np.float32]:
    """Standard deviation ``(...)`` over samples ``(s, ...)``, of which some are opposites.

    Opposite pairs lie around the posterior mean itself, independent samples around their own.
    """
    pairs = independent < len(samples) and len(samples) % 2 == 0
    return samples.std(0, ddof=0 if pairs else 1)


def prepare(
    images: ArrayLike | Tensor | Particles,
    optics: Metadata | None,
    config: Config,
    dose_per_angstrom2: float | Sequence[float] | Tensor | None = None,
    contrast: Contrast = "auto",
    crop: bool = False,
    b_factor_angstrom2: float = 0.0,
) -> tuple[Callable[[slice], Observation], int, list[str]]:
    """Check images; return a function from rows to what was seen there, how many rows, notes.

    Parameters and errors are those of `retrieve`.
    """
    if contrast not in CONTRASTS:
        raise InputError(f"contrast is one of {', '.join(CONTRASTS)}, not {contrast!r}")
    dose, look = dose_per_angstrom2, contrast
    if not isinstance(images, Particles):
        if optics is None or dose is None:
            raise InputError("images without metadata need optics and dose_per_angstrom2")
        counts = torch.as_tensor(np.asarray(images, dtype=np.float32))
        seen = observe_counts(counts, optics, dose)
        return replace(seen, b_factor_angstrom2=b_factor_angstrom2).rows, len(counts), []
    if optics is not None:
        raise InputError("particles bring their optics; give None for optics")
    if not (dose is None or isinstance(dose, (int, float))):
        raise InputError("particles have one dose; give one number")
    particles, notes = images, check(images, crop=crop, dose_per_angstrom2=dose)
    if dose is None and contrast == "auto":
        look, sentence = find_contrast(particles)
        notes.append(sentence)

    def rows(chosen: slice) -> Observation:
        found = observe(particles.subset(chosen), config, look, dose)
        return replace(found, b_factor_angstrom2=b_factor_angstrom2)

    return rows, len(particles), notes


def _batch(
    seen: Observation,
    number: tuple[int, int],
    prior: Prior,
    spread: Spread,
    config: Config,
    generator: torch.Generator,
    samples: int,
    device: torch.device | str,
    progress: Progress | None,
) -> tuple[Observation, NDArray[np.float32], list[NDArray[np.float32]]]:
    """Fit gain and offset to a few quick samples, then draw the samples, of batch i of n.

    Returns what was seen, the samples, chi^2 of everything and of the coarse part.
    """
    rounds, shape = 0 if seen.counted else config.fit_rounds, (len(seen.counts), FIELD, FIELD)
    steps = rounds * config.quick.steps + config.sampler.steps
    for round_ in range(rounds + 1):
        last, before = round_ == rounds, number[0] * steps + round_ * config.quick.steps

        def ahead(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, number[1] * steps)

        sampler, count = (config.sampler, samples) if last else (config.quick, config.fit_samples)
        instrument, noise, counts = seen.instrument(), seen.noise(), seen.counts.to(device)
        solver: Callable[..., Samples] = solver_of(sampler)
        given = prior, instrument, counts, noise, sampler, generator
        found = solver(*given, shape=shape, samples=count, progress=ahead, spread=spread)
        expected = instrument.A(found.images).cpu()
        if not last:
            seen = seen.refitted(expected)
    left = misfit(seen.counts, expected, noise, seen.pixel_size_angstrom)
    chi2 = [value.mean(0).numpy() for value in left]
    return seen, found.images.cpu().numpy(), chi2
