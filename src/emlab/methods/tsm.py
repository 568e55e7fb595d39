r"""Denoising cryo-electron micrographs with a learned score, guided by a target or not.

1. Take off the background and divide by the noise, estimated from the micrograph itself.
2. One step of Tweedie, :math:`\hat y = x + \sigma_n^2 s(x)`, in tiles with a halo.
3. Where a reference explains what is there, and better than its decoys do, put what it says, up to
   its own resolution, in place of the score's answer.
4. Put noise level and background back.

Wu, Zhan et al. (arXiv 2604.17734). The result is for looking and picking; particles are extracted
from the *raw* micrograph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.checks import check_fields
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.methods.estimate import Estimate, TimedPrior
from emlab.methods.tsm_guidance import explain, standardise
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors.base import Prior
from emlab.priors.networks import ScorePrior, load_prior
from emlab.priors.pose_posterior import Lens, Reference
from emlab.priors.target_bank import low_pass
from emlab.runtime import has_fast_bfloat16
from emlab.solvers.contract import Progress
from emlab.solvers.one_step import IterationConfig, iterate, tweedie
from emlab.solvers.tiling import TiledPrior

NAMES = {"tsm": "tsm_tsm", "dsm": "tsm_dsm"}
_RESCALED_FROM = 1.1  # ratio of pixel sizes above which a micrograph is made coarser first
_SAME_PIXEL = 0.02  # relative difference of pixel and voxel that is none
_BYTES_PER_PIXEL = 2400  # of one tile in the network


@dataclass(frozen=True)
class Config:
    """How a micrograph is denoised.

    Attributes
    ----------
    tile, halo : int
        Side of a tile; pixels that neighbours share at least.
    memory_mb : float
        Working memory of the network: so many tiles go through it at once.
    iteration
        The published iteration instead of one Tweedie step.
    strength : float
        Noise level that the network is told, in units of the estimate.
    """

    tile: int = 256
    halo: int = 32
    memory_mb: float = 800.0
    iteration: IterationConfig | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < 2 * self.halo < self.tile or self.tile < 64:
            raise InputError("tiles are at least 64 pixels, and more than twice the halo")
        if not self.memory_mb > 0 or not self.strength > 0:
            raise InputError("memory_mb and strength must be positive")

    @property
    def batch(self) -> int:
        """Tiles at once."""
        return max(1, int(self.memory_mb * 1e6 / (_BYTES_PER_PIXEL * self.tile**2)))


def load_denoiser(
    name: str = "tsm", device: torch.device | str = "cpu", half: bool | None = None
) -> ScorePrior:
    """The shipped score, or one of your own.

    Parameters
    ----------
    name : str
        ``"tsm"`` (guided by targets), ``"dsm"`` (not), or any name of `emlab weights list`.
    half : bool, optional
        Convolutions in bfloat16; default: where the processor is fast at it.
    """
    chosen = has_fast_bfloat16(device) if half is None else half
    prior = load_prior(NAMES.get(name, name), device, half=chosen)
    if not isinstance(prior, ScorePrior):
        raise InputError(f"{name} is no score of micrographs; take tsm, dsm or one you trained")
    return prior


def denoise(
    micrograph: NDArray[np.float32] | Tensor,
    pixel_size_angstrom: float,
    denoiser: Prior | None = None,
    config: Config | None = None,
    *,
    reference: Reference | None = None,
    lens: Lens | None = None,
    sigma: float | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Estimate[NDArray[np.float32]]:
    """Denoise one micrograph ``(H, W)`` of any size, protein dark.

    Pixels smaller than the network's (2.63 A) are made coarser first, by cropping the spectrum,
    and the result is brought back to the given size: what is finer than 5.3 A is then gone.

    Parameters
    ----------
    denoiser : Prior, optional
        Default `load_denoiser()`.
    reference : Reference, optional
        Of the protein, at the working pixel size (`to_working_size`); guides where it fits. The
        result's notes say where it did, or by how much it failed.
    lens : callable, optional
        Needed with a reference: takes a shape and gives the transfer for `torch.fft.rfft2`.
    sigma : float, optional
        Noise in grey levels at the working pixel size, instead of the estimate.
    progress : callable, optional
        ``progress(done, total)`` of the tiles.
    """
    settings = Config() if config is None else config
    values = np.asarray(micrograph, dtype=np.float32)
    if values.ndim != 2 or min(values.shape, default=0) < 64:
        raise InputError(f"a micrograph is (H, W) from 64 pixels a side, got {values.shape}")
    if not pixel_size_angstrom > 0:
        raise InputError(f"the pixel size must be positive (angstrom), got {pixel_size_angstrom}")
    if not np.isfinite(values).all():
        raise InputError("the micrograph has pixels that are NaN or infinite; replace them first")
    coarse, working = to_working_size(values, pixel_size_angstrom)
    if reference is not None and (
        lens is None or abs(reference.pixel_size_angstrom / working - 1) > _SAME_PIXEL
    ):
        raise InputError(
            f"a reference needs a lens, and voxels as large as pixels, {working:.4g} A"
        )
    standard = standardise(coarse, working, sigma)
    prior = load_denoiser(device=device) if denoiser is None else denoiser
    rounds = 1 if settings.iteration is None else settings.iteration.steps
    timed = TimedPrior(prior, progress)
    tiled = TiledPrior(timed, settings.tile, settings.halo, settings.batch, smallest=64)
    timed.total = rounds * tiled.tiles(*coarse.shape)
    place = torch.device(device)
    image = standard.image.to(place)
    if settings.iteration is None:
        found = tweedie(tiled, image, settings.strength)
    else:
        noise = GaussianNoise(settings.strength)
        found = iterate(tiled, Identity(), image, noise, settings.iteration).images[0]
    found, notes = found.cpu(), []
    if reference is not None and lens is not None:
        said = explain(standard.image, reference, lens, torch.Generator().manual_seed(0))
        known = reference.config.low_pass_angstrom
        replaced = low_pass(found, working, known) if said.accepted else found
        found = found + said.guess - said.confidence * replaced
        notes.append(str(said))
    result = standard.restore(found).numpy()
    if coarse.shape != values.shape:
        result = resize(result, values.shape)
        notes.append(f"denoised at {working:.4g} A")
    return Estimate(
        image=result,
        samples=result[None],
        noise_sigma=standard.sigma,
        notes=notes,
        cost=timed.cost(rounds),
    )


def to_working_size(
    micrograph: NDArray[np.float32], pixel_size_angstrom: float
) -> tuple[NDArray[np.float32], float]:
    """The micrograph at the network's pixel size if its own is finer, and the pixel size then."""
    ratio = PIXEL_ANGSTROM / pixel_size_angstrom
    if ratio < _RESCALED_FROM:
        return micrograph, pixel_size_angstrom
    height, width = (max(64, 2 * round(side / ratio / 2)) for side in micrograph.shape)
    coarse = resize(micrograph, (height, width))
    return coarse, pixel_size_angstrom * micrograph.shape[0] / height


def resize(image: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Crop or pad the spectrum of an image ``(H, W)`` to another shape, grey levels kept."""
    height, width = image.shape
    rows, columns = shape
    spectrum = torch.fft.rfft2(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)))
    keep_rows, keep_columns = min(height, rows), min(width, columns)
    out = torch.zeros(rows, columns // 2 + 1, dtype=spectrum.dtype)
    low, high = (keep_rows + 1) // 2, keep_rows // 2
    across = (keep_columns + 1) // 2
    out[:low, :across] = spectrum[:low, :across]
    if high:
        out[-high:, :across] = spectrum[-high:, :across]
    scaled = torch.fft.irfft2(out, s=(rows, columns)) * (rows * columns / (height * width))
    return scaled.numpy()
