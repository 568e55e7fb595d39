"""Electrostatic potentials of single particles: from atomic models, and one simulated barrel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab.errors import InputError

# Vitreous ice of .93 g/cm3 as a sum of neutral atoms: 47.88 V A^2 x 3.04 A / 32.2 A^3.
ICE_VOLTS = 4.5
# Average protein: 1.6 hydrogens a carbon at 1.09 A, 1.21 A^3 a dalton (.73 cm3/g).
HYDROGENS_PER_CARBON, HYDROGEN_DISTANCE = 1.6, 1.09
ANGSTROM3_PER_DALTON, HYDROGEN_MASS_FACTOR = 1.21, 1.07
SOLVENT_BLUR_ANGSTROM = 2.5
BARREL_VOLT_ANGSTROM3 = 2.8e6
MOST_OUTSIDE = 0.02  # share of the atoms that may stick out of the box; they are left out


def potential(
    model_path: Path | str,
    pixel_size_angstrom: float,
    box: int,
    *,
    oversampling: int = 2,
) -> Tensor:
    r"""Electrostatic potential of an atomic model relative to the ice around it.

    Sum of the elastic scattering factors of neutral atoms (Peng et al. 1996) with the model's own
    B-factors, averaged over voxels `oversampling` times finer and band-limited to the wanted ones
    by cropping the Fourier transform. Hydrogens that a model lacks are added to its carbons as an
    average. The ice that the protein displaces is taken away in proportion to the potential
    blurred by 2.5 A:

    .. math:: V = V_a - U\,\frac{v}{\int V_a}\; G * V_a

    with U the potential of ice and v the volume of the protein (.73 cm3/g). Charges, bonds and
    the structure of the solvent are left out.

    Parameters
    ----------
    model_path : path
        PDB or mmCIF file, read with gemmi; waters are ignored. Of several models the first.
    pixel_size_angstrom : float
        Side of the voxels.
    box : int
        Voxels a side, even.
    oversampling : int
        How much finer the atoms are drawn; the paper's 64 pixels of 2.63 A binned by 4 are 4.

    Returns
    -------
    Tensor
        ``(box, box, box)`` float32 in volts, axes (z, y, x); centre of mass on voxel
        ``box // 2``; the axis of inertia that differs most from the others along z, and a
        two-fold axis across it along x if there is one (see `aligned`).

    Raises
    ------
    InputError
        The packages are missing (``pip install 'emlab-book[cryoem]'``), the file holds no atoms, or
        more than 2 % of the atoms lie outside the box (fewer are left out).
    """
    if box < 8 or box % 2 or oversampling < 1 or pixel_size_angstrom <= 0:
        raise InputError("a potential needs an even box >= 8, oversampling >= 1, a pixel size > 0")
    places, numbers, b_factors, occupancies = read_atoms(model_path)
    places = aligned(places, numbers)
    inside = np.abs(places).max(1) < pixel_size_angstrom * box / 2
    if inside.mean() < 1 - MOST_OUTSIDE:
        raise InputError(
            f"{model_path}: the particle spans {2 * np.abs(places).max():.0f} A, more than the box "
            f"of {box} x {pixel_size_angstrom:g} A; enlarge the box or the pixels"
        )
    places, numbers, b_factors, occupancies = (
        values[inside] for values in (places, numbers, b_factors, occupancies)
    )
    heavy = numbers > 1
    masses = 2.0 * numbers[heavy]  # C 12, N 14, O 16, S 32
    volume = ANGSTROM3_PER_DALTON * HYDROGEN_MASS_FACTOR * float(masses @ occupancies[heavy])
    if heavy.all():
        carbon = numbers == 6
        places = np.concatenate([places, places[carbon]])
        numbers = np.concatenate([numbers, np.ones(carbon.sum(), int)])
        spread = 8 * math.pi**2 * HYDROGEN_DISTANCE**2 / 3
        b_factors = np.concatenate([b_factors, b_factors[carbon] + spread])
        occupancies = np.concatenate([occupancies, HYDROGENS_PER_CARBON * occupancies[carbon]])
    atoms = (places, numbers, b_factors, occupancies)
    coarse = _bin(_draw(*atoms, pixel_size_angstrom / oversampling, box * oversampling), box)
    total = float(coarse.sum()) * pixel_size_angstrom**3
    ice = _blur(coarse, SOLVENT_BLUR_ANGSTROM / pixel_size_angstrom)
    return coarse - ICE_VOLTS * volume / total * ice


def read_atoms(
    model_path: Path | str,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Places ``(n, 3)`` (x, y, z) in A, atomic numbers, B-factors in A^2 and occupancies."""
    try:
        import gemmi
    except ImportError as error:
        raise InputError("atomic models need gemmi; pip install 'emlab-book[cryoem]'") from error
    if not Path(model_path).is_file():
        raise InputError(f"there is no atomic model {model_path}; check its name")
    try:
        structure = gemmi.read_structure(str(model_path))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{model_path} is no PDB or mmCIF model: {error}") from error
    structure.remove_waters()
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"{model_path} holds no atoms; give a PDB or mmCIF model")
    atoms = [entry.atom for entry in structure[0].all()]
    places = np.array([atom.pos.tolist() for atom in atoms])
    numbers = np.array([atom.element.atomic_number for atom in atoms])
    b_factors, occupancies = (
        np.array([getattr(a, key) for a in atoms]) for key in ("b_iso", "occ")
    )
    return places, numbers, b_factors, occupancies


