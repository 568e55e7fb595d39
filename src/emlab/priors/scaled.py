"""A prior in the units of the experiment."""

from __future__ import annotations

from torch import Tensor

from emlab.errors import InputError
from emlab.priors.base import Prior


class ScaledPrior:
    """A prior of ``(image - shift) / scale``, seen as a prior of the image.

    Parameters
    ----------
    prior : Prior
        In the units that it was trained in.
    scale : float
        What one unit is, positive, for example radians.
    shift : float
        The image where the prior sees zero.
    """

    def __init__(self, prior: Prior, scale: float, shift: float = 0.0) -> None:
        if not scale > 0:
            raise InputError(f"the scale of a prior must be positive, got {scale}")
        self.prior, self.scale, self.shift = prior, scale, shift

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        inner = self.prior.denoise((x - self.shift) / self.scale, sigma / self.scale)
        return self.scale * inner + self.shift

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Score; see `Prior.score`."""
        return self.prior.score((x - self.shift) / self.scale, sigma / self.scale) / self.scale
