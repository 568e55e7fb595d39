r"""A map from projections of known pose: Fourier insertion with Wiener weighting.

By the projection-slice theorem the transform of an image is a slice of that of the volume, seen
through the lens c. The least-squares volume under a prior of constant signal-to-noise ratio is

.. math:: \hat V(k) = \frac{\sum_i c_i(k)\,\hat I_i(k)}{\sum_i c_i^2(k) + 1/\mathrm{SNR}} .

Slices are inserted by linear interpolation (torch-fourier-slice, Burt et al.), whose blur is
divided out in real space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.ctf import ComplexCTF

_BATCH = 128


def insert_slices(
    images: Tensor,
    rotations: Tensor,
    lens: ComplexCTF,
    *,
    snr: float = 0.1,
    padding: float = 2.0,
) -> Tensor:
    """Reconstruct a volume.

    Parameters
    ----------
    images : Tensor
        ``(n, h, h)`` relative contrast of centred particles, protein dark as the microscope shows
        it, mean 0; h even.
    rotations : Tensor
        ``(n, 3, 3)`` as `emlab.data.phase_maps.project` takes them.
    lens : ComplexCTF
        Of n images, or of all of them.
    snr : float
        Signal-to-noise ratio of a coefficient of one image; larger is sharper and noisier.

    Returns
    -------
    Tensor
        ``(h, h, h)`` float32, axes (z, y, x), protein bright.

    Raises
    ------
    InputError
        Shapes that do not belong together, or torch-fourier-slice is missing (``pip install
        'emlab-book[cryoem]'``).
    """
    try:
        from torch_fourier_slice import insert_central_slices_rfft_3d
    except ImportError as error:
        raise InputError(
            "reconstructions need torch-fourier-slice; pip install 'emlab-book[cryoem]'"
        ) from error
    n, side = images.shape[0], images.shape[-1]
    if images.shape != (n, side, side) or side % 2 or rotations.shape != (n, 3, 3) or not n:
        raise InputError("reconstruct from images (n, h, h) with even h and rotations (n, 3, 3)")
    if not snr > 0:
        raise InputError(f"the signal-to-noise ratio must be positive, got {snr}")
    border = int(side * (padding - 1) / 2)
    large = side + 2 * border
    transfer = 2 * lens.weak_phase((large, large))[..., : large // 2 + 1].float()
    top = torch.zeros(large, large, large // 2 + 1, dtype=torch.complex64)
    bottom = torch.zeros(top.shape)
    for start in range(0, n, _BATCH):
        part = slice(start, start + _BATCH)
        wide = torch.nn.functional.pad(images[part].float(), [border] * 4)
        spectra = torch.fft.rfft2(torch.fft.ifftshift(wide, dim=(-2, -1)))
        seen = transfer[part] if transfer.ndim == 3 else transfer.expand(len(wide), -1, -1)
        for values, total in ((spectra * seen, top), (seen.square().to(spectra.dtype), bottom)):
            inserted, _ = insert_central_slices_rfft_3d(
                torch.fft.fftshift(values, dim=-2),
                (large, large, large),
                rotations[part].float(),
                fftfreq_max=0.5,
            )
            total += inserted if total.is_complex() else inserted.real
    volume = torch.fft.irfftn(
        torch.fft.ifftshift(top / (bottom + 1 / snr), dim=(-3, -2)), s=(large,) * 3
    )
    volume = torch.fft.fftshift(volume)
    place = torch.fft.fftshift(torch.fft.fftfreq(large))
    blur = torch.sinc(place).square()
    volume = volume / (blur[:, None, None] * blur[:, None] * blur)
    inner = slice(border, border + side)
    return volume[inner, inner, inner].contiguous()
