"""Real micrographs: those of the registry with their picks, and the user's own, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from emlab import data
from emlab.data.coordinates import read_coordinates
from emlab.errors import InputError
from emlab.io import read_array, read_image

_DISC_PIXELS = 17.0  # radius of the discs over the picks of the apoferritin frame, in their image
_FEW_COUNTS = 24  # a sum of frames without gain correction has no more grey levels than this


@dataclass(frozen=True)
class RealMicrograph:
    """A micrograph of the real world.

    Attributes
    ----------
    pixels : ndarray
        ``(H, W)`` float32, protein dark, grey levels of the file.
    coordinates : ndarray or None
        ``(n, 2)`` picks (y, x) in pixels.
    diameter_angstrom : float or None
        Of the particle.
    note : str
        What the picks and the pixels are worth.
    """

    name: str
    pixels: NDArray[np.float32]  #: (H, W), protein dark, grey levels of the file
    pixel_size_angstrom: float
    coordinates: NDArray[np.float64] | None = None  #: (n, 2) picks (y, x) in pixels
    diameter_angstrom: float | None = None  #: of the particle
    note: str = ""  #: what the picks and the pixels are worth


def k2_micrograph() -> RealMicrograph:
    """Frame sum of a K2 camera at 300 kV, 2048 x 2048 pixels of .854 A, without picks.

    Single pixels hit by X-rays are replaced by the median of their neighbours.

    Raises
    ------
    DataUnavailableError
        Neither mirror nor cache nor network has it (this holds for the other ones, too).
    """
    found, size = _loaded("k2_micrograph")
    return RealMicrograph("k2", without_hot_pixels(found["micrograph"]), size)


def apoferritin_micrograph(frame: str = "noisy") -> RealMicrograph:
    """EMPIAR-10146: one frame (``"noisy"``) or the average, with hand picks.

    The picks were published as discs drawn over a picture of half the size; their centres are
    good to about two pixels, and those of discs that touch the border to some more.
    """
    found, size = _loaded("apoferritin_10146")
    name = f"apoferritin, {'one frame' if frame == 'noisy' else frame}"
    picks = 2 * disc_centres(found["picks"]) + 0.5
    note = "hand picks; the average contains the frame"
    return RealMicrograph(name, found[frame].astype(np.float32), size, picks, 130.0, note)


def betagal_micrograph() -> tuple[RealMicrograph, dict[str, NDArray[np.float64]]]:
    """EMPIAR-10017 with hand-checked picks of CryoPPP, and those of three programs beside it.

    The picture was denoised by another network and coded as JPEG, so it says nothing about noise.
    The programs' boxes count rows from below (the picture was turned upside down); they come back
    counted from above.
    """
    found, size = _loaded("betagal_10017")
    pixels = found["micrograph"].astype(np.float32)
    tables = {
        Path(name).stem.rpartition("_")[2]: read_coordinates(path)
        for name, path in data.paths("betagal_10017").items()
        if path.suffix in (".csv", ".box")
    }
    hand = tables.pop("picks")
    upright = {name: t.places * (-1, 1) + (len(pixels), 0) for name, t in tables.items()}
    note = "denoised by another network, JPEG: for places only"
    return RealMicrograph("beta-galactosidase", pixels, size, hand.places, 180.0, note), upright


def _loaded(name: str) -> tuple[data.Dataset, float]:
    found = data.load(name)
    size = found.record.pixel_size_angstrom
    assert isinstance(size, float)
    return found, size


def disc_centres(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Centres ``(n, 2)`` (y, x) of saturated yellow discs in a colour picture ``(H, W, 3)``.

    A disc is where the distance to anything else is largest; one that the border cuts counts as
    going on beyond it.
    """
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    inside = np.pad((red > 200) & (green > 180) & (blue < 100), 1, mode="edge")
    distance = scipy.ndimage.distance_transform_edt(inside)
    depth = scipy.ndimage.gaussian_filter(distance, 1.0)[1:-1, 1:-1]
    peak = scipy.ndimage.maximum_filter(depth, size=int(1.2 * _DISC_PIXELS))
    labels, n = scipy.ndimage.label((depth == peak) & (depth > 0.6 * _DISC_PIXELS))
    centres = scipy.ndimage.center_of_mass(labels > 0, labels, range(1, n + 1))
    return np.array(centres).reshape(-1, 2)


