r"""Phase retrieval without a learned prior: what one image of weak phases gives by itself.

All take counts ``(..., H, W)`` and an `ExitWave` whose window is its field, and return phases of
the same shape in radians. A single image tells next to nothing of the mean phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.counting import CountingNoise, Poisson
from emlab.physics.exit_wave import ExitWave
from emlab.solvers.guided_phase import filtered


def phase_flip(measurement: Tensor, instrument: ExitWave) -> Tensor:
    r"""Turn the sign where the CTF is negative: :math:`\hat x = \mathrm{sign}(c)\,\hat y / 2`.

    Twice the phase is what a perfect phase plate would show of it; here each frequency is still
    damped by the modulus of its CTF.
    """
    transfer = _half(instrument)
    return filtered(_contrast(measurement, instrument), transfer.sign() / 2)


def wiener(measurement: Tensor, instrument: ExitWave, power: Tensor) -> Tensor:
    r"""Best linear estimate of weak phases of known power P, the edges apart.

    :math:`\hat x = \frac{2cP}{4c^2P + 1/N}\,\hat y` with :math:`y = I/N - 1 = 2\,x * c + n`; mind
    the factor 2.

    Parameters
    ----------
    power : Tensor
        ``(H, W // 2 + 1)``, see `power_spectrum`.
    """
    transfer, power = _half(instrument), power.to(measurement)
    noise = 1 / instrument.counts.to(measurement)
    gain = 2 * transfer * power / (4 * transfer.square() * power + noise)
    return filtered(_contrast(measurement, instrument), gain)


def sparse_fresnel(
    measurement: Tensor,
    instrument: ExitWave,
    weight: float,
    *,
    noise: CountingNoise | None = None,
    iterations: int = 100,
    smoothing: float = 0.02,
) -> Tensor:
    r"""Fresnel-zone retrieval by image sparsity (Birdi, Rajora and Khare, arXiv 2105.12777).

    Descent on the misfit of the exit wave in turn with descent on the total variation
    :math:`\sum\sqrt{|\nabla x|^2 + \epsilon^2}`, here as one gradient with Nesterov's momentum and
    one step length for both; matter has no negative phase.

    Parameters
    ----------
    weight : float
        Of the total variation against the log-likelihood, per radian; 0 fits the noise.
    smoothing : float
        :math:`\epsilon` in radians.
    """
    if weight < 0 or iterations < 1 or smoothing <= 0:
        raise InputError("sparse retrieval needs weight >= 0, iterations >= 1 and smoothing > 0")
    likelihood = Poisson() if noise is None else noise
    curvature = instrument.sensitivity().amax((-2, -1), keepdim=True).to(measurement)
    curvature = curvature / instrument.counts.to(measurement) + 8 * weight / smoothing
    shape = (*measurement.shape[:-2], instrument.field, instrument.field)
    x = ahead = measurement.new_zeros(shape)
    for step in range(iterations):
        tangent = instrument.linearised(ahead)
        pull = tangent.A_adjoint(likelihood.gradient(tangent.expected, measurement))
        moved = (ahead + (pull - weight * _variation(ahead, smoothing)) / curvature).clamp_min(0)
        ahead = moved + step / (step + 3) * (moved - x)
        x = moved
    return x


def transport_of_intensity(
    measurements: Sequence[Tensor], instruments: Sequence[ExitWave], regularisation: float = 1e-6
) -> Tensor:
    r"""Phase from images at several defoci (Teague 1983), simulation's luxury.

    The slope of intensity with defocus at each frequency, by least squares over the images, is
    :math:`-2\pi\lambda k^2\,\hat x` to first order; no more is used of the lens.

    Parameters
    ----------
    measurements, instruments : sequence
        Two or more images of one particle, with different defoci.
    regularisation : float
        Share of the largest squared transfer below which frequencies are damped.
    """
    if len(measurements) != len(instruments) or len(instruments) < 2:
        raise InputError("transport of intensity needs two or more images with their instruments")
    contrasts = torch.stack(
        [_contrast(y, each) for y, each in zip(measurements, instruments, strict=True)]
    )
    lens = instruments[0].ctf
    defoci = torch.stack([_mean_defocus(each) for each in instruments]).to(contrasts)
    defoci = defoci.reshape(len(instruments), *defoci.shape[1:], 1, 1)
    lever = defoci - defoci.mean(0)
    if not bool((lever.square().sum(0) > 0).all()):
        raise InputError("the images have all the same defocus; transport needs different ones")
    slope = (lever * contrasts).sum(0) / lever.square().sum(0)
    side = measurements[0].shape[-1]
    frequency = lens.grid((side, side))[0][:, : side // 2 + 1].to(contrasts)
    transfer = -2 * torch.pi * lens.wavelength_angstrom * frequency.square()
    damped = transfer.square() + regularisation * transfer.square().max()
    return filtered(slope, transfer / damped)


def _contrast(measurement: Tensor, instrument: ExitWave) -> Tensor:
    if instrument.window != instrument.field:
        raise InputError("classical retrieval needs a window as large as the field")
    return measurement / instrument.counts.to(measurement) - 1


def _half(instrument: ExitWave) -> Tensor:
    """CTF of weak phases in the layout of `torch.fft.rfft2`, float32."""
    side = instrument.field
    return instrument.ctf.weak_phase((side, side))[..., : side // 2 + 1].float()


def _mean_defocus(instrument: ExitWave) -> Tensor:
    first = torch.as_tensor(instrument.ctf.defocus_u_angstrom, dtype=torch.float64)
    second = instrument.ctf.defocus_v_angstrom
    return first if second is None else (first + torch.as_tensor(second)) / 2


def _variation(x: Tensor, smoothing: float) -> Tensor:
    """Gradient of the smoothed total variation, periodic."""
    down, along = x.roll(-1, -2) - x, x.roll(-1, -1) - x
    length = (down.square() + along.square() + smoothing**2).sqrt()
    down, along = down / length, along / length
    return down.roll(1, -2) - down + along.roll(1, -1) - along
