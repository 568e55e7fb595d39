"""Denoisers judged by a picker that is not ours: Topaz, with one threshold a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emlab.external import topaz
from emlab.external.topaz import Picked
from emlab.metrics import Interval
from emlab.metrics.intervals import bootstrap
from emlab.metrics.picking import Counts, Curve, count, curve, match

PICKER_ANGSTROM = 8.0  # pixel size at which the pretrained picker sees micrographs, about
DIAMETER_ANGSTROM = 150.0  # of the particles that chapters simulate, about
HIT = 0.5  # of the particle's diameter: largest distance of a hit (32 pixels in the paper)
Images = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Picks:
    """Picks of all micrographs by one method's images."""

    picked: list[Picked]  #: in pixels of the full micrograph
    truth: list[NDArray[np.float64]]  #: (n, 2) each
    radius: float  #: of a hit, in pixels

    def curve(self) -> Curve:
        """Precision and recall over thresholds, all micrographs together."""
        return curve(*self._lists(), self.radius)

    def at(self, threshold: float) -> Counts:
        """Counts of each micrograph at a threshold."""
        return count(*self._lists(), self.radius, threshold)

    def kept(self, threshold: float) -> list[NDArray[np.float64]]:
        """Places of the picks that score enough, micrograph by micrograph."""
        return [each.coordinates[each.scores >= threshold] for each in self.picked]

    def _lists(self) -> tuple[list, list, list]:
        places = [each.coordinates for each in self.picked]
        return places, [each.scores for each in self.picked], self.truth


def bin_to(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means of squares of `factor` pixels; rows and columns that fill no square are left out."""
    height, width = (side // factor for side in image.shape)
    cut = image[: height * factor, : width * factor].astype(np.float64)
    return cut.reshape(height, factor, width, factor).mean((1, 3)).astype(np.float32)


def pick_all(
    images: Mapping[str, Images],
    pixel_size_angstrom: float,
    diameter_angstrom: float,
    *,
    threads: int = 1,
) -> tuple[dict[str, list[Picked]], float]:
    """Pick from the images ``(H, W)``, protein dark, of several methods in one run of Topaz.

    Returns picks by method, one a micrograph and in pixels of the images, and the processor
    seconds of the picker; errors are those of `topaz.pick`.
    """
    factor = max(1, round(PICKER_ANGSTROM / pixel_size_angstrom))
    small = {name: [bin_to(image, factor) for image in every] for name, every in images.items()}
    together = [image for every in small.values() for image in every]
    # Within a third of a diameter only the best pick stays.
    radius = max(2, round(diameter_angstrom / 3 / (factor * pixel_size_angstrom)))
    found, done = topaz.pick(together, radius, threads=threads)
    found = [Picked(each.coordinates * factor + (factor - 1) / 2, each.scores) for each in found]
    result, start = {}, 0
    for name, every in small.items():
        result[name] = found[start : start + len(every)]
        start += len(every)
    return result, done.cpu_seconds


def f1_gain(first: Counts, second: Counts, number: str = "f1") -> Interval:
    """Difference of micro F1 (precision, recall), with its interval over micrographs."""
    n = min(len(first.hits), len(second.hits))

    def gain(i: NDArray[np.int64]) -> float:
        return getattr(first.part(i), number)() - getattr(second.part(i), number)()

    if n < 2:
        value = gain(np.arange(n))
        return Interval(value, value, value)
    return bootstrap(gain, n)


def matched_rotations(
    picks: NDArray[np.float64],
    truth: NDArray[np.float64],
    rotations: NDArray[np.float64],
    radius: float,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Pose and true centre of each pick; one on no particle gets a random pose and stays put.

    Returns rotations ``(n, 3, 3)``, centres ``(n, 2)``, and which picks are particles ``(n,)``.
    """
    from scipy.spatial.transform import Rotation

    found = match(picks, truth, radius).pick_to_truth
    right = found >= 0
    turned = Rotation.random(len(picks), random_state=seed).as_matrix().reshape(-1, 3, 3)
    centres = np.array(picks, float).reshape(-1, 2)
    turned[right], centres[right] = rotations[found[right]], truth[found[right]]
    return turned, centres, right
