"""Read and write images without losing their pixel size.

==================  ======================  =====================================================
suffix              pixels written          where the pixel size is kept
==================  ======================  =====================================================
.mrc .map .mrcs     int8, int16, uint16,    voxel size in the header; 0 means unknown
                    float16, float32
.tif .tiff          uint8, uint16, float32  resolution tags, ImageJ style (read: also OME, inch, cm)
.png                uint8, uint16, floats   text chunk ``pixel_size_angstrom`` (read: also pHYs)
                    in [0, 1] as 16 bit
.npy                any real dtype          nowhere: NumPy files hold only the array
.jpg .jpeg          read only               nowhere
==================  ======================  =====================================================

Whatever a file holds, :func:`read_image` gives finite float32 pixels (..., H, W) with the file's
own values: nothing is rescaled, except that floats written as PNG come back as 0..65535.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emlab.errors import EmlabError, InputError
from emlab.io.tags import PixelSize, check_file, check_mrc, simplify, tiff_pixel_size, unreadable
from emlab.runtime import atomic_path

PNG_KEY = "pixel_size_angstrom"
COARSEST_ANGSTROM = 1e5  # 10 micrometres; coarser resolution tags are meant for a printer
MOST_COMPRESSED = 1100  # bytes of pixels that a byte of a TIFF file can hold (deflate: 1032)
DAMAGE = ("invalid", "corrupt", "missing", "incorrect", "raised", "cannot")  # in tifffile's log
Decoded = tuple[np.ndarray, PixelSize, bool]  # pixels, pixel size, in colour?
Sizes = tuple[float, float, float] | None  # (z, y, x)
_OF_THE_PIXELS = ("mode", "dmin", "dmax", "dmean", "rms", "nsymbt", "machst", "map")
# Resolution is written by name; the others are what programs say about an image.
_SAID = {269: "DocumentName", 270: "description", 271: "Make", 272: "Model", 315: "Artist"}
_PRIVATE = 32768


@dataclass(frozen=True)
class Image:
    """An image, stack or volume."""

    pixels: np.ndarray  #: (..., H, W) float32, finite, in the values of the file
    #: one number if all axes agree, else one per axis, (y, x) or (z, y, x); None if unknown
    pixel_size_angstrom: PixelSize
    path: Path


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a grey-scale image, stack or volume.

    Raises
    ------
    InputError
        The file is missing, empty, truncated, in colour, complex, of an unknown type, or has values
        that are not finite; the message says what to do.
    """
    path = Path(path)
    pixels, pixel_size, colour = _read(path)
    if colour:
        raise InputError(f"{path} is in colour, shape {pixels.shape}; convert it to grey first")
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{path} holds {pixels.dtype} values; give real-valued pixels")
    if pixels.ndim < 2 or pixels.size == 0:
        raise InputError(f"{path} has shape {pixels.shape}; give an image with rows and columns")
    with np.errstate(over="ignore"):
        pixels = np.array(pixels, dtype=np.float32, order="C")
    check_finite(pixels, f"{path}")
    return Image(pixels, pixel_size, path)


def check_finite(pixels: np.ndarray, where: str) -> None:
    """Refuse pixels that are not finite."""
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        raise InputError(
            f"{where} has {bad} pixels that are NaN or infinite; replace them (for example by the "
            f"median of their neighbours) and save the file again"
        )


def read_array(path: str | os.PathLike[str]) -> tuple[np.ndarray, PixelSize]:
    """Return the pixels in the file's own dtype, colour included, and the pixel size in angstrom.

    Raises
    ------
    InputError
        The file is missing, empty, truncated or of an unknown type.
    """
    return _read(Path(path))[:2]


def _read(path: Path) -> Decoded:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise InputError(f"{path}: unknown image type {path.suffix!r}; use one of {known}")
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(path)
    except EmlabError:
        raise
    except MemoryError as problem:
        raise EmlabError(
            f"{path} does not fit into memory, or its header is damaged ({problem}); work on a "
            f"crop or a machine with more memory, or copy the file again"
        ) from problem
    except Exception as problem:
        raise unreadable(path, problem, f" as {path.suffix}") from problem


