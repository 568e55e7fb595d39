"""The simulated micrographs that score denoisers are trained, validated and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from emlab.data.phase_maps import PIXEL_ANGSTROM, specimen_volume
from emlab.errors import DataUnavailableError, InputError
from emlab.physics.micrograph import Micrograph, MicrographConfig, simulate_micrograph

PROTEINS = {
    "train": ("apoferritin_6z6u", "beta_galactosidase"),
    "seen": ("apoferritin_6z6u", "beta_galactosidase"),
    "validation": ("barrel",),
    "test": ("t20s",),
}
DEFOCI_ANGSTROM = {
    "train": (8000.0, 16000.0),
    "seen": (16000.0, 26000.0),
    "validation": (12000.0, 22000.0),
    "test": (16000.0, 26000.0),
}
STAND_IN = "barrel"
_SEEDS = {"train": 100, "validation": 200, "test": 300, "seen": 400}


@dataclass(frozen=True)
class Frame:
    """A simulated micrograph and the name of the particle that is really in it."""

    specimen: str
    micrograph: Micrograph


def frames(
    split: str, count: int = 8, size: int = 1024, particles: int | None = None
) -> list[Frame]:
    """Micrographs of a split: proteins in turn, defocus rising, doses of 36 to 54 e/A^2.

    Every fourth micrograph has a carbon edge, every other an ice crystal. Proteins and defocus
    ranges of the splits differ (`PROTEINS`, `DEFOCI_ANGSTROM`): `seen` has the proteins of the
    training at the defoci of the test. The barrel of the validation split is no real protein.
    Where an atomic model is not on this machine the barrel stands in, and `Frame.specimen` says
    so.

    Parameters
    ----------
    split : str
        ``"train"``, ``"seen"``, ``"validation"`` or ``"test"``.
    particles : int, optional
        Expected in a field of 1024 x 1024 pixels; 110 by default, 0 for the control.

    Raises
    ------
    InputError
        Unknown split, or no micrograph.
    """
    if split not in PROTEINS or count < 1:
        raise InputError(f"micrographs are of {', '.join(PROTEINS)}, at least one")
    return [_frame(split, number, count, size, particles) for number in range(count)]


def volume(specimen: str) -> tuple[Tensor, str]:
    """Potential ``(64, 64, 64)`` and the name of what it really is."""
    try:
        return specimen_volume(specimen), specimen
    except DataUnavailableError:
        return specimen_volume(STAND_IN), STAND_IN


@lru_cache(maxsize=32)
def _frame(split: str, number: int, count: int, size: int, particles: int | None) -> Frame:
    names, (low, high) = PROTEINS[split], DEFOCI_ANGSTROM[split]
    potential, name = volume(names[number % len(names)])
    share = (number + 0.5) / count
    wanted = 110 if particles is None else particles
    config = MicrographConfig(
        size=size,
        pixel_size_angstrom=PIXEL_ANGSTROM,
        dose_per_angstrom2=36 + 18 * ((5 * number) % 8) / 7,
        defocus_angstrom=low + (high - low) * share,
        astigmatism_deg=40.0 * number,
        particles=round(wanted * (size / 1024) ** 2),
        carbon=0.12 if number % 4 == 3 else 0.0,
        contaminants=number % 2,
    )
    generator = torch.Generator().manual_seed(_SEEDS[split] + number)
    return Frame(name, simulate_micrograph(config, potential, generator))
