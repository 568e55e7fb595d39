"""Specimens made by a formula, for readers without data and for answers known in closed form.

Nothing of them is real: results are to be labelled as simulated (`emlab.bench.Report.simulated`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from emlab.errors import InputError

_CELL = 32.0  # mean distance of cell centres in pixels: 320 nm at 10 nm a pixel
_MARGIN = 40.0  # what lies outside the image and reaches into it
_CYTOPLASM, _SPREAD, _MEMBRANE, _MITOCHONDRION, _VESICLE = 160.0, 16.0, 75.0, 65.0, 50.0


@dataclass(frozen=True)
class _Tissue:
    """Everything random, so that any slice can be drawn on its own."""

    centres: np.ndarray
    brightness: np.ndarray
    waves: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray
    has_mitochondrion: np.ndarray
    axes: np.ndarray
    frames: np.ndarray
    vesicles: np.ndarray
    radii: np.ndarray


def neuropil(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Draw simulated neuropil, as an isotropic volume or as one slice through it.

    Cells of different size with dark, curved membranes; some hold a mitochondrion (dark, with
    folds), some a cloud of synaptic vesicles (rings of 5 pixels). Lengths fit 10 nm a pixel.
    Smooth at the scale of a pixel, no noise, the same statistics along all three axes.

    Parameters
    ----------
    shape : tuple of int
        ``(D, H, W)`` or ``(H, W)``.

    Returns
    -------
    ndarray
        float32 grey levels within 0..255; membranes are dark.

    Raises
    ------
    InputError
        A shape of other than 2 or 3 positive sides.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(f"a phantom is (H, W) or (D, H, W), got {shape}")
    sides = (1, *shape) if len(shape) == 2 else tuple(shape)
    rng = np.random.default_rng(seed)
    tissue = _draw_tissue(sides, rng)
    tree = scipy.spatial.cKDTree(tissue.centres)
    volume = np.stack([_slice(tissue, tree, z, sides[1:]) for z in range(sides[0])])
    _add_vesicles(volume, tissue)
    widths = [1.2 * (side > 1) for side in sides]
    grain = scipy.ndimage.gaussian_filter(rng.standard_normal(sides), widths)
    volume += 4 * grain / max(float(grain.std()), 1e-12)
    return np.clip(volume, 0, 255).astype(np.float32).reshape(shape)


def gaussian_image_mean() -> np.ndarray:
    """Mean of the Gaussian images of the multi-target detection paper, ``(5, 5)`` float32.

    Independent whole numbers, uniform on 0..4; the images themselves are this mean plus white
    noise of unit variance (Zabatani, Kreymer and Bendory 2023, section IV-A and its code). Always
    the same numbers.
    """
    return np.random.default_rng(2312_08500).integers(0, 5, (5, 5)).astype(np.float32)


def _draw_tissue(sides: tuple[int, ...], rng: np.random.Generator) -> _Tissue:
    low, high = np.full(3, -_MARGIN), np.array(sides) + _MARGIN
    count = max(8, round(float(np.prod((high - low) / _CELL))))
    centres = rng.uniform(low, high, (count, 3))
    waves = rng.normal(size=(8, 3))
    waves *= 2 * np.pi / rng.uniform(40, 120, (8, 1)) / np.linalg.norm(waves, axis=1)[:, None]
    frames = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    axes = rng.uniform((6, 6, 12), (10, 10, 24), (count, 3))
    clouds = [
        centre + rng.normal(0, 6, 3) + rng.normal(0, 8, (rng.integers(80, 200), 3))
        for centre in centres[rng.random(count) < 0.35]
    ]
    vesicles = _apart(np.concatenate([np.empty((0, 3)), *clouds]), 6.5)
    return _Tissue(
        centres=centres,
        brightness=rng.normal(0, _SPREAD, count),
        waves=waves,
        phases=rng.uniform(0, 2 * np.pi, 8),
        amplitudes=rng.normal(0, 2.5, (8, 3)),
        has_mitochondrion=rng.random(count) < 0.25,
        axes=axes,
        frames=frames,
        vesicles=vesicles,
        radii=rng.uniform(2.0, 2.6, len(vesicles)),
    )


def _apart(points: np.ndarray, distance: float) -> np.ndarray:
    """Drop the later point of every pair that is closer than `distance`."""
    keep = np.ones(len(points), dtype=bool)
    if len(points):
        for first, second in sorted(scipy.spatial.cKDTree(points).query_pairs(distance)):
            keep[second] &= ~keep[first]
    return points[keep]


def _inside(
    tissue: _Tissue, tree: scipy.spatial.cKDTree, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell of each point, its distance to the nearest wall in pixels, and its bent place."""
    # a smooth field moves the points, so that cell borders are not flat
    bent = points + np.sin(points @ tissue.waves.T + tissue.phases) @ tissue.amplitudes
    distance, cell = tree.query(bent, k=4)
    apart = tissue.centres[cell[:, 1:]] - tissue.centres[cell[:, :1]]
    walls = distance[:, 1:] ** 2 - distance[:, :1] ** 2
    walls /= 2 * np.linalg.norm(apart, axis=-1)
    return cell[:, 0], walls.min(axis=1), bent


