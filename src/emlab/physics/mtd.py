r"""Multi-target detection: one image, many rotated copies, one noisy field.

.. math:: M = \sum_{i=1}^{p} T_{\ell_i} R_{k_i} F + \varepsilon,
          \qquad \varepsilon \sim N(0, \sigma^2), \qquad
          \mathrm{SNR} = \frac{\|F\|^2}{L^2 \sigma^2}

(Zabatani, Kreymer and Bendory 2023, eq. 1). The image F is L x L, the field M is N x N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emlab.errors import InputError


class Rotations:
    """The K rotations by multiples of 360/K degrees about the image centre, counter-clockwise.

    Quarter turns are exact permutations of the pixels. Other angles interpolate bilinearly and
    lose what leaves the square; their adjoint is the transpose of the same sparse matrix, not the
    rotation back.

    Parameters
    ----------
    count : int
        K, at least 1.
    size : int
        L, the side of the image in pixels.

    Raises
    ------
    InputError
        If `count` or `size` is smaller than 1.
    """

    def __init__(
        self,
        count: int,
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if count < 1 or size < 1:
            raise InputError(f"rotations need count >= 1 and size >= 1, got {count} and {size}")
        self.count, self.size = count, size
        self._matrices: dict[int, Tensor] = {}
        for k in range(count):
            if (4 * k) % count:
                matrix = _rotation_matrix(2 * math.pi * k / count, size, dtype)
                self._matrices[k] = matrix.to(device)

    def rotate(self, image: Tensor, k: int) -> Tensor:
        """Rotation number k of ``(..., L, L)``."""
        if k in self._matrices:
            return self._apply(self._matrices[k], image)
        return torch.rot90(image, 4 * k // self.count, dims=(-2, -1))

    def rotate_adjoint(self, image: Tensor, k: int) -> Tensor:
        """Transpose of `rotate`, ``(..., L, L)`` to ``(..., L, L)``."""
        if k in self._matrices:
            return self._apply(self._matrices[k].t(), image)
        return torch.rot90(image, -4 * k // self.count, dims=(-2, -1))

    def A(self, image: Tensor) -> Tensor:
        """All rotations of ``(..., L, L)``, as ``(..., K, L, L)``."""
        return torch.stack([self.rotate(image, k) for k in range(self.count)], dim=-3)

    def A_adjoint(self, stack: Tensor) -> Tensor:
        """Transpose of `A`: ``(..., K, L, L)`` to ``(..., L, L)``."""
        back = [self.rotate_adjoint(stack[..., k, :, :], k) for k in range(self.count)]
        return torch.stack(back).sum(0)

    def _apply(self, matrix: Tensor, image: Tensor) -> Tensor:
        flat = image.reshape(-1, self.size**2)
        return torch.sparse.mm(matrix, flat.T).T.reshape(image.shape)


def _rotation_matrix(angle: float, size: int, dtype: torch.dtype) -> Tensor:
    """Sparse ``(L*L, L*L)`` matrix of bilinear weights; row = pixel of the rotated image."""
    centre = (size - 1) / 2
    row, column = torch.meshgrid(
        torch.arange(size, dtype=torch.float64),
        torch.arange(size, dtype=torch.float64),
        indexing="ij",
    )
    # Image rows point down: counter-clockwise on screen takes (row, column) from here.
    source_row = centre + math.cos(angle) * (row - centre) + math.sin(angle) * (column - centre)
    source_column = centre - math.sin(angle) * (row - centre) + math.cos(angle) * (column - centre)
    low_row, low_column = source_row.floor(), source_column.floor()
    indices, values = [], []
    target = torch.arange(size * size)
    for step_row in (0, 1):
        for step_column in (0, 1):
            r, c = low_row + step_row, low_column + step_column
            weight = (1 - (source_row - r).abs()) * (1 - (source_column - c).abs())
            inside = (r >= 0) & (r < size) & (c >= 0) & (c < size) & (weight > 1e-12)
            source = (r * size + c).long().flatten()
            keep = inside.flatten()
            indices.append(torch.stack([target[keep], source[keep]]))
            values.append(weight.flatten()[keep])
    matrix = torch.sparse_coo_tensor(
        torch.cat(indices, dim=1),
        torch.cat(values).to(dtype),
        (size * size, size * size),
        check_invariants=True,
    )
    return matrix.coalesce()


@dataclass(frozen=True)
class MTDOperator:
    """The noise-free field of an image, for known positions and rotations.

    Attributes
    ----------
    positions : Tensor
        ``(p, 2)`` int64, row and column of the top-left corner of each copy.
    turns : Tensor
        ``(p,)`` int64 in 0..K-1, rotation number of each copy.
    field_size : int
        N, the side of the field in pixels.
    """

    positions: Tensor
    turns: Tensor
    rotations: Rotations
    field_size: int

    def __post_init__(self) -> None:
        size = self.rotations.size
        if self.positions.shape != (len(self.turns), 2):
            raise InputError("positions must be (p, 2) with one rotation number each")
        if len(self.turns) and (
            self.positions.min() < 0 or self.positions.max() > self.field_size - size
        ):
            raise InputError(f"a copy of {size} pixels leaves the field of {self.field_size}")

    def A(self, image: Tensor) -> Tensor:
        """Place the copies: ``(L, L)`` to ``(N, N)``; overlapping copies add up."""
        size = self.rotations.size
        field = image.new_zeros(self.field_size, self.field_size)
        stack = self.rotations.A(image)
        for (row, column), k in zip(self.positions.tolist(), self.turns.tolist(), strict=True):
            field[row : row + size, column : column + size] += stack[k]
        return field

    def A_adjoint(self, field: Tensor) -> Tensor:
        """Cut out, rotate by the transpose and add up: ``(N, N)`` to ``(L, L)``."""
        size = self.rotations.size
        stack = field.new_zeros(self.rotations.count, size, size)
        for (row, column), k in zip(self.positions.tolist(), self.turns.tolist(), strict=True):
            stack[k] += field[row : row + size, column : column + size]
        return self.rotations.A_adjoint(stack)


@dataclass(frozen=True)
class Measurement:
    """A field and how it was made.

    Attributes
    ----------
    field : Tensor
        ``(N, N)``, noisy.
    clean : Tensor
        ``(N, N)``, without noise.
    sigma : float
        Standard deviation of the noise.
    """

    field: Tensor
    clean: Tensor
    operator: MTDOperator
    sigma: float


def simulate_measurement(
    image: Tensor,
    snr: float,
    generator: torch.Generator,
    *,
    field_size: int | None = None,
    density: float = 0.1,
    rotations: int = 4,
    separation: int | None = None,
) -> Measurement:
    """Draw a field of randomly placed and rotated copies.

    Parameters
    ----------
    image : Tensor
        ``(L, L)``, any range.
    snr : float
        ``|F|^2 / (L^2 sigma^2)``, positive.
    field_size : int, optional
        N; 11 L by default, as in the paper.
    density : float
        Fraction of the field's area that copies cover, in (0, 1]; ``round(density N^2 / L^2)``
        copies are placed (at least one).
    rotations : int
        K.
    separation : int, optional
        Corners of two copies differ by at least this many pixels in rows or in columns. 2 L by
        default: no patch of L x L sees two copies. L lets copies touch, 0 lets them overlap.

    Raises
    ------
    InputError
        Bad ranges, or no room for that many copies at that separation.
    """
    size = image.shape[-1]
    if image.shape != (size, size):
        raise InputError(f"the image must be square (L, L), got {tuple(image.shape)}")
    if not snr > 0 or not 0 < density <= 1:
        raise InputError(f"snr must be positive and density in (0, 1], got {snr} and {density}")
    turned = Rotations(rotations, size, image.dtype, image.device)
    n = 11 * size if field_size is None else field_size
    if n < size:
        raise InputError(f"a field of {n} pixels cannot hold an image of {size}")
    copies = max(1, round(density * (n / size) ** 2))
    gap = 2 * size if separation is None else separation
    positions = _draw_positions(copies, n - size + 1, gap, generator)
    turns = torch.randint(rotations, (copies,), generator=generator)
    operator = MTDOperator(positions, turns, turned, n)
    clean = operator.A(image)
    sigma = math.sqrt(image.square().mean().item() / snr)
    noise = torch.randn(n, n, generator=generator, dtype=image.dtype).to(image.device)
    return Measurement(clean + sigma * noise, clean, operator, sigma)


def _draw_positions(
    copies: int, places: int, gap: int, generator: torch.Generator, attempts: int = 50
) -> Tensor:
    """Corners ``(copies, 2)`` in ``0..places-1``, uniform given the gap (sequential placement)."""
    for _ in range(attempts):
        corners: list[list[int]] = []
        candidates = torch.randint(places, (200 * copies, 2), generator=generator).tolist()
        for row, column in candidates:
            if all(max(abs(row - r), abs(column - c)) >= gap for r, c in corners):
                corners.append([row, column])
                if len(corners) == copies:
                    return torch.tensor(corners)
    raise InputError(
        f"no room for {copies} copies at a separation of {gap} pixels; "
        "lower the density or the separation, or enlarge the field"
    )


def cut_patches(field: Tensor, size: int, grids: int = 1) -> Tensor:
    """Cut a field ``(N, N')`` into patches ``(D, L, L)``.

    Parameters
    ----------
    size : int
        L.
    grids : int
        1: one grid of non-overlapping patches, as in the paper. G: also the grids shifted by
        multiples of L/G along both axes, G^2 in all; a copy that one grid cuts in four is whole,
        or nearly, in another.

    Raises
    ------
    InputError
        Not 2-D, not finite, smaller than a patch, a side that L does not divide, or more grids
        than pixels.
    """
    if field.ndim != 2:
        raise InputError(f"a field must be one image (H, W), got shape {tuple(field.shape)}")
    if size < 1 or min(field.shape) < size:
        raise InputError(f"the field {tuple(field.shape)} is smaller than one patch of {size}")
    if field.shape[0] % size or field.shape[1] % size:
        rows, columns = (side - side % size for side in field.shape)
        raise InputError(
            f"the field {tuple(field.shape)} does not divide into patches of {size}; "
            f"crop it, for example to {(rows, columns)}"
        )
    if not torch.isfinite(field).all():
        raise InputError("the field contains NaN or infinity; mask or replace those pixels first")
    if not 1 <= grids <= size:
        raise InputError(f"grids must be between 1 and {size}, got {grids}")
    offsets = [i * size // grids for i in range(grids)]
    tiles = [
        field[row:, column:].unfold(0, size, size).unfold(1, size, size).reshape(-1, size, size)
        for row in offsets
        for column in offsets
    ]
    return torch.cat(tiles)
