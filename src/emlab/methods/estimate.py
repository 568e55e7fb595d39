"""What every method gives back: an image, how sure it is, what to know about it, what it took."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.priors.base import FromDenoiser, Prior
from emlab.solvers.contract import Progress

Array = TypeVar("Array", NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class Cost:
    """What an estimate took."""

    seconds: float = 0.0  #: wall time
    network_seconds: float = 0.0  #: the part of it spent inside the network
    evaluations: int = 1  #: how often the prior saw the whole image


@dataclass(frozen=True, kw_only=True)
class Estimate(Generic[Array]):
    """A restored image or volume, or several, in the grey levels of the input."""

    image: Array  #: the mean of the samples, or the one estimate
    samples: Array  #: ``(s, ...)``, each one a draw; of a method that draws none the estimate
    spread: Array | None = None  #: standard deviation over the samples; None for a single one
    noise_sigma: float = math.nan  #: of the input, given or estimated; NaN where it has none
    notes: list[str] = field(default_factory=list)  #: what to know: estimates, padding
    cost: Cost = field(default_factory=Cost)


class TimedPrior(FromDenoiser):
    """A prior that knows how long it took, and tells how many images or tiles of a `total` it saw.

    `progress` is called with both.
    """

    def __init__(self, prior: Prior, progress: Progress | None = None, total: int = 0) -> None:
        self.prior, self.progress, self.total = prior, progress, total
        self.seconds, self.seen, self.started = 0.0, 0, time.perf_counter()

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        started = time.perf_counter()
        answer = self.prior.denoise(x, sigma)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        self.seconds += time.perf_counter() - started
        self.seen += math.prod(x.shape[:-2])
        if self.progress is not None:
            self.progress(self.seen, self.total)
        return answer

    def cost(self, evaluations: int) -> Cost:
        """What was spent since the prior was made."""
        return Cost(time.perf_counter() - self.started, self.seconds, evaluations)
