"""How the phase-map prior of the proteasome is trained: maps, scale, validation on other views."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from emlab.checks import check_fields
from emlab.data.phase_maps import phase_maps
from emlab.errors import InputError
from emlab.methods.flowdps_config import PhaseScale, phase_scale
from emlab.priors.networks import wrap
from emlab.priors.objectives import FlowMatching
from emlab.recipes.lesson import Lesson

VALIDATION_LEVELS = (0.25, 0.5, 1.0, 2.0)  # standard deviations of the noise in prior units
PEAK_RADIANS = 0.5


@dataclass(frozen=True)
class Material:
    """What a network sees.

    Attributes
    ----------
    specimen : str
        A key of `emlab.data.phase_maps.SPECIMENS`.
    maps, validation : int
        Phase maps to train on and to measure with.
    oversampling : int
        How much finer than the maps the atoms are drawn.
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
    images = scale.to_prior(batch.float())
    turns, flip = torch.randint(4, (), generator=generator), torch.rand((), generator=generator)
    images = torch.rot90(images, int(turns), (1, 2))
    return images.flip(-1) if flip < 0.5 else images


def prepare(recipe: dict, table: dict) -> Lesson:
    """Phase maps and the objective of the flow prior.

    Maps are made before the first step (six minutes on one core) and kept in the user's cache: a
    machine without the packages that make them needs only that folder, named by EMLAB_CACHE.
    Numbers on the card come from viewing directions at least 2 degrees from any trained on.
    """
    material, objective, scale = Material(**table), recipe["objective"], phase_scale()
    loss = FlowMatching(**{key: value for key, value in objective.items() if key != "kind"})
    make = partial(phase_maps, material.specimen, oversampling=material.oversampling)
    validation = scale.to_prior(make(material.validation, 1, "validation").phases)

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return _denoising_psnr(model, objective, validation.to(device), scale)

    return Lesson(
        make(material.maps, 0, "train").phases.half(),
        loss,
        evaluate,
        f"{material.specimen}: phase maps of 64 x 64 pixels of 2.63 A at 300 kV, "
        f"mean {scale.mean:g} and standard deviation {scale.std:g} rad",
        f"{material.maps} random poses; views within 3 degrees of twelve directions never seen, "
        "validation on four of these",
        partial(turn, scale=scale),
    )


def _denoising_psnr(
    model: nn.Module, objective: dict, images: Tensor, scale: PhaseScale
) -> dict[str, float]:
    """PSNR in dB (peak .5 rad) after one evaluation, by noise level in prior units."""
    prior, generator = wrap(model, objective), torch.Generator().manual_seed(0)
    peak, numbers = PEAK_RADIANS / scale.std, {}
    for level in VALIDATION_LEVELS:
        noise = level * torch.randn(images.shape, generator=generator).to(images.device)
        denoised = [prior.denoise(part, level) for part in (images + noise).split(64)]
        error = (torch.cat(denoised) - images).square().mean((1, 2))
        numbers[f"denoising_psnr_at_{level:g}"] = (10 * torch.log10(peak**2 / error)).mean().item()
    return numbers
