"""The chapter's tables: every method on the same spoiled images, judged by what is segmented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench import Report
from emlab.bench.claims import fill
from emlab.bench.study import pipe_table, spanned
from emlab.chapters.cellpose3.cases import Case, Image, Labels
from emlab.errors import InputError
from emlab.metrics.intervals import bootstrap, paired_ratio
from emlab.metrics.segmentation import THRESHOLDS, average_precision
from emlab.runtime import Stopwatch

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


@dataclass(frozen=True)
class Answer:
    """What a method makes of a case.

    Attributes
    ----------
    image : ndarray
        ``(H, W)`` that was segmented.
    labels : ndarray
        ``(H, W)`` int32.
    """

    image: Image
    labels: Labels


Method = Callable[[Case], Answer]


@dataclass(frozen=True)
class Scores:
    """Objects found in n images.

    Attributes
    ----------
    tp : ndarray of int
        ``(n, 11)`` matched objects at `THRESHOLDS`.
    found, true : ndarray of int
        ``(n,)`` objects found and objects there are.
    lonely : ndarray of int
        ``(n,)`` objects found where there is nothing: less than a tenth of them is of any object.
    seconds : float
        Of all images, segmentation included.
    """

    tp: NDArray[np.int64]
    found: NDArray[np.int64]
    true: NDArray[np.int64]
    lonely: NDArray[np.int64]
    seconds: float = 0.0

    @property
    def ap(self) -> NDArray[np.float64]:
        """``(n, 11)`` TP / (TP + FP + FN)."""
        union = self.found[:, None] + self.true[:, None] - self.tp
        return self.tp / np.maximum(union, 1)

    @property
    def fp(self) -> NDArray[np.int64]:
        """``(n,)`` objects found at .5 that are none."""
        return self.found - self.tp[:, 0]

    @property
    def fn(self) -> NDArray[np.int64]:
        """``(n,)`` objects missed at .5."""
        return self.true - self.tp[:, 0]

    def __len__(self) -> int:
        return len(self.tp)

    def part(self, chosen: Sequence[int]) -> Scores:
        """Scores of some of the images."""
        i = np.asarray(chosen, int)
        share = self.seconds * len(i) / max(len(self), 1)
        return Scores(self.tp[i], self.found[i], self.true[i], self.lonely[i], share)


@dataclass
class Table:
    """Scores of every method on one task.

    Attributes
    ----------
    task : str
    cases : list of Case
    scores : dict
        By method, all of the same images.
    answers : dict
        By method, of the images that are shown.
    recorded : set of str
        Methods whose scores were measured before, on the same cases.
    """

    task: str
    cases: list[Case]
    scores: dict[str, Scores] = field(default_factory=dict)
    answers: dict[str, dict[int, Answer]] = field(default_factory=dict)
    recorded: set[str] = field(default_factory=set)

    def ap(self, method: str) -> metrics.Interval:
        """AP at .5, mean over images."""
        return metrics.mean_interval(self.scores[method].ap[:, 0])

    def gain(self, better: str, worse: str) -> metrics.Interval:
        """Paired difference of AP at .5."""
        return metrics.paired_difference(self.scores[better].ap[:, 0], self.scores[worse].ap[:, 0])

    def recovered(self, method: str) -> metrics.Interval:
        """Share of the lost AP at .5 that a method brings back."""
        clean, degraded, ours = (
            self.scores[name].ap[:, 0] for name in ("clean", "degraded", method)
        )
        if clean.mean() <= degraded.mean():
            raise InputError(f"{self.task}: nothing was lost, so nothing can be recovered")
        gained, lost = ours - degraded, clean - degraded

        def share(chosen: NDArray[np.intp]) -> float:
            return float(np.clip(gained[chosen].mean() / max(lost[chosen].mean(), 1e-3), -9, 9))

        return bootstrap(share, len(lost))

    def rate(self, method: str, kind: str) -> metrics.Interval:
        """Objects for each true one, over all images.

        Found ("tp"), wrong ("fp"), missed ("fn"), or found where there is nothing ("lonely").
        """
        scores = self.scores[method]
        counts = {
            "tp": scores.tp[:, 0], "fp": scores.fp, "fn": scores.fn, "lonely": scores.lonely,
        }[kind]  # fmt: skip
        return paired_ratio(counts, scores.true)

    def more_fp(self, method: str, than: str = "degraded") -> metrics.Interval:
        """Difference of two false-positive rates, paired over images."""
        first, second = self.scores[method], self.scores[than]
        return paired_ratio(first.fp - second.fp, first.true)

    def worse_share(self, method: str, than: str = "degraded") -> metrics.Interval:
        """Share of images whose AP at .5 falls."""
        below = self.scores[method].ap[:, 0] < self.scores[than].ap[:, 0] - 1e-9
        return metrics.wilson_interval(int(below.sum()), len(below))

    def markdown(self) -> str:
        """A row a method; a dagger marks what was recorded."""
        heads = ["method", "AP at .5", "of the lost AP", "ours is better by", "TP", "FP"]
        rows = []
        for name, scores in self.scores.items():
            label = LABELS[name] + " †" * (name in self.recorded)
            other = name != "ours" and "ours" in self.scores
            gain = spanned(self.gain("ours", name)) if other else ""
            share = f"{self.recovered(name).mean:.0%}" if name != "clean" else ""
            rates = [f"{self.rate(name, kind).mean:.3f}" for kind in ("tp", "fp", "lonely")]
            seconds = f"{scores.seconds / len(scores):.2g}"
            rows.append([label, spanned(self.ap(name)), share, gain, *rates, seconds])
        return pipe_table([*heads, "on nothing", "s an image"], rows)

    def record(self, report: Report) -> None:
        """Record ``TASK.METRIC.METHOD``."""
        n = len(self.cases)
        for name, scores in self.scores.items():
            key = f"{self.task}.{{}}.{name}"
            report.value(key.format("ap_50"), *self.ap(name), note=NOTE, n=n)
            ap_75 = metrics.mean_interval(scores.ap[:, 5])
            report.value(key.format("ap_75"), *ap_75, note=NOTE, n=n)
            for kind in ("tp", "fp", "fn", "lonely"):
                rate = self.rate(name, kind)
                report.value(key.format(f"{kind}_rate"), *rate, note="for each true object")
            if name in ("clean", "degraded"):
                continue
            report.value(
                key.format("recovered"), *self.recovered(name), note="of the lost AP at .5"
            )
            more = self.more_fp(name)
            report.value(key.format("more_fp"), *more, note="FP rate over the degraded image's")
            report.value(key.format("worse_images"), *self.worse_share(name), n=n)
            if name != "ours" and "ours" in self.scores:
                gain = self.gain("ours", name)
                report.value(f"{self.task}.gain.over_{name}", *gain, note=NOTE, n=n)


def run_study(
    task: str,
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    *,
    keep: Sequence[int] = (),
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run every method on every case.

    Parameters
    ----------
    keep : sequence of int
        Cases whose images are kept for figures.

    Raises
    ------
    InputError
        Fewer than two cases, or labels of another shape than the truth's.
    """
    if len(cases) < 2:
        raise InputError("a study needs at least two images")
    table = Table(task, list(cases))
    for name, method in methods.items():
        counts, kept = [], {}
        with Stopwatch() as watch:
            for i, case in enumerate(cases):
                answer = method(case)
                if answer.labels.shape != case.labels.shape:
                    raise InputError(
                        f"{name} labelled {answer.labels.shape} pixels of {case.labels.shape}"
                    )
                counts.append(count_objects(case.labels, answer.labels))
                if i in keep:
                    kept[i] = answer
        table.scores[name] = from_counts(counts, watch.seconds)
        table.answers[name] = kept
        if progress is not None:
            progress(f"{LABELS.get(name, name)}: AP {table.ap(name).mean:.3f}")
    return table


