"""Cellpose3: segment cells, and restore images so that segmenting them succeeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from emlab import models, weights
from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.methods.estimate import Cost, Estimate
from emlab.metrics.segmentation import mean_diameter
from emlab.models import untrained
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.degradations import normalise
from emlab.runtime import Stopwatch
from emlab.solvers.mask_flows import follow_flows
from emlab.solvers.tiling import apply_tiled

DIAMETER = 17.0  # pixels; the size at which the networks know objects
SEGMENTER = "cellpose3_segmenter"
CANDIDATES = (8.0, 12.0, 17.0, 24.0, 34.0, 48.0, 68.0)  # diameters, half an octave apart
LARGEST = 384  # side at which an image is looked at to tell its diameter


@dataclass(frozen=True)
class Config:
    """How flows become labels."""

    probability_threshold: float = 0.0  #: logit above which a pixel is a cell
    flow_threshold: float = 0.4  #: largest flow error of an object; 0 keeps all
    smallest: int = 15  #: objects of fewer pixels are dropped
    steps: int = 200  #: along the flows, of a pixel or so; four diameters where those are more
    tile: int = 512  #: side of the tiles of large images, at the working size
    overlap: int = 96  #: pixels that they share

    def __post_init__(self) -> None:
        check_fields(self)
        if self.smallest < 1 or self.steps < 1 or self.flow_threshold < 0:
            raise InputError("segmenting needs smallest >= 1, steps >= 1 and flow_threshold >= 0")
        if not 0 <= self.overlap < self.tile:
            raise InputError(f"tiles need 0 <= overlap < tile, got {self.overlap} and {self.tile}")


@dataclass(frozen=True)
class Segmentation:
    """Objects of an image."""

    labels: NDArray[np.int32]  #: ``(H, W)``, 0 is background
    flows: NDArray[np.float32]  #: ``(2, H, W)``, about five times unit vectors
    cell_probability: NDArray[np.float32]  #: ``(H, W)`` logits


def load_segmenter(name: str = SEGMENTER, device: torch.device | str = "cpu") -> ResidualUNet:
    """Segmenter with shipped weights, frozen."""
    return _load(name, 3, device)


def load_restorer(name: str, device: torch.device | str = "cpu") -> ResidualUNet:
    """Restorer with shipped weights, frozen; names are listed by ``emlab weights``."""
    return _load(name, 1, device)


def untrained_restorer(name: str, seed: int) -> ResidualUNet:
    """The network of a restorer before its training, frozen."""
    network = untrained(weights.card(name).model, seed)
    assert isinstance(network, ResidualUNet)
    return network.eval().requires_grad_(False)


def segment(
    image: ArrayLike,
    segmenter: ResidualUNet,
    diameter: float | None = None,
    config: Config | None = None,
    rescale_intensity: bool = True,
) -> Segmentation:
    """Find the objects of an image.

    Parameters
    ----------
    image : array_like
        ``(H, W)``.
    diameter : float, optional
        Of the objects in pixels; the image is brought to the size at which they have 17, and the
        flows are brought back. Default: they have 17 already.
    rescale_intensity : bool
        Map the 1st and 99th percentile to 0 and 1 first; not for the output of :func:`restore`.
    """
    settings = config or Config()
    pixels = _checked(image, segmenter)
    if rescale_intensity:
        pixels = normalise(pixels)
    small = resize(pixels, working_size(pixels.shape, diameter))
    output = apply_tiled(segmenter, small, settings.tile, settings.overlap).float()
    output = resize(output, pixels.shape)
    steps = max(settings.steps, math.ceil(4 * (diameter or DIAMETER)))
    limits = settings.probability_threshold, settings.flow_threshold
    labels = follow_flows(output[:2], output[2], *limits, steps, settings.smallest)
    return Segmentation(labels, output[:2].cpu().numpy(), output[2].cpu().numpy())


def restore(
    image: ArrayLike,
    restorer: ResidualUNet,
    diameter: float | None = None,
    config: Config | None = None,
) -> Estimate[NDArray[np.float32]]:
    """Restore ``(H, W)``, in grey levels where 0 and 1 are percentiles 1 and 99 of the clean image.

    The diameter is that of the objects in pixels, as in :func:`segment`.
    """
    settings = config or Config()
    with Stopwatch() as watch:
        pixels = normalise(_checked(image, restorer))
        small = resize(pixels, working_size(pixels.shape, diameter))
        restored = apply_tiled(restorer, small, settings.tile, settings.overlap).float()
        found = resize(restored[0], pixels.shape).cpu().numpy()
    return Estimate(image=found, samples=found[None], cost=Cost(watch.seconds))


def estimate_diameter(
    image: NDArray[np.floating], segmenter: ResidualUNet, restorer: ResidualUNet | None = None
) -> float:
    """Diameter that objects have when they are segmented with just this diameter, in pixels.

    The middle of the image ``(H, W)`` is segmented at several sizes, restored before if it is noisy
    or blurred. A size at which the objects found are as large as was assumed is a fixed point; of
    those the one is taken at which objects cover the most, and 17, the working size, if nothing is
    found at any.
    """
    best, most = DIAMETER, 0.0
    for assumed in CANDIDATES:
        side = max(48, int(LARGEST * assumed / DIAMETER))
        part = np.asarray(image, np.float32)[middle(image.shape, side)]
        size = [max(16, round(length * DIAMETER / assumed)) for length in part.shape]
        small = resize(torch.from_numpy(part.copy()), tuple(size)).numpy()
        if small.min() == small.max():
            continue
        if restorer is not None:
            small = restore(small, restorer).image
        labels = segment(small, segmenter, rescale_intensity=restorer is None).labels
        found = mean_diameter(labels)
        if found == 0:
            continue
        agreement = np.exp(-((np.log2(found / DIAMETER) / 0.35) ** 2))
        weight = agreement * float((labels > 0).mean())
        if weight > most:
            best, most = assumed * found / DIAMETER, weight
    return float(best)


def middle(shape: tuple[int, ...], side: int) -> tuple[slice, ...]:
    """Where the middle of an image is, of at most `side` pixels each way."""
    starts = [max(0, (length - side) // 2) for length in shape]
    return tuple(slice(start, start + side) for start in starts)


def working_size(shape: tuple[int, ...], diameter: float | None) -> tuple[int, int]:
    """Height and width of an image when its objects have 17 pixels."""
    if diameter is None:
        return shape[0], shape[1]
    if not 1 <= diameter <= 1000:
        raise InputError(f"the diameter must be 1 to 1000 pixels, got {diameter}")
    height, width = (max(8, round(side * DIAMETER / diameter)) for side in shape)
    return height, width


def resize(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Interpolate ``(..., H, W)`` linearly to another height and width, smoothed when shrinking."""
    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    flat = image.reshape(1, -1, *image.shape[-2:])
    sized = functional.interpolate(flat, size=tuple(shape), mode="bilinear", antialias=True)
    return sized.reshape(*image.shape[:-2], *shape)


def _load(name: str, outputs: int, device: torch.device | str) -> ResidualUNet:
    network, card = models.load(name, device)
    if not isinstance(network, ResidualUNet) or card.model["outputs"] != outputs:
        raise InputError(f"{name} is no Cellpose3 network with {outputs} output(s)")
    return network


def _checked(image: ArrayLike, network: ResidualUNet) -> Tensor:
    pixels = np.asarray(image)
    if pixels.ndim != 2 or min(pixels.shape) < 8 or pixels.dtype.kind not in "uif":
        raise InputError(
            f"one grey image (H, W) of 8 x 8 pixels or more is needed, got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )
    if not np.isfinite(pixels).all():
        raise InputError("the image has values that are not finite; replace them first")
    device = next(network.parameters()).device
    return torch.from_numpy(pixels.astype(np.float32)).to(device)