def _slice(
    tissue: _Tissue, tree: scipy.spatial.cKDTree, z: int, sides: tuple[int, ...]
) -> np.ndarray:
    y, x = np.indices(sides).reshape(2, -1)
    points = np.stack([np.full(len(y), z), y, x], axis=1).astype(np.float64)
    cell, wall, bent = _inside(tissue, tree, points)
    cytoplasm = _step((wall - 2) / 1.2)
    grey = _CYTOPLASM + tissue.brightness[cell] * cytoplasm
    grey -= _MEMBRANE * np.exp(-((wall / 2.0) ** 2))
    held = np.flatnonzero(tissue.has_mitochondrion[cell])
    grey[held] -= _mitochondrion(tissue, cell[held], wall[held], bent[held])
    return grey.reshape(sides)


def _mitochondrion(
    tissue: _Tissue, cell: np.ndarray, wall: np.ndarray, bent: np.ndarray
) -> np.ndarray:
    """How much darker the organelle makes its pixels: matrix, folds and outer membrane."""
    offset = np.einsum("nij,nj->ni", tissue.frames[cell], bent - tissue.centres[cell])
    axes = tissue.axes[cell]
    radius = np.linalg.norm(offset / axes, axis=1)
    depth = np.minimum((1 - radius) * axes.min(axis=1), wall - 5)
    folds = 0.35 * np.sin(2 * np.pi * offset[:, 2] / 7) * _step((depth - 3) / 0.8)
    rim = 0.9 * np.exp(-((depth / 1.3) ** 2))
    return _MITOCHONDRION * (_step(depth / 0.8) * (1 + folds) + rim)


def _add_vesicles(volume: np.ndarray, tissue: _Tissue) -> None:
    """Draw rings in place, where they fit into the cytoplasm of one cell."""
    sides = np.array(volume.shape)
    places = tissue.vesicles
    reach = 5
    near = np.all((places > -reach) & (places < sides - 1 + reach), axis=1)
    places, radii = places[near], tissue.radii[near]
    if not len(places):
        return
    cell, wall, _ = _inside(tissue, scipy.spatial.cKDTree(tissue.centres), places)
    free = (wall > 4) & ~tissue.has_mitochondrion[cell]
    for place, radius in zip(places[free], radii[free], strict=True):
        first = np.maximum(np.round(place).astype(int) - reach, 0)
        last = np.minimum(np.round(place).astype(int) + reach + 1, sides)
        grid = np.ogrid[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        distance = np.sqrt(sum((g - p) ** 2 for g, p in zip(grid, place, strict=True)))
        ring = np.exp(-(((distance - radius) / 0.9) ** 2))
        volume[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] -= _VESICLE * ring


def _step(depth: np.ndarray) -> np.ndarray:
    """Smooth step from 0 to 1 around zero depth."""
    return 0.5 * (1 + np.tanh(depth))
