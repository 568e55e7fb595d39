"""What is known about particle images: optics, defocus, poses; checked in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from emlab.errors import InputError

Numbers = NDArray[np.float64]
Kind = TypeVar("Kind", bound="Metadata")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Optics and poses of n particle images.

    Attributes
    ----------
    pixel_size_angstrom, voltage_kv, cs_mm, amplitude_contrast : float
        One number for all particles; the last is a share, in [0, 1).
    defocus_u_angstrom, defocus_v_angstrom : ndarray
        ``(n,)``, positive is underfocus.
    astigmatism_deg : ndarray
        ``(n,)`` angle of the first defocus from the columns' axis towards higher rows.
    phase_shift_deg : ndarray
        ``(n,)`` of a phase plate.
    optics_group : ndarray
        ``(n,)`` whole numbers from 1.
    rotations : ndarray or None
        ``(n, 3, 3)`` as `emlab.data.phase_maps.project` takes them.
    shifts_angstrom : ndarray or None
        ``(n, 2)`` (x, y) of the particle from the image's centre.
    images_at : tuple of (str, int)
        Stack and place in it, from 0, as the file names them.
    source : str
        Where the numbers come from.

    Raises
    ------
    InputError
        A number that is not finite, of the wrong sign, or in another unit.
    """

    pixel_size_angstrom: float  #: one number for all particles, as the next three
    voltage_kv: float
    cs_mm: float
    amplitude_contrast: float  #: a share, in [0, 1)
    defocus_u_angstrom: Numbers  #: ``(n,)``, positive is underfocus
    defocus_v_angstrom: Numbers
    #: ``(n,)`` angle of the first defocus from the columns' axis towards higher rows
    astigmatism_deg: Numbers
    phase_shift_deg: Numbers  #: ``(n,)`` of a phase plate
    optics_group: NDArray[np.int64]  #: ``(n,)`` whole numbers from 1
    rotations: Numbers | None = None  #: ``(n, 3, 3)`` as `emlab.data.phase_maps.project` takes them
    shifts_angstrom: Numbers | None = None  #: ``(n, 2)`` (x, y) from the image's centre
    images_at: tuple[tuple[str, int], ...] = ()  #: stack and place in it, from 0, as the file says
    source: str = ""  #: where the numbers come from

    def __post_init__(self) -> None:
        _check_optics(self)
        _check_defocus(self)

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def subset(self: Kind, chosen: NDArray[np.int64] | slice) -> Kind:
        """Some of the particles, in the order of `chosen`."""
        picked = np.arange(len(self))[chosen]
        changes: dict = {"images_at": tuple(self.images_at[i] for i in picked if self.images_at)}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                changes[item.name] = value[picked]
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Particles(Metadata):
    """Particle images with their metadata.

    Attributes
    ----------
    images : ndarray
        ``(n, H, W)`` float32 in the values of the stack; extracted particles are normalised, so
        gain and offset are unknown, the sign of the contrast included.
    """

    images: NDArray[np.float32]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images.ndim != 3 or len(self.images) != len(self):
            raise InputError(
                f"{self.source}: {len(self)} rows of metadata for images of shape "
                f"{self.images.shape}; give one row an image"
            )
        if not np.isfinite(self.images).all():
            raise InputError(
                f"{self.source}: pixels are NaN or infinite; replace them and save again"
            )


def _check_optics(data: Metadata) -> None:
    limits = {
        "pixel_size_angstrom": (0.05, 100.0, "the pixel size in angstrom"),
        "voltage_kv": (10.0, 3000.0, "the voltage in kV, for example 300"),
        "cs_mm": (0.0, 50.0, "the spherical aberration in mm, for example 2.7"),
        "amplitude_contrast": (0.0, 0.999, "the amplitude contrast as a share, for example 0.07"),
    }
    for name, (low, high, wanted) in limits.items():
        value = getattr(data, name)
        if not low <= value <= high:
            raise InputError(f"{data.source}: {name} is {value:g}; give {wanted}")


def _check_defocus(data: Metadata) -> None:
    n = len(data)
    for item in fields(data):
        value = getattr(data, item.name)
        if not isinstance(value, np.ndarray) or item.name == "images":
            continue  # `Particles` checks these
        if len(value) != n:
            raise InputError(f"{data.source}: {item.name} has {len(value)} rows, not {n}")
        if not np.isfinite(value).all():
            raise InputError(
                f"{data.source}: {item.name} is NaN or infinite in row "
                f"{int(np.argwhere(~np.isfinite(value))[0, 0]) + 1}; correct or remove the row"
            )
    for name in ("defocus_u_angstrom", "defocus_v_angstrom"):
        low, high = (float(f(getattr(data, name), initial=15000.0)) for f in (np.min, np.max))
        if low < 0:
            raise InputError(
                f"{data.source}: {name} is {low:g}; here underfocus is positive, change the sign"
            )
        if low < 100 or high > 2e5:
            raise InputError(
                f"{data.source}: {name} is {low if low < 100 else high:g}; give angstrom "
                "(1 micrometre is 10000), between 100 and 200000"
            )


def merge_constant(name: str, values: Numbers, source: str) -> float:
    """The one value that all optics groups share; others are to be split, an `InputError`."""
    if np.ptp(values) > 1e-3 * max(abs(float(values[0])), 1e-6):
        raise InputError(
            f"{source} mixes particles of {name} {values.min():g} and {values.max():g}; split it "
            "into one file for each"
        )
    return float(values[0])
