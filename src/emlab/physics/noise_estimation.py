r"""How strong the noise of an image is, and at which frequencies, from the image alone.

The image is cut into overlapping windows of 32 pixels; window i has the power spectrum

.. math:: P_i(f) = N(f) + s_i S(f),

noise that is the same everywhere plus signal that differs from place to place (the homogeneous
regions that Ponomarenko et al. 2007 look for, here used all together). The power :math:`a_i` at
low frequencies (2 to 4 periods a window) follows :math:`s_i`, so the regression of
:math:`P_i(f)` on :math:`a_i` over the quieter half of the windows, read off where :math:`a_i`
holds noise alone, is :math:`N(f)` without the signal; its level is set by the highest
frequencies, where all power is noise. At low frequencies signal and noise cannot
be told apart: there N is continued flat from just above (5 to 6 periods a window).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emlab.errors import InputError

WINDOW = 32
_WINDOWS_AT_MOST = 2048
_LOW = 1.5  # bins (periods a window): signal is measured from here
_RING = 4.5, 6.5  # the lowest bins at which noise is told from signal
_OUTER = 0.35 * WINDOW  # noise rules above


@dataclass(frozen=True)
class NoiseSpectrum:
    """Power spectrum of stationary noise; called with ``(H, W)`` it gives that of such an image.

    Attributes
    ----------
    power : Tensor
        ``(n, n // 2 + 1)``, positive, in the layout of `torch.fft.rfft2`; grey levels squared.
        Its mean over all n x n frequencies is the variance: white noise has ``sigma ** 2``
        everywhere.
    """

    power: Tensor

    def __post_init__(self) -> None:
        n = self.power.shape[0]
        if self.power.ndim != 2 or n % 2 or self.power.shape[1] != n // 2 + 1:
            raise InputError("a noise spectrum is (n, n // 2 + 1) with even n, as rfft2 gives")
        if not torch.isfinite(self.power).all() or self.power.min() <= 0:
            raise InputError("a noise spectrum must be positive at every frequency")

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Interpolate linearly to images ``(..., H, W)``: ``(H, W // 2 + 1)``."""
        n, (height, width) = self.power.shape[0], shape[-2:]
        bins = torch.arange(n, dtype=torch.float64)
        rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * n - bins
        rows = ((rows + n / 2) % n - n / 2).abs()
        columns = torch.fft.rfftfreq(width, dtype=torch.float64)[:, None] * n
        columns = (columns - bins[: n // 2 + 1]).abs()
        near_rows, near_columns = (1 - rows).clamp(min=0), (1 - columns).clamp(min=0)
        return near_rows.to(self.power) @ self.power @ near_columns.to(self.power).T

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return math.sqrt(self._covariances()[0, 0])

    @property
    def correlation(self) -> tuple[float, float]:
        """Correlation of neighbouring pixels, in y and in x."""
        covariances = self._covariances()
        variance = float(covariances[0, 0])
        return float(covariances[1, 0]) / variance, float(covariances[0, 1]) / variance

    def scaled(self, factor: float) -> NoiseSpectrum:
        """Spectrum of the noise when grey levels are multiplied by `factor`."""
        return NoiseSpectrum(self.power * factor**2)

    def _covariances(self) -> Tensor:
        return torch.fft.irfft2(self.power.double(), s=[self.power.shape[0]] * 2)


def estimate_noise_spectrum(image: Tensor | np.ndarray) -> NoiseSpectrum:
    """Estimate the power spectrum of stationary noise from a noisy image; see the module.

    Good to a few per cent in sigma and a few hundredths in the correlation of neighbours, on
    test images of tissue with noise from 2 to 25 % of the grey range. Noise that varies with the
    grey level is averaged; noise below 0.14 periods a pixel (drift, charging) is not seen.

    Parameters
    ----------
    image : Tensor or ndarray
        ``(..., H, W)``, any grey range, sides of at least 64 pixels; a stack is pooled.

    Raises
    ------
    InputError
        An image that is too small, (nearly) constant or not finite.
    """
    power = _window_spectra(image)
    period = _periods()
    low, ring = (period >= _LOW) & (period < _RING[0]), (period >= _RING[0]) & (period < _RING[1])
    activity = power[:, low].mean(1)
    quiet = activity.argsort()[: max(30, len(activity) // 2)]
    activity, power = activity[quiet].clamp(min=1e-9 * float(activity.max())), power[quiet]
    weights = activity.square().reciprocal()
    weights = weights / weights.sum()
    centre = (weights * activity).sum()
    mean = torch.einsum("i,iyx->yx", weights, power)
    lever = weights * (activity - centre)
    slope = torch.einsum("i,iyx->yx", lever, power) / (lever * activity).sum()
    slope = _radial_mean(slope, period).clamp(min=0)
    rise = float(slope[ring].mean().clamp(max=0.9))
    level = (mean[ring].mean() - rise * centre) / (1 - rise)  # of the noise, at low frequencies
    level = level.clamp(min=0.05 * float(mean[ring].mean()))
    noise = torch.maximum(mean - slope * (centre - level), 0.05 * mean)
    noise[period < _RING[0]] = level
    outer = period > _OUTER  # noise rules here: the mean level, also if it varies over the field
    noise = noise * power[:, outer].mean() / noise[outer].mean()
    noise = noise.clamp(min=1e-9 * float(noise.max())).float()
    if not (noise.min() > 0 and noise.max() < math.inf):
        raise InputError(
            "no noise can be estimated: most of the image is one grey level, or its values are "
            "extremely small or large; choose another place, or rescale them"
        )
    return NoiseSpectrum(noise)


def estimate_noise_sigma(image: Tensor | np.ndarray) -> float:
    """Standard deviation of white noise, from the highest frequencies of the quieter windows.

    Coloured noise is weak there and would be underestimated: use
    ``estimate_noise_spectrum(image).sigma`` for it. A constant image gives 0.

    Parameters
    ----------
    image : Tensor or ndarray
        ``(..., H, W)``, any grey range, sides of at least 64 pixels; a stack is pooled.

    Raises
    ------
    InputError
        An image that is too small or not finite.
    """
    values = _doubles(image)
    if values.numel() and bool((values == values.flatten()[0]).all()):
        return 0.0
    spectrum = estimate_noise_spectrum(values)
    return math.sqrt(float(spectrum.power[_periods() > _OUTER].mean()))


def noise_correlation(residual: Tensor | np.ndarray) -> tuple[float, float]:
    """Correlation of neighbouring pixels of a residual ``(..., H, W)``: in y, in x; (0, 0) for
    white noise.

    The mean of each image is removed first.
    """
    values = _doubles(residual)
    values = values - values.mean((-2, -1), keepdim=True)
    variance = float(values.square().mean())
    if variance == 0:
        raise InputError("the residual is constant: it has no correlation")
    along_y = values[..., 1:, :] * values[..., :-1, :]
    along_x = values[..., 1:] * values[..., :-1]
    return float(along_y.mean()) / variance, float(along_x.mean()) / variance


def _window_spectra(image: Tensor | np.ndarray) -> Tensor:
    """Power of Hann windows without their mean plane, ``(windows, 32, 17)``, float64."""
    values = _doubles(image)
    if values.ndim < 2 or min(values.shape[-2:]) < 2 * WINDOW:
        raise InputError(
            f"noise is estimated from images of at least {2 * WINDOW} pixels a side, "
            f"got {tuple(values.shape)}; give the noise level instead"
        )
    if not torch.isfinite(values).all():
        raise InputError("the image contains NaN or infinity; mask or replace those pixels first")
    stack = values.reshape(-1, *values.shape[-2:])
    stack = stack[:: math.ceil(len(stack) / 64)]
    area = len(stack) * math.prod(side - WINDOW + 1 for side in stack.shape[-2:])
    stride = max(4, math.ceil(math.sqrt(area / _WINDOWS_AT_MOST)))
    windows = stack.unfold(-2, WINDOW, stride).unfold(-2, WINDOW, stride)
    windows = windows.reshape(-1, WINDOW, WINDOW)
    flat = [windows.amax(axis) == windows.amin(axis) for axis in (-2, -1)]
    whole = ~(flat[0] | flat[1]).any(-1)  # no row or column of a border that somebody filled
    windows = windows[whole] if whole.any() else windows
    windows = windows - windows.mean((-2, -1), keepdim=True)
    ramp = torch.arange(WINDOW, dtype=torch.float64) - (WINDOW - 1) / 2
    ramp = ramp / (WINDOW * ramp.square().sum()).sqrt()
    for plane in (ramp[:, None], ramp[None, :]):
        windows = windows - (windows * plane).sum((-2, -1), keepdim=True) * plane
    profile = torch.hann_window(WINDOW + 2, periodic=False, dtype=torch.float64)[1:-1]
    taper = torch.outer(profile, profile)
    power = torch.fft.rfft2(windows * taper).abs().square() / taper.square().sum()
    if power.max() <= 1e-20 * values.square().max():
        raise InputError("the image is constant: there is no noise to estimate")
    return power


def _doubles(values: Tensor | np.ndarray) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _periods() -> Tensor:
    """Distance of each frequency from zero in periods a window, ``(32, 17)``."""
    rows = torch.fft.fftfreq(WINDOW, dtype=torch.float64)
    columns = torch.fft.rfftfreq(WINDOW, dtype=torch.float64)
    return torch.hypot(rows[:, None], columns) * WINDOW


def _radial_mean(values: Tensor, period: Tensor) -> Tensor:
    """Mean over rings of one bin, interpolated back to all frequencies."""
    bins = period.round().long().flatten()
    rings = torch.bincount(bins, values.flatten()) / torch.bincount(bins)
    places = np.interp(period.numpy(), np.arange(len(rings)), rings.numpy())
    return torch.from_numpy(places)
