"""How the phase-map prior of the proteasome is trained, and its trained competitor.

The competitor is one U-Net from image and CTF-corrected image to phase, taught on the maps of the
prior, seen through the same instrument. It gives one answer with no measure of its doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from emlab import models
from emlab.checks import check_fields
from emlab.data.metadata import Metadata
from emlab.data.particles import draw_metadata
from emlab.data.phase_maps import FIELD, phase_maps
from emlab.errors import InputError
from emlab.methods.flowdps_config import PhaseScale, phase_scale
from emlab.methods.flowdps_observation import lens
from emlab.physics import ExitWave, Poisson
from emlab.priors.networks import wrap
from emlab.priors.objectives import FlowMatching
from emlab.recipes.lesson import Lesson, denoising_psnr, one_of_eight, settings_of
from emlab.training import Loss

SUPERVISED = "flowdps_supervised"
VALIDATION_LEVELS = (0.25, 0.5, 1.0, 2.0)  # standard deviations of the noise in prior units
PEAK_RADIANS = 0.5  # of the PSNR on the card


@dataclass(frozen=True)
class Material:
    """Phase maps of a specimen of `emlab.data.phase_maps` to train on and to measure with.

    The atoms are drawn `oversampling` times finer than the maps.
    """

    specimen: str = "t20s"
    maps: int = 20_000
    validation: int = 256
    oversampling: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.maps < 1 or self.validation < 1:
            raise InputError("training material needs at least one map and one for validation")


def turn(batch: Tensor, generator: torch.Generator, scale: PhaseScale) -> Tensor:
    """One of the eight flips and turns of maps in radians, float32 in prior units.

    A mirrored map is the view from behind, so it stays a projection of the same particle.
    """
    return one_of_eight(scale.to_prior(batch.float()), generator)


def prepare(recipe: dict, table: dict) -> Lesson:
    """Phase maps and the objective of the flow prior.

    Maps are made before the first step (six minutes on one core) and kept in the user's cache: a
    machine without the packages that make them needs only that folder, named by EMLAB_CACHE.
    Numbers on the card come from viewing directions at least 2 degrees from any trained on.
    """
    material, objective, scale = Material(**table), recipe["objective"], phase_scale()
    loss = FlowMatching(**settings_of(objective))
    validation = scale.to_prior(_maps(material, material.validation, 1, "validation"))

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        denoise, peak = wrap(model, objective).denoise, PEAK_RADIANS / scale.std
        return denoising_psnr(denoise, validation.to(device), VALIDATION_LEVELS, 1.0, peak)

    told = f"mean {scale.mean:g} and standard deviation {scale.std:g} rad"
    return _lesson(material, loss, evaluate, told)


def prepare_supervised(recipe: dict, table: dict) -> Lesson:
    """The supervised network on the maps of the prior."""
    degradation = Degradation(tuple(recipe["dose"]), tuple(recipe["b_factor"]), recipe["window"])
    material, scale, optics = Material(**table), phase_scale(), draw_metadata(2000, 0)
    loss = partial(paired_loss, degradation=degradation, optics=optics, scale=scale)
    validation = _maps(material, material.validation, 1, "validation")

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return _errors(Restorer(model, scale), validation.to(device), degradation, optics)

    told = f"seen with the optics of {optics.source.rpartition('/')[2]}"
    return _lesson(material, loss, evaluate, told, half=True)


def _maps(material: Material, n: int, seed: int, split: str) -> Tensor:
    return phase_maps(material.specimen, n, seed, split, oversampling=material.oversampling).phases


def _lesson(
    material: Material,
    loss: Loss,
    evaluate: Callable[[nn.Module, torch.device], dict[str, float]],
    told: str,
    *,
    half: bool = False,
) -> Lesson:
    return Lesson(
        _maps(material, material.maps, 0, "train").half(),
        loss,
        evaluate,
        f"{material.specimen}: phase maps of 64 x 64 pixels of 2.63 A at 300 kV, {told}",
        f"{material.maps} random poses; views within 3 degrees of twelve directions never seen, "
        "validation on four of these",
        partial(turn, scale=phase_scale()),
        half=half,
    )


@dataclass(frozen=True)
class Degradation:
    """How the maps are degraded: optics of real particles, a dose, an envelope, a window.

    The dose in electrons per square angstrom is log-uniform between its two ends; the B factor of
    the envelope in square angstrom is uniform, one a batch; the window is a side in pixels.
    """

    dose: tuple[float, float] = (20.0, 80.0)
    b_factor: tuple[float, float] = (0.0, 80.0)
    window: int = 96

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.dose[0] <= self.dose[1] or not 0 <= self.b_factor[0] <= self.b_factor[1]:
            raise InputError("dose and b_factor are given as (lowest, highest), the dose above 0")

    def instrument(self, optics: Metadata, n: int, generator: torch.Generator) -> ExitWave:
        """An instrument for n images, its defocus drawn from rows of `optics`."""
        chosen = torch.randint(len(optics), (n,), generator=generator).numpy()
        rows = optics.subset(chosen)
        random = torch.rand(n, generator=generator, dtype=torch.float64)
        low, high = self.b_factor
        factor = low + (high - low) * torch.rand((), generator=generator).item()
        dose = self.dose[0] * (self.dose[1] / self.dose[0]) ** random
        return ExitWave(lens(rows, factor), dose, FIELD, self.window)


@dataclass(frozen=True)
class Restorer:
    r"""A residual network on two channels: the linear estimate and the counts themselves.

    With J the derivative of the instrument at no phase, N the counts without a specimen and s the
    standard deviation of the phase, the linear estimate is
    :math:`u = (J^\top J / N + s^{-2})^{-1} J^\top (y - N) / N` in the approximation that
    :math:`J^\top J` is diagonal in Fourier space, and the answer :math:`u + f(u, y)`.
    """

    #: f; takes ``(n, 2, H, W)`` and a scalar per image, a fourth of the log counts per pixel
    network: nn.Module
    scale: PhaseScale

    def linear(self, instrument: ExitWave, counts: Tensor) -> Tensor:
        """u in radians ``(n, field, field)`` for counts ``(n, window, window)``."""
        expected = instrument.constants(counts)[1]
        tangent = instrument.linearised(counts.new_zeros(len(counts), *[instrument.field] * 2))
        pulled = torch.fft.rfft2(tangent.A_adjoint((counts - expected) / expected))
        known = instrument.sensitivity().to(counts.device) / expected
        size = [instrument.field] * 2
        return torch.fft.irfft2(pulled / (known + self.scale.std**-2), s=size)

    def correction(self, instrument: ExitWave, counts: Tensor, linear: Tensor) -> Tensor:
        """f in prior units ``(n, field, field)``."""
        expected = instrument.constants(counts)[1].expand(len(counts), 1, 1)
        start = (instrument.window - instrument.field) // 2
        inner = slice(start, start + instrument.field)
        seen = ((counts - expected) / expected.sqrt())[:, inner, inner]
        both = torch.stack([self.scale.to_prior(linear), seen], dim=1)
        return self.network(both, expected[:, 0, 0].log() / 4)[:, 0].float()

    def restore(self, instrument: ExitWave, counts: Tensor) -> Tensor:
        """Phase in radians ``(n, field, field)`` of counts ``(n, window, window)``."""
        with torch.no_grad():
            linear = self.linear(instrument, counts)
            return linear + self.scale.std * self.correction(instrument, counts, linear)


def load_restorer(device: torch.device | str = "cpu") -> Restorer:
    """The trained network."""
    return Restorer(models.load(SUPERVISED, device)[0], phase_scale())


def paired_loss(
    model: nn.Module,
    clean: Tensor,
    generator: torch.Generator,
    degradation: Degradation,
    optics: Metadata,
    scale: PhaseScale,
) -> Tensor:
    """Mean squared error in prior units of restored maps ``(n, H, W)``, given in prior units."""
    restorer = Restorer(model, scale)
    with torch.autocast(clean.device.type, enabled=False):  # pairs are made in full precision
        instrument = degradation.instrument(optics, len(clean), generator)
        counts = Poisson().sample(instrument.A(scale.to_radians(clean)), generator)
        linear = restorer.linear(instrument, counts)
    found = scale.to_prior(linear) + restorer.correction(instrument, counts, linear)
    return (found - clean).square().mean()


def _errors(
    restorer: Restorer, phases: Tensor, degradation: Degradation, optics: Metadata
) -> dict[str, float]:
    """Phase error in rad, mean removed, of the network and of the linear estimate before it."""
    generator = torch.Generator().manual_seed(0)
    totals = dict.fromkeys(("phase_rmse", "phase_rmse_linear"), 0.0)
    for part in phases.split(32):
        instrument = degradation.instrument(optics, len(part), generator)
        counts = Poisson().sample(instrument.A(part), generator)
        answers = (restorer.restore(instrument, counts), restorer.linear(instrument, counts))
        for name, found in zip(totals, answers, strict=True):
            totals[name] += (found - part).std((1, 2), correction=0).square().sum().item()
    return {name: (total / len(phases)) ** 0.5 for name, total in totals.items()}
