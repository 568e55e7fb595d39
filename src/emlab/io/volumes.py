"""Volumes larger than memory: read a box at a time, write a box at a time, keep the voxel size.

================  ============================================  ===================================
suffix            read                                          written
================  ============================================  ===================================
.tif .tiff        uncompressed in place; others slice by slice  uncompressed BigTIFF with OME header
.mrc .map .mrcs   in place                                      in place (.mrc, .map)
.npy              in place                                      in place; no voxel size
.zarr (folder)    array, or first level of an OME-Zarr image;   OME-Zarr 0.5, one level;
                  an image (H, W) is one slice                  also an image (H, W)
================  ============================================  ===================================

Zarr needs ``pip install 'emlab-book[volumes]'``. A volume that is being written lies hidden beside
its final name and gets that name when it is complete.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emlab.errors import EmlabError, InputError
from emlab.io.backends import CREATORS, MRC_MODES, OPENERS, TIFF_TYPES, BoxArray, as_box, reopen
from emlab.io.images import axes_sizes
from emlab.io.tags import PixelSize, check_file, unreadable
from emlab.runtime import disk_error

_TYPES = {".tif": TIFF_TYPES, ".tiff": TIFF_TYPES, ".mrc": MRC_MODES, ".map": MRC_MODES}


class Volume:
    """A volume in a file; indexing it with integers and slices reads just that box.

    Attributes
    ----------
    shape
        (D, H, W).
    dtype
        Type of the values in the file; they are returned as they are stored.
    pixel_size_angstrom
        One number if all axes agree, else one per axis, (z, y, x) or (y, x); None if unknown.
    stamp
        Name, size and time of the last change, to tell whether a resumed run reads the same file.
    """

    def __init__(self, path: Path, array: BoxArray, pixel_size_angstrom: PixelSize) -> None:
        self.path, self.pixel_size_angstrom = path, pixel_size_angstrom
        self._array, self.dtype = array, array.dtype
        self._leading = (slice(0, 1),) * (len(array.shape) - 3)
        self.shape = array.shape[-3:]
        facts = path.stat()
        self.stamp = f"{path.name}, {facts.st_size} bytes, changed {facts.st_mtime_ns}"

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read a box; `InputError` says that it lies outside, or cannot be read."""
        box, dropped = as_box(index, self.shape)
        with _reading(self.path):
            values = self._array.read((*self._leading, *box))
        return values.reshape(values.shape[-3:]).squeeze(dropped)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_volume, (self.path.absolute(),)  # a worker opens the file itself

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._array.close()


class NewVolume:
    """A volume that is being written; a context manager that ends with the rename.

    If the block fails, nothing appears under the name; what was written is deleted, or kept for
    another try if the volume was made with ``resume=True``.

    Attributes
    ----------
    path
        Its name when complete.
    resumed
        Whether it goes on from an interrupted run.
    partial
        Where it is until then.
    journal
        Folder for notes on the progress; deleted when the volume is complete.
    """

    def __init__(
        self, path: Path, partial: Path, array: BoxArray, size: PixelSize, resume: bool, old: bool
    ) -> None:
        self.path, self.partial, self.pixel_size_angstrom = path, partial, size
        self.shape, self.dtype, self.resumed = array.shape, array.dtype, old
        self.journal = _beside(partial, ".journal")
        self._array, self._keep = array, resume

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read back a box; zeros where nothing was written yet."""
        box, dropped = as_box(index, self.shape)
        return self._array.read(box).squeeze(dropped)

    def __setitem__(self, index: Any, values: np.ndarray) -> None:
        """Write a box; `EmlabError` says that the disk is full."""
        box, _ = as_box(index, self.shape)
        shape = [part.stop - part.start for part in box]
        with _writing(self.path):
            self._array.write(box, np.broadcast_to(values, shape))

    def __enter__(self) -> NewVolume:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
            return
        self._array.close()
        if not self._keep:
            _remove(self.partial)
            _remove(self.journal)

    def flush(self) -> None:
        """Return when all that was written is on the disk."""
        with _writing(self.path):
            self._array.flush()

    def commit(self) -> None:
        """Give the volume its name; whatever had that name is replaced."""
        self.flush()
        self._array.close()
        with _writing(self.path):
            if self.path.is_dir():
                old = _beside(self.partial, ".old")
                _remove(old)
                os.replace(self.path, old)
                os.replace(self.partial, self.path)
                _remove(old)
            else:
                os.replace(self.partial, self.path)
            _remove(self.journal)


def open_volume(path: str | os.PathLike[str]) -> Volume:
    """Open a volume (D, H, W) without reading it.

    Raises
    ------
    InputError
        The file is missing, empty, truncated, not a grey volume or of an unknown type, or zarr is
        needed and absent; the message says what to do.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if _is_zarr(path):
        suffix = ".zarr"
    opener = OPENERS.get(suffix)
    if opener is None and not path.is_dir():
        known = ", ".join(OPENERS)
        raise InputError(f"{path}: unknown type of volume {path.suffix!r}; use one of {known}")
    if suffix == ".zarr" and path.is_file():
        raise InputError(f"{path} is a file, not a zarr folder")
    if suffix != ".zarr" or not path.exists():
        check_file(path)
    assert opener is not None
    with _reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array, size = opener(path)
    shape = array.shape
    if len(shape) < 3 or set(shape[:-3]) - {1} or 0 in shape or array.dtype.kind not in "buif":
        array.close()
        raise InputError(
            f"{path} has shape {shape} and type {array.dtype}; give a grey volume (D, H, W) of "
            f"real values"
        )
    return Volume(path, array, size)


