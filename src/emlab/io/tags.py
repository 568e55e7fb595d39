"""Headers of image files: pixel sizes in angstrom, damage that is seen in them, and what to say."""

from __future__ import annotations

import math
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emlab.errors import InputError

PixelSize = float | tuple[float, ...] | None

ANGSTROM_PER_UNIT = {
    "a": 1.0, "å": 1.0, "angstrom": 1.0, "angstroms": 1.0, "ångström": 1.0,
    "pm": 0.01, "nm": 10.0, "nanometer": 10.0, "nanometre": 10.0,
    "um": 1e4, "µm": 1e4, "μm": 1e4, "\\u00b5m": 1e4, "micron": 1e4, "microns": 1e4,
    "micrometer": 1e4, "micrometre": 1e4,
    "mm": 1e7, "cm": 1e8, "m": 1e10, "inch": 2.54e8,
}  # fmt: skip
FINEST_ANGSTROM = 0.01  # no microscope magnifies more: a finer pixel is a damaged header
LARGEST_RATIO = 1000.0  # of one axis to another
TIFF_UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_MRC_HEADER = 1024
_MRC_MODES = {0, 1, 2, 4, 6, 12, 101}
_COMPRESSED = (b"\x1f\x8b", b"BZ")


def simplify(sizes: Sequence[float], digits: int = 9, coarsest: float = math.inf) -> PixelSize:
    """Return one number if the axes agree to 1e-4, one per axis otherwise, None if unknown.

    A size that is not finite, below .01 angstrom, above ``coarsest``, or a thousand times that of
    another axis makes it unknown.
    """
    if not sizes or not all(math.isfinite(s) and FINEST_ANGSTROM <= s <= coarsest for s in sizes):
        return None
    if max(sizes) > LARGEST_RATIO * min(sizes):
        return None
    rounded = tuple(float(f"{size:.{digits}g}") for size in sizes)
    return rounded[-1] if max(rounded) - min(rounded) <= 1e-4 * min(rounded) else rounded


def tiff_pixel_size(file: Any, axes: str, coarsest: float) -> PixelSize:
    """Return the pixel size of a TIFF file from its OME, ImageJ or resolution tags.

    Parameters
    ----------
    file
        An open ``tifffile.TiffFile``.
    axes
        Axes of the pixels, for example ``"ZYX"``.
    coarsest
        Resolution tags above this many angstrom are a print resolution (72 dots per inch) and not
        the size of a pixel in the specimen.
    """
    if file.is_ome:
        return _ome(file.ome_metadata)
    tags = file.pages[0].tags
    lateral = [_length(tags, name) for name in ("YResolution", "XResolution")]
    if file.is_imagej and str(file.imagej_metadata.get("unit", "")).lower() in ANGSTROM_PER_UNIT:
        unit = ANGSTROM_PER_UNIT[str(file.imagej_metadata["unit"]).lower()]
        sizes = [length * unit for length in lateral]
        spacing = file.imagej_metadata.get("spacing")
        if "Z" in axes and spacing:
            sizes.insert(0, float(spacing) * unit)
        return simplify(sizes)
    code = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 1
    if code not in TIFF_UNITS:
        return None
    return simplify(
        [length * ANGSTROM_PER_UNIT[TIFF_UNITS[code]] for length in lateral], 9, coarsest
    )


def check_file(path: Path) -> None:
    """Refuse what is no file, or an empty one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one file")
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the name")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again")


def check_mrc(path: Path) -> None:
    """Refuse an extended header longer than the file, which mrcfile would make room for.

    Words are read in the byte order that mrcfile takes: that of the machine stamp, or the other
    one if only that gives a mode that exists.

    Raises
    ------
    InputError
        The header promises more bytes than there are.
    """
    with open(path, "rb") as stream:
        header = stream.read(_MRC_HEADER)
    if len(header) < _MRC_HEADER or header.startswith(_COMPRESSED):
        return
    order, other = "><" if header[212:214] == b"\x11\x11" else "<>"
    if _word(header, 12, order) not in _MRC_MODES and _word(header, 12, other) in _MRC_MODES:
        order = other
    extended = _word(header, 92, order)
    if extended > path.stat().st_size:
        raise InputError(
            f"{path} is damaged or truncated: its header promises {extended} more bytes of header; "
            f"copy or download it again"
        )


def unreadable(path: Path, problem: Exception, kind: str = "") -> InputError:
    """Return what to tell the user when a library could not read a file."""
    reason = str(problem).strip().split("\n")[0] or type(problem).__name__
    advice = "it may be truncated or of another type, copy or download it again"
    if "imagecodecs" in reason:
        advice = "install imagecodecs, or save the file without compression"
    elif "pickle" in reason or "Python objects" in reason:
        reason = "it holds pickled objects, which can run programs"
        advice = "save plain numbers, for example with numpy.save(..., allow_pickle=False)"
    return InputError(f"{path} cannot be read{kind}: {reason}; {advice}")


def _word(header: bytes, offset: int, order: str) -> int:
    return struct.unpack_from(f"{order}i", header, offset)[0]


def _length(tags: Any, name: str) -> float:
    """Return the length of a pixel in the file's unit, 0 if the tag is absent."""
    if name not in tags:
        return 0.0
    pixels, per = tags[name].value
    return per / pixels if pixels else 0.0


def _ome(text: str) -> PixelSize:
    pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    if pixels is None:
        return None
    sizes = []
    for axis in "ZYX":
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()
        sizes.append(float(pixels.get(f"PhysicalSize{axis}", 0)) * ANGSTROM_PER_UNIT.get(unit, 0.0))
    deep = int(pixels.get("SizeZ", 1)) > 1 and sizes[0] > 0
    return simplify(sizes if deep else sizes[1:])
