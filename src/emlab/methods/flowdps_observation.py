"""What the detector saw, in the units of the instrument: particle images as counts of electrons.

Images come in the pixels and values of their stack. They are brought to the prior's pixels; those
that are normalised get the units of counts from their background, whose noise is that of N
electrons, and what N is follows from how strong the particle is (`Observation.refitted`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.data.metadata import Metadata, Particles
from emlab.data.particles import centre_window, resample
from emlab.data.phase_maps import FIELD, PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.methods.flowdps_config import MEASURED, Config
from emlab.physics.counting import (
    CountingNoise,
    GaussianCounts,
    Poisson,
    counts_from_normalised,
    fit_gain_offset,
)
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.settings import read_settings

Contrast = Literal["auto", "bright", "dark"]
CONTRASTS = ("auto", "bright", "dark")
FIELD_ANGSTROM = FIELD * PIXEL_ANGSTROM
COARSEST = 1.1  # pixels above this many of the prior's cannot show what it draws
LARGEST_STEP = 2.0  # by which one round of the fit may change gain or noise
RELAXATION = 1.3  # expectation-maximisation walks too short steps
SURE = 5.0  # standard deviations of the mean contrast that tell its sign
ASKED = 64  # particles that are asked for it


@dataclass(frozen=True)
class Observation:
    """Counts of n particles, and what the file's values have to do with them.

    Attributes
    ----------
    counts : Tensor
        ``(n, window, window)`` float32; whole numbers only where the file held electrons.
    optics : Metadata
        One row a particle.
    pixel_size_angstrom : float
        Of the counts.
    electrons : Tensor
        ``(n,)`` per pixel where there is no specimen.
    gain, offset : Tensor
        ``(n,)``: value in the file = gain * counts + offset. The gain is negative where matter
        is bright.
    counted : bool
        The file holds electrons: nothing is fitted, and the noise is Poisson's.
    b_factor_angstrom2 : float
        Envelope of source, drift and detector that the lens is thought to have.
    """

    counts: Tensor
    optics: Metadata
    pixel_size_angstrom: float
    electrons: Tensor
    gain: Tensor
    offset: Tensor
    counted: bool
    b_factor_angstrom2: float = 0.0

    @property
    def dose_per_angstrom2(self) -> Tensor:
        """Electrons per square angstrom ``(n,)``, as many as would give this noise."""
        return self.electrons / self.pixel_size_angstrom**2

    def rows(self, chosen: slice) -> Observation:
        """Some of the particles."""
        parts = {
            name: getattr(self, name)[chosen] for name in ("counts", "electrons", "gain", "offset")
        }
        return replace(self, optics=self.optics.subset(chosen), **parts)

    def instrument(self) -> ExitWave:
        """The microscope that saw these particles."""
        ctf = lens(self.optics, self.b_factor_angstrom2, self.pixel_size_angstrom)
        window = self.counts.shape[-1]
        return ExitWave(ctf, self.dose_per_angstrom2, FIELD, window, _padded(ctf, window))

    def noise(self) -> CountingNoise:
        """Poisson's for electrons; normal with the variance of the background otherwise."""
        return Poisson() if self.counted else GaussianCounts(self.electrons[:, None, None])

    def refitted(self, expected: Tensor) -> Observation:
        r"""Gain, offset and noise that make expected counts agree with the values in the file.

        One step of expectation-maximisation. The least-squares line through the counts over the
        expectations of posterior *samples* has slope 1 when N is right (that of the posterior
        mean is steeper, for the mean follows the noise and lacks the spread). A slope a says that
        the particle is a times as strong as thought; the step is taken 1.3 times as long. A
        misfit c to the samples around the particle, in variances, corrects the noise, to which
        the fringes of the particle had been added: :math:`N \to a^2 N / c`.

        Parameters
        ----------
        expected : Tensor
            ``(samples, n, window, window)`` from the instrument of this observation.
        """
        seen = self.counts.expand(expected.shape)
        tall = [stack.movedim(0, 1).flatten(1, 2) for stack in (expected, seen)]
        slope, level = fit_gain_offset(*tall)
        empty = level + slope * self.electrons[:, None, None]
        misfit = (seen - slope * expected - level).square()[..., _around(seen.shape[-1])]
        noise = _limited(misfit.mean((0, 2)) / self.electrons)[:, None, None]
        slope = _limited(slope) ** RELAXATION
        electrons = slope.square() / noise * self.electrons[:, None, None]
        counts = electrons + slope / noise * (self.counts - empty)
        flat = [value[:, 0, 0] for value in (slope / noise, electrons, empty)]
        gain = self.gain / flat[0]
        offset = self.offset + self.gain * flat[2] - gain * flat[1]
        return replace(self, counts=counts, electrons=flat[1], gain=gain, offset=offset)


