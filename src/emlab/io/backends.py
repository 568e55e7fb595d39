"""Boxes of voxels in files too large for memory: each format is opened, created, read in place."""

from __future__ import annotations

import errno
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emlab.errors import InputError
from emlab.io.images import COARSEST_ANGSTROM
from emlab.io.tags import ANGSTROM_PER_UNIT, PixelSize, check_mrc, simplify, tiff_pixel_size

CHUNK = 64  # side of the chunks of a new zarr array
MRC_MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
TIFF_TYPES = ("uint8", "int8", "uint16", "int16", "float32")
Shape = tuple[int, ...]
Sizes = tuple[float, float, float] | None  # (z, y, x)
Box = tuple[slice, ...]  # one slice per axis, start and stop within the array, step 1


class BoxArray:
    """What a volume needs of a file; one that is read only refuses to be written (OSError)."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, box: Box) -> np.ndarray:
        """Return the pixels of a box, in memory of their own."""
        raise OSError(errno.ENOSYS, "this format is not read by boxes")

    def write(self, box: Box, values: np.ndarray) -> None:
        """Put pixels of the shape of the box into it."""
        raise OSError(errno.EROFS, "compressed TIFF files are read only")

    def flush(self) -> None:
        """Return when what was written is on the disk."""

    def close(self) -> None:
        """Close the file; a second time does nothing."""


class RawArray(BoxArray):
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
        self._file = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115
        self._seeking = threading.Lock()  # one box at a time

    def read(self, box: Box) -> np.ndarray:
        """Return a copy of a box."""
        values = np.empty([part.stop - part.start for part in box], self.dtype)
        with self._seeking:
            for row, position in self._rows(values, box):
                self._file.seek(position)
                while len(row):
                    count = self._file.readinto(row)
                    if not count:
                        raise OSError("it ends too early")
                    row = row[count:]
        return values

    def write(self, box: Box, values: np.ndarray) -> None:
        """Store values of the shape of the box."""
        stored = np.ascontiguousarray(values, self.dtype)
        with self._seeking:
            for row, position in self._rows(stored, box):
                self._file.seek(position)
                while len(row):
                    row = row[self._file.write(row) :]

    def flush(self) -> None:
        """Return when the values are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

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


class _TiffPages(BoxArray):
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

    def close(self) -> None:
        self._file.close()


class _ZarrArray(BoxArray):
    """An array of a zarr store, read and written chunk by chunk; an image is one slice."""

    def __init__(self, array: Any) -> None:
        self._array, self.dtype = array, np.dtype(array.dtype)
        self._added = 1 if array.ndim == 2 else 0
        self.shape = (1,) * self._added + tuple(array.shape)

    def read(self, box: Box) -> np.ndarray:
        values = np.asarray(self._array[box[self._added :]])
        return values.reshape([part.stop - part.start for part in box])

    def write(self, box: Box, values: np.ndarray) -> None:
        self._array[box[self._added :]] = values[0] if self._added else values


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


def _open_tiff(path: Path) -> tuple[BoxArray, PixelSize]:
    import tifffile

    file = tifffile.TiffFile(path)
    try:
        series = file.series[0]
        if "S" in series.axes:
            raise InputError(f"{path} is in colour, axes {series.axes}; convert it to grey first")
        if _pages_are_missing(file):
            raise InputError(f"{path} is truncated, pages are missing; copy or download it again")
        shape = series.shape
        if len(shape) == 2 and file.is_ome and series.dataoffset is not None:
            shape = (1, *shape)  # a volume of one slice, whose axis z tifffile has dropped
        if len(shape) < 3:
            raise InputError(f"{path} has shape {shape}; give a grey volume (D, H, W)")
        size = tiff_pixel_size(file, series.axes, COARSEST_ANGSTROM)
        if series.dataoffset is None:
            return _TiffPages(file, series), size
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        array = RawArray(path, series.dataoffset, dtype, shape)
    except BaseException:
        file.close()
        raise
    file.close()
    return array, size


def _pages_are_missing(file: Any) -> bool:
    """Whether the last page that can be read names another one as the next."""
    tiff, last = file.tiff, file.pages[len(file.pages) - 1]
    with open(file.filehandle.path, "rb") as stream:
        stream.seek(last.offset)
        (tags,) = struct.unpack(tiff.tagnoformat, stream.read(tiff.tagnosize))
        stream.seek(tags * tiff.tagsize, os.SEEK_CUR)
        return any(stream.read(tiff.offsetsize))


def _open_mrc(path: Path) -> tuple[BoxArray, PixelSize]:
    import mrcfile

    check_mrc(path)
    with mrcfile.mmap(path, permissive=True) as file:
        data, voxel = file.data, file.voxel_size
        if data is None:
            raise InputError(f"{path} is truncated or no MRC file; copy or download it again")
        stack = path.suffix.lower() == ".mrcs" or file.is_image_stack()
        array = RawArray(path, data.offset, data.dtype, data.shape)
    sizes = [float(voxel[axis]) for axis in ("yx" if stack else "zyx")]
    return array, simplify(sizes, digits=6)


