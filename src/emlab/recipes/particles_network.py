r"""Cellpose3's idea on cryo-electron micrographs: restore so that a frozen network finds particles.

1. Take off the background, divide by the noise, go to 5.26 A a pixel; particles become bright.
2. A residual U-Net, trained through a frozen segmenter of particles, restores the image.
3. Put noise level and background back, at the pixel size that was given.

Stringer and Pachitariu (2025) do this with cells. The segmenter knows particles as discs of 70 A.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import InputError
from emlab.external.topaz import Picked
from emlab.methods.cellpose3 import Config, segment
from emlab.methods.tsm import resize
from emlab.methods.tsm_guidance import CLIP, standardise
from emlab.models.residual_unet import ResidualUNet
from emlab.recipes.particles_material import WORKING_ANGSTROM, coarse
from emlab.solvers.tiling import apply_tiled

Image = NDArray[np.float32]
SEGMENTER, RESTORER, SQUARES = "particle_segmenter", "particle_restorer", "particle_squares"
SEGMENTING = Config(smallest=150, steps=60)  # a disc of 70 A has 556 pixels


def restore(
    micrograph: Image, restorer: ResidualUNet, pixel_size_angstrom: float = PIXEL_ANGSTROM
) -> Image:
    """Restore a micrograph ``(H, W)``, protein dark, in its grey levels.

    What is finer than 10.5 A is gone.

    Raises
    ------
    InputError
        Not an image, constant, or a pixel size that is not positive.
    """
    if not pixel_size_angstrom > 0:
        raise InputError(f"the pixel size must be positive (angstrom), got {pixel_size_angstrom}")
    standard = standardise(coarse(micrograph, pixel_size_angstrom), WORKING_ANGSTROM)
    given = (-standard.image).clamp(-CLIP, CLIP)
    restored = apply_tiled(restorer, given).float()[0].cpu()
    return resize(standard.restore(-restored).numpy(), micrograph.shape)


@dataclass(frozen=True)
class Particles:
    """What the segmenter takes for particles.

    Attributes
    ----------
    labels : ndarray
        ``(H, W)`` int32 at 5.26 A a pixel, 0 is background.
    picked : Picked
        Their middles in pixels of the micrograph, the likeliest first; scores are mean logits.
    """

    labels: NDArray[np.int32]
    picked: Picked


def find_particles(
    image: Image,
    micrograph: Image,
    segmenter: ResidualUNet,
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
) -> Particles:
    """Let the segmenter look at what some method made of a micrograph.

    Parameters
    ----------
    image : ndarray
        ``(H, W)`` in the grey levels of the micrograph, protein dark.
    micrograph : ndarray
        ``(H, W)`` the recorded one: its noise and background are the scale.

    Raises
    ------
    InputError
        Other shapes.
    """
    if image.shape != micrograph.shape:
        raise InputError(f"image {image.shape} and micrograph {micrograph.shape} differ")
    standard = standardise(coarse(micrograph, pixel_size_angstrom), WORKING_ANGSTROM)
    seen = (torch.from_numpy(coarse(image, pixel_size_angstrom)) - standard.background) / (
        -standard.sigma
    )
    found = segment(
        seen.clamp(-CLIP, CLIP).numpy(), segmenter, config=SEGMENTING, rescale_intensity=False
    )
    return Particles(found.labels, _middles(found.labels, found.cell_probability, micrograph.shape))


def _middles(labels: NDArray[np.int32], logits: Image, shape: tuple[int, ...]) -> Picked:
    number = int(labels.max(initial=0))
    if not number:
        return Picked(np.zeros((0, 2)), np.zeros(0))
    y, x = np.nonzero(labels)
    owner = labels[y, x] - 1
    areas = np.bincount(owner, minlength=number)
    sums = [np.bincount(owner, values, number) for values in (y, x, logits[y, x])]
    ratio = shape[0] / labels.shape[0]
    centres = (np.stack(sums[:2], 1) / areas[:, None] + 0.5) * ratio - 0.5
    scores = sums[2] / areas
    order = np.argsort(-scores, kind="stable")
    return Picked(centres[order], scores[order])
