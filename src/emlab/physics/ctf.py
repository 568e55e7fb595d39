r"""The lens of an electron microscope: how it delays and damps each spatial frequency.

A wave :math:`\psi` leaves the specimen and arrives as :math:`\psi * h` with

.. math:: \hat h(k) = E(k)\,e^{+i\chi(k)}, \qquad
          \chi = \pi\lambda\,\Delta f\,k^2 - \tfrac{\pi}{2} C_s \lambda^3 k^4 + \varphi ,

defocus positive = underfocus (Reimer and Kohl 2008, eq. 6.28). The sign of the exponent belongs to
:math:`\psi = e^{+ix}` with the phase x of matter positive: an underfocused lens shows the wave as
it was before the specimen, and matter looks dark. With :math:`e^{-i\chi}` the amplitude contrast
would fight the phase contrast; the multislice of abTEM decides it in tests/unit/test_exit_wave.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emlab.errors import InputError

Value = float | Tensor


def wavelength_angstrom(voltage_kv: float) -> float:
    """Relativistic wavelength of electrons in angstrom: 0.0197 at 300 kV."""
    volts = 1e3 * voltage_kv
    return 12.264259 / math.sqrt(volts * (1 + 0.97847561e-6 * volts))


@dataclass(frozen=True)
class ComplexCTF:
    """The transfer of one image, or of n images at once.

    Attributes
    ----------
    defocus_u_angstrom, defocus_v_angstrom : float or Tensor
        Largest and smallest defocus, positive is underfocus; one number or ``(n,)``. Without the
        second there is no astigmatism.
    astigmatism_deg : float or Tensor
        Direction of the first, from the columns' axis towards higher row numbers.
    cs_mm : float
        Spherical aberration.
    amplitude_contrast : float
        Q in [0, 1): share of the contrast that the exit wave loses in amplitude, see `kappa`.
    phase_shift_deg : float or Tensor
        Of a phase plate, between scattered waves and the unscattered one.
    b_factor_angstrom2 : float
        Envelope ``exp(-B k^2 / 4)``. It damps the wave; that this damps the image in the same way
        is true of weak phases only.

    Raises
    ------
    InputError
        Numbers out of range, among them a defocus in another unit than angstrom.
    """

    voltage_kv: float
    pixel_size_angstrom: float
    defocus_u_angstrom: Value
    defocus_v_angstrom: Value | None = None
    astigmatism_deg: Value = 0.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    phase_shift_deg: Value = 0.0
    b_factor_angstrom2: float = 0.0

    def __post_init__(self) -> None:
        if not 10 <= self.voltage_kv <= 3000:
            raise InputError(f"the voltage must be given in kV, for example 300: {self.voltage_kv}")
        if not 0 < self.pixel_size_angstrom < math.inf:
            raise InputError(
                f"pixel_size_angstrom must be positive, got {self.pixel_size_angstrom}"
            )
        if not 0 <= self.cs_mm < 50:
            raise InputError(f"the spherical aberration is given in mm, got {self.cs_mm}")
        if not 0 <= self.amplitude_contrast < 1:
            raise InputError(f"amplitude_contrast must be in [0, 1), got {self.amplitude_contrast}")
        if not 0 <= self.b_factor_angstrom2 < math.inf:
            raise InputError(f"the B factor must not be negative, got {self.b_factor_angstrom2}")
        for value in (self.defocus_u_angstrom, self.defocus_v_angstrom):
            size = torch.as_tensor(0.0 if value is None else value).abs()
            if not bool(((size == 0) | ((size >= 100) & (size <= 2e5))).all()):
                raise InputError(
                    f"the defocus must be in angstrom (1 um is 10000) and up to 20 um: {value}"
                )

    @property
    def wavelength_angstrom(self) -> float:
        """Wavelength of the electrons at this voltage."""
        return wavelength_angstrom(self.voltage_kv)

    @property
    def kappa(self) -> float:
        r"""Absorption that goes with a phase: :math:`\psi = e^{(i - \kappa)x}`."""
        return self.amplitude_contrast / math.sqrt(1 - self.amplitude_contrast**2)

    def chi(self, frequency: Value, azimuth: Value = 0.0) -> Tensor:
        """Phase in radians that the lens adds, float64, without that of the amplitude contrast.

        Parameters
        ----------
        frequency : float or Tensor
            k in 1/angstrom.
        azimuth : float or Tensor
            Its direction in radians, as `astigmatism_deg`.

        Returns
        -------
        Tensor
            The shape of `frequency`, after n where there are n images.
        """
        k2 = torch.as_tensor(frequency, dtype=torch.float64).square()
        length = self.wavelength_angstrom
        aberration = math.pi / 2 * self.cs_mm * 1e7 * length**3 * k2.square()
        plate = torch.deg2rad(_spread(self.phase_shift_deg, k2.ndim)) * (k2 > 0)
        return math.pi * length * self._defocus(k2, azimuth) * k2 - aberration + plate

    def delocalisation_angstrom(self, frequency: Value, azimuth: Value = 0.0) -> Tensor:
        r"""How far the lens shifts a frequency, along it to both sides: :math:`|d\chi/dk|/2\pi`.

        Parameters and shape as in `chi`.
        """
        k = torch.as_tensor(frequency, dtype=torch.float64)
        length = self.wavelength_angstrom
        return (
            length * k * (self._defocus(k, azimuth) - self.cs_mm * 1e7 * (length * k) ** 2)
        ).abs()

    def _defocus(self, frequency: Tensor, azimuth: Value) -> Tensor:
        dims = frequency.ndim
        first = _spread(self.defocus_u_angstrom, dims)
        second = (
            first if self.defocus_v_angstrom is None else _spread(self.defocus_v_angstrom, dims)
        )
        turned = torch.as_tensor(azimuth, dtype=torch.float64)
        turned = turned - torch.deg2rad(_spread(self.astigmatism_deg, dims))
        return (first + second) / 2 + (first - second) / 2 * (2 * turned).cos()

    def envelope(self, frequency: Value) -> Tensor:
        """E in (0, 1] at a frequency in 1/angstrom, float64."""
        k2 = torch.as_tensor(frequency, dtype=torch.float64).square()
        return (-self.b_factor_angstrom2 / 4 * k2).exp()

    def transfer(self, shape: tuple[int, int]) -> Tensor:
        """The complex transfer in the layout of `torch.fft.fft2`.

        Of modulus 1 but for the envelope. It does not contain the amplitude contrast: turned by
        the same angle at every frequency, the unscattered wave included, a wave has the same
        intensity as before (so that torch_ctf's complex CTF shows no amplitude contrast at all).

        Returns ``(H, W)`` or ``(n, H, W)``, complex128.
        """
        frequency, azimuth = self.grid(shape)
        chi = self.chi(frequency, azimuth)
        return torch.polar(self.envelope(frequency).expand_as(chi), chi)

    def weak_phase(self, shape: tuple[int, int]) -> Tensor:
        r"""The real CTF c of weak phases, layout of `torch.fft.fft2`: :math:`I - 1 = 2\,x * c`.

        .. math:: c = -E\,(\sin\chi + \kappa\cos\chi)
                    = -\frac{E}{\sqrt{1-Q^2}} \sin(\chi + \arcsin Q)

        Returns ``(H, W)`` or ``(n, H, W)``, float64; negative at low frequencies of an underfocused
        image.
        """
        transfer = self.transfer(shape)
        return -(transfer.imag + self.kappa * transfer.real)

    def grid(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Frequency in 1/angstrom and azimuth of each coefficient of `fft2`, both ``(H, W)``."""
        rows, columns = (
            torch.fft.fftfreq(side, self.pixel_size_angstrom, dtype=torch.float64) for side in shape
        )
        down, along = torch.meshgrid(rows, columns, indexing="ij")
        return torch.hypot(down, along), torch.atan2(down, along)


def _spread(value: Value, dims: int) -> Tensor:
    """A number as it is, n numbers as ``(n, 1, ..., 1)``."""
    number = torch.as_tensor(value, dtype=torch.float64)
    return number.reshape(number.shape + (1,) * dims if number.ndim else ())
