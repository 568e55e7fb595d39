"""Projected phase maps of a particle in radians, with held-out viewing directions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab import data
from emlab.data.potentials import barrel, potential
from emlab.errors import InputError
from emlab.runtime import atomic_path

FIELD, PIXEL_ANGSTROM = 64, 2.63
SPLITS = ("train", "validation", "test")
CAPS = 12  # held-out cones of directions in the asymmetric unit, every third for validation
CAP_DEGREES, MARGIN_DEGREES = 1.0, 2.0
SHIFT_ANGSTROM = 2.63

_PADDING = 3.0  # linear interpolation between the slices is then right to 1 %
_ELECTRON_REST_KEV = 510.99895
_PLANCK_C_KEV_ANGSTROM = 12.398419843


@dataclass(frozen=True)
class PhaseMaps:
    """Phase maps with the poses that they were projected at.

    Attributes
    ----------
    phases : Tensor
        ``(n, H, W)`` float32 in radians; zero is the phase of the ice.
    rotations : ndarray
        ``(n, 3, 3)``; column 2 is the viewing direction in the particle's frame, see `project`.
    shifts_angstrom : ndarray
        ``(n, 2)`` (x, y).
    """

    phases: Tensor  #: (n, H, W) float32 in radians; zero is the phase of the ice
    rotations: NDArray[np.float64]  #: (n, 3, 3)
    shifts_angstrom: NDArray[np.float64]  #: (n, 2) (x, y)


def sigma_e(voltage_kv: float) -> float:
    r"""Interaction parameter in rad/(V A), 6.53e-4 at 300 kV.

    .. math:: \sigma_e = \frac{2\pi}{\lambda U}\,\frac{m c^2 + eU}{2 m c^2 + eU}

    with the relativistic wavelength (Kirkland, *Advanced Computing in Electron Microscopy*, eq.
    5.6).
    """
    if voltage_kv <= 0:
        raise InputError(f"the voltage must be positive (in kV), got {voltage_kv}")
    rest = _ELECTRON_REST_KEV
    wavelength = _PLANCK_C_KEV_ANGSTROM / math.sqrt(voltage_kv * (voltage_kv + 2 * rest))
    return (
        2e-3 * math.pi / (wavelength * voltage_kv) * (rest + voltage_kv) / (2 * rest + voltage_kv)
    )


def project(
    volume: Tensor,
    rotations: NDArray[np.float64] | Tensor,
    pixel_size_angstrom: float,
    voltage_kv: float = 300.0,
    shifts_angstrom: NDArray[np.float64] | None = None,
) -> Tensor:
    r"""Phase shift :math:`\sigma_e \int V\,dz` of a thin object, by central slices.

    Returns ``(m, n, n)`` float32 in radians, axes (y, x); without torch-fourier-slice, or for a
    volume that is no cube, an `InputError`.

    Parameters
    ----------
    volume : Tensor
        ``(n, n, n)`` in volts, axes (z, y, x).
    rotations : ndarray
        ``(m, 3, 3)``: a point (x, y, depth) of the view lies at ``rotation @ (x, y, depth)`` in
        the volume.
    pixel_size_angstrom : float
        Of the volume and of the views.
    shifts_angstrom : ndarray, optional
        ``(m, 2)`` by how much the particle moves along (x, y).
    """
    try:
        from torch_fourier_slice import project_3d_to_2d
    except ImportError as error:
        raise InputError(
            "projections need torch-fourier-slice; pip install 'emlab-book[cryoem]'"
        ) from error
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise InputError(f"projections need a cube, got {tuple(volume.shape)}")
    scale = sigma_e(voltage_kv) * pixel_size_angstrom
    matrices = torch.as_tensor(rotations, dtype=torch.float32, device=volume.device)
    views = [
        project_3d_to_2d(volume.float(), part, pad_factor=_PADDING) for part in matrices.split(256)
    ]
    phases = scale * torch.cat(views)
    if shifts_angstrom is None:
        return phases
    shift = torch.as_tensor(shifts_angstrom / pixel_size_angstrom, dtype=torch.float32)
    return _shift(phases, shift.to(volume.device))


def phase_maps(
    specimen: str,
    n: int,
    seed: int = 0,
    split: str = "train",
    *,
    oversampling: int = 2,
) -> PhaseMaps:
    """Phase maps of 64 x 64 pixels of 2.63 A at random poses and 300 kV, kept in the user's cache.

    Orientations are uniform, in-plane angles included; shifts are normal with a standard deviation
    of one pixel, cut at three. Directions are split: those within 1 degree of one of twelve
    directions (or of their images under the particle's symmetry, or seen from behind, which only
    mirrors the view) belong to validation (four) and test (eight), those within 3 degrees are
    never trained on. At 5.3 A and a radius of 75 A two views differ from 4 degrees on.

    Parameters
    ----------
    specimen, split : str
        A key of `SPECIMENS`, and one of `SPLITS`.
    oversampling : int
        See `emlab.data.potentials.potential`.

    Raises
    ------
    InputError
        Unknown specimen or split, or fewer than one map.
    DataUnavailableError
        The atomic model is not on this machine and cannot be fetched.
    """
    if specimen not in SPECIMENS:
        raise InputError(f"unknown specimen {specimen!r}; choose one of {', '.join(SPECIMENS)}")
    if n < 1:
        raise InputError(f"the number of phase maps must be at least 1, got {n}")
    rotations = poses(n, seed, split)
    generator = np.random.default_rng([seed, 1, SPLITS.index(split)])
    shifts = SHIFT_ANGSTROM * np.clip(generator.normal(size=(n, 2)), -3, 3)

    def make() -> NDArray[np.float32]:
        volume = specimen_volume(specimen, oversampling)
        return project(volume, rotations, PIXEL_ANGSTROM, 300.0, shifts).numpy()

    recipe = (specimen, n, seed, split, 300.0, oversampling)
    return PhaseMaps(torch.from_numpy(_kept("phases", recipe, make)).float(), rotations, shifts)


def specimen_volume(specimen: str, oversampling: int = 2) -> Tensor:
    """Potential ``(64, 64, 64)`` in volts of one of `SPECIMENS`, kept in the user's cache."""

    def make() -> NDArray[np.float32]:
        return SPECIMENS[specimen](oversampling).numpy()

    return torch.from_numpy(_kept("potential", (specimen, oversampling), make))


