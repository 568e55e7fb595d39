"""In-plane rotations of a square image as a linear operator with an exact adjoint."""

from __future__ import annotations

import math

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
