"""Boxes of voxels in files too large for memory: only the box asked for is ever held."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emlab.errors import InputError

Box = tuple[slice, ...]  # one slice per axis, start and stop within the array, step 1


class BoxArray(Protocol):
    """What a volume needs of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, box: Box) -> np.ndarray:
        """Return the pixels of a box."""

    def write(self, box: Box, values: np.ndarray) -> None:
        """Put pixels into a box."""

    def flush(self) -> None:
        """Bring what was written to the disk."""

    def close(self) -> None:
        """Close the file; it is not used afterwards."""


class RawArray:
    """An uncompressed C-ordered array at one offset of a file.

    It is read and written by position and not through a memory map: the process holds no pages of
    the file, a full disk is an error instead of a signal, and so is a file that became shorter.

    Raises
    ------
    OSError
        The file is shorter than the array.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        dtype: np.dtype,
        shape: Sequence[int],
        writable: bool = False,
    ) -> None:
        self.shape, self.dtype, self.offset = tuple(shape), np.dtype(dtype), offset
        missing = offset + math.prod(shape) * self.dtype.itemsize - path.stat().st_size
        if missing > 0:
            raise OSError(f"{missing} bytes are missing at its end")
        mode = os.O_RDWR if writable else os.O_RDONLY
        self._handle = os.open(path, mode | getattr(os, "O_BINARY", 0))
        self._seeking = threading.Lock()  # where the system cannot read by position

    def read(self, box: Box) -> np.ndarray:
        """Return a copy of a box."""
        values = np.empty([part.stop - part.start for part in box], self.dtype)
        for row, position in self._rows(values, box):
            while len(row):
                count = self._read_at(row, position)
                if count == 0:
                    raise OSError("it ends too early")
                row, position = row[count:], position + count
        return values

    def write(self, box: Box, values: np.ndarray) -> None:
        """Store `values`, of the shape of the box."""
        stored = np.ascontiguousarray(values, self.dtype)
        for row, position in self._rows(stored, box):
            while len(row):
                count = self._write_at(row, position)
                row, position = row[count:], position + count

    def flush(self) -> None:
        """Return when the values are on the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _read_at(self, row: memoryview, position: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [row], position)
        with self._seeking:  # Windows
            os.lseek(self._handle, position, os.SEEK_SET)
            found = os.read(self._handle, len(row))
        row[: len(found)] = found
        return len(found)

    def _write_at(self, row: memoryview, position: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._handle, row, position)
        with self._seeking:
            os.lseek(self._handle, position, os.SEEK_SET)
            return os.write(self._handle, row)

    def _rows(self, values: np.ndarray, box: Box) -> Iterator[tuple[memoryview, int]]:
        """Contiguous runs of bytes of the box: where in memory, and where in the file."""
        if values.size == 0:
            return
        partial = [
            axis
            for axis, (part, length) in enumerate(zip(box, self.shape, strict=True))
            if part.stop - part.start < length
        ]
        split = partial[-1] if partial else 0
        item = self.dtype.itemsize
        positions = np.array([self.offset], np.int64)
        for axis, part in enumerate(box):
            stride = item * math.prod(self.shape[axis + 1 :])
            along = range(part.start, part.stop if axis < split else part.start + 1)
            positions = np.add.outer(positions, stride * np.array(along, np.int64)).ravel()
        size = item * math.prod(part.stop - part.start for part in box[split:])
        rows = memoryview(values.reshape(-1).view(np.uint8).data)
        for number, position in enumerate(positions.tolist()):
            yield rows[number * size : (number + 1) * size], position


class TiffPages:
    """A compressed or scattered TIFF stack, decoded page by page."""

    def __init__(self, file: Any, series: Any) -> None:
        self.shape = tuple(series.shape[-3:])
        self.dtype = np.dtype(series.dtype)
        self._file, self._pages = file, series.pages
        first = series.pages[0].asarray()  # says now if the compression cannot be read
        if first.shape != self.shape[1:] or len(series.pages) != self.shape[0]:
            raise InputError("it does not hold one slice per page; save it uncompressed")

    def read(self, box: Box) -> np.ndarray:
        """Return a box; every page that it crosses is decoded whole."""
        depth, rest = box[0], box[1:]
        values = np.empty([part.stop - part.start for part in box], self.dtype)
        for i, page in enumerate(range(depth.start, depth.stop)):
            values[i] = self._pages[page].asarray()[rest]
        return values

    def write(self, box: Box, values: np.ndarray) -> None:
        """Refuse: compressed pages cannot be changed in place (OSError)."""
        raise OSError(errno.EROFS, "compressed TIFF files are read only")

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ZarrArray:
    """An array of a zarr store, read and written chunk by chunk; an image is one slice."""

    def __init__(self, array: Any) -> None:
        self._array, self.dtype = array, np.dtype(array.dtype)
        self._added = 1 if array.ndim == 2 else 0
        self.shape = (1,) * self._added + tuple(array.shape)

    def read(self, box: Box) -> np.ndarray:
        """Return the pixels of a box."""
        values = np.asarray(self._array[box[self._added :]])
        return values.reshape([part.stop - part.start for part in box])

    def write(self, box: Box, values: np.ndarray) -> None:
        """Put pixels into a box, chunk by chunk."""
        self._array[box[self._added :]] = values[0] if self._added else values

    def flush(self) -> None:
        """Chunks are files that were written whole already."""

    def close(self) -> None:
        """Nothing is held open."""


def as_box(index: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
    """Return an index as a box, and the axes that it takes away.

    Parameters
    ----------
    index
        Integers and slices of step 1, as many as there are axes or fewer; negative ones count from
        the end, as in NumPy.

    Raises
    ------
    InputError
        Another kind of index, or an integer outside the array.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > len(shape):
        raise InputError(f"a volume of shape {shape} has no {len(parts)} axes to index")
    box, dropped = [], []
    for axis, length in enumerate(shape):
        part = parts[axis] if axis < len(parts) else slice(None)
        if isinstance(part, slice) and part.step in (None, 1):
            start, stop, _ = part.indices(length)
            box.append(slice(start, max(start, stop)))
        elif isinstance(part, (int, np.integer)) and -length <= part < length:
            box.append(slice(int(part) % length, int(part) % length + 1))
            dropped.append(axis)
        else:
            raise InputError(
                f"cannot take {part!r} of an axis of {length} voxels; use integers in range or "
                f"slices of step 1"
            )
    return tuple(box), tuple(dropped)
