"""From picks to a map: particles cut out of the raw micrographs, poses known, halves compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.data.metadata import Metadata
from emlab.data.particles import fourier_resize, write_star
from emlab.errors import InputError
from emlab.external import relion
from emlab.external.picking import matched_rotations
from emlab.io import write_image
from emlab.metrics.fourier import Curve, fourier_shell_correlation
from emlab.physics.ctf import ComplexCTF
from emlab.physics.micrograph import Micrograph
from emlab.runtime import Stopwatch
from emlab.solvers.fourier_insertion import insert_slices

BOX = 80
FEWEST = 8  # windows that two halves are made of
THRESHOLD = 0.143
MASK_ANGSTROM = 85.0  # radius of the sphere within which halves are compared
MASK_EDGE_ANGSTROM = 15.0
INSERTED_SNR = 0.1


@dataclass(frozen=True)
class Extracted:
    """Particles from raw micrographs.

    Attributes
    ----------
    images : ndarray
        ``(n, box, box)`` float32, protein *bright*, mean 0 and standard deviation 1 outside the
        particle, as RELION wants them.
    metadata : Metadata
        With the poses; shifts are what the pick was off.
    right : ndarray
        ``(n,)`` whether a particle is there.
    """

    images: NDArray[np.float32]
    metadata: Metadata
    right: NDArray[np.bool_]

    def half(self, number: int) -> Extracted:
        """Every other particle, from 0 or 1."""
        chosen = np.arange(number, len(self.images), 2)
        return Extracted(self.images[chosen], self.metadata.subset(chosen), self.right[chosen])


@dataclass(frozen=True)
class Reconstruction:
    """Two half maps and what they share.

    Attributes
    ----------
    halves : tuple of ndarray or None
        ``(n, n, n)``, axes (z, y, x); None of a recorded one.
    halves_curve, truth_curve : Curve
        Fourier shell correlation of the masked halves with each other, and of their mean with
        the true potential.
    particles, right : int
        How many were used, and how many of them are particles.
    program : str
        What reconstructed.
    seconds : float
    """

    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    halves_curve: Curve
    truth_curve: Curve
    particles: int
    right: int
    program: str
    seconds: float

    @property
    def resolution_angstrom(self) -> float:
        """At a correlation of .143 of the halves."""
        return 10 * self.halves_curve.resolution_nm(THRESHOLD)

    @property
    def true_resolution_angstrom(self) -> float:
        """At a correlation of .5 with the truth."""
        return 10 * self.truth_curve.resolution_nm(0.5)


def extract(
    micrographs: Sequence[Micrograph],
    picks: Sequence[NDArray[np.float64]],
    radius: float,
    box: int = BOX,
    seed: int = 0,
) -> Extracted:
    """Cut windows out of the *raw* micrographs; those that leave the field are left out.

    Raises
    ------
    InputError
        No window fits.
    """
    images, turns, shifts, right, defoci = [], [], [], [], []
    pixel = micrographs[0].pixel_size_angstrom
    for number, (micrograph, places) in enumerate(zip(micrographs, picks, strict=True)):
        raw = micrograph.noisy.numpy()
        rotations, centres, found = matched_rotations(
            places, micrograph.coordinates, micrograph.rotations, radius, seed + number
        )
        corners = np.round(places).astype(int).reshape(-1, 2) - box // 2
        fits = ((corners >= 0) & (corners + box <= raw.shape)).all(1)
        for i in np.flatnonzero(fits):
            y, x = corners[i]
            images.append(raw[y : y + box, x : x + box])
            shifts.append((centres[i] - corners[i] - box // 2)[::-1] * pixel)
        turns.append(rotations[fits])
        right.append(found[fits])
        config = micrograph.config
        half = config.astigmatism_angstrom / 2
        row = (config.defocus_angstrom + half, config.defocus_angstrom - half)
        defoci += [(*row, config.astigmatism_deg)] * int(fits.sum())
    if not images:
        raise InputError(f"no window of {box} pixels fits; take a smaller box or pick more")
    config, table = micrographs[0].config, np.array(defoci)
    metadata = Metadata(
        pixel_size_angstrom=pixel,
        voltage_kv=config.voltage_kv,
        cs_mm=config.cs_mm,
        amplitude_contrast=config.amplitude_contrast,
        defocus_u_angstrom=table[:, 0],
        defocus_v_angstrom=table[:, 1],
        astigmatism_deg=table[:, 2],
        phase_shift_deg=np.zeros(len(images)),
        optics_group=np.ones(len(images), np.int64),
        rotations=np.concatenate(turns),
        shifts_angstrom=np.array(shifts),
    )
    return Extracted(_normalised(np.stack(images), pixel), metadata, np.concatenate(right))


def reconstruct(
    particles: Extracted,
    truth: NDArray[np.float32],
    *,
    symmetry: str = "C1",
    with_relion: bool | None = None,
) -> Reconstruction:
    """Reconstruct both halves of the particles and compare them.

    Parameters
    ----------
    truth : ndarray
        ``(m, m, m)`` potential with the same voxels, m at most the box.
    symmetry : str
        RELION's name; Fourier insertion knows C1 only and leaves it out.
    with_relion : bool, optional
        Default: if it is installed.
    """
    use = relion.find() is not None if with_relion is None else with_relion
    maps, seconds = [], 0.0
    for number in (0, 1):
        half = particles.half(number)
        volume, took = _by_relion(half, symmetry) if use else _by_insertion(half)
        maps.append(volume)
        seconds += took
    program = f"RELION {relion.version()}" if use else "Fourier insertion"
    return compared((maps[0], maps[1]), particles, truth, program, seconds)


def compared(
    halves: tuple[NDArray[np.float32], NDArray[np.float32]],
    particles: Extracted,
    truth: NDArray[np.float32],
    program: str,
    seconds: float,
) -> Reconstruction:
    """Fourier shell correlations of two half maps within `soft_sphere`.

    Parameters
    ----------
    halves : tuple of ndarray
        ``(n, n, n)``, axes (z, y, x).
    particles : Extracted
        What they were made of.
    truth : ndarray
        ``(m, m, m)`` potential with the same voxels, m at most n.
    """
    pixel = particles.metadata.pixel_size_angstrom
    mask = soft_sphere(halves[0].shape[0], pixel)
    wide = np.zeros_like(halves[0])
    start = (len(wide) - len(truth)) // 2
    inner = slice(start, start + len(truth))
    wide[inner, inner, inner] = truth

    def correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> Curve:
        return fourier_shell_correlation(first * mask, second * mask, pixel / 10, "none")

    return Reconstruction(
        halves,
        correlation(*halves),
        correlation(halves[0] + halves[1], wide),
        len(particles.images),
        int(particles.right.sum()),
        program,
        seconds,
    )


def soft_sphere(side: int, pixel_size_angstrom: float) -> NDArray[np.float32]:
    """1 within 85 A of the centre voxel ``side // 2``, falling to 0 over 15 A."""
    axis = (np.arange(side) - side // 2) * pixel_size_angstrom
    away = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    beyond = np.clip((away - MASK_ANGSTROM) / MASK_EDGE_ANGSTROM, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * beyond)).astype(np.float32)