def without_hot_pixels(pixels: NDArray) -> NDArray[np.float32]:
    """Pixels far from the median of their 3 x 3 neighbourhood get that median."""
    image = np.asarray(pixels, np.float32)
    median = scipy.ndimage.median_filter(image, 3)
    gap = image - median
    spread = 1.4826 * float(np.median(np.abs(gap)))
    return np.where(np.abs(gap) > 8 * max(spread, 1e-12), median, image)


def read_micrograph(path: Path | str, pixel_size_angstrom: float | None = None) -> RealMicrograph:
    """Read the user's micrograph and refuse what is none.

    Parameters
    ----------
    pixel_size_angstrom : float, optional
        Counts more than what the file says.

    Raises
    ------
    InputError
        A movie or another stack, counts without gain correction, pixels that are NaN, constant
        or of the wrong byte order, a truncated file, or no pixel size; says what to do.
    """
    path = Path(path)
    raw, _ = read_array(path)
    if raw.ndim == 3 and min(raw.shape) == 1:
        raw = raw.reshape([side for side in raw.shape if side != 1])
    if raw.ndim > 2:
        if raw.shape[-1] in (3, 4) and raw.dtype == np.uint8:
            raise InputError(f"{path} is in colour, shape {raw.shape}; give the grey original")
        kind, advice = "stack", "give one micrograph (H, W) a file"
        if raw.dtype.kind in "bui":
            kind = "movie"
            advice = "correct the gain, align and sum its frames first, and give the sum"
        raise InputError(f"{path} is a {kind} of shape {raw.shape}; {advice}")
    if raw.dtype.kind in "uif":
        _check_byte_order(path, raw)
        _check_levels(path, raw[::4, ::4])
    image = read_image(path)
    pixels = image.pixels.reshape(raw.shape)
    if not pixels.std() > 0:
        raise InputError(f"{path} is constant, {pixels.flat[0]:g} everywhere; check it")
    if pixel_size_angstrom is not None and not pixel_size_angstrom > 0:
        raise InputError(f"the pixel size must be positive (angstrom), got {pixel_size_angstrom}")
    size = pixel_size_angstrom or image.pixel_size_angstrom
    if isinstance(size, tuple):
        if abs(size[-1] - size[-2]) > 1e-3 * size[-1]:
            raise InputError(f"{path} has pixels of {size} angstrom; give square ones")
        size = float(size[-1])
    if not size:
        raise InputError(f"{path} does not say its pixel size; give --pixel-size in angstrom")
    return RealMicrograph(path.stem, pixels, float(size))


def _check_levels(path: Path, sample: NDArray) -> None:
    """Counts of one frame are few whole numbers, whatever type they are stored in."""
    levels = np.unique(sample)
    whole = sample.dtype.kind != "f" or bool((levels == np.rint(levels)).all())
    if whole and 1 < len(levels) <= _FEW_COUNTS:
        raise InputError(
            f"{path} has {len(levels)} grey levels, as a single frame without gain correction "
            "has; correct the gain and sum the frames first"
        )


def _check_byte_order(path: Path, raw: NDArray) -> None:
    """Values of the other byte order are wild, and tame when their bytes are swapped.

    Floats are told by their exponents (read as bits: tiny numbers may be flushed to zero), integers
    of two bytes by their spread. Whole bytes of zeros swap into the same picture 256 times fainter.
    """
    sample = np.ascontiguousarray(raw[::7, ::7])
    wrong = False
    if sample.dtype.kind == "f" and sample.dtype.itemsize == 4:
        bits = sample.astype(sample.dtype.newbyteorder("="), copy=False).view(np.uint32)
        wrong = _wild(bits) > 0.2 and _wild(bits.byteswap()) < 0.01
    elif sample.dtype.kind in "ui" and sample.dtype.itemsize == 2 and (sample & 0xFF).any():
        wrong = sample.std() > 20 * max(sample.byteswap().std(), 1e-9)
    if wrong:
        raise InputError(
            f"{path} has its bytes in the other order than its header says; write it again "
            "with the machine stamp of its pixels"
        )


def _wild(bits: NDArray[np.uint32]) -> float:
    """Share of floats that are not zero and beyond 1e18 or below 1e-18."""
    exponent = (bits >> 23 & 0xFF).astype(np.int16) - 127
    return float((((exponent > 60) | (exponent < -60)) & (bits << 1 != 0)).mean())
