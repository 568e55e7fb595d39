"""A prior that knows that micrographs have no up."""

from __future__ import annotations

import torch
from torch import Tensor

from emlab.priors.base import Prior


class EquivariantPrior:
    r"""A prior asked about a randomly flipped and turned image, its answer turned back.

    Tissue looks the same from all sides, a trained network's errors do not. Averaged over the
    steps of a sampler the random turn removes the part of the error that depends on orientation,
    at no cost (Terris et al. 2024, "Equivariant plug-and-play", algorithm 1).

    Parameters
    ----------
    prior : Prior
        Of images ``(..., H, W)`` of any shape.
    generator : torch.Generator
        Draws one of the eight flips and turns at every call.
    """

    def __init__(self, prior: Prior, generator: torch.Generator) -> None:
        self.prior = prior
        self.generator = generator

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        element = int(torch.randint(8, (), generator=self.generator))
        return turn_back(self.prior.denoise(turn(x, element), sigma), element)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Score; see `Prior.score`."""
        element = int(torch.randint(8, (), generator=self.generator))
        return turn_back(self.prior.score(turn(x, element), sigma), element)


def turn(x: Tensor, element: int) -> Tensor:
    """Element 0 to 7 of the symmetries of the square, applied to ``(..., H, W)``."""
    turned = torch.rot90(x, element % 4, (-2, -1))
    return turned.flip(-1) if element >= 4 else turned


def turn_back(x: Tensor, element: int) -> Tensor:
    """Undo `turn`."""
    unflipped = x.flip(-1) if element >= 4 else x
    return torch.rot90(unflipped, -(element % 4), (-2, -1))
