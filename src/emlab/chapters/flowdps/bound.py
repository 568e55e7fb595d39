"""How much of a phase one picture tells when the structure is known: a fit of its pose."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from emlab.chapters.flowdps.cases import Cases
from emlab.data.phase_maps import PIXEL_ANGSTROM, project, specimen_volume
from emlab.physics import Poisson

OFF_DEGREES, OFF_PIXELS = 2.0, 0.3
ROUNDS, CANDIDATES, KEPT = 12, 48, 8
NARROWEST = 0.02  # of the first round's width, below which candidates do not draw together


def refine_poses(cases: Cases, seed: int = 0) -> Tensor:
    """Phases ``(n, 64, 64)`` of the projections whose counts are the most probable.

    Three angles and two shifts of each particle, begun two degrees and a third of a pixel off the
    truth: candidates are drawn from a normal distribution, which moves to the best of them and
    takes their spread (cross-entropy method, Rubinstein 1999).
    """
    volume, likelihood = specimen_volume(cases.specimen), Poisson()
    instrument, rng, n = cases.instrument(), np.random.default_rng(seed), len(cases)
    turned = Rotation.from_matrix(cases.rotations)

    def views(changes: np.ndarray) -> Tensor:
        """Projections ``(m, n, 64, 64)`` at changes ``(m, n, 5)`` of degrees and pixels."""
        rotations = np.stack(
            [
                (turned * Rotation.from_rotvec(one[:, :3], degrees=True)).as_matrix()
                for one in changes
            ]
        )
        shifts = cases.shifts_angstrom + PIXEL_ANGSTROM * changes[..., 3:]
        flat = project(
            volume, rotations.reshape(-1, 3, 3), PIXEL_ANGSTROM, 300.0, shifts.reshape(-1, 2)
        )
        return flat.reshape(-1, n, *flat.shape[-2:])

    def off(size: int, length: float) -> np.ndarray:
        way = rng.normal(size=(n, size))
        return length * way / np.linalg.norm(way, axis=1, keepdims=True)

    middle = np.concatenate([off(3, OFF_DEGREES), off(2, OFF_PIXELS)], axis=1)
    first = np.array([1.5, 1.5, 1.5, 0.3, 0.3])
    width = np.tile(first, (n, 1))
    for _ in range(ROUNDS):
        changes = middle + width * rng.normal(size=(CANDIDATES, n, 5))
        scores = likelihood.log_likelihood(instrument.A(views(changes)), cases.counts)
        best = torch.as_tensor(scores).reshape(CANDIDATES, n).topk(KEPT, dim=0).indices.numpy()
        elite = np.take_along_axis(changes, best[..., None], axis=0)
        middle, width = elite.mean(0), np.maximum(elite.std(0), NARROWEST * first)
    return views(middle[None])[0]
