"""What a restored image must be good for: pixels, a frozen segmenter, or that segmenter's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.models.residual_unet import ResidualUNet


@dataclass(frozen=True)
class Weights:
    """Weights of the three losses in their sum; Cellpose3 takes 0, 1.5 and 1."""

    reconstruction: float = 0.0
    segmentation: float = 1.5
    perceptual: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        all_of = (self.reconstruction, self.segmentation, self.perceptual)
        if min(all_of) < 0 or max(all_of) == 0:
            raise InputError(f"weights of losses must be >= 0 and not all 0, got {all_of}")


def reconstruction_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """80 times the mean squared difference of images ``(n, H, W)``."""
    return 80 * functional.mse_loss(restored, clean)


def segmentation_loss(output: Tensor, flows: Tensor, inside: Tensor) -> Tensor:
    r"""Loss of a segmenter (Stringer et al. 2021, methods; Cellpose3, methods).

    .. math:: \tfrac12\, \mathrm{MSE}(\hat f, 5 f) + \mathrm{BCE}(\hat p, m)

    Parameters
    ----------
    output : Tensor
        ``(n, 3, H, W)``: flows in y and x, logit.
    flows : Tensor
        ``(n, 2, H, W)`` true unit flows.
    inside : Tensor
        ``(n, H, W)``, 1 in objects and 0 outside.
    """
    output = output.float()
    of_flows = functional.mse_loss(output[:, :2], 5 * flows)
    return 0.5 * of_flows + functional.binary_cross_entropy_with_logits(output[:, 2], inside)


def correlations(maps: Sequence[Tensor]) -> list[Tensor]:
    """Channel correlation matrices ``(n, c, c)`` of encoder maps ``(n, c, H, W)``."""
    found = []
    for values in maps:
        flat = values.float().flatten(2)
        flat = flat - flat.mean(2, keepdim=True)
        flat = flat / (flat.std(2, keepdim=True) + 1e-6)
        found.append(flat @ flat.transpose(1, 2) / flat.shape[2])
    return found


def perceptual_loss(restored: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
    r"""Difference of channel correlations, the sum over levels (Cellpose3, methods).

    .. math:: \sum_l \overline{(\hat S_l - S_l)^2} / (\mathrm{std}(S_l) + 10^{-6})^2

    The paper says that it divides by the standard deviation; its code divides by the variance, and
    so does this.

    Parameters
    ----------
    restored, clean : sequence of Tensor
        Correlations of each level; no gradient flows into the clean ones.
    """
    total = torch.zeros(())
    for got, wanted in zip(restored, clean, strict=True):
        target = wanted.detach()
        spread = target.std((1, 2), unbiased=True) + 1e-6
        total = total.to(got) + ((got - target).square().mean((1, 2)) / spread**2).mean()
    return total


def restoration_loss(
    restored: Tensor,
    clean: Tensor,
    flows: Tensor,
    inside: Tensor,
    segmenter: ResidualUNet | None,
    weights: Weights,
) -> Tensor:
    """Weighted sum of the losses; parts of weight 0 are not computed.

    Parameters
    ----------
    restored, clean : Tensor
        ``(n, H, W)``.
    flows, inside : Tensor
        True flows ``(n, 2, H, W)`` and cells ``(n, H, W)``.
    segmenter : ResidualUNet
        Frozen and in evaluation mode; sides divide by its ``multiple``. None is enough where the
        reconstruction is all.
    """
    total = torch.zeros((), device=restored.device)
    if weights.reconstruction:
        total = total + weights.reconstruction * reconstruction_loss(restored, clean)
    if not (weights.segmentation or weights.perceptual):
        return total
    if (
        segmenter is None
        or segmenter.training
        or any(p.requires_grad for p in segmenter.parameters())
    ):
        raise InputError("freeze the segmenter first: segmenter.eval().requires_grad_(False)")
    features = segmenter.features(restored)
    if weights.segmentation:
        output = segmenter.decode(features)
        total = total + weights.segmentation * segmentation_loss(output, flows, inside)
    if weights.perceptual:
        with torch.no_grad():
            wanted = correlations(segmenter.features(clean).maps)
        total = total + weights.perceptual * perceptual_loss(correlations(features.maps), wanted)
    return total