def precision(truth: Labels, labels: Labels) -> float:
    """AP at .5 of one image; 0 where there is no object at all."""
    return float(np.nan_to_num(average_precision(truth, labels, (0.5,)).ap[0]))


def count_objects(truth: Labels, labels: Labels) -> list[int]:
    """Objects found, true ones, found where there is nothing, matched at each of `THRESHOLDS`."""
    matched = average_precision(truth, labels, THRESHOLDS)
    areas, covered = (np.bincount(image.ravel()) for image in (labels, labels * (truth > 0)))
    present = areas > 0
    present[0] = False
    covered = np.pad(covered, (0, len(areas) - len(covered)))
    lonely = int((present & (covered < 0.1 * areas)).sum())
    true = len(np.unique(truth[truth > 0]))
    return [int(present.sum()), true, lonely, *matched.tp.tolist()]


def from_counts(counts: Sequence[Sequence[int]], seconds: float = 0.0) -> Scores:
    """Scores of rows as `count_objects` returns them."""
    found, true, lonely, *matched = np.asarray(counts, np.int64).T
    return Scores(np.array(matched).T, found, true, lonely, seconds)


_SPOILT = {
    "denoise": "Noise",
    "hard": "A quarter of the photons",
    "deblur": "Blur",
    "upsample": "Coarse pixels",
}
_NO_PEERS = ("clean", "degraded", "constant", "untrained")


def verdicts(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown list: in each task, what ours is ahead of, level with and behind in AP at .5.

    Ahead or behind is what the 95 % interval of the paired difference leaves no doubt of; with as
    many comparisons as there are, one in twenty of these is chance.
    """
    lines = []
    for task, title in _SPOILT.items():
        if f"{task}.ap_50.ours" not in values:
            continue
        found: dict[str, list[str]] = {"ahead of": [], "not told apart from": [], "behind": []}
        for name, label in LABELS.items():
            gain = values.get(f"{task}.gain.over_{name}")
            if gain is None or name in _NO_PEERS:
                continue
            behind = "behind" if gain["high"] < 0 else "not told apart from"
            found["ahead of" if gain["low"] > 0 else behind].append(label)
        parts = [f"{word} *{', '.join(names)}*" for word, names in found.items() if names]
        back = fill(f"{{{task}.recovered.ours}} of the lost AP comes back", values)
        lines.append(f"- **{title}**: {'; '.join([back, *parts])}.")
    return "\n".join(lines)
