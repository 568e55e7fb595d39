"""A volume larger than memory, restored block by block: no seams, and no block twice."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from emlab.app.block_journal import Journal, write_array
from emlab.app.block_layout import BlockAxis, Triple, block_shape_for, lay_out, triple
from emlab.app.tasks import Crew, quiet_threads
from emlab.errors import EmlabError, InputError
from emlab.runtime import Stopwatch, atomic_path

__all__ = ["BlockRun", "block_shape_for", "process_blocks"]

BlockFunction = Callable[[np.ndarray, Triple], np.ndarray | Tensor]


class Source(Protocol):
    """What is read: a NumPy array, a `Volume`, ..."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D, H, W)``."""

    def __getitem__(self, index: Any) -> np.ndarray: ...


class Target(Protocol):
    """What is written: a NumPy array, a `NewVolume`, ..."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D, H, W)``."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the voxels."""

    def __setitem__(self, index: Any, values: np.ndarray) -> None: ...


@dataclass(frozen=True)
class BlockRun:
    """What `process_blocks` did.

    Attributes
    ----------
    computed
        Those computed in this run; the others were there from an interrupted one.
    """

    blocks: int
    computed: int
    seconds: float


def process_blocks(
    source: Source,
    target: Target,
    block: Sequence[int],
    halo: int | Sequence[int],
    function: BlockFunction,
    *,
    overlap: int | Sequence[int] | None = None,
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
    source
        (D, H, W), read box by box.
    target
        (D*fz, H*fy, W*fx), written box by box. Integer types are rounded and clipped.
    block
        Shape of what is read at once, in source voxels, halo included (see `block_shape_for`).
        Blocks at the border of the volume have no halo there.
    halo
        Source voxels at each inner face that the function sees and whose result is thrown away:
        at least its reach. One number, or one per axis.
    function
        Takes a block (d, h, w) float32 and the coordinates of its first voxel in the source (times
        ``scale``: in the target, as for `NoiseField.at`) and returns (d*fz, h*fy, w*fx).
    overlap
        Source voxels over which neighbours are blended at least; as large as the halo by default.
    scale
        Whole numbers (fz, fy, fx): target voxels per source voxel.
    journal
        Folder for what a resumed run needs; it is left there, with nothing but a note that all is
        done. By default that of the target if it has one (`NewVolume`), else a temporary folder.
    settings
        All that the result depends on beyond the arguments here (model, seed, noise level); a run
        is resumed only with equal settings.
    progress
        Called with the blocks done and their total.
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
    halos = triple(halo, "halo")
    overlaps = halos if overlap is None else triple(overlap, "overlap")
    scales, blocks = triple(scale, "scale"), triple(block, "block")
    axes = lay_out(source.shape, target.shape, blocks, halos, overlaps, scales)
    facts = {
        **(settings or {}),
        "source file": str(getattr(source, "stamp", "")),
        "source shape": source.shape,
        "target type": str(target.dtype),
        "block shape": blocks,
        "block halo": halos,
        "block overlap": overlaps,
        "block scale": scales,
    }
    folder = journal if journal is not None else getattr(target, "journal", None)
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="emlab-") as place:
        notes = Journal(Path(place), facts, axes, lasting=bool(folder))
        with notes.opened(fresh=not getattr(target, "resumed", True)):
            return _run(source, target, function, axes, notes, progress, crew)


def _run(
    source: Source,
    target: Target,
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
        for number, (z, y, x) in enumerate(product(*map(range, notes.counts))):
            index = (z, y, x)
            if number >= notes.written:
                if index in missing and crew is not None:
                    next(awaited)
                    notes.expect(index)
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

    origin: Triple
    read: tuple[slice, ...]
    kept: tuple[slice, ...]
    scale: Triple

    @classmethod
    def of(cls, axes: list[BlockAxis], index: Triple) -> _Box:
        bounds = [axis.read[i] for axis, i in zip(axes, index, strict=True)]
        kept = []
        for axis, i, (start, _) in zip(axes, index, bounds, strict=True):
            skipped = (axis.starts[i] - start) * axis.scale
            kept.append(slice(skipped, skipped + axis.kept * axis.scale))
        z, y, x = (start for start, _ in bounds)
        a, b, c = (axis.scale for axis in axes)
        return cls((z, y, x), tuple(slice(*bound) for bound in bounds), tuple(kept), (a, b, c))


def _keep_apart(source: Source, function: BlockFunction, box: _Box, file: Path) -> None:
    """Task of a worker: leave a block's result in its file."""
    if not file.exists():
        quiet_threads()
        with atomic_path(file) as path:
            write_array(path, _compute(source, function, box))


def _compute(source: Source, function: BlockFunction, box: _Box) -> np.ndarray:
    """Read a block; return what is kept of the function of it."""
    given = np.array(source[box.read], dtype=np.float32)
    if not np.isfinite(given).all():
        raise InputError(
            f"the volume has voxels that are NaN or infinite in the block of shape {given.shape} "
            f"at {box.origin}; replace them (for example by the median of their neighbours)"
        )
    result = np.asarray(function(given, box.origin), dtype=np.float32)
    expected = tuple(n * factor for n, factor in zip(given.shape, box.scale, strict=True))
    if result.shape != expected:
        raise InputError(
            f"a block of shape {given.shape} became {result.shape} instead of {expected}; make "
            f"scale and function agree"
        )
    if not np.isfinite(result).all():
        raise EmlabError(
            f"the result of the block at {box.origin} is not finite; check the noise level and the "
            f"weights"
        )
    return result[box.kept]


def _write(
    target: Target, axes: list[BlockAxis], notes: Journal, index: Triple, own: np.ndarray
) -> None:
    """Blend what a block owns with what its neighbours made of it, and write that."""
    bounds = [axis.owned[i] for axis, i in zip(axes, index, strict=True)]
    lengths = [
        (stop - start) * axis.scale for axis, (start, stop) in zip(axes, bounds, strict=True)
    ]
    own = own[tuple(slice(length) for length in lengths)]
    blended = np.array(own)
    before = [axis.before[i] for axis, i in zip(axes, index, strict=True)]
    for other in product(before[0], before[1], before[2]):
        if other == index:
            continue
        theirs = notes.result(other)
        if theirs is None:
            raise InputError(
                f"{notes.folder} has lost the result of block {other}; delete it to start again"
            )
        here: list[slice] = []
        there: list[slice] = []
        weights: list[np.ndarray] = []
        for axis, i, j in zip(axes, index, other, strict=True):
            skipped = (axis.starts[i] - axis.starts[j]) * axis.scale
            stop = min(axis.kept * axis.scale, skipped + lengths[len(here)])
            here.append(slice(0, stop - skipped))
            there.append(slice(skipped, stop))
            weights.append(axis.weights[j, skipped:stop])
        a, b, c = weights
        part = theirs[tuple(there)] - own[tuple(here)]
        part *= a[:, None, None]
        part *= b[:, None]
        part *= c
        blended[tuple(here)] += part
    if np.issubdtype(target.dtype, np.integer):
        limits = np.iinfo(target.dtype)
        blended = np.clip(np.rint(blended), limits.min, limits.max)
    box = [slice(s * axis.scale, e * axis.scale) for axis, (s, e) in zip(axes, bounds, strict=True)]
    target[tuple(box)] = blended.astype(target.dtype, copy=False)
    if hasattr(target, "flush"):
        target.flush()
