"""Pixel sizes from the headers of image files, in angstrom."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

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