def aligned(places: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    r"""Turn points about their centre of mass: the odd axis out along z, a two-fold along x.

    For an n-fold axis along z crossed by two-folds (n = 7 is tried, the proteasome's) the angle
    of the two-fold axes is :math:`\arg(f_+ f_-) / 2n` with
    :math:`f_\pm = \sum r^2 e^{in\varphi}` over the points above and below the middle.

    Parameters
    ----------
    places : ndarray
        ``(n, 3)`` (x, y, z).
    weights : ndarray
        ``(n,)``, positive.
    """
    weights = weights / weights.sum()
    centred = places - weights @ places
    moments, axes = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    special = int(np.argmax(np.abs(moments - np.median(moments))))
    order = [*(axis for axis in range(3) if axis != special), special]
    frame = axes[:, order]
    frame[:, 0] *= np.sign(np.linalg.det(frame))
    turned = centred @ frame
    position = turned[:, 0] + 1j * turned[:, 1]
    waves = weights * np.abs(position) ** 2 * np.exp(7j * np.angle(position))
    upper, lower = waves[turned[:, 2] > 0].sum(), waves[turned[:, 2] < 0].sum()
    position *= np.exp(-1j * np.angle(upper * lower) / 14)
    return np.stack([position.real, position.imag, turned[:, 2]], axis=1)


def barrel(box: int, pixel_size_angstrom: float) -> Tensor:
    """Simulated stand-in for the 20S proteasome: four stacked rings of seven balls.

    Its outline is published: about 113 A wide and 148 A long (Loewe et al. 1995, Science 268,
    533), seven-fold with two-folds across. Nothing inside the balls is real: each is a cluster of
    12 Gaussians of 4 A, the same 12 in every ball of a ring, placed by a fixed seed. The integral
    of the potential against ice is that of `potential` for 6BDF, 2.8e6 V A^3.

    Parameters
    ----------
    box : int
        Voxels a side, even.
    pixel_size_angstrom : float
        Side of the voxels; the box must span 170 A or the ends are cut off.

    Returns
    -------
    Tensor
        ``(box, box, box)`` float32 in volts, axes (z, y, x), the seven-fold axis along z and a
        two-fold along x.
    """
    if box < 8 or box % 2 or pixel_size_angstrom <= 0:
        raise InputError("a barrel needs an even box >= 8 and a pixel size > 0")
    generator = np.random.default_rng(20)
    upper = []
    for height, radius in ((19.0, 38.0), (56.0, 36.0)):  # beta ring, alpha ring
        inside = generator.normal(size=(12, 3))
        length = generator.uniform(0.2, 1, 12) ** (1 / 3)
        inside *= (length / np.linalg.norm(inside, axis=1))[:, None]
        unit = inside * (15.0, 13.0, 15.0) + (radius, 0.0, height)
        for turn in range(7):
            angle = 2 * np.pi * (turn + 0.11 * (height > 40)) / 7
            cosine, sine = np.cos(angle), np.sin(angle)
            upper.append(unit @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]))
    points = np.concatenate(upper)
    points = np.concatenate([points, points * (1, -1, -1)])
    axis = (np.arange(box) - box // 2) * pixel_size_angstrom
    x, y, z = (np.exp(-0.5 * ((axis - points[:, [i]]) / 4.0) ** 2) for i in range(3))
    volume = np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True)
    volume *= BARREL_VOLT_ANGSTROM3 / (volume.sum() * pixel_size_angstrom**3)
    return torch.from_numpy(volume.astype(np.float32))


def _draw(
    places: NDArray[np.float64],
    numbers: NDArray[np.int64],
    b_factors: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    pixel: float,
    box: int,
) -> Tensor:
    try:
        from torch_calculate_electrostatic_potential import (
            GridConfig,
            calculate_scattering_potential_3d,
            get_peng_scattering_parameters,
        )
    except ImportError as error:
        raise InputError(
            "potentials need torch-calculate-electrostatic-potential; "
            "pip install 'emlab-book[cryoem]'"
        ) from error
    grid = GridConfig(
        (box,) * 3,
        (pixel,) * 3,
        left_bottom_point=(-pixel * (box // 2),) * 3,
        right_upper_point=(pixel * (box - 1 - box // 2),) * 3,
        sublattice_radius=5.0,
    )
    amplitudes, widths = get_peng_scattering_parameters(torch.from_numpy(numbers).long())
    return calculate_scattering_potential_3d(
        torch.from_numpy(places[:, ::-1].copy()).float(),
        torch.from_numpy(b_factors).float(),
        amplitudes,
        widths,
        grid,
        atom_occupancies=torch.from_numpy(occupancies).float(),
        batch_size=1024,
    )


def _bin(fine: Tensor, box: int) -> Tensor:
    """Band-limit a cube to `box` voxels a side and undo the averaging over its own voxels.

    A sphere is kept, falling from .45 to .5 cycles a voxel: all views carry the same band.
    """
    side = fine.shape[0]
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(fine)))
    start = side // 2 - box // 2
    inner = slice(start, start + box)
    number = torch.arange(box) - box // 2
    decay = torch.sinc(number / side)
    averaged = decay[:, None, None] * decay[:, None] * decay * (side / box) ** 3
    square = (number / box).square()
    radius = (square[:, None, None] + square[:, None] + square).sqrt()
    edge = 0.5 + 0.5 * torch.cos(math.pi * ((radius - 0.45) / 0.05).clamp(0, 1))
    spectrum = spectrum[inner, inner, inner] * edge / averaged
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum)).real)


def _blur(volume: Tensor, sigma: float) -> Tensor:
    """Gaussian of standard deviation `sigma` voxels, periodic."""
    frequency = torch.fft.fftfreq(volume.shape[0])
    decay = torch.exp(-2 * (math.pi * sigma * frequency).square())
    spectrum = torch.fft.fftn(volume) * decay[:, None, None] * decay[:, None] * decay
    return torch.fft.ifftn(spectrum).real
