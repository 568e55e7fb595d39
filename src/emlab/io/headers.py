"""Write an image in place of another one: same format, same header, other pixels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from emlab.errors import InputError
from emlab.io.images import read_array, write_image
from emlab.runtime import atomic_path

_MRC = (".mrc", ".mrcs", ".map")
_TIFF = (".tif", ".tiff")
_OF_THE_PIXELS = ("mode", "dmin", "dmax", "dmean", "rms", "nsymbt", "machst", "map")
# Resolution is written by name; the others are what programs say about an image.
_SAID = {269: "DocumentName", 270: "description", 271: "Make", 272: "Model", 315: "Artist"}
_PRIVATE = 32768


def write_like(
    path: str | os.PathLike[str], pixels: np.ndarray, source: str | os.PathLike[str]
) -> Path:
    """Write pixels with everything else that a file says: header, extended header, tags.

    Between MRC files all header fields but those that describe the pixels themselves (mode,
    density statistics) and the whole extended header are kept; between TIFF files resolution,
    description, authorship and private tags. Into another format only the pixel size goes.

    Parameters
    ----------
    pixels : ndarray
        ``(H, W)`` or as the source has them, real; stored as float32.

    Raises
    ------
    InputError
        The shapes differ, or a file cannot be read or written.
    """
    path, source = Path(path), Path(source)
    raw, size = read_array(source)
    if raw.size != pixels.size or raw.shape[-2:] != pixels.shape[-2:]:
        raise InputError(f"{source} has shape {raw.shape}; {pixels.shape} pixels cannot replace it")
    stored = np.ascontiguousarray(pixels, dtype=np.float32).reshape(raw.shape)
    kinds = path.suffix.lower(), source.suffix.lower()
    if all(kind in _MRC for kind in kinds):
        with atomic_path(path) as temporary:
            _mrc(temporary, stored, source)
    elif all(kind in _TIFF for kind in kinds):
        with atomic_path(path) as temporary:
            _tiff(temporary, stored, source)
    else:
        write_image(path, stored.reshape(pixels.shape), size)
    return path


def _mrc(path: Path, pixels: np.ndarray, source: Path) -> None:
    import mrcfile

    with (
        mrcfile.open(source, permissive=True) as old,
        mrcfile.new(path, overwrite=True) as new,
    ):
        extended = old.extended_header
        if extended is not None and extended.size:
            native = extended.astype(extended.dtype.newbyteorder("="))
            new.set_extended_header(native)
        new.set_data(pixels)
        for name in old.header.dtype.names:
            if name not in _OF_THE_PIXELS:
                new.header[name] = old.header[name]


def _tiff(path: Path, pixels: np.ndarray, source: Path) -> None:
    import tifffile

    with tifffile.TiffFile(source) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        values = {tag.code: (int(tag.dtype), tag.count, tag.value) for tag in tags}
    resolution = None
    if 282 in values and 283 in values:
        pair = (values[282][2], values[283][2])
        resolution = tuple(v[0] / v[1] if isinstance(v, tuple) and v[1] else v for v in pair)
    extra = [
        (code, *tag, True)
        for code, tag in values.items()
        if (code in _SAID and code != 270) or code >= _PRIVATE
    ]
    text = values[270][2] if 270 in values else None
    tifffile.imwrite(
        path,
        pixels,
        photometric="minisblack",
        description=text,
        software=values[305][2] if 305 in values else False,
        datetime=values[306][2] if 306 in values else None,
        resolution=resolution,
        resolutionunit=int(values[296][2]) if 296 in values else None,
        extratags=extra,
        metadata=None,
    )