def _open_npy(path: Path) -> tuple[BoxArray, PixelSize]:
    data = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(data, np.memmap) or not data.flags.c_contiguous:
        raise InputError(f"{path} is in Fortran order; save np.ascontiguousarray of it")
    return RawArray(path, data.offset, data.dtype, data.shape), None


def _open_zarr(path: Path) -> tuple[BoxArray, PixelSize]:
    node = _zarr().open(path, mode="r")
    if hasattr(node, "shape"):
        return _ZarrArray(node), None
    attributes = dict(node.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        raise InputError(f"{path} is a zarr group; give the path of one array in it")
    level = images[0]["datasets"][0]
    return _ZarrArray(node[level["path"]]), _ome_zarr_size(images[0]["axes"], level)


def _ome_zarr_size(axes: list[dict[str, str]], level: dict[str, Any]) -> PixelSize:
    """Pixel size of a level from its scale and the units of its axes; None if one has no unit."""
    transforms = level.get("coordinateTransformations", [])
    scale: list[float] = next((t["scale"] for t in transforms if t["type"] == "scale"), [])
    sizes = [
        length * ANGSTROM_PER_UNIT.get(axis.get("unit", "").lower(), math.nan)
        for axis, length in zip(axes, scale, strict=False)
        if axis["name"] in "zyx"
    ]
    return simplify(sizes)


def _create_tiff(path: Path, shape: Shape, dtype: np.dtype, sizes: Sizes) -> BoxArray:
    import tifffile

    metadata: dict[str, object] = {"axes": "ZYX"}
    resolution: dict[str, Any] = {}
    if sizes:
        for axis, size in zip("ZYX", sizes, strict=True):
            metadata |= {f"PhysicalSize{axis}": size / 10, f"PhysicalSize{axis}Unit": "nm"}
        resolution = {
            "resolution": (1e8 / sizes[2], 1e8 / sizes[1]),
            "resolutionunit": "CENTIMETER",
        }
    data = tifffile.memmap(
        path,
        shape=shape,
        dtype=dtype,
        bigtiff=True,
        ome=True,
        photometric="minisblack",
        metadata=metadata,
        **resolution,
    )
    return RawArray(path, data.offset, data.dtype, shape, writable=True)


def _create_mrc(path: Path, shape: Shape, dtype: np.dtype, sizes: Sizes) -> BoxArray:
    import mrcfile

    mode = MRC_MODES[dtype.name]
    with mrcfile.new_mmap(path, shape, mrc_mode=mode, overwrite=True) as file:
        z, y, x = sizes or (0.0, 0.0, 0.0)
        file.voxel_size = (x, y, z)
        offset, stored = file.data.offset, file.data.dtype
    return RawArray(path, offset, stored, shape, writable=True)


def _create_npy(path: Path, shape: Shape, dtype: np.dtype, sizes: Sizes) -> BoxArray:
    data = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return RawArray(path, data.offset, data.dtype, shape, writable=True)


def _create_zarr(path: Path, shape: Shape, dtype: np.dtype, sizes: Sizes) -> BoxArray:
    names = list("zyx")[-len(shape) :]
    axes = [{"name": name, "type": "space"} for name in names]
    if sizes:
        axes = [{**axis, "unit": "angstrom"} for axis in axes]
    scale = {"type": "scale", "scale": list(sizes or (1.0, 1.0, 1.0))[-len(shape) :]}
    level = {"path": "0", "coordinateTransformations": [scale]}
    image = {"axes": axes, "datasets": [level]}
    group = _zarr().create_group(
        path,
        overwrite=True,
        zarr_format=3,
        attributes={"ome": {"version": "0.5", "multiscales": [image]}},
    )
    chunks = tuple(min(length, CHUNK) for length in shape)
    return _ZarrArray(
        group.create_array("0", shape=shape, dtype=dtype, chunks=chunks, dimension_names=names)
    )


def reopen(path: Path, suffix: str) -> BoxArray:
    """Open an unfinished volume for writing."""
    if suffix == ".zarr":
        return _ZarrArray(_zarr().open_group(path, mode="r+")["0"])
    array, _ = OPENERS[suffix](path)
    array.close()
    if not isinstance(array, RawArray):
        raise InputError(f"{path} is not uncompressed; delete it")
    return RawArray(path, array.offset, array.dtype, array.shape, writable=True)


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as problem:
        raise InputError("zarr is not installed; pip install 'emlab-book[volumes]'") from problem
    return zarr


OPENERS: dict[str, Callable[[Path], tuple[BoxArray, PixelSize]]] = {
    ".tif": _open_tiff,
    ".tiff": _open_tiff,
    ".mrc": _open_mrc,
    ".map": _open_mrc,
    ".mrcs": _open_mrc,
    ".npy": _open_npy,
    ".zarr": _open_zarr,
}
CREATORS: dict[str, Callable[[Path, Shape, np.dtype, Sizes], BoxArray]] = {
    ".tif": _create_tiff,
    ".tiff": _create_tiff,
    ".mrc": _create_mrc,
    ".map": _create_mrc,
    ".npy": _create_npy,
    ".zarr": _create_zarr,
}