def poses(n: int, seed: int, split: str) -> NDArray[np.float64]:
    """Random rotations ``(n, 3, 3)`` whose viewing directions belong to a split."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    generator = np.random.default_rng([seed, 0, SPLITS.index(split)])
    if split == "train":
        chosen = np.empty((0, 3))
        while len(chosen) < n:
            directions = generator.normal(size=(2 * n, 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            free = degrees_to_held_out(directions) > CAP_DEGREES + MARGIN_DEGREES
            chosen = np.concatenate([chosen, directions[free]])
        directions = chosen[:n]
    else:
        caps = _held_out(split)
        centre = caps[generator.integers(len(caps), size=n)]
        symmetry = _symmetry()[generator.integers(28, size=n)]
        centre = np.einsum("nij,nj->ni", symmetry, centre)
        directions = _within(centre, CAP_DEGREES, generator)
    return _rotations_to(directions, generator.uniform(0, 2 * np.pi, n))


def degrees_to_held_out(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle ``(n,)`` between unit vectors and the nearest held-out direction, symmetry counted."""
    centres = np.concatenate([_held_out("validation"), _held_out("test")])
    images = np.einsum("sij,cj->sci", _symmetry(), centres).reshape(-1, 3)
    cosine = np.array([(part @ images.T).max(1) for part in np.array_split(directions, 16)], object)
    return np.degrees(np.arccos(np.clip(np.concatenate(cosine).astype(float), -1, 1)))


@cache
def _held_out(split: str) -> NDArray[np.float64]:
    """Centres of the held-out cones, spread evenly over one of the 28 equal parts of the sphere."""
    number = np.arange(CAPS)
    cosine = (number + 0.5) / CAPS
    angle = np.pi / 7 * ((number * (math.sqrt(5) - 1) / 2 + 0.5) % 1)
    sine = np.sqrt(1 - cosine**2)
    centres = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)
    validation = number % 3 == 1
    return centres[validation if split == "validation" else ~validation]


