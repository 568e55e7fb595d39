r"""Scores learned from noisy images alone, and guided by projections of a known structure.

Everything is in units of the microscope's noise: :math:`x = y + n` with :math:`n` white of
standard deviation :math:`\sigma_n`, here 1. An auxiliary noise :math:`\sigma_a u` is added, and
:math:`v^2 = \sigma_n^2 + \sigma_a^2` is all the noise there is in :math:`x' = x + \sigma_a u`
(the paper mixes up :math:`v` and :math:`\sigma_a`). The network F is wrapped into a posterior mean

.. math:: D(x', v) = \frac{\sigma^2}{\sigma^2 + v^2} x'
                     + \frac{\sigma v}{\sqrt{\sigma^2 + v^2}}
                       F\left(\frac{x'}{\sqrt{\sigma^2 + v^2}}, \ln v\right),

:math:`\sigma` the standard deviation of the clean images (Karras et al. 2022, table 1), and the
score is :math:`s = (D - x') / v^2` (Tweedie). Source: Wu, Zhan et al., "Score-Based Matching with
Target Guidance for Cryo-EM Denoising" (arXiv 2604.17734), with its formulas put right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab.checks import check_fields
from emlab.errors import InputError

_SMOOTH, _NEAR = 1.5, 6  # rings: standard deviation of the blur of a spectrum, and its reach


def dsm_target(x: Tensor, auxiliary: Tensor, sigma_a: Tensor) -> Tensor:
    r"""What D regresses on in denoising score matching: :math:`x - u\,\sigma_n^2/\sigma_a`.

    The residual form :math:`\|\sigma_a s(x') + u\|^2` is
    :math:`\frac{\sigma_a^2}{v^4} \|D - z\|^2` with this z. For Gaussian noise z and x' have
    independent noises, so that D learns the clean image: the loss *is* Noise2Noise on a pair that
    was recorrupted (Pang et al. 2021). But z holds noise of variance
    :math:`\sigma_n^2 (1 + \sigma_n^2/\sigma_a^2)`: small auxiliary noise is ill-conditioned.

    Parameters
    ----------
    x, auxiliary : Tensor
        Noisy images ``(n, H, W)`` and u.
    sigma_a : Tensor
        ``(n,)``.
    """
    return x - auxiliary / sigma_a[:, None, None]


def centred_target(x: Tensor, guess: Tensor, v: Tensor, sigma_r: float) -> Tensor:
    r"""Posterior mean when the truth is normal about a guess :math:`\tilde y`, eq. 5 put right.

    .. math:: s^* = -\frac{x' - \tilde y}{\sigma_r^2 + v^2}, \qquad
              D^* = x' + v^2 s^* = \frac{\sigma_r^2 x' + v^2 \tilde y}{\sigma_r^2 + v^2}

    Parameters
    ----------
    x, guess : Tensor
        ``(n, H, W)``.
    v : Tensor
        ``(n,)``.
    sigma_r : float
        Standard deviation of what the guess gets wrong, in units of the noise.
    """
    wide = v.square()[:, None, None]
    return (sigma_r**2 * x + wide * guess) / (sigma_r**2 + wide)


def literal_target(x: Tensor, guess: Tensor, v: Tensor, sigma_data: float) -> Tensor:
    r"""The surrogate score :math:`-\tilde y/\sigma^2` as printed: Tweedie *removes* the guess.

    .. math:: D^* = x' - v^2 \tilde y / \sigma^2
    """
    return x - v.square()[:, None, None] * guess / sigma_data**2


@dataclass(frozen=True)
class Guidance:
    """How strongly the targets guide, over the training.

    Attributes
    ----------
    weight : float
        Largest weight of the guided term in [0, 1]; 0 is denoising score matching.
    start, full : float
        Share of the training before which the weight is 0, and from which it is `weight`; linear
        in between.
    sigma_r : float
        See `centred_target`.
    variant : str
        ``"centred"`` or ``"literal"``.
    """

    weight: float = 1.0
    start: float = 0.1
    full: float = 0.3
    sigma_r: float = 0.1
    variant: Literal["centred", "literal"] = "centred"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.weight <= 1 or not 0 <= self.start <= self.full <= 1:
            raise InputError("guidance needs a weight in [0, 1] and 0 <= start <= full <= 1")
        if self.sigma_r < 0:
            raise InputError(f"guidance needs sigma_r >= 0, got {self.sigma_r}")

    def at(self, progress: float) -> float:
        """Weight at a share of the training."""
        if progress < self.start:
            return 0.0
        if progress >= self.full:
            return self.weight
        return self.weight * (progress - self.start) / (self.full - self.start)


def frequency_of(shape: tuple[int, ...]) -> Tensor:
    """Cycles per pixel ``(H, W // 2 + 1)`` in the layout of `torch.fft.rfft2`."""
    return torch.hypot(torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1]))


