"""A prior that sees depth: the posterior mean of a plane given its neighbours, or alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.models import DepthUNet
from emlab.priors.base import FromDenoiser

REFERENCE_ANGSTROM = 100.0  # pixel sizes are told as octaves from this one


@dataclass(frozen=True)
class DepthMatching:
    r"""Regress the clean middle plane of a noisy stack, with the Gaussian answer built in.

    For data of mean m and standard deviation s the best *linear* estimate of the middle plane
    :math:`x` from itself is :math:`m + s^2 (x-m)/r^2` with :math:`r^2 = \sigma^2 + s^2`. The
    network F learns what that leaves, a target of unit variance at every level (Karras et al.
    2022, table 1):

    .. math:: D(x, \sigma) = m + \frac{s^2}{r}\,u + \frac{\sigma s}{r}\,F(u, \ln\sigma/4),
              \quad u = (x - m)/r .

    The loss is F's squared error; :math:`\sigma` is log-normal, folded into its range, so that
    most steps go to the levels that restorers ask for. In `alone` of the stacks the middle plane
    stands alone, in a sixth one or two planes are missing on one side, as at a volume's end.

    Attributes
    ----------
    mean, std : float
        Of the images.
    sigma_min, sigma_max : float
        Range of noise levels; beyond it the network is told the nearest.
    sigma_median, sigma_spread : float
        Median of the noise levels, and standard deviation of their logarithm.
    alone : float
        Share of stacks without neighbours.
    nameless : float
        Share of stacks whose pixel size the network is not told.
    """

    mean: float = 0.0
    std: float = 0.3
    sigma_min: float = 0.02
    sigma_max: float = 3.0
    sigma_median: float = 0.35
    sigma_spread: float = 0.9
    alone: float = 0.4
    nameless: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.std <= 0 or not 0 < self.sigma_min < self.sigma_median < self.sigma_max:
            raise InputError("depth needs std > 0 and 0 < sigma_min < sigma_median < sigma_max")
        if not (0 <= self.alone <= 1 and 0 <= self.nameless <= 1 and self.sigma_spread > 0):
            raise InputError("depth needs alone and nameless in [0, 1] and sigma_spread > 0")

    def __call__(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Loss of stacks ``(n, planes + 1, H, W)``; the last plane is the pixel size in octaves."""
        clean, octaves = batch[:, :-1], batch[:, -1, 0, 0]
        count, planes = clean.shape[:2]
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        drawn = torch.randn(count, generator=generator) * self.sigma_spread
        drawn = low + (drawn + math.log(self.sigma_median) - low).abs()
        sigma = (high - (high - drawn).abs()).exp().to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        present = self._draw_present(count, planes, generator).to(clean.device)
        nameless = torch.rand(count, generator=generator).to(clean.device) < self.nameless
        octaves = octaves.masked_fill(nameless, math.nan)
        noisy = clean + sigma[:, None, None, None] * noise
        middle = clean[:, planes // 2]
        estimate = self.denoise(model, noisy, sigma, octaves, present)
        weight = (sigma.square() + self.std**2) / (sigma * self.std).square()
        return (weight[:, None, None] * (estimate - middle).square()).mean()

    def _draw_present(self, count: int, planes: int, generator: torch.Generator) -> Tensor:
        """Which planes there are ``(count, planes)``; the middle one always is."""
        offset = torch.arange(planes) - planes // 2
        kind, side, reach = torch.rand(3, count, 1, generator=generator)
        end = torch.where(side < 0.5, offset, -offset) <= (reach * (planes // 2)).floor()
        present = torch.where(kind < self.alone + 1 / 6, end, torch.ones_like(end))
        return torch.where(kind < self.alone, offset == 0, present)

    def denoise(
        self, model: nn.Module, stack: Tensor, sigma: Tensor, octaves: Tensor, present: Tensor
    ) -> Tensor:
        """Clean middle planes ``(n, H, W)`` of stacks ``(n, planes, H, W)``; see `DepthUNet`."""
        level = sigma[:, None, None]
        radius = torch.sqrt(level.square() + self.std**2)
        scaled = (stack - self.mean) / radius[:, None]
        told = sigma.clamp(self.sigma_min, self.sigma_max).log() / 4
        learned = model(scaled, told, octaves / 4, present).float()
        linear = self.std**2 * scaled[:, stack.shape[1] // 2]
        return self.mean + (linear + level * self.std * learned) / radius


class DepthPrior(FromDenoiser):
    """A prior of single images whose network also knows what to do with neighbouring planes.

    Images ``(..., H, W)`` are seen alone, so that every solver of images can ask it. `of_volumes`
    is the same network where the planes are a volume's.

    Parameters
    ----------
    network : DepthUNet
        Put into evaluation mode.
    matching : DepthMatching
        What surrounds the network.
    half : bool
        Evaluate the network's convolutions in bfloat16, see `FlowPrior`.
    pixel_angstrom : float, optional
        Pixel size; the network judges it by the images if it is not told.
    """

    def __init__(
        self,
        network: DepthUNet,
        matching: DepthMatching,
        half: bool = False,
        pixel_angstrom: float | None = None,
    ) -> None:
        if pixel_angstrom is not None and not pixel_angstrom > 0:
            raise InputError(f"the pixel size must be positive, got {pixel_angstrom}")
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.matching, self.half, self.pixel_angstrom = matching, half, pixel_angstrom

    @property
    def reach(self) -> int:
        """How many planes on each side the network sees."""
        return self.network.planes // 2

    def told(self, pixel_angstrom: float | None) -> DepthPrior:
        """The same prior, told the pixel size."""
        return DepthPrior(self.network, self.matching, self.half, pixel_angstrom)

    def of_volumes(self, batch: int = 16, cubic: bool = False) -> DepthVolumePrior:
        """The prior of volumes ``(..., D, H, W)``, so many planes at a time."""
        return DepthVolumePrior(self, batch, cubic)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of each image alone; see `Prior.denoise`."""
        flat, planes = x.reshape(-1, 1, *x.shape[-2:]), self.network.planes
        present = torch.arange(planes, device=x.device).expand(len(flat), -1) == self.reach
        return self.middle(flat.expand(-1, planes, -1, -1), levels(x, sigma), present).view_as(x)

    def middle(self, stack: Tensor, sigma: Tensor, present: Tensor) -> Tensor:
        """Posterior mean ``(n, H, W)`` of the middle planes of stacks ``(n, planes, H, W)``.

        Computed where the network is, returned where the stacks are.

        Parameters
        ----------
        sigma : Tensor
            ``(n,)``, one noise level for all planes of a stack.
        present : Tensor
            ``(n, planes)``, true where there is a plane.
        """
        told = math.nan
        if self.pixel_angstrom is not None:
            told = math.log2(self.pixel_angstrom / REFERENCE_ANGSTROM)
        device = next(self.network.parameters(), stack).device
        given = [one.to(device) for one in (stack, sigma, torch.full_like(sigma, told), present)]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.half):
            return self.matching.denoise(self.network, *given).to(stack.device)


class DepthVolumePrior(FromDenoiser):
    """A prior of volumes, nearly: each plane is denoised with the planes before and after it.

    Samplers take what follows from that for a score, which no density of volumes has exactly.

    At both ends of a volume the planes that are missing are missing for the network, too: nothing
    is invented. Several volumes do not see each other.

    Parameters
    ----------
    prior : DepthPrior
    batch : int
        Planes given to the network at once: beyond the volume and its answer, memory is theirs.
    cubic : bool
        Voxels are cubes: the mean of the answers for planes across each of the three axes.
    """

    def __init__(self, prior: DepthPrior, batch: int = 16, cubic: bool = False) -> None:
        if batch < 1:
            raise InputError(f"batch must be at least 1, got {batch}")
        self.prior, self.batch, self.cubic = prior, batch, cubic

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of volumes ``(..., D, H, W)``; see `Prior.denoise`."""
        if x.ndim < 3:
            raise InputError(f"a volume is (..., D, H, W), got shape {tuple(x.shape)}")
        axes = (-3, -2, -1) if self.cubic else (-3,)
        level = torch.as_tensor(sigma).broadcast_to(x.shape[:-2])
        if self.cubic and (level != level[..., :1]).any():
            raise InputError("planes of cubic voxels have one noise level")
        answers = []
        for axis in axes:
            across = x.movedim(axis, -3)
            here = level[..., :1].expand(across.shape[:-2]) if self.cubic else level
            answers.append(self._along(across, here).movedim(-3, axis))
        return torch.stack(answers).mean(0) if self.cubic else answers[0]

    def _along(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The answer for planes across the first of a volume's axes."""
        depth, reach = x.shape[-3], self.prior.reach
        flat, level = x.reshape(-1, *x.shape[-2:]), levels(x, sigma)
        around = torch.arange(-reach, reach + 1, device=x.device)
        answers = []
        for planes in torch.arange(len(flat), device=x.device).split(self.batch):
            place = planes[:, None] % depth + around
            present = (place >= 0) & (place < depth)
            neighbours = planes[:, None] + torch.where(present, around, 0)
            answers.append(self.prior.middle(flat[neighbours], level[planes], present))
        return torch.cat(answers).reshape(x.shape)


def levels(x: Tensor, sigma: float | Tensor) -> Tensor:
    """One noise level ``(n,)`` for each image of ``(..., H, W)``; see `Prior.denoise`."""
    level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if (level <= 0).any():
        raise InputError(f"the noise level must be positive, got {level.min().item()}")
    return level.expand(x.shape[:-2]).reshape(-1)