def _by_relion(part: Extracted, symmetry: str) -> tuple[NDArray[np.float32], float]:
    with tempfile.TemporaryDirectory(prefix="emlab-relion-") as made:
        folder = Path(made)
        pixel = part.metadata.pixel_size_angstrom
        write_image(folder / "particles.mrcs", part.images, pixel)
        side = part.images.shape[-1]
        write_star(folder / "particles.star", part.metadata, "particles.mrcs", side)
        volume, _, done = relion.reconstruct(folder / "particles.star", symmetry=symmetry)
    return volume, done.cpu_seconds


def _by_insertion(part: Extracted) -> tuple[NDArray[np.float32], float]:
    table = part.metadata
    assert table.rotations is not None
    assert table.shifts_angstrom is not None
    lens = ComplexCTF(
        table.voltage_kv,
        table.pixel_size_angstrom,
        torch.from_numpy(table.defocus_u_angstrom),
        torch.from_numpy(table.defocus_v_angstrom),
        torch.from_numpy(table.astigmatism_deg),
        table.cs_mm,
        table.amplitude_contrast,
    )
    back = -table.shifts_angstrom / table.pixel_size_angstrom
    centred = fourier_resize(part.images, part.images.shape[-1], back)
    with Stopwatch() as watch:
        volume = insert_slices(
            -torch.from_numpy(centred), torch.from_numpy(table.rotations), lens, snr=INSERTED_SNR
        )
    return volume.numpy(), watch.seconds


def _normalised(images: NDArray[np.float32], pixel: float) -> NDArray[np.float32]:
    side = images.shape[-1]
    y, x = np.indices((side, side)) - side // 2
    around = np.hypot(y, x) * pixel > MASK_ANGSTROM
    outside = images[:, around]
    mean, spread = outside.mean(1), outside.std(1)
    return -((images - mean[:, None, None]) / spread[:, None, None]).astype(np.float32)
