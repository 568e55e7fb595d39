"""The chapter's table: every method on the same measurements, scored on the same pixels.

Images (denoising, deblurring, super-resolution) are scored crop by crop. A volume is scored in its
xz and yz sections, column by column: the block is cut into columns of full depth, and a column
plays the part of a crop when intervals are drawn. Neighbouring columns are not quite independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench import Report
from emlab.bench.tissue import RealPair, Specimen
from emlab.chapters.em_generalist import peers as generalist_peers
from emlab.chapters.em_generalist.peers import best_peer, known_of, known_of_real
from emlab.chapters.em_generalist.rows import LABELS, Case, Method
from emlab.chapters.em_generalist.scores import score
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.recipes.generalist_tasks import REAL_PAIR, Task
from emlab.runtime import Stopwatch

Image = NDArray[np.float32]
METRICS = ("psnr", "ssim", "frc_nm")
UNITS = {"psnr": "dB", "psnr_xz": "dB", "psnr_yz": "dB", "frc_nm": "nm"}


@dataclass(frozen=True)
class KeptRow:
    """A row of a table that was measured before: scores by metric, an image, seconds a case."""

    values: dict[str, NDArray[np.float64]]
    image: Image
    seconds: float


Kept = Callable[[Task, Sequence[Case]], Mapping[str, KeptRow]]


@dataclass
class Table:
    """Scores and images of every method.

    Attributes
    ----------
    tasks : dict of str to Task
    values : dict
        ``values[task][method][metric]`` is ``(targets,)``. Metrics: ``psnr`` in dB over the range
        255, ``ssim``, ``frc_nm`` (period where the Fourier correlation falls below .5; of the
        whole volume for isotropic tasks, one target) and, for at least two samples, ``coverage``
        of 90 % intervals. Isotropic tasks also have ``psnr_xz``, ``psnr_yz``, ``ssim_xz`` and
        ``ssim_yz``, of which ``psnr`` and ``ssim`` are the means, and ``slice_correlation``:
        correlation of neighbouring planes over that of the truth's.
    images : dict
        ``images[task][method]``: the first case's.
    cases : dict
        ``cases[task]``: the measurements and truths.
    seconds, evaluations, network_share : dict
        Mean of each case, by ``[task][method]``; the last two for methods with a network.
    samples : dict
        ``samples[task]``: how many were averaged.
    recorded : dict
        ``recorded[task]``: the methods that did not run; of their images a corner may be kept.
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    values: dict[str, dict[str, dict[str, NDArray]]] = field(default_factory=dict)
    images: dict[str, dict[str, Image]] = field(default_factory=dict)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    network_share: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: dict[str, dict[str, int]] = field(default_factory=dict)
    recorded: dict[str, list[str]] = field(default_factory=dict)

    def label(self, task: str, method: str) -> str:
        """A method's name for readers, with a dagger if its row is recorded."""
        recorded = method in self.recorded.get(task, ())
        return LABELS.get(method, method) + " †" * recorded

    def interval(self, task: str, method: str, metric: str = "psnr") -> metrics.Interval:
        """Mean over targets with its 95 % bootstrap interval; a single target has no width."""
        values = self.values[task][method][metric]
        if len(values) == 1:
            return metrics.Interval(float(values[0]), float(values[0]), float(values[0]))
        return metrics.mean_interval(values)

    def gain(self, task: str, better: str, worse: str, metric: str = "psnr") -> metrics.Interval:
        """Mean gain of one method over another on the same targets; positive is better."""
        first, second = self.values[task][better][metric], self.values[task][worse][metric]
        if metric == "frc_nm":  # shorter is better
            first, second = second, first
        if len(first) == 1:
            return metrics.Interval(*3 * (float(first[0] - second[0]),))
        return metrics.paired_difference(first, second)

    def best_classical(self, task: str) -> str:
        """The classical peer that did best on validation images, of those that ran."""
        chosen = best_peer(task)
        if chosen in self.values[task]:
            return chosen
        ran = [name for name in self.values[task] if name in generalist_peers.LABELS]
        if not ran:
            raise InputError(f"no classical peer was run for {task!r}")
        return max(ran, key=lambda name: self.interval(task, name).mean)

    def markdown(self, *tasks: str) -> str:
        """A row a method: of each task PSNR, SSIM and resolution; of more than three PSNR alone.

        A single task has its interval, the gain over its best peer and seconds as well.
        """
        heads, lines = (
            ["method"],
            {name: [self.label(tasks[0], name)] for name in self.values[tasks[0]]},
        )
        for task in tasks:
            volume = self.tasks[task].kind == "isotropic"
            heads.append(f"{self.tasks[task].label}: PSNR [dB]")
            if len(tasks) <= 3:
                heads += ["SSIM", f"{'FSC' if volume else 'FRC'} .5 [nm]"]
            if len(tasks) == 1:
                reference = self.best_classical(task)
                heads += [f"against {LABELS[reference]} [dB]", "seconds"]
            for name, cells in lines.items():
                psnr, ssim, frc = (self.interval(task, name, metric) for metric in METRICS)
                if len(tasks) > 1:
                    cells.append(f"{psnr.mean:.2f} ± {(psnr.high - psnr.low) / 2:.2f}")
                else:
                    cells.append(f"{psnr.mean:.2f} [{psnr.low:.2f}, {psnr.high:.2f}]")
                if len(tasks) <= 3:
                    cells += [f"{ssim.mean:.3f}", f"{frc.mean:.1f}"]
                if len(tasks) == 1:
                    gain, seconds = self.gain(task, name, reference), self.seconds[task][name]
                    cells += [
                        f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]",
                        f"{seconds:.2g}",
                    ]
        rows = [heads, ["---"] * len(heads), *lines.values()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def record(self, report: Report, ours: str = "ours") -> None:
        """Record ``TASK.METRIC.METHOD``, and ``TASK.gain_METRIC.over_METHOD`` of ours."""
        for task, methods in self.values.items():
            for name, scores in methods.items():
                note = "95 % bootstrap interval over targets"
                note += "; recorded" * (name in self.recorded.get(task, ()))
                for metric, values in scores.items():
                    mean, low, high = self.interval(task, name, metric)
                    guessed = metric == "frc_nm" and task == REAL_PAIR.name
                    report.value(
                        f"{task}.{metric}.{name}",
                        mean,
                        low,
                        high,
                        unit=UNITS.get(metric, ""),
                        note=note + "; pixel size unknown, taken as 10 nm" * guessed,
                        n=len(values),
                    )
                if name == ours or ours not in methods:
                    continue
                for metric in METRICS:
                    gain = self.gain(task, ours, name, metric)
                    report.value(
                        f"{task}.gain_{metric}.over_{name}", *gain, note="paired, same targets"
                    )


def run_study(
    tasks: Iterable[Task],
    methods: Callable[[Task], Mapping[str, Method]],
    images: Specimen | None,
    volume: Specimen | None = None,
    *,
    seed: int = 0,
    kept: Kept | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run every method on every measurement.

    Parameters
    ----------
    methods : callable
        The methods of a task by name, see `standard_methods`.
    images : Specimen
        Crops for the two-dimensional tasks.
    volume : Specimen, optional
        Block for the isotropic tasks.
    kept : callable, optional
        Rows by name that were measured on these very cases before, and do not run.

    Raises
    ------
    InputError
        A task whose specimen is missing, or a method that returns another shape than the truth's.
    """
    table = Table()
    for task in tasks:
        specimen = volume if task.kind == "isotropic" else images
        if specimen is None:
            wanted = "a volume" if task.kind == "isotropic" else "images"
            raise InputError(f"the task {task.name!r} needs {wanted}")
        truths = [specimen.grey] if task.kind == "isotropic" else list(specimen.grey)
        _run_task(table, task, _measure(task, truths, seed), methods(task), kept, progress)
    return table


def run_real_pair(
    pair: RealPair,
    methods: Mapping[str, Method],
    *,
    seed: int = 0,
    kept: Kept | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """The same table for the real pair: whole image restored, scored in tiles.

    Two scans differ in brightness and contrast: before scoring, each answer gets the gain and the
    offset that fit it best to the clean scan, over the whole image. The noise is not told: each
    method has the noisy scan only.
    """
    table = Table()
    case = Case(REAL_PAIR, known_of_real(pair.noisy), pair.clean, pair.noisy, seed)
    _run_task(table, REAL_PAIR, [case], methods, kept, progress)
    return table


def _run_task(
    table: Table,
    task: Task,
    cases: list[Case],
    methods: Mapping[str, Method],
    kept: Kept | None,
    progress: Callable[[str], None] | None,
) -> None:
    table.tasks[task.name], table.cases[task.name] = task, cases
    before = kept(task, cases) if kept else {}
    table.recorded[task.name] = [name for name in methods if name in before]
    for by_task in (table.values, table.images, table.seconds, table.evaluations):
        by_task[task.name] = {}
    table.network_share[task.name], table.samples[task.name] = {}, {}
    for name, method in methods.items():
        if row := before.get(name):
            table.values[task.name][name] = row.values
            table.images[task.name][name], table.seconds[task.name][name] = row.image, row.seconds
            continue
        collected: dict[str, list[float]] = {}
        watch_seconds, evaluations, network = [], [], []
        for number, case in enumerate(cases):
            with Stopwatch() as watch, torch.no_grad():
                result = method(case)
            watch_seconds.append(watch.seconds)
            image = result
            scores = {}
            if isinstance(result, generalist.Estimate):
                image = result.image
                evaluations.append(result.cost.evaluations)
                network.append(result.cost.network_seconds / result.cost.seconds)
                table.samples[task.name][name] = len(result.samples)
                if len(result.samples) > 1 and task is not REAL_PAIR:
                    covered = metrics.coverage(result.samples, case.truth, interval="normal")
                    scores["coverage"] = [covered]
            answer = np.asarray(image, np.float32)
            scores |= score(task, answer, case.truth)
            for metric, values in scores.items():
                collected.setdefault(metric, []).extend(values)
            if number == 0:
                table.images[task.name][name] = answer
        table.values[task.name][name] = {k: np.array(v) for k, v in collected.items()}
        table.seconds[task.name][name] = float(np.mean(watch_seconds))
        if evaluations:
            table.evaluations[task.name][name] = float(np.mean(evaluations))
            table.network_share[task.name][name] = float(np.mean(network))
        if progress is not None:
            mean = table.values[task.name][name]["psnr"].mean()
            progress(f"{task.label}: {LABELS.get(name, name)} {mean:.2f} dB")


def _measure(task: Task, truths: list[Image], seed: int) -> list[Case]:
    cases = []
    for number, truth in enumerate(truths):
        case_seed = (seed * 1009 + number) * 1009 + sum(task.name.encode())
        generator = torch.Generator().manual_seed(case_seed)
        measured = task.measure(torch.from_numpy(truth), generator).numpy()
        cases.append(Case(task, known_of(task), truth, measured, case_seed))
    return cases
