"""What is found in spoiled images, what where there is nothing, and how bright it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab.bench import Report
from emlab.bench.claims import fill
from emlab.bench.study import Column, Scores, Study, Values, each, spanned
from emlab.chapters.cellpose3.cases import Case, Image, Labels, make_cases
from emlab.data.cells import Cell
from emlab.errors import InputError
from emlab.metrics import Interval
from emlab.metrics.intervals import bootstrap, paired_ratio, wilson_interval
from emlab.metrics.segmentation import THRESHOLDS, average_precision, intersection_over_union
from emlab.physics.degradations import normalise

NOTE = "95 % bootstrap interval over images"
LABELS = {
    "clean": "clean image (ceiling)",
    "degraded": "degraded image as it is",
    "constant": "one grey level",
    "untrained": "untrained restorer",
    "gaussian": "Gaussian",
    "bm3d": "BM3D",
    "noise2void": "Noise2Void",
    "noise2self": "Noise2Self",
    "richardson_lucy": "Richardson-Lucy",
    "cubic": "cubic interpolation",
    "noisy_segmenter": "segmenter retrained on noise",
    "reconstruction": "reconstruction loss",
    "perceptual": "perceptual loss",
    "segmentation": "segmentation loss",
    "oneclick": "one-click",
    "combined": "one model, three tasks",
    "range": "as ours, in the paper's range",
    "ours": "ours: segmentation + perceptual",
}
AREA = 1e4  # objects are counted for so many pixels: what some 25 nuclei and their gaps cover


@dataclass(frozen=True)
class Answer:
    """What a method makes of a case: the image ``(H, W)`` that was segmented, and its labels."""

    image: Image
    labels: Labels


Method = Callable[[Case], Answer]


def count_objects(truth: Labels, labels: Labels) -> list[int]:
    """Objects found, true ones, found where there is nothing, matched at each of `THRESHOLDS`.

    Where there is nothing: less than a tenth of the object is of any true one.
    """
    matched = average_precision(truth, labels, THRESHOLDS)
    areas, covered = (np.bincount(image.ravel()) for image in (labels, labels * (truth > 0)))
    present = areas > 0
    present[0] = False
    covered = np.pad(covered, (0, len(areas) - len(covered)))
    lonely = int((present & (covered < 0.1 * areas)).sum())
    true = len(np.unique(truth[truth > 0]))
    return [int(present.sum()), true, lonely, *matched.tp.tolist()]


def from_counts(counts: Sequence[Sequence[int]]) -> dict[str, NDArray]:
    """Scores of rows as `count_objects` returns them.

    ``ap`` is ``(n, 11)``, TP / (TP + FP + FN) at `THRESHOLDS`. Rates, at .5, are ``(n, 2)``: found
    (tp), wrong (fp), missed (fn), or found where there is nothing (lonely), beside the true ones.
    """
    found, true, lonely, *matched = np.asarray(counts, np.int64).T
    tp = np.array(matched).T
    ap = tp / np.maximum(found[:, None] + true[:, None] - tp, 1)
    kinds = {"tp": tp[:, 0], "fp": found - tp[:, 0], "fn": true - tp[:, 0], "lonely": lonely}
    rates = {f"{kind}_rate": np.stack([kept, true], 1) for kind, kept in kinds.items()}
    return {"ap": ap, "ap_50": ap[:, 0], "ap_75": ap[:, 5], **rates}


def score(cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, NDArray]:
    """`from_counts` of what was found; an `InputError` for labels of another shape."""
    pairs = [(case.labels, answer.labels) for case, answer in zip(cases, answers, strict=True)]
    for truth, labels in pairs:
        if labels.shape != truth.shape:
            raise InputError(f"labels have {labels.shape} pixels, the image {truth.shape}")
    return from_counts([count_objects(*pair) for pair in pairs])


def _ratio(scores: Scores, name: str, targets: Values | None) -> Interval:
    return paired_ratio(*scores[name].T)


def _share(scores: Scores, name: str, targets: Values | None) -> Interval:
    """Of the lost, what was gained."""
    gained, lost = scores[name].T

    def share(chosen: NDArray) -> float:
        return float(np.clip(gained[chosen].mean() / max(lost[chosen].mean(), 1e-3), -9, 9))

    return bootstrap(share, len(lost))


def _part(scores: Scores, name: str, targets: Values | None) -> Interval:
    return wilson_interval(int(scores[name].sum()), len(scores[name]))


_RATE = partial(Column, show="{mean:.3f}", note="for each true object", of=_ratio)
COLUMNS = (
    Column("ap_50", "AP at .5", note=NOTE, gain="gain"),
    Column("ap_75", note=NOTE),
    _RATE("tp_rate", "TP"),
    _RATE("fp_rate", "FP"),
    _RATE("fn_rate"),
    _RATE("lonely_rate", "on nothing"),
)
CHANGES = (
    Column("recovered", note="of the lost AP at .5", of=_share),
    Column("more_fp", note="FP rate over the degraded image's", of=_ratio),
    Column("worse_images", note="share of images whose AP at .5 falls", of=_part),
)


def changes(table: Study) -> Study:
    """What every method changes of the degraded image: AP, wrong objects, and whether for worse."""
    clean, degraded = table.scores["clean"], table.scores["degraded"]
    lost = clean["ap_50"] - degraded["ap_50"]
    if lost.mean() <= 0:
        raise InputError("nothing was lost, so nothing can be recovered")
    found = Study(table.cases, CHANGES, LABELS, recorded=table.recorded)
    for name in table.methods:
        gained = table.scores[name]["ap_50"] - degraded["ap_50"]
        wrong, true = table.scores[name]["fp_rate"].T
        found.scores[name] = {
            "recovered": np.stack([gained, lost], 1),
            "more_fp": np.stack([wrong - degraded["fp_rate"][:, 0], true], 1),
            "worse_images": (gained < -1e-9).astype(float),
        }
    return found


def markdown(table: Study) -> str:
    """A row a method; a dagger marks what was recorded."""
    changed = changes(table)

    def over(name: str) -> str:
        other = name != "ours" and "ours" in table.scores
        return spanned(table.gain("ours", name, "ap_50")) if other else ""

    def share(name: str) -> str:
        return "" if name == "clean" else f"{changed.interval(name, 'recovered').mean:.0%}"

    seconds = {"s an image": lambda name: f"{table.seconds[name]:.2g}"}
    return table.markdown(extra={"of the lost AP": share, "ours is better by": over} | seconds)


def record(table: Study, report: Report, task: str) -> None:
    """Record ``TASK.NUMBER.METHOD``, and ``TASK.gain.ours_over_METHOD`` in AP at .5."""
    table.record(report, task)
    changed = changes(table)
    for name in ("clean", "degraded"):
        del changed.scores[name]
    changed.record(report, task)
    for name in [n for n in changed.methods if n != "ours" and "ours" in changed.scores]:
        table.record_gains(report, "ours", name, task, ["ap_50"])


_SPOILT = {
    "denoise": "Noise",
    "hard": "A quarter of the photons",
    "deblur": "Blur",
    "upsample": "Coarse pixels",
}
_NO_PEERS = ("clean", "degraded", "constant", "untrained")


def verdicts(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown list: in each task, what ours is ahead of, level with and behind in AP at .5.

    As the 95 % intervals of paired differences say, of which one in twenty errs by chance.
    """
    lines = []
    for task, title in _SPOILT.items():
        if f"{task}.ap_50.ours" not in values:
            continue
        found: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
        for name, label in LABELS.items():
            gain = values.get(f"{task}.gain.ours_over_{name}")
            if gain is None or name in _NO_PEERS:
                continue
            behind = "behind" if gain["high"] < 0 else "not told apart from"
            found["ahead of" if gain["low"] > 0 else behind].append(label)
        parts = [f"{word} *{', '.join(names)}*" for word, names in found.items() if names]
        back = fill(f"{{{task}.recovered.ours}} of the lost AP comes back", values)
        lines.append(f"- **{title}**: {'; '.join([back, *parts])}.")
    return "\n".join(lines)