def lens(
    optics: Metadata,
    b_factor_angstrom2: float = 0.0,
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
) -> ComplexCTF:
    """The transfer of particles in pixels of another size than their file's."""
    return ComplexCTF(
        optics.voltage_kv,
        pixel_size_angstrom,
        torch.from_numpy(optics.defocus_u_angstrom),
        torch.from_numpy(optics.defocus_v_angstrom),
        torch.from_numpy(optics.astigmatism_deg),
        optics.cs_mm,
        optics.amplitude_contrast,
        torch.from_numpy(optics.phase_shift_deg),
        b_factor_angstrom2=b_factor_angstrom2,
    )


def misfit(
    counts: Tensor,
    expected: Tensor,
    noise: CountingNoise,
    pixel_size_angstrom: float,
    coarser_than_angstrom: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared misfit in variances of the noise: of everything, and of the coarse part.

    Where prior and instrument explain an image what is left is white noise of variance 1. A wrong
    particle differs in its outline first, and thousands of pixels of noise do not hide that if
    only low frequencies are counted.

    Parameters
    ----------
    counts, expected : Tensor
        ``(..., n, H, W)``.
    coarser_than_angstrom : float, optional
        Default: the length that told other proteins best on validation poses (measured).

    Returns
    -------
    Tensor, Tensor
        ``(..., n)``.
    """
    length = coarser_than_angstrom or read_settings(MEASURED)["misfit"]["coarser_than_angstrom"]
    left = (counts - expected) * noise.curvature(expected).sqrt()
    height, width = left.shape[-2:]
    rows, columns = (torch.fft.fftfreq(side, pixel_size_angstrom) for side in (height, width))
    frequency = torch.hypot(rows[:, None], columns)
    coarse = (frequency > 0) & (frequency < 1 / length)
    power = torch.fft.fft2(left).abs().square()[..., coarse].mean(-1) / (height * width)
    return left.square().mean((-2, -1)), power


def observe_counts(
    images: Tensor, optics: Metadata, dose_per_angstrom2: float | Sequence[float] | Tensor
) -> Observation:
    """Electrons in the prior's pixels of 2.63 A, particles in the middle: nothing is resampled.

    Parameters
    ----------
    images : Tensor
        ``(n, window, window)``.
    optics : Metadata
        n rows; its pixel size and its shifts are those of other images and are not used.
    dose_per_angstrom2 : float or n of them
    """
    if images.ndim != 3 or len(images) != len(optics) or images.shape[1] != images.shape[2]:
        raise InputError(
            f"{len(optics)} rows of optics for images of shape {tuple(images.shape)}; give square "
            "images (n, H, W) and one row for each"
        )
    if not bool(images.isfinite().all()):
        raise InputError("the images contain NaN or infinity; replace those first")
    dose = torch.as_tensor(dose_per_angstrom2, dtype=torch.float32).expand(len(images))
    if not bool(((dose > 0) & dose.isfinite()).all()):
        raise InputError("the dose must be a positive number of electrons per square angstrom")
    ones = torch.ones(len(images))
    return Observation(
        images.float(), optics, PIXEL_ANGSTROM, dose * PIXEL_ANGSTROM**2, ones, 0 * ones, True
    )


def observe(
    particles: Particles,
    config: Config,
    contrast: Contrast,
    dose_per_angstrom2: float | None = None,
) -> Observation:
    """Bring particle images, whatever their pixels, to counts in the prior's.

    Parameters
    ----------
    particles : Particles
        Checked by `check`. Where their shifts are known they are moved to the middle.
    contrast : str
        How matter looks: ``"bright"`` or ``"dark"``; not used for electrons.
    dose_per_angstrom2 : float, optional
        The pixels are electrons, of so many per square angstrom. Default: they are normalised.
    """
    pixel = particles.pixel_size_angstrom
    side = particles.images.shape[-1] * pixel / PIXEL_ANGSTROM
    wide = resample(particles, PIXEL_ANGSTROM, max(16, min(2 * round(side / 2), 2 * config.window)))
    images, reached = torch.from_numpy(wide.images), wide.pixel_size_angstrom
    if dose_per_angstrom2 is None:
        electrons = torch.full((len(images),), config.dose_per_angstrom2 * reached**2)
        radius = min(FIELD, images.shape[-1]) / 2
        counts = counts_from_normalised(
            images, electrons[:, None, None], radius, inverted=contrast == "bright"
        )
        gain, offset = (value[:, 0, 0] for value in fit_gain_offset(counts, images))
    else:
        electrons = torch.full((len(images),), dose_per_angstrom2 * reached**2)
        counts = images * (reached / pixel) ** 2
        gain = torch.full_like(electrons, (pixel / reached) ** 2)
        offset = torch.zeros_like(gain)
    seen = centre_window(counts.numpy(), min(counts.shape[-1], config.window))
    counted = dose_per_angstrom2 is not None
    return Observation(torch.from_numpy(seen), wide, reached, electrons, gain, offset, counted)


def check(particles: Particles, *, crop: bool, dose_per_angstrom2: float | None) -> list[str]:
    """Refuse particles that the prior cannot restore; return what the reader should know.

    Raises
    ------
    InputError
        Pixels too coarse, a box larger than the field without `crop`, a constant image, a dose
        that is not positive.
    """
    pixel, side = particles.pixel_size_angstrom, particles.images.shape[-1]
    width, notes = pixel * side, []
    if pixel > COARSEST * PIXEL_ANGSTROM:
        raise InputError(
            f"pixels of {pixel:.4g} A are coarser than the prior's {PIXEL_ANGSTROM} A; extract the "
            "particles again with finer ones"
        )
    if pixel > 1.001 * PIXEL_ANGSTROM:
        notes.append(f"pixels of {pixel:.4g} A are coarser than the prior's {PIXEL_ANGSTROM} A")
    if width > 1.02 * FIELD_ANGSTROM and not crop:
        raise InputError(
            f"a box of {width:.0f} A is larger than the {FIELD_ANGSTROM:.0f} A of the prior, and "
            "finer or coarser pixels would not change that; if the particle fits into the middle "
            f"{FIELD_ANGSTROM:.0f} A and nothing else is near, add crop (--crop), else use a prior "
            "of larger particles"
        )
    if width < 0.6 * FIELD_ANGSTROM:
        notes.append(
            f"a box of {width:.0f} A lacks much of what the lens has spread; extract larger ones"
        )
    same = np.ptp(particles.images.reshape(len(particles), -1), axis=1) == 0
    if same.any():
        raise InputError(
            f"image {int(np.flatnonzero(same)[0]) + 1} of {particles.source} is constant; remove it"
        )
    if dose_per_angstrom2 is not None and not 0 < dose_per_angstrom2 < 1e6:
        raise InputError(
            f"the dose must be a positive number of electrons per square angstrom, not "
            f"{dose_per_angstrom2:g}"
        )
    return notes


def find_contrast(particles: Particles) -> tuple[Contrast, str]:
    """Whether matter is bright or dark, and a sentence about it.

    Below the first zero of an underfocused lens a particle is darker than the ice, whatever it
    is; stacks are mostly inverted. The middle of the images (radius 40 A) is compared with what
    lies further than 84 A from it, or with the corners.
    """
    chosen = np.unique(np.linspace(0, len(particles) - 1, ASKED).astype(int))
    images = particles.images[chosen]
    inside, outside = _regions(images.shape[-1], particles.pixel_size_angstrom)
    middle, around = images[:, inside], images[:, outside]
    difference = middle.mean(1) - around.mean(1)
    error = around.std(1) * (1 / inside.sum() + 1 / outside.sum()) ** 0.5
    sure = float((difference / error).sum() / len(images) ** 0.5)
    if abs(sure) < SURE:
        return "bright", (
            "the images do not tell whether matter is bright or dark; taken as bright, "
            "choose with contrast (--contrast)"
        )
    found: Contrast = "bright" if sure > 0 else "dark"
    return found, f"matter is {found} in these images, {abs(sure):.0f} standard deviations"


def _padded(ctf: ComplexCTF, window: int) -> int:
    """Side of the periodic square in which waves travel: none comes round into the window.

    On the proteasome at 1.1 to 4 um the counts are right to .2 % of their noise.
    """
    pixel = ctf.pixel_size_angstrom
    reach = float(ctf.delocalisation_angstrom(0.5 / pixel).max()) / pixel
    needed = (FIELD + window) / 2 + reach + 4
    return max(2 * FIELD, 16 * math.ceil(needed / 16))


def _limited(change: Tensor) -> Tensor:
    return change.clamp(1 / LARGEST_STEP, LARGEST_STEP)


def _around(window: int) -> Tensor:
    """Where no particle is expected, ``(window, window)``."""
    axis = torch.arange(window) - window / 2
    return torch.hypot(axis[:, None], axis) > min(FIELD, window) / 2


def _regions(side: int, pixel: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    axis = (np.arange(side) - side // 2) * pixel
    radius = np.hypot(axis[:, None], axis)
    outside = radius > min(FIELD_ANGSTROM, side * pixel) / 2
    return radius < 40, outside
