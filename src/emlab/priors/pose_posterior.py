r"""Which pose of a reference explains a place of a micrograph, and whether any pose does.

With :math:`T_\theta` the projection of the reference at pose and shift :math:`\theta` seen through
the lens, and both it and the patch x whitened by the micrograph's own spectrum, the logarithm of
the likelihood ratio against noise alone is

.. math:: \ell(\theta) = a\,\langle x, T_\theta\rangle - \tfrac{a^2}{2}\,\|T_\theta\|^2 ,

a the contrast. A coarse grid of poses at all shifts is tried by Fourier transforms, and the best
poses are refined. The guess is the posterior mean :math:`a\sum_\theta p(\theta|x)\,T_\theta`, the
evidence the mean of :math:`e^\ell` over the coarse grid. A wrong reference fits a little, too: it
is told by its *decoys*, which have its power and random phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emlab.checks import check_fields
from emlab.data.phase_maps import project
from emlab.errors import InputError
from emlab.priors.score_matching import frequency_of, ring_power
from emlab.priors.target_bank import coarsen, directions_of, distance, low_pass, radius_of, shift

Lens = Callable[[tuple[int, int]], Tensor]
_MARGIN = 16  # pixels around the box into which the lens spreads a projection
_REACH = 3  # coarse pixels that a particle may lie off the place where it is looked for
_ROUNDS = 3  # of making a decoy
_AT_ONCE = 16  # places that are refined together


@dataclass(frozen=True)
class PoseConfig:
    """How poses are searched.

    Attributes
    ----------
    low_pass_angstrom : float
        Resolution of the reference: nothing finer can come from it.
    directions, angles : int
        Of the coarse grid.
    steps_deg : tuple of float
        Of the local searches, one after the other; each tries 27 turns about every pose.
    keep : int
        Poses that go on to the next search.
    decoys, decoy_angstrom
        Copies whose phases beyond this resolution are random, which the reference has to beat.
    """

    low_pass_angstrom: float = 15.0
    directions: int = 120
    angles: int = 24
    steps_deg: tuple[float, ...] = (5.0, 2.5)
    keep: int = 4
    decoys: int = 3
    decoy_angstrom: float = 40.0

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.directions, self.angles, self.keep) < 1 or self.low_pass_angstrom <= 0:
            raise InputError("a search needs directions, angles, poses to keep, and a low-pass")


@dataclass(frozen=True)
class Poses:
    """What a reference says about n places.

    Attributes
    ----------
    guess, disc : Tensor
        ``(n, box, box)`` posterior mean of the particle, in units of the image; and where it is,
        in [0, 1].
    turns : Tensor
        ``(n, 3, 3)`` the best pose, as `emlab.data.phase_maps.project` takes it.
    """

    guess: Tensor
    disc: Tensor
    turns: Tensor


class Reference:
    """A volume ``(n, n, n)``, matter positive, voxels as large as the micrograph's pixels.

    Raises
    ------
    InputError
        No cube, a side that is no multiple of 4, or an empty volume.
    """

    def __init__(
        self, volume: Tensor, pixel_size_angstrom: float, config: PoseConfig | None = None
    ) -> None:
        self.config = PoseConfig() if config is None else config
        if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] % 4:
            raise InputError(f"a reference is a cube of side 4 n, got {tuple(volume.shape)}")
        if not float(volume.std()) > 0:
            raise InputError("the reference is constant, so nothing can look like it; check it")
        self.box, self.pixel_size_angstrom = volume.shape[0], pixel_size_angstrom
        self.volume = low_pass(volume.float(), pixel_size_angstrom, self.config.low_pass_angstrom)
        self._coarse_volume = _coarsen_volume(self.volume)
        angle = 2 * math.pi * torch.arange(self.config.angles) / self.config.angles
        ways = torch.from_numpy(directions_of(self.config.directions)).float()
        about = _turns(angle[:, None] * torch.tensor([0.0, 0.0, 1.0]))
        self.turns = (ways[:, None] @ about).reshape(-1, 3, 3)
        self.views = self.project(self.turns)
        self.radius = 2 * radius_of(self.views)

    @cached_property
    def decoys(self) -> list[Reference]:
        """The decoys of the settings."""
        drawn = [torch.Generator().manual_seed(number) for number in range(self.config.decoys)]
        return [self.decoy(self.config.decoy_angstrom, one) for one in drawn]

    def decoy(self, beyond_angstrom: float, generator: torch.Generator) -> Reference:
        """As large and with the same power, but phases beyond a resolution drawn at random."""
        spectrum = torch.fft.rfftn(self.volume)
        axis = torch.fft.fftfreq(self.box, self.pixel_size_angstrom)
        half = torch.fft.rfftfreq(self.box, self.pixel_size_angstrom)
        square = axis.square()[:, None, None] + axis.square()[:, None] + half.square()
        beyond = square > beyond_angstrom**-2
        place = torch.arange(self.box) - self.box // 2
        far = (place[:, None, None] ** 2 + place[:, None] ** 2 + place**2).sqrt()
        inside = torch.sigmoid((self.radius - far) / 1.5)
        made = torch.randn(self.volume.shape, generator=generator)
        for _ in range(_ROUNDS):  # of the right power, and of the right size
            found = torch.fft.rfftn(made)
            random = spectrum.abs() * found / found.abs().clamp_min(1e-12)
            mixed = torch.where(beyond, random, spectrum)
            made = torch.fft.irfftn(mixed, s=self.volume.shape) * inside
        return Reference(made, self.pixel_size_angstrom, self.config)

    def under(self, image: Tensor, lens: Lens) -> Search:
        """The reference behind one lens, to be looked for in an image ``(H, W)``.

        Parameters
        ----------
        lens : callable
            Takes a shape and gives the transfer in the layout of `torch.fft.rfft2`.
        """
        return Search(self, image, lens)

    def project(self, turns: Tensor, fine: bool = False) -> Tensor:
        """Views ``(n, box // 2, box // 2)`` at twice the pixel size, or at it."""
        if fine:
            return project(self.volume, turns, self.pixel_size_angstrom)
        return project(self._coarse_volume, turns, 2 * self.pixel_size_angstrom)


class Search:
    """A reference behind a lens, and a whitened micrograph; see `Reference.under`."""

    def __init__(self, reference: Reference, image: Tensor, lens: Lens) -> None:
        self.reference, self.box = reference, reference.box
        whiten = _whitening(image)
        spectrum = torch.fft.rfft2(image) * whiten(tuple(image.shape))
        white = torch.fft.irfft2(spectrum, s=image.shape)
        self.white = functional.pad(white, (self.box // 2,) * 4)  # particles at the border
        side = self.box + 2 * _MARGIN
        self._lens, half = lens((side, side)), side // 2
        inner = torch.cat([self._lens[: half // 2], self._lens[-(half // 2) :]])[:, : half // 2 + 1]
        self._coarse_lens = inner * whiten((half, half), 0.5)
        reach = min(reference.radius / 2 + 2, self.box / 4 - 1)
        self._window = torch.sigmoid(reach - distance(self.box // 2))
        self.templates = _through(reference.views, self._coarse_lens)
        self._keys = torch.fft.rfft2(self.templates).conj()
        self._energy = self.templates.square().sum((1, 2))

    def fields(self, places: NDArray[np.int64]) -> Tensor:
        """Products with all targets ``(n, targets, 7, 7)`` at shifts up to three coarse pixels."""
        return torch.stack([_products(one, self._keys, _REACH) for one in self._spectra(places)])

    def contrast(self, fields: Tensor) -> float:
        """a, from the half of the places that fit best."""
        best = fields.amax((2, 3))
        fit, target = (best / self._energy.sqrt()).max(1)
        numbers = torch.arange(len(best))
        sure = fit >= fit.median()
        found = best[numbers, target][sure].sum() / self._energy[target][sure].sum()
        return max(float(found), 0.0)

    def log_ratio(self, fields: Tensor, contrast: float) -> Tensor:
        r""":math:`\ell` of every target and shift, the shape of `fields`."""
        return _log_ratio(fields, self._energy, contrast)

    def evidence(self, fields: Tensor, contrast: float) -> Tensor:
        """``(n,)`` logarithm of the mean likelihood ratio over all poses and shifts."""
        found = self.log_ratio(fields, contrast).flatten(1)
        return found.logsumexp(1) - math.log(found.shape[1])

    def refine(self, places: NDArray[np.int64], fields: Tensor, contrast: float) -> Poses:
        """Local searches from the best poses of the coarse grid, and their posterior mean."""
        parts = [
            self._refine(places[i : i + _AT_ONCE], fields[i : i + _AT_ONCE], contrast)
            for i in range(0, len(places), _AT_ONCE)
        ]
        return Poses(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _refine(
        self, places: NDArray[np.int64], fields: Tensor, contrast: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        reference, settings, spectra = self.reference, self.reference.config, self._spectra(places)
        level = self.log_ratio(fields, contrast).amax((2, 3))
        turns = reference.turns[level.topk(min(settings.keep, level.shape[1])).indices]
        for step in settings.steps_deg:
            turns = (turns[:, :, None] @ _turns(_steps(math.radians(step)))).flatten(1, 2)
            views = _through(reference.project(turns.flatten(0, 1)), self._coarse_lens)
            keys = torch.fft.rfft2(views).conj().unflatten(0, turns.shape[:2])
            energy = views.square().sum((1, 2)).unflatten(0, turns.shape[:2])
            kept = []
            for number, spectrum in enumerate(spectra):
                products = _products(spectrum, keys[number], _REACH + 1, 2)
                ratio = _log_ratio(products, energy[number], contrast).flatten(1)
                best = ratio.amax(1).topk(min(settings.keep, len(ratio)))
                kept.append((turns[number, best.indices], best.values, ratio[best.indices]))
            turns, values, ratios = (torch.stack(each) for each in zip(*kept, strict=True))
        weights, wide = torch.softmax(values, 1), 4 * (_REACH + 1) + 1
        place = ratios.argmax(2)
        moved = torch.stack([place // wide, place % wide], 2).float() - wide // 2
        views = reference.project(turns.flatten(0, 1), fine=True)
        seen = shift(_through(views, self._lens), moved.flatten(0, 1)).unflatten(0, place.shape)
        centre = (weights[..., None] * moved).sum(1)
        axis = torch.arange(self.box) - self.box // 2
        y, x = ((axis - centre[:, [k]]) for k in (0, 1))
        away = torch.hypot(y[:, :, None], x[:, None, :])
        disc = torch.sigmoid((reference.radius + 2 - away) / 1.5)
        guess = contrast * (weights[..., None, None] * seen).sum(1) * disc
        return guess, disc, turns[:, 0]

    def _spectra(self, places: NDArray[np.int64]) -> Tensor:
        patches = [self.white[y : y + self.box, x : x + self.box] for y, x in places]
        return torch.fft.rfft2(coarsen(torch.stack(patches)) * self._window)


def _log_ratio(products: Tensor, energy: Tensor, contrast: float) -> Tensor:
    """White noise of unit variance has a quarter of it in a coarse pixel."""
    return 4 * (contrast * products - 0.5 * contrast**2 * energy[:, None, None])


def _products(spectrum: Tensor, keys: Tensor, reach: int, finer: int = 1) -> Tensor:
    """Products with targets at shifts up to `reach` pixels, in steps of 1 / `finer` pixel."""
    side, most = spectrum.shape[0], reach * finer
    product = spectrum * keys
    if finer > 1:
        rows = torch.zeros(len(keys), (finer - 1) * side, product.shape[2], dtype=product.dtype)
        product = torch.cat([product[:, : side // 2], rows, product[:, side // 2 :]], 1)
    size = finer * side
    field = torch.fft.irfft2(product, s=(size, size)) * finer**2
    return torch.roll(field, (most, most), (1, 2))[:, : 2 * most + 1, : 2 * most + 1]


def _through(views: Tensor, transfer: Tensor) -> Tensor:
    """Views ``(n, box, box)`` behind a transfer of a larger square."""
    side, box = transfer.shape[0], views.shape[-1]
    margin, parts = (side - box) // 2, []
    for part in views.split(512):
        spread = torch.fft.rfft2(functional.pad(part, (margin,) * 4)) * transfer
        seen = torch.fft.irfft2(spread, s=(side, side))
        parts.append(seen[:, margin:-margin, margin:-margin])
    return torch.cat(parts)


def _whitening(image: Tensor) -> Callable[..., Tensor]:
    """One over the root of the image's power at the frequencies of any shape, times a scale."""
    shape = tuple(image.shape)
    mean = ring_power((image - image.mean())[None])[0]
    smooth = scipy.ndimage.gaussian_filter1d(mean.double().numpy(), 2.0)
    known = np.arange(len(smooth)) / min(shape)

    def filter_of(wanted: tuple[int, int], scale: float = 1.0) -> Tensor:
        level = np.interp(frequency_of(wanted).numpy() * scale, known, smooth)
        return torch.from_numpy(level**-0.5).float()

    return filter_of


def _coarsen_volume(volume: Tensor) -> Tensor:
    """A cube at twice the voxel size, by cropping its spectrum."""
    quarter = volume.shape[0] // 4
    inner = slice(quarter, -quarter)
    spectrum = torch.fft.fftshift(torch.fft.fftn(volume))[inner, inner, inner]
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum)).real / 8


def _steps(radians: float) -> Tensor:
    """27 rotation vectors ``(27, 3)``: a step forth, none, or back about each axis."""
    return torch.cartesian_prod(*[torch.tensor([-radians, 0.0, radians])] * 3)


def _turns(vectors: Tensor) -> Tensor:
    """Rotations ``(n, 3, 3)`` about vectors ``(n, 3)`` by their lengths."""
    x, y, z = vectors.unbind(1)
    none = torch.zeros_like(x)
    rows = [none, -z, y, z, none, -x, -y, x, none]
    return torch.linalg.matrix_exp(torch.stack(rows, 1).reshape(-1, 3, 3))
