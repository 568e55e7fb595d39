"""A volume larger than memory, restored block by block: no seams, and no block twice."""

from __future__ import annotations

import math
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from emlab.app.journal import Journal, write_array
from emlab.app.tasks import Crew, quiet_threads
from emlab.errors import EmlabError, InputError
from emlab.io.volumes import Volume
from emlab.runtime import Stopwatch, atomic_path
from emlab.solvers.tiling import blend_weights, tile_positions

Triple = tuple[int, ...]  # (z, y, x)
Source = Volume | np.ndarray
BlockFunction = Callable[[np.ndarray, Triple], np.ndarray | Tensor]
OWN_COPIES = 6  # arrays of the size of a result that `process_blocks` holds beside the function's


class BlockAxis:
    """Blocks along one axis, in source voxels unless said otherwise.

    A block is ``read`` with its halo, keeps what is inside the halo (``kept`` voxels from
    ``starts``, of its result in target voxels what is ``inside``), shares a part of that with its
    neighbours (where results are blended), and ``owned`` is what lies before the next block starts.
    Those ``before`` a block, up to it, keep a part of what it owns; its ``last_user`` owns a part
    of what it keeps. Of ``weights`` ``(blocks, kept * scale)`` a row is for what a block keeps.
    """

    def __init__(self, length: int, block: int, halo: int, scale: int) -> None:
        self.scale = scale
        self.kept = kept = length if block >= length else block - 2 * halo
        self.starts = starts = tile_positions(length, kept, halo if kept < length else 0)
        self.read = [slice(max(0, s - halo), min(length, s + kept + halo)) for s in starts]
        skipped = [s - part.start for s, part in zip(starts, self.read, strict=True)]
        self.inside = [slice(n * scale, (n + kept) * scale) for n in skipped]
        self.owned = list(pairwise([*starts, length]))
        self.before = [[j for j, t in enumerate(starts) if s - kept < t <= s] for s in starts]
        self.last_user = [sum(t < s + kept for t in starts) - 1 for s in starts]
        self.weights = blend_weights([s * scale for s in starts], kept * scale).numpy()