def create_volume(
    path: str | os.PathLike[str],
    shape: Sequence[int],
    dtype: np.typing.DTypeLike = "float32",
    pixel_size_angstrom: PixelSize = None,
    *,
    resume: bool = False,
) -> NewVolume:
    """Create a volume of zeros to be written box by box.

    Parameters
    ----------
    path, dtype
        The suffix decides the format, see the table at the top of this module, and each format has
        its own list of types.
    shape
        (D, H, W); zarr also takes (H, W).
    pixel_size_angstrom
        One number, or one per axis (y, x) or (z, y, x).
    resume
        Go on with what an interrupted run left under this name, if it left something, and leave it
        there in turn if this one is interrupted.

    Raises
    ------
    InputError
        A format, type, shape or pixel size that does not fit, an unfinished volume of another
        shape or type, or no zarr.
    EmlabError
        The disk has too little space.
    """
    path, shape, dtype = Path(path), tuple(int(n) for n in shape), np.dtype(dtype)
    suffix = path.suffix.lower()
    if suffix not in CREATORS:
        known = ", ".join(CREATORS)
        raise InputError(f"{path}: cannot write a volume as {path.suffix!r}; use one of {known}")
    types = tuple(_TYPES.get(suffix, (dtype.name,)))
    fits = len(shape) in ((2, 3) if suffix == ".zarr" else (3,)) and min(shape) >= 1
    if not fits or dtype.kind not in "buif" or dtype.name not in types:
        known = f"; {suffix} holds {', '.join(types)}" if suffix in _TYPES else ""
        raise InputError(f"{path}: cannot hold a volume of shape {shape} and type {dtype}{known}")
    if path.exists() and (path.is_dir() != (suffix == ".zarr") or path.is_dir() > _is_zarr(path)):
        raise InputError(f"{path} is something else and in the way; choose another name")
    sizes = axes_sizes(pixel_size_angstrom, 3)
    partial = path.with_name(f".{path.stem}.partial{suffix}")
    array = _unfinished(partial, suffix) if resume else None
    full = (1,) * (3 - len(shape)) + shape
    if array is not None and (array.shape != full or array.dtype != dtype):
        array.close()
        raise InputError(
            f"{partial} is what an interrupted run left, of shape {array.shape} and type "
            f"{array.dtype} instead of {shape} and {dtype}; repeat its settings or delete it"
        )
    resumed = array is not None
    if array is None:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(partial)
            _remove(_beside(partial, ".journal"))
            if suffix != ".zarr":
                _require_space(path, math.prod(shape) * dtype.itemsize)
            try:
                array = CREATORS[suffix](partial, shape, dtype, sizes)
            except BaseException:
                _remove(partial)
                raise
    return NewVolume(path, partial, array, pixel_size_angstrom, resume, resumed)


def _unfinished(partial: Path, suffix: str) -> BoxArray | None:
    """Open what an interrupted run left; None if there is nothing that can be read."""
    if not partial.exists():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reopen(partial, suffix)
    except (MemoryError, PermissionError):
        raise
    except Exception:
        return None


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise EmlabError(
            f"{path} takes {needed / 1e9:.3g} GB and no space is left for it on the disk "
            f"({free / 1e9:.3g} GB free); free some or choose another disk"
        )


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _remove(path: Path) -> None:
    """Remove a file or a folder; threads of zarr may still be writing the last chunks into it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if not path.exists():
            return
    shutil.rmtree(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader of files raises into one sentence."""
    try:
        yield
    except InputError as problem:
        text = str(problem)
        raise problem if str(path) in text else InputError(f"{path}: {text}") from problem
    except (EmlabError, MemoryError):
        raise
    except Exception as problem:
        raise unreadable(path, problem) from problem


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise disk_error(problem, path) from problem
