"""What restoration invents and what it does to brightness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab import metrics
from emlab.bench import Report
from emlab.chapters.cellpose3.cases import Case, Image, make_cases
from emlab.chapters.cellpose3.peers import as_image
from emlab.chapters.cellpose3.study import Answer, Method
from emlab.data.cells import Cell
from emlab.metrics.intervals import bootstrap
from emlab.metrics.segmentation import intersection_over_union
from emlab.physics.degradations import normalise

Values = NDArray[np.float64]
AREA = 1e4  # objects are counted for so many pixels: what some 25 nuclei and their gaps cover


@dataclass(frozen=True)
class Nothing:
    """What methods find where there is nothing.

    Attributes
    ----------
    images : list of ndarray
        What was given.
    answers : dict of str to list of Answer
        By method.
    """

    images: list[Image]
    answers: dict[str, list[Answer]]

    def objects(self, method: str) -> metrics.Interval:
        """Objects for each `AREA` pixels, mean over images."""
        counts = [
            len(np.unique(answer.labels[answer.labels > 0])) * AREA / answer.labels.size
            for answer in self.answers[method]
        ]
        return metrics.mean_interval(np.array(counts))

    def record(self, report: Report, name: str) -> None:
        """Record ``NAME.objects.METHOD``."""
        for method in self.answers:
            report.value(
                f"{name}.objects.{method}", *self.objects(method),
                note=f"for {AREA:g} pixels without any object", n=len(self.images),
            )  # fmt: skip


def from_noise(
    methods: Mapping[str, Method], levels: Sequence[float], side: int, seed: int
) -> Nothing:
    """Give images of even brightness .3 with Poisson noise, one for each level.

    Parameters
    ----------
    levels : sequence of float
        Poisson scales.
    side : int
        Of the images, pixels.
    """
    even = np.full((side, side), 0.3, np.float32)
    empty = np.zeros((side, side), np.int32)
    found = [Cell(even, empty, f"noise_{i}", "simulated") for i in range(len(levels))]
    named = {cell.name: level for cell, level in zip(found, levels, strict=True)}
    return _answers(make_cases(found, "denoise", named, seed), methods)


def from_background(methods: Mapping[str, Method], cases: Sequence[Case], side: int) -> Nothing:
    """Give the emptiest window of each noisy image that holds no object, alone and normalised.

    In crowded images windows are smaller, until two of them hold none.
    """
    places: list[tuple[slice, slice] | None] = []
    while sum(place is not None for place in places) < 2 and side >= 16:
        places = [empty_window(case.labels > 0, side) for case in cases]
        side = 3 * side // 4
    pairs = zip(cases, places, strict=True)
    return _answers([crop(case, place) for case, place in pairs if place is not None], methods)


def empty_window(inside: NDArray[np.bool_], side: int) -> tuple[slice, slice] | None:
    """A square that no object touches and that lies farthest from all of them, or None."""
    if min(inside.shape) < side:
        return None
    distance = ndimage.distance_transform_cdt(~inside, "chessboard")
    if not inside.any():
        distance = np.full(inside.shape, side)
    half = side // 2
    middles = distance[half : inside.shape[0] - half + 1, half : inside.shape[1] - half + 1]
    if middles.size == 0 or middles.max() <= half + 1:
        return None
    y, x = np.unravel_index(int(np.argmax(middles)), middles.shape)
    return slice(int(y), int(y) + side), slice(int(x), int(x) + side)


def crop(case: Case, place: tuple[slice, slice]) -> Case:
    """A window of a noisy case as a case of its own, normalised by itself."""
    counts = case.counts[place]
    own = as_image(normalise(torch.from_numpy(counts)).numpy(), case)
    own.__dict__.update(counts=counts)
    object.__setattr__(own, "labels", case.labels[place])
    object.__setattr__(own, "clean", case.clean[place])
    return own


def _answers(cases: Sequence[Case], methods: Mapping[str, Method]) -> Nothing:
    answers = {name: [method(case) for case in cases] for name, method in methods.items()}
    return Nothing([case.degraded for case in cases], answers)


# --- brightness


@dataclass(frozen=True)
class Brightness:
    """Mean brightness of objects, measured in several ways.

    Attributes
    ----------
    image : ndarray of int
        ``(m,)`` which image an object is of.
    truth : ndarray
        ``(m,)`` mean of the clean image over the true mask; the 99th percentile of an image is 1.
    measured : dict of str to ndarray
        ``(m,)`` by way of measuring.
    """

    image: NDArray[np.int64]
    truth: Values
    measured: dict[str, Values]

    def slope(self, way: str) -> metrics.Interval:
        """Change of the measured brightness with the true one among objects of one image: 1."""
        x, y = (self._centred(values) for values in (self.truth, self.measured[way]))
        return self._over_images(lambda i: float((x[i] * y[i]).sum() / (x[i] ** 2).sum()))

    def bias(self, way: str, part: str = "all") -> metrics.Interval:
        """Mean of measured minus true, over the mean of the true: 0 is right.

        Parameters
        ----------
        part : str
            "all", or the third of the objects of each image that are "dim" or "bright".
        """
        chosen = self._third(part)
        x, y = self.truth * chosen, self.measured[way] * chosen
        return self._over_images(lambda i: float((y[i] - x[i]).sum() / x[i].sum()))

    def error(self, way: str) -> metrics.Interval:
        """Root mean square error over the mean of the true brightness."""
        off = (self.measured[way] - self.truth) ** 2
        return self._over_images(lambda i: float(np.sqrt(off[i].mean()) / self.truth[i].mean()))

    def record(self, report: Report) -> None:
        """Record ``brightness.METRIC.WAY``."""
        n = len(self.truth)
        for way in self.measured:
            report.value(f"brightness.slope.{way}", *self.slope(way), note="1 is right", n=n)
            report.value(f"brightness.error.{way}", *self.error(way), note="of the mean", n=n)
            for part in ("dim", "bright"):
                bias = self.bias(way, part)
                report.value(f"brightness.bias_{part}.{way}", *bias, note="0 is right", n=n)

    def _centred(self, values: Values) -> Values:
        sums = np.bincount(self.image, values)
        return values - (sums / np.maximum(np.bincount(self.image), 1))[self.image]

    def _third(self, part: str) -> NDArray[np.bool_]:
        if part == "all":
            return np.ones(len(self.truth), bool)
        chosen = np.zeros(len(self.truth), bool)
        for number in np.unique(self.image):
            own = np.flatnonzero(self.image == number)
            order = own[np.argsort(self.truth[own])]
            third = max(1, len(order) // 3)
            chosen[order[:third] if part == "dim" else order[-third:]] = True
        return chosen

    def _over_images(self, statistic: Callable[[NDArray[np.int64]], float]) -> metrics.Interval:
        groups = [np.flatnonzero(self.image == number) for number in np.unique(self.image)]
        return bootstrap(lambda i: statistic(np.concatenate([groups[k] for k in i])), len(groups))


def measure_brightness(
    cases: Sequence[Case], answers: Mapping[str, Sequence[Answer]], ours: str = "ours"
) -> Brightness:
    """Compare ways to measure objects that were found on the restored image.

    The objects are those of `ours` that match a true one. "raw" is the mean of the noisy counts
    over the mask that was *found*, divided by the counts of brightness 1, which is what should be
    done; every key of `answers` is the mean of that image over the same masks, in units of the
    clean image.

    Parameters
    ----------
    answers : dict of str to sequence of Answer
        By method, one for each case; those of restorers are in the units of the clean image,
        "degraded" and "gaussian" are normalised and are brought back to them.
    """
    numbers: list[int] = []
    truth: list[float] = []
    measured: dict[str, list[float]] = {"raw": [], **{name: [] for name in answers}}
    for number, case in enumerate(cases):
        labels = answers[ours][number].labels
        pairs = _matches(case.labels, labels)
        images = {"raw": case.counts / case.scale}
        for name, given in answers.items():
            image = given[number].image
            images[name] = _in_units(image, case) if name in _NORMALISED else image
        for true, found in pairs:
            numbers.append(number)
            truth.append(float(case.clean[case.labels == true].mean()))
            mask = labels == found
            for name, image in images.items():
                measured[name].append(float(image[mask].mean()))
    ways = {name: np.array(values) for name, values in measured.items()}
    return Brightness(np.array(numbers), np.array(truth), ways)


_NORMALISED = ("degraded", "gaussian")


def _in_units(image: Image, case: Case) -> Image:
    """Undo the normalisation of the measurement, which smoothing does not change."""
    low, high = int(np.argmin(case.degraded)), int(np.argmax(case.degraded))
    a, b = case.degraded.flat[low], case.degraded.flat[high]
    gain = (case.counts.flat[high] - case.counts.flat[low]) / (b - a)
    return ((image - a) * gain + case.counts.flat[low]) / case.scale


def _matches(truth: NDArray, labels: NDArray) -> list[tuple[int, int]]:
    """Labels of true and found objects that overlap by more than half: one pair each at most."""
    overlap = intersection_over_union(truth, labels)
    true, found = (np.unique(image[image > 0]) for image in (truth, labels))
    return [(int(true[i]), int(found[j])) for i, j in zip(*np.nonzero(overlap > 0.5), strict=True)]
