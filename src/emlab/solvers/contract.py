"""What all solvers share: one signature, one result, one source of noise, one linear solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from emlab.priors.base import Prior

Progress = Callable[[int, int], None]  # steps done, steps in all
Item = TypeVar("Item")
NoiseSource = Callable[[int, tuple[int, ...]], Tensor]  # standard normal, of a step and shape


@dataclass(frozen=True)
class Samples:
    """What a solver returns.

    Attributes
    ----------
    images : Tensor
        ``(samples, ..., H, W)``, one restored image or volume a sample.
    evaluations : int
        Steps times samples: how often the prior saw the whole image.
    trace : list of float
        Root mean square of the misfit to the measurement at each step.
    """

    images: Tensor
    evaluations: int
    trace: list[float] = field(default_factory=list)

    @property
    def mean(self) -> Tensor:
        """Mean of the samples ``(..., H, W)``."""
        return self.images.mean(0)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the samples ``(..., H, W)``; zero for a single one."""
        return self.images.std(0, correction=0)


class Solver(Protocol):
    """Combines a prior with a model of the microscope; what it has no use for it ignores.

    Parameters
    ----------
    prior : Prior, or several
        Of images; of volumes one a slicing axis (`across_axes`), used in turn, step by step.
    operator : LinearOperator or Instrument
        What the instrument does, before noise.
    measurement : Tensor
        What `operator` returns for one image, in the prior's units.
    noise : Noise
        Of the measurement. A noise-free one takes a small level.
    config : dataclass
        The solver's settings, checked when they were made.
    generator : torch.Generator or NoiseSource
        Where noise is drawn; blocks of a volume share a `NoiseSource`.
    shape : tuple of int, optional
        Of one restored image ``(H, W)`` or volume ``(D, H, W)``; default: the measurement's.
    samples : int
        Independent draws, computed as one batch.
    start : Tensor, optional
        First guess ``shape``, for example the interpolated measurement.
    progress : callable, optional
        Called after each step.
    """

    def __call__(
        self,
        prior: Any,
        operator: Any,
        measurement: Tensor,
        noise: Any,
        config: Any,
        generator: Any,
        *,
        shape: tuple[int, ...] | None = None,
        samples: int = 1,
        start: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Samples:
        """Restore a measurement."""


def normal(
    generator: torch.Generator | NoiseSource, step: int, shape: Sequence[int], like: Tensor
) -> Tensor:
    """Standard normal numbers of a step, in the precision and place of a tensor."""
    if isinstance(generator, torch.Generator):
        drawn = torch.randn(tuple(shape), generator=generator, dtype=like.dtype)
        return drawn.to(like.device)
    return generator(step, tuple(shape)).to(like)


def told(items: Sequence[Item], progress: Progress | None) -> Iterator[tuple[int, Item]]:
    """Number the items from 0, and tell after each that it is done."""
    for number, item in enumerate(items):
        yield number, item
        if progress is not None:
            progress(number + 1, len(items))


def views_of(prior: Prior | Sequence[Prior]) -> Sequence[Prior]:
    """The priors that are used in turn."""
    return prior if isinstance(prior, Sequence) else (prior,)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    target: Tensor,
    iterations: int,
    tolerance: float = 0.0,
    *,
    dims: tuple[int, ...] | None = None,
    precondition: Callable[[Tensor], Tensor] = lambda residual: residual,
) -> Tensor:
    """Solve ``matrix(x) = target`` from zero, each item of a batch by itself.

    Parameters
    ----------
    matrix : callable
        Symmetric and positive; where rounding or a network makes it otherwise, the item keeps
        what it has.
    tolerance : float
        Stop when this share of every item's squared residual is left.
    dims : tuple of int, optional
        Axes of one item; default: all but the first.
    precondition : callable, optional
        About the inverse of `matrix`, symmetric and positive.
    """
    dims = tuple(range(1, target.ndim)) if dims is None else dims
    solution, residual = torch.zeros_like(target), target
    direction = preconditioned = precondition(residual)
    power = (residual * preconditioned).sum(dims, keepdim=True)
    enough = tolerance * power
    for _ in range(iterations):
        if not bool((power > enough).any()):
            break
        applied = matrix(direction)
        curvature = (direction * applied).sum(dims, keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0.0)
        solution, residual = solution + step * direction, residual - step * applied
        preconditioned = precondition(residual)
        before, power = power, (residual * preconditioned).sum(dims, keepdim=True)
        direction = preconditioned + torch.where(curvature > 0, power / before, 0.0) * direction
    return solution