# --- where there is nothing


def from_noise(
    methods: Mapping[str, Method], levels: Sequence[float], side: int, seed: int
) -> Study:
    """Objects found in images of even brightness .3 with Poisson noise of each of the levels."""
    even = np.full((side, side), 0.3, np.float32)
    empty = np.zeros((side, side), np.int32)
    found = [Cell(even, empty, f"noise_{i}", "simulated") for i in range(len(levels))]
    named = {cell.name: level for cell, level in zip(found, levels, strict=True)}
    return _nothing(make_cases(found, "denoise", named, seed), methods)


def from_background(methods: Mapping[str, Method], cases: Sequence[Case], side: int) -> Study:
    """Objects found in the emptiest window of each noisy image, alone and normalised.

    No true object touches it. In crowded images windows are smaller, until two of them hold none.
    """
    places: list[tuple[slice, slice] | None] = []
    while sum(place is not None for place in places) < 2 and side >= 16:
        places = [empty_window(case.labels > 0, side) for case in cases]
        side = 3 * side // 4
    pairs = zip(cases, places, strict=True)
    return _nothing([crop(case, place) for case, place in pairs if place is not None], methods)


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
    own, counts = replace(case, clean=case.clean[place], labels=case.labels[place]), case.counts
    degraded = normalise(torch.from_numpy(counts[place])).numpy()
    own.__dict__.update(counts=counts[place], degraded=degraded)  # and not drawn anew
    return own