def held_out_direction(rotations: NDArray[np.float64], split: str) -> NDArray[np.intp]:
    """Which of a split's held-out directions each pose ``(n, 3, 3)`` looks along, ``(n,)``.

    Poses of one direction differ by a degree and a turn of the picture: their errors are alike.
    """
    turned = np.einsum("sij,nj->nsi", _symmetry(), rotations[:, :, 2])
    return np.abs(turned @ _held_out(split).T).max(1).argmax(1)


@cache
def _symmetry() -> NDArray[np.float64]:
    """D7 with its seven-fold along z and a two-fold along x, times inversion: ``(28, 3, 3)``."""
    turns = []
    for angle in 2 * np.pi * np.arange(7) / 7:
        cosine, sine = np.cos(angle), np.sin(angle)
        turns.append(np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]))
    rotations = np.stack(
        [turn @ flip for flip in (np.eye(3), np.diag([1, -1, -1])) for turn in turns]
    )
    return np.concatenate([rotations, -rotations])


def _within(
    centres: NDArray[np.float64], degrees: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """One direction uniform in the cone about each centre."""
    n = len(centres)
    cosine = generator.uniform(math.cos(math.radians(degrees)), 1, n)
    angle = generator.uniform(0, 2 * np.pi, n)
    sine = np.sqrt(1 - cosine**2)
    local = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)
    return np.einsum("nij,nj->ni", _rotations_to(centres, np.zeros(n)), local)


def _rotations_to(
    directions: NDArray[np.float64], in_plane: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rotations ``(n, 3, 3)`` with the unit vectors as third column, turned about it by angles."""
    helper = np.where(np.abs(directions[:, [2]]) < 0.9, [[0, 0, 1]], [[1, 0, 0]])
    first = np.cross(helper, directions)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(directions, first)
    cosine, sine = np.cos(in_plane)[:, None], np.sin(in_plane)[:, None]
    return np.stack(
        [cosine * first + sine * second, cosine * second - sine * first, directions], axis=2
    )


def _shift(images: Tensor, shifts: Tensor) -> Tensor:
    """Move images ``(n, H, W)`` by ``(n, 2)`` pixels along (x, y), zero flowing in."""
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (8, 8, 8, 8))
    y = torch.fft.fftfreq(height + 16, device=images.device)
    x = torch.fft.rfftfreq(width + 16, device=images.device)
    turn = shifts[:, 1, None, None] * y[:, None] + shifts[:, 0, None, None] * x
    spectrum = torch.fft.rfft2(padded) * torch.polar(torch.ones_like(turn), -2 * math.pi * turn)
    moved = torch.fft.irfft2(spectrum, s=padded.shape[-2:])
    return moved[:, 8 : 8 + height, 8 : 8 + width].contiguous()


def _kept(kind: str, recipe: tuple, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """An array from the cache, made and written there first (phase maps in half precision)."""
    name = "_".join(str(part) for part in recipe)
    version = hashlib.sha256(f"{kind} 1 {recipe}".encode()).hexdigest()[:8]
    file = data.cache_folder() / "specimens" / f"{kind}_{name}_{version}.npy"
    if not file.is_file():
        array = make()
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, array.astype(np.float16 if kind == "phases" else np.float32))
    return np.load(file, allow_pickle=False).astype(np.float32)


def _model(name: str, oversampling: int) -> Tensor:
    return potential(data.path(name), PIXEL_ANGSTROM, FIELD, oversampling=oversampling)


SPECIMENS: dict[str, Callable[[int], Tensor]] = {
    "t20s": partial(_model, "pdb_6bdf"),
    "barrel": lambda _: barrel(FIELD, PIXEL_ANGSTROM),
    "beta_galactosidase": partial(_model, "pdb_5a1a"),
    "apoferritin": partial(_model, "pdb_4v1w"),
    "apoferritin_6z6u": partial(_model, "pdb_6z6u"),
}
