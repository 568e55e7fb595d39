r"""From the phase of a specimen to the electrons that a detector counts, and its derivative.

.. math:: \psi = e^{(i-\kappa)x}, \qquad w = \psi * h, \qquad A(x) = N\,|w|^2 ,

with N the electrons per pixel. Spherical waves reach far beyond the particle that sent them out
(:math:`\lambda\,\Delta f\,k`, some 75 A at 2 um and 5.3 A): the specimen is a square `field`
without phase around it, in a larger periodic square, of which the detector sees a `window`.

The derivative, :math:`J\,dx = 2N\,\mathrm{Re}(\bar w \cdot ((i-\kappa)\psi\,dx) * h)`, and its
transpose are exact. Leading axes are samples first, particles last: images ``(..., n, H, W)`` for
n transfers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.ctf import ComplexCTF


class Tangent(Protocol):
    """An instrument near one image: a linear operator, and the counts expected of that image."""

    expected: Tensor

    def A(self, image: Tensor) -> Tensor:
        """Return the change of the counts that a small change of the image makes."""

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Carry a change of the counts back to the image."""


class Instrument(Protocol):
    """What the samplers need of an instrument that need not be linear.

    Attributes
    ----------
    counts : Tensor
        Electrons per pixel without a specimen; broadcasts against the measurement.
    """

    counts: Tensor

    def A(self, image: Tensor) -> Tensor:
        """Return the counts expected of an image."""

    def linearised(self, image: Tensor) -> Tangent:
        """Return the derivative at an image."""

    def sensitivity(self) -> Tensor:
        """Return how much a pixel of the image tells, broadcasting against it."""