def _nothing(cases: Sequence[Case], methods: Mapping[str, Method]) -> Study:
    def objects(cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, list[float]]:
        found = [answer.labels for answer in answers]
        return {"objects": [len(np.unique(one[one > 0])) * AREA / one.size for one in found]}

    note = f"for {AREA:g} pixels without any object"
    study = Study(cases, [Column("objects", better="lower", note=note)], LABELS)
    return study.run({name: each(method) for name, method in methods.items()}, objects)


# --- brightness


def _over_images(scores: Scores, statistic: Callable[[NDArray], float]) -> Interval:
    """Of the objects of images that are drawn with replacement."""
    return bootstrap(statistic, len(scores["image"]), groups=scores["image"])


def _slope(scores: Scores, name: str, targets: Values | None) -> Interval:
    """Change of the measured brightness with the true one among objects of one image."""
    image = scores["image"].astype(int)
    counts = np.maximum(np.bincount(image), 1)
    truth, measured = (scores[part] for part in ("truth", "measured"))
    x, y = (one - (np.bincount(image, one) / counts)[image] for one in (truth, measured))
    return _over_images(scores, lambda i: float((x[i] * y[i]).sum() / (x[i] ** 2).sum()))


def _error(scores: Scores, name: str, targets: Values | None) -> Interval:
    """Root mean square error over the mean of the true brightness."""
    truth, off = scores["truth"], (scores["measured"] - scores["truth"]) ** 2
    return _over_images(scores, lambda i: float(np.sqrt(off[i].mean()) / truth[i].mean()))


def _bias(scores: Scores, name: str, targets: Values | None) -> Interval:
    """Mean error over the mean, of the third of each image's objects that are dim or bright."""
    chosen = np.zeros(len(scores["truth"]), bool)
    for number in np.unique(scores["image"]):
        own = np.flatnonzero(scores["image"] == number)
        order = own[np.argsort(scores["truth"][own])]
        third = max(1, len(order) // 3)
        chosen[order[:third] if name == "bias_dim" else order[-third:]] = True
    x, y = scores["truth"] * chosen, scores["measured"] * chosen
    return _over_images(scores, lambda i: float((y[i] - x[i]).sum() / x[i].sum()))


BRIGHTNESS = (
    Column("slope", "slope", show="{mean:.2f}", note="1 is right", of=_slope),
    Column("error", "error", show="{mean:.1%}", note="of the mean", of=_error),
    Column("bias_dim", "dim", show="{mean:+.1%}", note="0 is right", of=_bias),
    Column("bias_bright", "bright", show="{mean:+.1%}", note="0 is right", of=_bias),
)
_NORMALISED = ("degraded", "gaussian")


def measure_brightness(cases: Sequence[Case], answers: Mapping[str, Sequence[Answer]]) -> Study:
    """Compare ways to measure objects that were found on the restored image.

    The study's cases are the objects of ours that match a true one. Their true brightness is the
    mean of the clean image over the true mask. "raw", which is what should be done, is the mean of
    the noisy counts over the mask that was *found*, over the counts of brightness 1; every key of
    `answers` is the mean of that image over the same masks. Restorers answer in the units of the
    clean image; "degraded" and "gaussian" are normalised and are brought back to them.
    """
    objects: list[tuple[int, float]] = []
    measured: dict[str, list[float]] = {"raw": [], **{name: [] for name in answers}}
    for number, case in enumerate(cases):
        labels = answers["ours"][number].labels
        images = {"raw": case.counts / case.scale}
        for name, given in answers.items():
            image = given[number].image
            images[name] = _in_units(image, case) if name in _NORMALISED else image
        for true, found in _matches(case.labels, labels):
            objects.append((number, float(case.clean[case.labels == true].mean())))
            for name, image in images.items():
                measured[name].append(float(image[labels == found].mean()))
    image, truth = np.array(objects).T
    study = Study(objects, BRIGHTNESS, {"raw": "raw counts"} | LABELS)
    for name, values in measured.items():
        study.scores[name] = {"image": image, "truth": truth, "measured": np.array(values)}
    return study


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
