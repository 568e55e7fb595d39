"""Grey levels of a reader's image, and the units of the prior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.errors import InputError

# Mean and standard deviation of the training patches after jitter, in the prior's units.
TISSUE_MEAN, TISSUE_STD = 0.0135, 0.30


@dataclass(frozen=True)
class GreyScale:
    """Affine map between grey levels and the prior's units: ``unit = (grey - zero) / scale``."""

    zero: float
    scale: float

    @classmethod
    def of(cls, image: NDArray[np.float32], noise_sigma: float = 0.0) -> GreyScale:
        """The map that gives an image of known noise the mean and spread of the training tissue."""
        moments = image.mean(dtype=np.float64), image.var(dtype=np.float64)
        return cls.from_moments(float(moments[0]), float(moments[1]), noise_sigma)

    @classmethod
    def from_moments(cls, mean: float, variance: float, noise_sigma: float = 0.0) -> GreyScale:
        """The same from the mean and variance of the noisy image."""
        tissue = variance - noise_sigma**2
        if tissue <= 1e-3 * variance:
            raise InputError(
                "the image is constant or nothing but noise: check the file, or lower noise_sigma"
                if variance > 0
                else "the image is constant: there is nothing to restore"
            )
        scale = tissue**0.5 / TISSUE_STD
        return cls(mean - TISSUE_MEAN * scale, scale)

    def to_units(self, grey: NDArray[np.float32], device: torch.device | str) -> Tensor:
        """Grey levels to the prior's units, as a tensor."""
        return torch.from_numpy((grey - self.zero) / self.scale).float().to(device)

    def to_grey(self, units: Tensor) -> NDArray[np.float32]:
        """The prior's units to grey levels, as an array."""
        return (units.cpu().numpy() * self.scale + self.zero).astype(np.float32)