class ExitWave:
    """Expected electrons per pixel of a phase.

    Parameters
    ----------
    ctf : ComplexCTF
        Of one image or of n.
    dose_per_angstrom2 : float or Tensor
        Electrons per square angstrom, one number or ``(n,)``.
    field : int
        Side of the specimen in pixels.
    window : int, optional
        Side of the detector's window, with the same centre; the field's by default.
    padded : int, optional
        Side of the periodic square in which the wave travels; twice the larger of the two.

    Raises
    ------
    InputError
        Sizes that do not fit, or a dose that is not positive.
    """

    def __init__(
        self,
        ctf: ComplexCTF,
        dose_per_angstrom2: float | Tensor,
        field: int = 64,
        window: int | None = None,
        padded: int | None = None,
    ) -> None:
        self.ctf, self.field = ctf, field
        self.window = field if window is None else window
        self.padded = 2 * max(field, self.window) if padded is None else padded
        if not 1 <= min(field, self.window) <= max(field, self.window) <= self.padded:
            raise InputError(
                f"field {field} and window {self.window} must be positive and fit into "
                f"the padded square of {self.padded} pixels"
            )
        dose = torch.as_tensor(dose_per_angstrom2, dtype=torch.float64)
        if not bool((dose > 0).all()) or not bool(dose.isfinite().all()):
            raise InputError("the dose must be a positive number of electrons per square angstrom")
        counts = dose * ctf.pixel_size_angstrom**2
        self.counts = counts[:, None, None] if counts.ndim else counts
        self._transfer = ctf.transfer((self.padded, self.padded))
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def A(self, image: Tensor) -> Tensor:
        """Expected counts ``(..., window, window)`` of phases ``(..., field, field)`` in rad."""
        return self.constants(image)[1] * self.detected(self.exit_wave(image)).abs().square()

    def linearised(self, image: Tensor) -> LinearisedExitWave:
        """The Jacobian at an image, and its transpose."""
        return LinearisedExitWave(self, image)

    def exit_wave(self, image: Tensor) -> Tensor:
        """The wave behind the specimen, complex, shape of the image."""
        if image.shape[-2:] != (self.field, self.field):
            raise InputError(
                f"the field is {self.field} x {self.field} pixels, got {tuple(image.shape)}"
            )
        return torch.polar((-self.ctf.kappa * image).exp(), image)

    def detected(self, exit_wave: Tensor) -> Tensor:
        """The wave in the detector's window; around the field the specimen is empty."""
        return 1 + self.propagate(exit_wave - 1)

    def propagate(self, wave: Tensor) -> Tensor:
        """A wave that is zero outside the field, through the lens, in the window."""
        spectrum = self.widened(wave, self.window) * self.constants(wave)[0]
        return torch.fft.ifft2(spectrum)[..., *self._part(self.window, self.field)]

    def propagate_adjoint(self, wave: Tensor) -> Tensor:
        """Conjugate transpose of `propagate`: from the window back to the field."""
        spectrum = self.widened(wave, self.field) * self.constants(wave)[0].conj()
        return torch.fft.ifft2(spectrum)[..., *self._part(self.field, self.window)]

    def widened(self, wave: Tensor, other: int) -> Tensor:
        """Spectrum of a wave alone in the padded square; centred with a square of side `other`."""
        start = max(0, other - wave.shape[-1]) // 2
        placed = torch.nn.functional.pad(wave, (start, 0, start, 0)) if start else wave
        return torch.fft.fft2(placed, s=[self.padded, self.padded])

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Transfer and counts per pixel in the precision and place of a tensor."""
        real = torch.empty(0, dtype=like.dtype).abs().dtype
        key = (real, like.device)
        if key not in self._cast:
            self._cast[key] = (
                self._transfer.to(like.device, real.to_complex()),
                self.counts.to(like.device, real),
            )
        return self._cast[key]

    def sensitivity(self) -> Tensor:
        r"""About the diagonal of :math:`J^\top J` of weak phases in Fourier space, float32.

        :math:`4N^2c^2` is a constant and a part that oscillates with the frequency. The edges of
        the field average the latter; the window misses its share of the former. ``(..., field,
        field // 2 + 1)``, layout of `torch.fft.rfft2`.
        """
        squared = self.ctf.weak_phase((self.padded, self.padded)).square()
        kernel = torch.fft.ifft2(squared).real
        lags = torch.fft.fftfreq(self.padded, 1 / self.padded, dtype=torch.float64)
        inside = (1 - lags.abs() / self.field).clamp_min(0)
        kernel = kernel * inside[:, None] * inside
        places = lags.long() % self.field
        folded = kernel.new_zeros(*kernel.shape[:-2], self.field, self.padded)
        folded = folded.index_add(-2, places, kernel)
        kernel = kernel.new_zeros(*kernel.shape[:-2], self.field, self.field)
        power = torch.fft.fft2(kernel.index_add(-1, places, folded)).real - self._missed()
        return (4 * self.counts.square() * power.clamp_min(0)).float()[..., : self.field // 2 + 1]

    def _missed(self) -> Tensor:
        """Part of the mean squared CTF whose wave leaves the window, ``(..., field, field)``."""
        frequency, azimuth = self.ctf.grid((self.field, self.field))
        far = self.ctf.delocalisation_angstrom(frequency, azimuth) / self.ctf.pixel_size_angstrom
        margin = (self.window - self.field) / 2
        shifts = (far * azimuth.sin(), far * azimuth.cos())
        rows, columns = (
            (1 - (shift.abs() - margin).clamp_min(0) / self.field).clamp_min(0) for shift in shifts
        )
        mean = self.ctf.envelope(frequency).square() * (1 + self.ctf.kappa**2) / 2
        return mean * (1 - rows * columns)

    @staticmethod
    def _part(side: int, other: int) -> tuple[slice, slice]:
        start = max(0, other - side) // 2
        return slice(start, start + side), slice(start, start + side)


class LinearisedExitWave:
    """The derivative of an `ExitWave` at an image, and its transpose.

    Attributes
    ----------
    expected : Tensor
        Counts of that image.
    """

    def __init__(self, instrument: ExitWave, image: Tensor) -> None:
        self.instrument = instrument
        exit_wave = instrument.exit_wave(image)
        self.wave = instrument.detected(exit_wave)
        self.counts = instrument.constants(image)[1]
        self.expected = self.counts * self.wave.abs().square()
        self.slope = exit_wave * complex(-instrument.ctf.kappa, 1)

    def A(self, image: Tensor) -> Tensor:
        """Change of the counts with a change of the phase."""
        change = self.instrument.propagate(self.slope * image)
        return 2 * self.counts * (self.wave.conj() * change).real

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Carry a change of the counts ``(..., H, W)`` back to the image."""
        pulled = self.instrument.propagate_adjoint(2 * self.counts * measurement * self.wave)
        return (self.slope.conj() * pulled).real
