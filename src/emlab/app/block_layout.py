"""Where the blocks of a volume lie, and how large they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from emlab.errors import InputError
from emlab.solvers.tiling import blend_weights, tile_positions

Triple = tuple[int, int, int]
OWN_COPIES = 6  # arrays of the size of a result that `process_blocks` holds beside the function's


class BlockAxis:
    """Blocks along one axis, in source voxels unless said otherwise.

    A block is read with its halo, keeps what is inside the halo, shares a part of that with its
    neighbours (where results are blended), and owns what lies before the next block starts.

    Attributes
    ----------
    kept
        Voxels that every block keeps.
    starts
        Where what they keep starts.
    read, owned
        Start and stop of what each block reads and owns.
    before
        For each block those up to it that keep a part of what it owns.
    last_user
        For each block the last one that owns a part of what it keeps.
    weights
        ``(blocks, kept * scale)``: weight of each block at the target voxels it keeps.
    """

    def __init__(self, length: int, block: int, halo: int, overlap: int, scale: int) -> None:
        self.scale = scale
        self.kept = kept = length if block >= length else block - 2 * halo
        self.starts = starts = tile_positions(length, kept, overlap if kept < length else 0)
        self.read = [(max(0, s - halo), min(length, s + kept + halo)) for s in starts]
        self.owned = list(pairwise([*starts, length]))
        self.before = [[j for j, t in enumerate(starts) if s - kept < t <= s] for s in starts]
        self.last_user = [sum(t < s + kept for t in starts) - 1 for s in starts]
        self.weights = blend_weights([s * scale for s in starts], kept * scale).numpy()


def block_shape_for(
    memory_mb: float,
    shape: Sequence[int],
    *,
    halo: int | Sequence[int] = 0,
    overlap: int | Sequence[int] | None = None,
    scale: Sequence[int] = (1, 1, 1),
    copies: int = 8,
) -> Triple:
    """Return the largest block, near a cube of target voxels, that fits into so much memory.

    Parameters
    ----------
    memory_mb
        Megabytes (2**20 bytes) beyond what the process and its network take without any block.
    shape
        (D, H, W) of the source.
    halo, overlap, scale
        As for `process_blocks`.
    copies
        float32 arrays of the size of its result that the function holds at once at most.

    Raises
    ------
    InputError
        Too little memory for the halo and overlap; the message says how much is needed.
    """
    halos, scales = triple(halo, "halo"), triple(scale, "scale")
    overlaps = halos if overlap is None else triple(overlap, "overlap")
    lengths = triple(shape, "shape")

    def at(edge: int) -> Triple:
        z, y, x = (min(n, max(1, edge // f)) for n, f in zip(lengths, scales, strict=True))
        return z, y, x

    def megabytes(edge: int) -> float:
        return math.prod(at(edge)) * math.prod(scales) * 4 * (copies + OWN_COPIES) / 2**20

    smallest = max(
        f * min(n, 2 * h + o + 1)
        for n, h, o, f in zip(lengths, halos, overlaps, scales, strict=True)
    )
    if megabytes(smallest) > memory_mb:
        raise InputError(
            f"blocks with halo {halos} and overlap {overlaps} need at least "
            f"{math.ceil(megabytes(smallest))} MB, not {memory_mb:g}; allow more memory"
        )
    low, high = smallest, max(n * f for n, f in zip(lengths, scales, strict=True)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if megabytes(middle) <= memory_mb else (low, middle)
    return at(low)


def lay_out(
    shape: tuple[int, ...],
    made: tuple[int, ...],
    blocks: Triple,
    halos: Triple,
    overlaps: Triple,
    scales: Triple,
) -> list[BlockAxis]:
    """Check that everything fits and lay out the blocks."""
    if len(shape) != 3 or min(shape) < 1 or min(scales) < 1:
        raise InputError(f"blocks are cut from volumes (D, H, W), got {shape} times {scales}")
    expected = tuple(n * f for n, f in zip(shape, scales, strict=True))
    if tuple(made) != expected:
        raise InputError(f"the target has shape {tuple(made)} instead of {expected}; make it so")
    axes = []
    for name, length, block, halo, overlap, scale in zip(
        "zyx", shape, blocks, halos, overlaps, scales, strict=True
    ):
        if halo < 0 or overlap < 0 or (block < length and block <= 2 * halo + overlap):
            raise InputError(
                f"along {name} blocks of {block} are too small for a halo of {halo} and an overlap "
                f"of {overlap}; take blocks above {2 * halo + overlap}, or less of those"
            )
        axes.append(BlockAxis(length, block, halo, overlap, scale))
    return axes


def triple(value: int | Sequence[int], name: str) -> Triple:
    """Return three numbers (z, y, x) of one or three; `InputError` for any other count."""
    given = (value,) * 3 if isinstance(value, int) else tuple(int(n) for n in value)
    if len(given) != 3:
        raise InputError(f"{name} takes three numbers (z, y, x), got {value}")
    return given