def ring_power(images: Tensor) -> Tensor:
    """Power a pixel of images ``(n, H, W)``, mean over rings of frequency: ``(n, rings)``.

    Ring r holds the frequencies next to ``r / min(H, W)`` cycles per pixel; white noise has its
    variance in all of them.
    """
    power = torch.fft.rfft2(images.float()).abs().square() / images[0].numel()
    ring = _rings(tuple(images.shape[-2:])).to(images.device)
    total = torch.zeros(len(images), int(ring.max()) + 1, device=images.device)
    return total.index_add_(1, ring.flatten(), power.flatten(1)) / torch.bincount(ring.flatten())


def wiener(x: Tensor, v: Tensor) -> Tensor:
    r"""Images ``(n, H, W)`` less noise ``(n,)``, by :math:`\max(0, 1 - v^2/P(k))`, P of each."""
    shape = tuple(x.shape[-2:])
    near = torch.arange(-_NEAR, _NEAR + 1, device=x.device) / _SMOOTH
    weight = torch.softmax(-near.square() / 2, 0)
    spread = functional.pad(ring_power(x)[:, None], (_NEAR, _NEAR), "replicate")
    mean = functional.conv1d(spread, weight[None, None])[:, 0]
    gain = (1 - v.square()[:, None] / mean.clamp_min(1e-12)).clamp_min(0)
    kept = torch.fft.rfft2(x.float()) * gain[:, _rings(shape).to(x.device)]
    return torch.fft.irfft2(kept, s=shape)


def _rings(shape: tuple[int, ...]) -> Tensor:
    return (frequency_of(shape) * min(shape)).round().long()


@dataclass(frozen=True)
class ScoreMatching:
    r"""Denoising score matching in its residual form, with or without guidance.

    .. math:: \frac{\sigma_a^2}{v^4}
              \left(\lambda c \|D - D^*\|^2 + (1 - \lambda c) \|D - z\|^2\right)

    with the confidence c of each pixel's guess, z of `dsm_target` and :math:`D^*` of
    `centred_target`. :math:`\sigma_a` is log-uniform; its upper end falls from `sigma_start` to
    `sigma_end` over the training (annealing; equal values switch it off).

    With `ringwise` the share of the input in D is not one number but Wiener's gain
    :math:`\max(0, 1 - v^2/P(k))` with P the power of the image itself, averaged over rings of
    frequency: the network starts at the best linear answer, zeros of the lens included.
    """

    sigma_data: float = 0.3
    sigma_min: float = 0.5
    sigma_start: float = 1.5
    sigma_end: float = 1.0
    ringwise: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {self.sigma_data}")
        if not 0 < self.sigma_min <= self.sigma_end <= self.sigma_start:
            raise InputError("auxiliary noise needs 0 < sigma_min <= sigma_end <= sigma_start")

    def skip(self, v: Tensor) -> Tensor:
        """Share of the input in the answer, the shape of `v`."""
        return self.sigma_data**2 / (self.sigma_data**2 + v.square())

    def output(self, v: Tensor) -> Tensor:
        """What the network's output is multiplied by."""
        return self.sigma_data * v / self.radius(v)

    def radius(self, v: Tensor) -> Tensor:
        """Standard deviation of a noisy image."""
        return (self.sigma_data**2 + v.square()).sqrt()

    def denoise(self, model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
        """D of images ``(n, H, W)`` with noise ``(n,)``."""
        wide = v[:, None, None]
        found = model((x / self.radius(wide))[:, None], v.log())[:, 0].float()
        kept = wiener(x, v) if self.ringwise else self.skip(wide) * x
        return kept + self.output(wide) * found

    def draw(self, n: int, progress: float, generator: torch.Generator) -> Tensor:
        """Auxiliary noise levels ``(n,)``."""
        top = self.sigma_start + (self.sigma_end - self.sigma_start) * progress
        spread = math.log(top / self.sigma_min) * torch.rand(n, generator=generator)
        return self.sigma_min * spread.exp()

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        generator: torch.Generator,
        *,
        guess: Tensor | None = None,
        confidence: Tensor | None = None,
        guidance: Guidance | None = None,
        progress: float = 0.0,
    ) -> Tensor:
        r"""Loss of noisy images ``(n, H, W)`` whose noise has unit variance.

        `guess` and `confidence` ``(n, H, W)`` are the target :math:`\tilde y` and c in [0, 1];
        without `guidance` the loss is denoising score matching. `progress`: share of the training
        that is over.
        """
        sigma_a = self.draw(len(x), progress, generator).to(x.device)
        u = torch.randn(x.shape, generator=generator).to(x.device)
        v = (1 + sigma_a.square()).sqrt()
        mixed = x + sigma_a[:, None, None] * u
        found = self.denoise(model, mixed, v)
        error = (found - dsm_target(x, u, sigma_a)).square()
        share = 0.0 if guidance is None else guidance.at(progress)
        if guidance is not None and guess is not None and confidence is not None and share > 0:
            if guidance.variant == "centred":
                target = centred_target(mixed, guess, v, guidance.sigma_r)
            else:
                target = literal_target(mixed, guess, v, self.sigma_data)
            c = share * confidence
            error = c * (found - target).square() + (1 - c) * error
        return ((sigma_a.square() / v**4)[:, None, None] * error).mean()
