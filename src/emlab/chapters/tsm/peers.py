"""What denoises a micrograph without a score: filters, BM3D, Noise2Void, Topaz-Denoise.

``python -m tools.tune_tsm_peers`` chooses the settings of filters, and every method's picking
threshold, on validation micrographs and writes ``peers.toml``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab.errors import InputError
from emlab.external import topaz
from emlab.metrics.fourier import radial_frequency
from emlab.physics.noise_estimation import estimate_noise_sigma
from emlab.runtime import Stopwatch, make_generator
from emlab.settings import read_settings
from emlab.solvers.blind_spot import BlindSpotConfig, denoise_blind_spot
from emlab.solvers.classical import bm3d

Image = NDArray[np.float32]
LABELS = {
    "raw": "raw",
    "gaussian": "Gaussian",
    "wiener": "Wiener low-pass",
    "bm3d": "BM3D",
    "noise2void": "Noise2Void",
    "topaz": "Topaz-Denoise",
    "untrained": "TSM, untrained network",
    "dsm": "DSM",
    "tsm": "TSM",
    "generalist": "EM Generalist",
    "squares": "restorer, squared error",
    "cellpose3": "Cellpose3-style restorer",
    "untrained_restorer": "restorer, untrained",
}
_FLOOR = 0.4  # cycles per pixel from which a micrograph is taken to be noise


@dataclass(frozen=True)
class Denoised:
    """Images of n micrographs.

    Attributes
    ----------
    images : list of ndarray
        ``(H, W)``, grey levels of the micrographs, protein dark.
    cpu_seconds, seconds : float
        Of the method alone.
    """

    images: list[Image]
    cpu_seconds: float
    seconds: float


Method = Callable[[Sequence[Image]], Denoised]


def each(function: Callable[[Image], Image]) -> Method:
    """A method that takes one micrograph at a time."""
    return partial(_each, function)


def gaussian(image: Image, width: float) -> Image:
    """Gaussian low-pass of a standard deviation in pixels."""
    return ndimage.gaussian_filter(image, width)


def wiener(image: Image, strength: float, noise_power: NDArray[np.floating] | None = None) -> Image:
    r"""Wiener low-pass with the micrograph's own spectrum.

    Noise is white at the level N of the finest frequencies, the filter
    :math:`\max(0, 1 - sN/P(k))` with P the power averaged over rings; s = 1 is Wiener's.

    Parameters
    ----------
    noise_power : ndarray, optional
        N at each frequency ``(H, W // 2 + 1)`` instead, where the noise is not white; its mean
        over all frequencies is the variance.

    Raises
    ------
    InputError
        A strength that is not positive.
    """
    if not strength > 0:
        raise InputError(f"the strength must be positive, got {strength}")
    spectrum = np.fft.rfft2(image - image.mean())
    frequency = radial_frequency(image.shape)
    ring = np.rint(frequency * min(image.shape)).astype(int)
    power = np.bincount(ring.ravel(), (np.abs(spectrum) ** 2).ravel())
    mean_power = power / np.maximum(np.bincount(ring.ravel()), 1)
    noise: Any = float((np.abs(spectrum[frequency > _FLOOR]) ** 2).mean())
    if noise_power is not None:
        noise = noise_power * image.size
    smooth = ndimage.gaussian_filter1d(mean_power, 2.0)[ring]
    gain = np.maximum(0, 1 - strength * noise / np.maximum(smooth, 1e-30))
    return (np.fft.irfft2(spectrum * gain, s=image.shape) + image.mean()).astype("f4")


def block_matching(image: Image, factor: float) -> Image:
    """BM3D with the estimated noise times a factor."""
    return bm3d(image, factor * estimate_noise_sigma(image))


def noise2void(image: Image, steps: int, seed: int) -> Image:
    """A small blind-spot network, trained on this micrograph alone."""
    found = denoise_blind_spot(
        torch.from_numpy(image), BlindSpotConfig(steps=steps), make_generator(seed)
    )
    return found.numpy()


def topaz_denoise(images: Sequence[Image], threads: int = 1) -> Denoised:
    """Topaz-Denoise's pretrained U-Net, whose authors trained it on thousands of micrographs."""
    found, done = topaz.denoise(images, threads=threads)
    return Denoised(found, done.cpu_seconds, done.seconds)


def classical(names: Sequence[str], settings: Mapping[str, Any] | None = None) -> dict[str, Method]:
    """Raw, Gaussian, Wiener and BM3D with their tuned settings, those of `names`."""
    table = tuned()["peers"] if settings is None else settings
    made: dict[str, Method] = {
        "raw": each(lambda image: image),
        "gaussian": each(partial(gaussian, **table.get("gaussian", {}))),
        "wiener": each(partial(wiener, **table.get("wiener", {}))),
        "bm3d": each(partial(block_matching, **table.get("bm3d", {}))),
    }
    return {name: made[name] for name in names}


def tuned() -> dict[str, Any]:
    """``peers.toml``: tables ``peers`` and ``thresholds``."""
    return read_settings("chapters/tsm/peers")


def _each(function: Callable[[Image], Image], images: Sequence[Image]) -> Denoised:
    start = time.process_time()
    with Stopwatch() as watch:
        found = [np.asarray(function(image), np.float32) for image in images]
    return Denoised(found, time.process_time() - start, watch.seconds)