def write_image(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    pixel_size_angstrom: PixelSize = None,
) -> Path:
    """Write an image, stack or volume; the file appears whole or not at all.

    Parameters
    ----------
    path
        Its suffix decides the format, see the table at the top of this module.
    pixels
        (..., H, W), real and finite. Dtypes that a format lacks are stored as float32 where that is
        exact enough (integers up to 2**24) and refused otherwise.
    pixel_size_angstrom
        One number, or one per axis (y, x) or (z, y, x).

    Raises
    ------
    InputError
        Pixels that the format cannot hold, a bad pixel size, an unknown suffix or folder.
    EmlabError
        The disk is full.
    """
    path, pixels = Path(path), np.asarray(pixels)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise InputError(f"{path}: cannot write image type {path.suffix!r}; use one of {known}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name in it")
    if pixels.ndim < 2 or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise InputError(
            f"cannot write an array of shape {pixels.shape} and type {pixels.dtype} to {path}; "
            f"give real pixels with rows and columns"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"refusing to write NaN or infinite pixels to {path}")
    sizes = axes_sizes(pixel_size_angstrom, pixels.ndim)
    with atomic_path(path) as temporary:
        writer(temporary, pixels, sizes)
    return path


def axes_sizes(size: PixelSize, ndim: int) -> Sizes:
    """Return the pixel size as (z, y, x); z is that of y where only two are given."""
    if size is None:
        return None
    try:
        given = np.atleast_1d(np.asarray(size, dtype=float))
    except (TypeError, ValueError):
        given = np.zeros(1)
    if given.ndim != 1 or len(given) > min(ndim, 3) or not (np.isfinite(given) & (given > 0)).all():
        raise InputError(
            f"pixel_size_angstrom={size!r} does not fit {ndim} axes; give one positive number, or "
            f"one for each of the last two or three axes"
        )
    if len(given) == 1:
        given = np.repeat(given, 3)
    elif len(given) == 2:
        given = np.concatenate([given[:1], given])
    z, y, x = given
    return float(z), float(y), float(x)


def _as_stored(pixels: np.ndarray, allowed: tuple[str, ...]) -> np.ndarray:
    """Pixels in a dtype that the format has: their own, else float32."""
    if pixels.dtype == bool:
        return pixels.astype(np.int8 if "int8" in allowed else np.uint8)
    if pixels.dtype.name in allowed:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind in "ui" and max(abs(int(pixels.min())), abs(int(pixels.max()))) > 2**24:
        raise InputError(
            f"{pixels.dtype} values above 2**24 would be rounded; use .npy, or store fewer labels"
        )
    with np.errstate(over="ignore"):
        stored = pixels.astype(np.float32)
    if not np.isfinite(stored).all():
        raise InputError("values above 3.4e38 do not fit into float32; rescale the pixels")
    return stored


def _read_mrc(path: Path) -> Decoded:
    import mrcfile

    check_mrc(path)
    # permissive: RELION and older programs leave out the map identifier and the machine stamp
    with mrcfile.open(path, permissive=True) as file:
        data, voxel = file.data, file.voxel_size
        if data is None:
            raise InputError(f"{path} is truncated or no MRC file; copy or download it again")
        stack = path.suffix.lower() == ".mrcs" or file.is_image_stack()
    depth = data.ndim > 2 and not stack
    sizes = [float(voxel[axis]) for axis in ("zyx" if depth else "yx")]
    return np.asarray(data), simplify(sizes, digits=6), False


def _write_mrc(path: Path, pixels: np.ndarray, sizes: Sizes) -> None:
    import mrcfile

    stored = _as_stored(pixels, ("int8", "int16", "uint16", "float16", "float32"))
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(stored)
        if path.suffix.lower() == ".mrcs" and stored.ndim == 3:
            file.set_image_stack()
        z, y, x = sizes or (0.0, 0.0, 0.0)
        file.voxel_size = (x, y, z)


@contextmanager
def _complaints(library: str) -> Iterator[list[str]]:
    """What a library logs, kept instead of printed."""
    logger, handler, texts = logging.getLogger(library), logging.Handler(logging.WARNING), []
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def _read_tiff(path: Path) -> Decoded:
    import tifffile

    with _complaints("tifffile") as complaints, tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.nbytes > MOST_COMPRESSED * path.stat().st_size:
            raise InputError(
                f"{path} announces {series.nbytes} bytes of pixels, far more than it has"
            )
        pixels = series.asarray()
        damage = [text for text in complaints if any(word in text for word in DAMAGE)]
        if damage:
            raise InputError(f"{path} is damaged or truncated: {damage[0]}; copy it again")
        size = tiff_pixel_size(file, series.axes, COARSEST_ANGSTROM)
        return pixels, size, "S" in series.axes


