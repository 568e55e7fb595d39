"""Particles of the FlowDPS chapter: phase maps never trained on, seen as real ones were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.bench import Report
from emlab.data.metadata import Metadata
from emlab.data.particles import draw_metadata
from emlab.data.phase_maps import (
    FIELD,
    PIXEL_ANGSTROM,
    PhaseMaps,
    held_out_direction,
    phase_maps,
    poses,
)
from emlab.errors import DataUnavailableError
from emlab.methods.flowdps_observation import Observation, observe_counts
from emlab.physics import ComplexCTF, ExitWave, Poisson
from emlab.runtime import make_generator

WINDOW = 96
SMALL_CTF = 0.3  # modulus below which a coefficient counts as near a zero, the envelope apart
ENVELOPE = 60.0  # B factor in square angstrom: what source, drift and detector take of the wave
SHELL = "shell"  # a phantom of another particle: a hollow sphere
SHELL_ANGSTROM, SHELL_RADIANS = (42.0, 62.0), 0.0023  # inner and outer radius; phase per angstrom
SPECIMENS = {"t20s": "pdb_6bdf", "beta_galactosidase": "pdb_5a1a", "apoferritin": "pdb_4v1w"}


@dataclass(frozen=True)
class Cases:
    """n particles: what every method gets, and the truth.

    Attributes
    ----------
    specimen : str
        A key of `emlab.data.phase_maps.SPECIMENS`.
    truth : Tensor
        ``(n, 64, 64)`` radians.
    optics : Metadata
        Of real particles; the pixel size and poses in it are not those of the truth.
    dose : Tensor
        ``(n,)`` electrons per square angstrom.
    counts : Tensor
        ``(n, 96, 96)`` electrons.
    rotations : ndarray
        ``(n, 3, 3)`` of the truth.
    shifts_angstrom : ndarray
        ``(n, 2)``.
    b_factor_angstrom2 : float
        Of the lens's envelope.
    split : str
        Whose poses they are.
    """

    specimen: str
    truth: Tensor
    optics: Metadata
    dose: Tensor
    counts: Tensor
    rotations: NDArray[np.float64]
    shifts_angstrom: NDArray[np.float64]
    b_factor_angstrom2: float = ENVELOPE
    split: str = "test"

    def __len__(self) -> int:
        return len(self.truth)

    def first(self, n: int) -> Cases:
        """The first n."""
        return self.part(slice(n))

    def part(self, rows: slice) -> Cases:
        """Some of the particles."""
        names = ("truth", "dose", "counts", "rotations", "shifts_angstrom")
        chosen = {name: getattr(self, name)[rows] for name in names}
        return replace(self, optics=self.optics.subset(rows), **chosen)

    def instrument(
        self, field: int = FIELD, window: int = WINDOW, *, envelope: bool = True
    ) -> ExitWave:
        """The microscope that saw them, for a specimen of another field or window if asked."""
        ctf = lens(self.optics, self.b_factor_angstrom2 * envelope)
        return ExitWave(ctf, self.dose, field, window, padded=2 * field)

    def seen(self) -> Seen:
        """What `emlab.methods.flowdps.sample` asks for."""
        told = observe_counts(self.counts, self.optics, self.dose)
        return Seen(**vars(told) | {"b_factor_angstrom2": self.b_factor_angstrom2})

    @property
    def groups(self) -> NDArray[np.intp]:
        """Which held-out direction each is seen from, ``(n,)``; each its own if all share one.

        Intervals draw whole directions: eight independent views, however many particles.
        """
        found = held_out_direction(self.rotations, self.split)
        return found if len(np.unique(found)) > 1 else np.arange(len(found))

    def near_zeros(self) -> NDArray[np.bool_]:
        """Coefficients of `rfft2` ``(n, 64, 33)`` that the lens hides.

        Those of a contrast transfer below .3, beyond its first maximum.
        """
        ctf = lens(self.optics)
        frequency = ctf.grid((FIELD, FIELD))[0]
        defocus = (self.optics.defocus_u_angstrom + self.optics.defocus_v_angstrom) / 2
        peak = torch.from_numpy((2 * ctf.wavelength_angstrom * defocus) ** -0.5)
        hidden = ctf.weak_phase((FIELD, FIELD)).abs() < SMALL_CTF
        return (hidden & (frequency > peak[:, None, None]))[..., : FIELD // 2 + 1].numpy()


@dataclass(frozen=True)
class Seen(Observation):
    """An observation whose waves travel in the square in which they were simulated."""

    def instrument(self) -> ExitWave:
        """The microscope of `Cases.instrument`."""
        ctf = lens(self.optics, self.b_factor_angstrom2)
        return ExitWave(ctf, self.dose_per_angstrom2, FIELD, WINDOW, padded=2 * FIELD)


def lens(optics: Metadata, b_factor_angstrom2: float = 0.0) -> ComplexCTF:
    """The transfer of particles in the pixels of the phase maps."""
    return ComplexCTF(
        optics.voltage_kv,
        PIXEL_ANGSTROM,
        torch.from_numpy(optics.defocus_u_angstrom),
        torch.from_numpy(optics.defocus_v_angstrom),
        torch.from_numpy(optics.astigmatism_deg),
        optics.cs_mm,
        optics.amplitude_contrast,
        b_factor_angstrom2=b_factor_angstrom2,
    )


def chapter_specimen() -> str:
    """The proteasome, or the simulated barrel where its model is not to be had."""
    return (available(["t20s"]) or ["barrel"])[0]


def available(names: Sequence[str]) -> list[str]:
    """Those specimens whose model is to be had."""
    found = []
    for name in names:
        try:
            _maps(name, 2, 0, "test")
        except DataUnavailableError:
            continue
        found.append(name)
    return found


def _maps(specimen: str, n: int, seed: int, split: str) -> PhaseMaps:
    """Phase maps of a specimen, or of a hollow sphere: each the same but for its place."""
    if specimen != SHELL:
        return phase_maps(specimen, n, seed, split)
    shifts = np.random.default_rng([seed, 2]).normal(0, PIXEL_ANGSTROM, (n, 2))
    axis = PIXEL_ANGSTROM * (np.arange(FIELD) - FIELD // 2)
    squared = (axis[:, None] - shifts[:, 1, None, None]) ** 2
    squared = squared + (axis - shifts[:, 0, None, None]) ** 2
    inner, outer = (2 * np.sqrt(np.maximum(r**2 - squared, 0)) for r in SHELL_ANGSTROM)
    phases = torch.from_numpy(SHELL_RADIANS * (outer - inner)).float()
    return PhaseMaps(phases, poses(n, seed, split), shifts)


def make_cases(
    specimen: str,
    n: int,
    seed: int,
    doses: Sequence[float] = (30.0, 45.0, 60.0),
    *,
    split: str = "test",
    defocus_angstrom: float | None = None,
    b_factor_angstrom2: float = ENVELOPE,
) -> Cases:
    """Simulate particles.

    Parameters
    ----------
    doses : sequence of float
        Electrons per square angstrom, given to the particles in turn.
    split : str
        ``"test"``: poses that nobody tuned or trained with; ``"validation"`` for tuning.
    defocus_angstrom : float, optional
        Mean defocus of all particles instead of that of real ones; the astigmatism is kept.
    """
    maps, optics = _maps(specimen, n, seed, split), draw_metadata(n, seed)
    if defocus_angstrom is not None:
        half = (optics.defocus_u_angstrom - optics.defocus_v_angstrom) / 2
        optics = replace(
            optics,
            defocus_u_angstrom=defocus_angstrom + half,
            defocus_v_angstrom=defocus_angstrom - half,
        )
    dose = torch.tensor([doses[i % len(doses)] for i in range(n)], dtype=torch.float64)
    ctf = lens(optics, b_factor_angstrom2)
    instrument = ExitWave(ctf, dose, FIELD, WINDOW, padded=2 * FIELD)
    return Cases(
        specimen,
        maps.phases,
        optics,
        dose,
        Poisson().sample(instrument.A(maps.phases), make_generator(1009 * seed + 1)),
        maps.rotations,
        maps.shifts_angstrom,
        b_factor_angstrom2,
        split,
    )


def record_specimens(
    report: Report, own: str, others: Sequence[str], wanted: Sequence[str]
) -> None:
    """Say in a report which particles are simulated, from what, and what stands in for what."""
    for name in dict.fromkeys((own, *others)):
        if name in SPECIMENS:
            how = f"projections of the atomic model {SPECIMENS[name]}, counts of its exit wave"
            report.simulated(f"phase maps of {name}", how)
        elif name == SHELL:
            report.simulated("phase maps of a shell", "hollow sphere of 42 to 62 angstrom")
        else:
            how = "seven-fold barrel of four rings of Gaussian blobs, published dimensions"
            stands_in = SPECIMENS["t20s"] if name == own else ""
            report.simulated(f"phase maps of a {name}", how, stands_in_for=stands_in)
    for name in wanted:
        if name not in others:
            report.absent(SPECIMENS[name], f"{name} is left out as another protein")
    if (source := optics_source()).startswith("simulated"):
        report.simulated("defocus and astigmatism", source, stands_in_for="t20s_metadata")


def optics_source() -> str:
    """Where defocus and astigmatism of simulated particles come from."""
    return draw_metadata(2, 0).source.rpartition("/")[2]
