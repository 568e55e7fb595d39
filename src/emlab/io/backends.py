"""How each format of volumes is opened and created."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emlab.errors import InputError
from emlab.io.arrays import BoxArray, RawArray, TiffPages, ZarrArray
from emlab.io.images import COARSEST_ANGSTROM
from emlab.io.tags import ANGSTROM_PER_UNIT, PixelSize, check_mrc, simplify, tiff_pixel_size

CHUNK = 64  # side of the chunks of a new zarr array
MRC_MODES = {"int8": 0, "int16": 1, "float32": 2, "uint16": 6, "float16": 12}
TIFF_TYPES = ("uint8", "int8", "uint16", "int16", "float32")
Shape = tuple[int, ...]
Sizes = tuple[float, float, float] | None  # (z, y, x)


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
            return TiffPages(file, series), size
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
        return ZarrArray(node), None
    attributes = dict(node.attrs)
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        raise InputError(f"{path} is a zarr group; give the path of one array in it")
    level = images[0]["datasets"][0]
    return ZarrArray(node[level["path"]]), _ome_zarr_size(images[0]["axes"], level)


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
    return ZarrArray(
        group.create_array("0", shape=shape, dtype=dtype, chunks=chunks, dimension_names=names)
    )


def reopen(path: Path, suffix: str) -> BoxArray:
    """Open an unfinished volume for writing."""
    if suffix == ".zarr":
        return ZarrArray(_zarr().open_group(path, mode="r+")["0"])
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
