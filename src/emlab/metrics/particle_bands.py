"""How a denoised micrograph is judged: band by band, inside the particles, against the truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.micrograph import Micrograph

BANDS_ANGSTROM = {
    "80_40": (80.0, 40.0),
    "40_25": (40.0, 25.0),
    "25_16": (25.0, 16.0),
    "16_10": (16.0, 10.0),
}
RADIUS_ANGSTROM = 70.0


def band_pass(image: Tensor, pixel_size_angstrom: float, band: tuple[float, float]) -> Tensor:
    """An image ``(H, W)`` between two resolutions in angstrom, edges half a ring wide."""
    height, width = image.shape
    rows = torch.fft.fftfreq(height, pixel_size_angstrom)[:, None]
    frequency = torch.hypot(rows, torch.fft.rfftfreq(width, pixel_size_angstrom))
    low, high = 1 / band[0], 1 / band[1]
    if not 0 < low < high:
        raise InputError(f"a band is (coarse, fine) in angstrom, got {band}")
    soft = 0.1 * (high - low)
    gain = torch.sigmoid((frequency - low) / soft) * torch.sigmoid((high - frequency) / soft)
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=image.shape)


def band_correlations(
    denoised: Tensor | np.ndarray,
    micrograph: Micrograph,
    bands: dict[str, tuple[float, float]] = BANDS_ANGSTROM,
    radius_angstrom: float = RADIUS_ANGSTROM,
) -> dict[str, float]:
    """Correlation with the clean image within the particles, a band at a time, and their mean.

    A smooth low-pass hardly moves these: within a band it only scales. Two things do: knowledge of
    what particles look like, and a filter that follows the rings of the lens, for at its zeros a
    band holds noise alone (`emlab.chapters.tsm.cases.wiener` gains that way).

    Parameters
    ----------
    denoised : Tensor or ndarray
        ``(H, W)`` of the micrograph's shape, any grey range.
    radius_angstrom : float
        Of the discs about the true centres that count.

    Returns
    -------
    dict of str to float
        By band (the keys of `bands`), and ``mean``.

    Raises
    ------
    InputError
        Another shape, or a micrograph without particles.
    """
    image = torch.as_tensor(np.asarray(denoised), dtype=torch.float32)
    if image.shape != micrograph.clean.shape:
        raise InputError(f"the denoised image is {tuple(image.shape)}, the micrograph is not")
    inside = micrograph.mask(radius_angstrom)
    if not inside.any():
        raise InputError("there are no particles to judge by; take a micrograph that has some")
    found = {}
    for name, band in bands.items():
        pair = [
            band_pass(values, micrograph.pixel_size_angstrom, band)[inside].double()
            for values in (image, micrograph.clean)
        ]
        pair = [values - values.mean() for values in pair]
        scale = (pair[0].square().sum() * pair[1].square().sum()).sqrt()
        found[name] = float((pair[0] * pair[1]).sum() / scale) if scale > 0 else 0.0
    return found | {"mean": sum(found.values()) / len(found)}
