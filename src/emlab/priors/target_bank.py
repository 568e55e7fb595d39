r"""A bank of projections of a reference, and which of them a noisy patch may be.

A patch P and the targets :math:`T_j` (projections over viewing directions and in-plane angles,
seen through the micrograph's lens) are mapped by :math:`\psi`: to their pixels, or to the deepest
features of the network's own encoder. With the projector :math:`B_T` onto the leading directions
of the targets' span

.. math:: a_j = \frac{\langle B_T\psi(P), \psi(T_j)\rangle}{\|B_T\psi(P)\|\,\|\psi(T_j)\|},
          \quad w = \mathrm{softmax}(a / \tau), \quad \tilde y = \sum_j w_j T_j,
          \quad c = 1 - H(w) / \ln m .

The paper does not state :math:`\tau`; at .5 the weights of some hundred targets are all alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emlab.data.phase_maps import project
from emlab.errors import InputError

Features = Callable[[Tensor], Tensor]
_COARSE = 2  # patches are matched at twice the pixel size
_MARGIN = 16  # pixels around the box into which the lens spreads a projection


@dataclass(frozen=True)
class Match:
    """What a bank says about patches.

    * `guess`: ``(n, box, box)``, the mixture of targets, moved to where the particle is.
    * `confidence`: ``(n,)`` c in [0, 1].
    * `similarity`: ``(n,)`` the largest cosine.
    * `shifts`: ``(n, 2)`` pixels (y, x) from the patch's centre to the particle.
    """

    guess: Tensor
    confidence: Tensor
    similarity: Tensor
    shifts: Tensor


class TargetBank:
    """Projections of a reference volume over viewing directions and in-plane angles.

    Parameters
    ----------
    projections : Tensor
        ``(directions, box, box)``, low-passed, in any units.
    angles : int
        In-plane angles, evenly spread over the circle.
    pixel_size_angstrom : float
        Of the projections and of the patches.
    """

    def __init__(self, projections: Tensor, angles: int, pixel_size_angstrom: float) -> None:
        if projections.ndim != 3 or not len(projections) or angles < 1:
            raise InputError(
                "the target bank is empty; give a reference volume and at least one direction"
            )
        if projections.shape[1] % 4 or not bool(projections.any()):
            raise InputError("targets need a box that is a multiple of 4, and must not all be zero")
        self.projections = projections.float()
        self.angles = angles
        self.box = projections.shape[1]
        self.pixel_size_angstrom = pixel_size_angstrom

    @classmethod
    def from_volume(
        cls,
        volume: Tensor,
        pixel_size_angstrom: float,
        low_pass_angstrom: float,
        directions: int = 200,
        angles: int = 24,
        voltage_kv: float = 300.0,
    ) -> TargetBank:
        """Project a volume along directions spread evenly over the sphere.

        Parameters
        ----------
        volume : Tensor
            ``(n, n, n)``, matter positive.
        low_pass_angstrom : float
            Resolution that the reference is cut to; what is finer guides nobody.
        """
        if directions < 1 or low_pass_angstrom <= 0:
            raise InputError("a target bank needs a direction and a low-pass in angstrom")
        smooth = low_pass(volume.float(), pixel_size_angstrom, low_pass_angstrom)
        turns = directions_of(directions)
        return cls(
            project(smooth, turns, pixel_size_angstrom, voltage_kv), angles, pixel_size_angstrom
        )

    def __len__(self) -> int:
        return len(self.projections) * self.angles

    def views(self, numbers: Tensor) -> Tensor:
        """Projections ``(n, box, box)`` of targets by number, turned in the plane."""
        angle = 2 * math.pi * (numbers % self.angles).float() / self.angles
        cosine, sine = angle.cos(), angle.sin()
        zero = torch.zeros_like(cosine)
        affine = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).reshape(-1, 2, 3)
        centre = 1.0 / self.box  # voxel box // 2 is half a pixel from the middle of the square
        offset = torch.tensor([centre, centre])
        affine[:, :, 2] = offset - (affine[:, :, :2] @ offset[:, None])[..., 0]
        images = self.projections[numbers // self.angles][:, None]
        grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, mode="bicubic", align_corners=False)[:, 0]

    def through(self, transfer: Callable[[tuple[int, int]], Tensor], numbers: Tensor) -> Tensor:
        """Targets seen through a lens.

        Parameters
        ----------
        transfer : callable
            Takes a shape and gives the lens in the layout of `torch.fft.rfft2`, see
            `emlab.physics.micrograph.config_transfer`.
        """
        side = self.box + 2 * _MARGIN
        lens = transfer((side, side))
        parts = []
        for part in numbers.split(256):
            spread = functional.pad(self.views(part), (_MARGIN,) * 4)
            seen = torch.fft.irfft2(torch.fft.rfft2(spread) * lens, s=(side, side))
            parts.append(seen[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
        return torch.cat(parts)

    def matcher(self, transfer: Callable[[tuple[int, int]], Tensor], **options: Any) -> Matcher:
        """Bank seen through one lens, ready to be compared with patches: a `Matcher`."""
        return Matcher(self, transfer, **options)

    def radius_angstrom(self) -> float:
        """Radius that holds 99 % of the squared projections."""
        return radius_of(self.projections) * self.pixel_size_angstrom


class Matcher:
    """A bank under one lens.

    `temperature` is tau, `rank` the dimensions of the span of the targets that :math:`B_T` keeps,
    `features` psi: ``(n, box, box)`` to ``(n, k)``; by default the pixels, twice as coarse. What is
    compared is the disc in which the projections are.
    """

    def __init__(
        self,
        bank: TargetBank,
        transfer: Callable[[tuple[int, int]], Tensor],
        *,
        temperature: float = 0.03,
        rank: int = 128,
        features: Features | None = None,
    ) -> None:
        if temperature <= 0 or rank < 1:
            raise InputError("matching needs a temperature > 0 and a rank of at least 1")
        self.bank, self.transfer, self.temperature = bank, transfer, temperature
        self.features = features
        self.radius_angstrom = bank.radius_angstrom()
        pixels = min(self.radius_angstrom / bank.pixel_size_angstrom + 4, bank.box / 2 - 2)
        self.disc = torch.sigmoid((pixels - distance(bank.box)) / 1.0)
        self.coarse_disc = coarsen(self.disc[None])[0].clamp(0, 1)
        seen = bank.through(transfer, torch.arange(len(bank)))
        self.scale = float(seen.square().mean().sqrt())
        self.templates = functional.normalize(self._windowed(coarsen(seen)).flatten(1), dim=1)
        mapped = self._map(seen)
        self.centre = mapped.mean(0)
        torch.manual_seed(0)
        wanted = min(rank, *mapped.shape)
        self.basis = torch.svd_lowrank(mapped - self.centre, q=wanted, niter=2)[2]
        self.keys = functional.normalize((mapped - self.centre) @ self.basis, dim=1)

    def align(self, patches: Tensor, reach: int = 3) -> Tensor:
        """Where in patches ``(n, box, box)`` the best target lies: ``(n, 2)`` pixels (y, x).

        Parameters
        ----------
        reach : int
            Largest shift in coarse pixels; a parabola through the peak gives fractions of them.
        """
        side, wide = self.bank.box // _COARSE, 2 * reach + 3
        keys = torch.fft.rfft2(self.templates.reshape(-1, side, side)).conj()
        found = []
        for patch in coarsen(patches):
            values = torch.fft.rfft2(patch - patch.mean())
            field = torch.fft.irfft2(values * keys, s=(side, side))
            field = torch.roll(field, (reach + 1, reach + 1), (1, 2))[:, :wide, :wide]
            near = field[field[:, 1:-1, 1:-1].flatten(1).amax(1).argmax()]
            best = int(near[1:-1, 1:-1].argmax())
            y, x = best // (wide - 2) + 1, best % (wide - 2) + 1
            place = (y + _vertex(near[y - 1 : y + 2, x]), x + _vertex(near[y, x - 1 : x + 2]))
            found.append([value - reach - 1 for value in place])
        return _COARSE * torch.tensor(found, dtype=torch.float32).reshape(-1, 2)

    def __call__(self, patches: Tensor, keep: int = 16) -> Match:
        """Compare patches ``(n, box, box)`` with all targets, moved to where the best one fits.

        The mixture is made of the `keep` heaviest targets.
        """
        shifts = self.align(patches)
        cosines = self.cosines(shift(patches, -shifts))
        weights = torch.softmax(cosines / self.temperature, dim=1)
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(1)
        top, numbers = weights.topk(min(keep, weights.shape[1]), dim=1)
        top = top / top.sum(1, keepdim=True)
        chosen, place = numbers.unique(return_inverse=True)
        seen = self.bank.through(self.transfer, chosen)
        guess = torch.einsum("nk,nkyx->nyx", top, seen[place])
        return Match(
            shift(guess * self.disc, shifts),
            1 - entropy / math.log(max(len(self.bank), 2)),
            cosines.amax(1),
            shifts,
        )

    def cosines(self, patches: Tensor) -> Tensor:
        """a, ``(n, targets)``."""
        mapped = (self._map(patches) - self.centre) @ self.basis
        return functional.normalize(mapped, dim=1) @ self.keys.T

    def _map(self, patches: Tensor) -> Tensor:
        if self.features is None:
            return self._windowed(coarsen(patches)).flatten(1) / self.scale
        return torch.cat([self.features(part).flatten(1) for part in patches.split(256)])

    def _windowed(self, coarse: Tensor) -> Tensor:
        """Coarse patches without their mean in the disc, and nothing outside."""
        weight = self.coarse_disc
        mean = (coarse * weight).sum((-2, -1), keepdim=True) / weight.sum()
        return (coarse - mean) * weight


def coarsen(images: Tensor) -> Tensor:
    """Images ``(n, H, W)`` at twice the pixel size, by cropping the spectrum."""
    height, width = images.shape[-2:]
    rows, columns = height // _COARSE, width // _COARSE
    spectrum = torch.fft.fftshift(torch.fft.rfft2(images), dim=-2)
    top = height // 2 - rows // 2
    inner = torch.fft.ifftshift(spectrum[:, top : top + rows, : columns // 2 + 1], dim=-2)
    return torch.fft.irfft2(inner, s=(rows, columns)) / _COARSE**2


def shift(images: Tensor, places: Tensor) -> Tensor:
    """Images ``(n, H, W)`` moved by ``(n, 2)`` pixels (y, x), around the borders."""
    rows = torch.fft.fftfreq(images.shape[-2])[:, None]
    columns = torch.fft.rfftfreq(images.shape[-1])
    turn = places[:, 0, None, None] * rows + places[:, 1, None, None] * columns
    phase = torch.polar(torch.ones_like(turn), -2 * math.pi * turn)
    return torch.fft.irfft2(torch.fft.rfft2(images) * phase, s=images.shape[-2:])


def low_pass(image: Tensor, pixel_size_angstrom: float, resolution_angstrom: float) -> Tensor:
    """An image or a volume without what is finer; the edge falls over a tenth of the resolution."""
    axes = [torch.fft.fftfreq(side, pixel_size_angstrom) for side in image.shape[:-1]]
    axes.append(torch.fft.rfftfreq(image.shape[-1], pixel_size_angstrom))
    square = sum(grid.square() for grid in torch.meshgrid(*axes, indexing="ij"))
    relative = torch.as_tensor(square).sqrt() * resolution_angstrom
    edge = 0.5 + 0.5 * torch.cos(math.pi * ((relative - 0.95) / 0.1).clamp(0, 1))
    return torch.fft.irfftn(torch.fft.rfftn(image) * edge, s=image.shape)


def _vertex(values: Tensor) -> float:
    """Place of the vertex of a parabola through three neighbours of a peak, in [-.5, .5]."""
    left, middle, right = values.tolist()
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else min(0.5, max(-0.5, 0.5 * (left - right) / bend))


def directions_of(count: int) -> np.ndarray:
    """Rotations ``(count, 3, 3)`` whose third columns are spread over the sphere."""
    number = np.arange(count)
    height = 1 - (2 * number + 1) / count
    angle = number * math.pi * (3 - math.sqrt(5))
    around = np.sqrt(1 - height**2)
    third = np.stack([around * np.cos(angle), around * np.sin(angle), height], axis=1)
    helper = np.where(np.abs(third[:, [2]]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    first = np.cross(helper, third)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(third, first), third], axis=2)


def distance(box: int) -> Tensor:
    """Distance in pixels from pixel ``box // 2``, ``(box, box)``."""
    axis = torch.arange(box) - box // 2
    return torch.hypot(axis[:, None].float(), axis.float())


def radius_of(projections: Tensor) -> float:
    """Radius in pixels that holds 99 % of the squares of projections ``(n, box, box)``."""
    weight, away = projections.square().sum(0).flatten(), distance(projections.shape[-1]).flatten()
    order = away.argsort()
    gathered = weight[order].cumsum(0)
    enough = int((gathered < 0.99 * gathered[-1]).sum())
    return float(away[order][min(enough, len(order) - 1)])
