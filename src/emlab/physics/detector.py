r"""A counting detector: how it blurs the image, and what it makes of the noise.

Electrons are counted with an efficiency that falls with the spatial frequency f, and the counts
are blurred once more by the readout (Vulovic et al. 2013, J. Struct. Biol. 183, 19, eq. 22):

.. math:: y = h_N * \mathrm{Poisson}\left(N \, D_0 \, h_D * I\right), \qquad
          \hat h_D = \sqrt{D(f) / D_0}, \; \hat h_N = \mathrm{NTF}(f),

with N electrons a pixel and I the relative intensity; D is the detective quantum efficiency and
the modulation transfer function is :math:`\hat h_D \hat h_N`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.counting import Poisson


@dataclass(frozen=True)
class Detector:
    """Efficiency and blur of a detector, both of parabolic shape.

    The defaults are near those of a K2 Summit that counts at 300 kV (Ruskin et al. 2013, J.
    Struct. Biol. 184, 385).

    Attributes
    ----------
    dqe_zero, dqe_nyquist : float
        Detective quantum efficiency at zero and at the physical Nyquist frequency, in (0, 1].
    ntf_nyquist : float
        Transfer of the noise at the physical Nyquist frequency, in (0, 1]; 1 is white noise.
    binning : float
        How many physical pixels a pixel of the image is wide (Fourier cropping), at least 1.
    """

    dqe_zero: float = 0.85
    dqe_nyquist: float = 0.35
    ntf_nyquist: float = 0.85
    binning: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.dqe_nyquist <= self.dqe_zero <= 1 or not 0 < self.ntf_nyquist <= 1:
            raise InputError("a detector needs 0 < dqe_nyquist <= dqe_zero <= 1, ntf_nyquist <= 1")
        if self.binning < 1:
            raise InputError(f"the binning must be at least 1, got {self.binning}")

    def efficiency(self, shape: tuple[int, ...]) -> Tensor:
        """Detective quantum efficiency ``(H, W // 2 + 1)`` in the layout of `torch.fft.rfft2`."""
        return self.dqe_zero - (self.dqe_zero - self.dqe_nyquist) * self._square(shape)

    def noise_transfer(self, shape: tuple[int, ...]) -> Tensor:
        """Noise transfer function in the layout of `efficiency`, 1 at zero."""
        return 1 - (1 - self.ntf_nyquist) * self._square(shape)

    def modulation_transfer(self, shape: tuple[int, ...]) -> Tensor:
        """Modulation transfer function in the layout of `efficiency`, 1 at zero."""
        relative = self.efficiency(shape) / self.dqe_zero
        return relative.sqrt() * self.noise_transfer(shape)

    def expected(self, counts: Tensor) -> Tensor:
        """Image without shot noise of ``counts`` incident electrons a pixel, ``(..., H, W)``."""
        transfer = self.dqe_zero * self.modulation_transfer(counts.shape)
        return _filtered(counts, transfer)

    def sample(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an image.

        Parameters
        ----------
        counts : Tensor
            ``(..., H, W)`` electrons a pixel that arrive on average, not negative.

        Raises
        ------
        InputError
            Negative expected counts.
        """
        if bool((counts < 0).any()):
            raise InputError("expected counts must not be negative")
        relative = (self.efficiency(counts.shape) / self.dqe_zero).sqrt()
        rate = _filtered(counts, self.dqe_zero * relative).clamp_min(0)
        found = Poisson().sample(rate, generator)
        return _filtered(found, self.noise_transfer(counts.shape))

    def _square(self, shape: tuple[int, ...]) -> Tensor:
        """Squared frequency in units of the physical Nyquist frequency, at most 1."""
        height, width = shape[-2:]
        rows = torch.fft.fftfreq(height, 0.5)[:, None]
        columns = torch.fft.rfftfreq(width, 0.5)
        return ((rows.square() + columns.square()) / self.binning**2).clamp(max=1)


def _filtered(images: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(images) * transfer.to(images)
    return torch.fft.irfft2(spectrum, s=images.shape[-2:])