def block_shape_for(
    memory_mb: float,
    shape: Sequence[int],
    *,
    halo: int | Sequence[int] = 0,
    scale: Sequence[int] = (1, 1, 1),
    copies: int = 8,
) -> Triple:
    """Return the largest block, near a cube of target voxels, that fits into so much memory.

    The memory is in megabytes (2**20 bytes) beyond what the process and its network take without
    any block; the function holds at most so many copies of its result (float32) at once. Shape
    (D, H, W), halo and scale are as for `process_blocks`. Too little memory is an `InputError`.
    """
    halos, scales = _triple(halo, "halo"), _triple(scale, "scale")
    lengths = _triple(shape, "shape")

    def at(edge: int) -> Triple:
        return tuple(min(n, max(1, edge // f)) for n, f in zip(lengths, scales, strict=True))

    def megabytes(edge: int) -> float:
        return math.prod(at(edge)) * math.prod(scales) * 4 * (copies + OWN_COPIES) / 2**20

    smallest = max(f * min(n, 3 * h + 1) for n, h, f in zip(lengths, halos, scales, strict=True))
    if megabytes(smallest) > memory_mb:
        raise InputError(
            f"blocks with halo {halos} need at least "
            f"{math.ceil(megabytes(smallest))} MB, not {memory_mb:g}; allow more memory"
        )
    largest = max(n * f for n, f in zip(lengths, scales, strict=True))
    edges = range(smallest, max(smallest, largest) + 1)
    return at(edges[bisect_right(edges, memory_mb, key=megabytes) - 1])


@dataclass(frozen=True)
class BlockRun:
    """What `process_blocks` did: ``computed`` in this run, the others in an interrupted one."""

    blocks: int
    computed: int
    seconds: float


def process_blocks(
    source: Source,
    target: Any,
    block: Sequence[int],
    halo: int | Sequence[int],
    function: BlockFunction,
    *,
    scale: Sequence[int] = (1, 1, 1),
    journal: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew | None = None,
) -> BlockRun:
    r"""Fill ``target`` with ``function`` of ``source``, a block at a time.

    Where blocks overlap, their results are blended with weights :math:`w_b`,
    :math:`\sum_b w_b = 1`, that fall smoothly to zero. Blocks are computed in raster order; each
    writes the part that no later block touches, and its result waits on the disk until its last
    neighbour has used it. So every voxel is written once, whatever happens in between, and a run
    that was killed goes on with the first block that is missing and ends with the same bytes as one
    that was not.

    Parameters
    ----------
    source, target
        (D, H, W), read box by box, and (D*fz, H*fy, W*fx), written box by box: a `NewVolume`, an
        array or alike. Integer types are rounded and clipped.
    block
        Shape of what is read at once, in source voxels, halo included (see `block_shape_for`).
        Blocks at the border of the volume have no halo there.
    halo
        Source voxels at each inner face that the function sees and whose result is thrown away:
        at least its reach. One number, or one per axis. Neighbours are blended over as many.
    function
        Takes a block (d, h, w) float32 and the coordinates of its first voxel in the source (times
        ``scale``: in the target, as for `NoiseField.at`) and returns (d*fz, h*fy, w*fx).
    scale
        Whole numbers (fz, fy, fx): target voxels per source voxel.
    journal
        Folder for what a resumed run needs; it is left there, with nothing but a note that all is
        done. By default that of the target if it has one (`NewVolume`), else a temporary folder.
    settings
        All that the result depends on beyond the arguments here (model, seed, noise level); a run
        is resumed only with equal settings.
    crew
        Who calls the function, several blocks at a time; this process blends and writes. Source and
        function must be picklable, and the folder of the journal seen by all workers.

    Raises
    ------
    InputError
        Shapes that do not fit, voxels or results that are not finite, a journal of other settings
        or in use by another process.
    EmlabError
        The disk is full.
    """
    halos, scales, blocks = _triple(halo, "halo"), _triple(scale, "scale"), _triple(block, "block")
    axes = _lay_out(source.shape, target.shape, blocks, halos, scales)
    facts = {
        **(settings or {}),
        "source file": str(getattr(source, "stamp", "")),
        "source shape": source.shape,
        "target type": str(target.dtype),
        "block shape": blocks,
        "block halo": halos,
        "block scale": scales,
    }
    folder = journal if journal is not None else getattr(target, "journal", None)
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="emlab-") as place:
        last_users = [axis.last_user for axis in axes]
        notes = Journal(Path(place), facts, last_users, lasting=bool(folder))
        with notes.opened(fresh=not getattr(target, "resumed", True)):
            return _run(source, target, function, axes, notes, progress, crew)


def _triple(value: int | Sequence[int], name: str) -> Triple:
    """Return three numbers (z, y, x) of one or three; `InputError` for any other count."""
    given = (value,) * 3 if isinstance(value, int) else tuple(int(n) for n in value)
    if len(given) != 3:
        raise InputError(f"{name} takes three numbers (z, y, x), got {value}")
    return given


def _lay_out(
    shape: Triple, made: Triple, blocks: Triple, halos: Triple, scales: Triple
) -> list[BlockAxis]:
    """Check that everything fits and lay out the blocks."""
    if len(shape) != 3 or min(shape) < 1 or min(scales) < 1:
        raise InputError(f"blocks are cut from volumes (D, H, W), got {shape} times {scales}")
    expected = tuple(n * f for n, f in zip(shape, scales, strict=True))
    if tuple(made) != expected:
        raise InputError(f"the target has shape {tuple(made)} instead of {expected}; make it so")
    axes = []
    given = zip("zyx", shape, blocks, halos, scales, strict=True)
    for name, length, block, halo, scale in given:
        if halo < 0 or (block < length and block <= 3 * halo):
            raise InputError(
                f"along {name} blocks of {block} are too small for a halo of {halo} and as much "
                f"overlap; take blocks above {3 * halo}, or less of those"
            )
        axes.append(BlockAxis(length, block, halo, scale))
    return axes


def _run(
    source: Source,
    target: Any,
    function: BlockFunction,
    axes: list[BlockAxis],
    notes: Journal,
    progress: Callable[[int, int], None] | None,
    crew: Crew | None,
) -> BlockRun:
    blocks = math.prod(notes.counts)
    computed = 0
    missing = notes.missing()
    calls = ((source, function, _Box.of(axes, index), notes.place(index)) for index in missing)
    awaited = iter(()) if crew is None else crew.each(_keep_apart, calls)
    with Stopwatch() as watch:
        for number, index in enumerate(product(*map(range, notes.counts))):
            if number >= notes.written:
                if index in missing and crew is not None:
                    next(awaited)
                    computed += 1
                kept = notes.result(index)
                if kept is None:
                    kept = _compute(source, function, _Box.of(axes, index))
                    notes.keep(index, kept)
                    computed += 1
                _write(target, axes, notes, index, kept)
                del kept
                notes.close_block(index)
            if progress is not None and number + 1 >= notes.written:
                progress(number + 1, blocks)
    return BlockRun(blocks, computed, watch.seconds)


@dataclass(frozen=True)
class _Box:
    """Where a block is read, and what of the function of it is kept, in target voxels."""

    read: tuple[slice, ...]
    kept: tuple[slice, ...]
    scale: Triple

    @property
    def origin(self) -> Triple:
        return tuple(part.start for part in self.read)

    @classmethod
    def of(cls, axes: list[BlockAxis], index: Triple) -> _Box:
        pairs = list(zip(axes, index, strict=True))
        read, kept = tuple(a.read[i] for a, i in pairs), tuple(a.inside[i] for a, i in pairs)
        return cls(read, kept, tuple(axis.scale for axis in axes))


def _keep_apart(source: Source, function: BlockFunction, box: _Box, file: Path) -> None:
    """Task of a worker: leave a block's result in its file."""
    if not file.exists():
        quiet_threads()
        with atomic_path(file) as path:
            write_array(path, _compute(source, function, box))


def _compute(source: Source, function: BlockFunction, box: _Box) -> np.ndarray:
    """Read a block; return what is kept of the function of it."""
    origin = box.origin
    given = np.array(source[box.read], dtype=np.float32)
    if not np.isfinite(given).all():
        raise InputError(
            f"the volume has voxels that are NaN or infinite in the block of shape {given.shape} "
            f"at {origin}; replace them (for example by the median of their neighbours)"
        )
    result = np.asarray(function(given, origin), dtype=np.float32)
    expected = tuple(n * factor for n, factor in zip(given.shape, box.scale, strict=True))
    if result.shape != expected:
        raise InputError(
            f"a block of shape {given.shape} became {result.shape} instead of {expected}; make "
            f"scale and function agree"
        )
    if not np.isfinite(result).all():
        raise EmlabError(
            f"the result of the block at {origin} is not finite; check the noise level and the "
            f"weights"
        )
    return result[box.kept]


def _write(
    target: Any, axes: list[BlockAxis], notes: Journal, index: Triple, own: np.ndarray
) -> None:
    """Blend what a block owns with what its neighbours made of it, and write that."""
    bounds = [axis.owned[i] for axis, i in zip(axes, index, strict=True)]
    box = [slice(s * axis.scale, e * axis.scale) for axis, (s, e) in zip(axes, bounds, strict=True)]
    lengths = [part.stop - part.start for part in box]
    own = own[tuple(slice(length) for length in lengths)]
    blended = np.array(own)
    for other in product(*(axis.before[i] for axis, i in zip(axes, index, strict=True))):
        if other == index:
            continue
        theirs = notes.result(other)
        if theirs is None:
            raise InputError(
                f"{notes.folder} has lost the result of block {other}; delete it to start again"
            )
        here, there, weights = [], [], []
        for axis, i, j, length in zip(axes, index, other, lengths, strict=True):
            skipped = (axis.starts[i] - axis.starts[j]) * axis.scale
            stop = min(axis.kept * axis.scale, skipped + length)
            here.append(slice(0, stop - skipped))
            there.append(slice(skipped, stop))
            weights.append(axis.weights[j, skipped:stop])
        part = theirs[tuple(there)] - own[tuple(here)]
        for weight in np.ix_(*weights):
            part *= weight
        blended[tuple(here)] += part
    if np.issubdtype(target.dtype, np.integer):
        limits = np.iinfo(target.dtype)
        blended = np.clip(np.rint(blended), limits.min, limits.max)
    target[tuple(box)] = blended.astype(target.dtype, copy=False)
    if hasattr(target, "flush"):
        target.flush()