def _write_tiff(path: Path, pixels: np.ndarray, sizes: Sizes) -> None:
    import tifffile

    stored = _as_stored(pixels, ("uint8", "uint16", "float32"))
    if stored.ndim > 4:
        raise InputError(f"a TIFF file holds at most 4 axes, not {stored.ndim}; use .npy")
    # all six axes of ImageJ are named, else one of length 1 at the end is taken for colour
    frames, slices, rows, columns = (1,) * (4 - stored.ndim) + stored.shape
    metadata: dict[str, object] = {"axes": "TZCYXS"}
    resolution = None
    if sizes:
        z, y, x = (size / 10 for size in sizes)
        resolution = (1 / x, 1 / y)
        metadata |= {"unit": "nm"} | ({"spacing": z} if stored.ndim > 2 else {})
    tifffile.imwrite(
        path,
        stored.reshape(frames, slices, 1, rows, columns, 1),
        imagej=True,
        resolution=resolution,
        metadata=metadata,
    )


def _read_pillow(path: Path) -> Decoded:
    import PIL.Image

    with PIL.Image.open(path) as file:
        file.load()
        pixels, info = np.asarray(file), dict(file.info)
        colour = len(file.getbands()) > 1 or file.mode == "P"
    size: PixelSize = None
    if PNG_KEY in info:
        size = simplify([float(word) for word in str(info[PNG_KEY]).split()])
    elif path.suffix.lower() == ".png" and min(info.get("dpi", [0])) > 0:
        dots = info["dpi"]  # Pillow's name for pixels per metre, scaled to inches
        size = simplify([0.0254e10 / dots[1], 0.0254e10 / dots[0]], coarsest=COARSEST_ANGSTROM)
    return pixels, size, colour


def _write_png(path: Path, pixels: np.ndarray, sizes: Sizes) -> None:
    import PIL.Image
    import PIL.PngImagePlugin

    if pixels.ndim != 2:
        raise InputError(f"PNG holds one image, not shape {pixels.shape}; use .tif or .mrc")
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = np.round(pixels.astype(np.float64) * 65535).astype(np.uint16)
    if pixels.dtype.name not in ("uint8", "uint16"):
        raise InputError(
            f"PNG holds uint8, uint16 or floats from 0 to 1, not {pixels.dtype} from "
            f"{pixels.min():g} to {pixels.max():g}; use .tif or .mrc to keep the values"
        )
    info = PIL.PngImagePlugin.PngInfo()
    if sizes:
        info.add_text(PNG_KEY, f"{sizes[1]!r} {sizes[2]!r}")
    native = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    PIL.Image.fromarray(native).save(path, format="PNG", pnginfo=info)


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
    kinds = {path.suffix.lower(), source.suffix.lower()}
    for known, copy in ((_MRC, _mrc_like), (_TIFF, _tiff_like)):
        if kinds <= {*known}:
            with atomic_path(path) as temporary:
                copy(temporary, stored, source)
            return path
    return write_image(path, stored.reshape(pixels.shape), size)


def _mrc_like(path: Path, pixels: np.ndarray, source: Path) -> None:
    import mrcfile

    with mrcfile.open(source, permissive=True) as old, mrcfile.new(path, overwrite=True) as new:
        extended = old.extended_header
        if extended is not None and extended.size:
            new.set_extended_header(extended.astype(extended.dtype.newbyteorder("=")))
        new.set_data(pixels)
        for name in old.header.dtype.names:
            if name not in _OF_THE_PIXELS:
                new.header[name] = old.header[name]


def _tiff_like(path: Path, pixels: np.ndarray, source: Path) -> None:
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


_MRC, _TIFF = (".mrc", ".mrcs", ".map"), (".tif", ".tiff")
_READERS: dict[str, Callable[[Path], Decoded]] = {
    **dict.fromkeys(_MRC, _read_mrc),
    **dict.fromkeys(_TIFF, _read_tiff),
    **dict.fromkeys((".png", ".jpg", ".jpeg"), _read_pillow),
    ".npy": lambda path: (np.load(path, allow_pickle=False), None, False),
}
_WRITERS: dict[str, Callable[[Path, np.ndarray, Sizes], None]] = {
    **dict.fromkeys(_MRC, _write_mrc),
    **dict.fromkeys(_TIFF, _write_tiff),
    ".png": _write_png,
    ".npy": lambda path, pixels, _: np.save(path, pixels, allow_pickle=False),
}
READABLE, WRITABLE = tuple(_READERS), tuple(_WRITERS)
