"""The chapter's experiment: every method on the same fields, many targets, paired errors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlab import metrics
from emlab.bench import Report
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.methods.mtd import Config, Recovery, draw_starts, recover
from emlab.models import build
from emlab.physics.mtd import Measurement, simulate_measurement
from emlab.priors.base import Prior
from emlab.priors.networks import load_prior, wrap
from emlab.recipes.mtd import gaussian_prior
from emlab.runtime import Stopwatch, make_generator
from emlab.settings import read_profile
from emlab.weights import card

MAX_SHIFT = 8
MISPLACED = 0.2  # a good image in the wrong place loses at least this much error when shifted
GAUSSIAN_SEEDS = {"test": 78, "validation": 77}
LABELS = {
    "zero": "zero image",
    "prior_mean": "mean of the prior",
    "brightest_patch": "brightest raw patch",
    "paper_no_prior": "paper's settings, no prior",
    "paper_prior": "paper's settings, with prior",
    "converged_no_prior": "paper's model converged, no prior",
    "ours": "ours",
    "ours_untrained": "ours, untrained network",
    "oracle": "oracle: known poses, denoised",
}


@dataclass(frozen=True)
class StudySettings:
    """Size of a study: so many targets, each hidden in so many fields, at each SNR."""

    targets: int
    draws: int
    snrs: tuple[float, ...]

    @classmethod
    def of(cls, kind: str, profile: str) -> StudySettings:
        """The ``[PROFILE.study]`` table for one kind of image."""
        table = read_profile("mtd", profile)["study"][kind]
        return cls(table["targets"], table["draws"], tuple(table["snrs"]))


@dataclass(frozen=True)
class Task:
    """One field: target number, draw number, SNR, the truth and the measurement."""

    target: int
    draw: int
    snr: float
    truth: Tensor
    measurement: Measurement
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh generator: every method sees the same random numbers."""
        return torch.Generator().manual_seed(self.seed)


@dataclass
class Row:
    """One method's answers.

    Attributes
    ----------
    errors : dict
        ``errors[snr]`` is ``(targets, draws, 2)``: rotation only, rotation and shift.
    images : dict
        ``images[snr]`` is ``(targets, draws, L, L)``; of a recorded row only the first draw of
        some SNRs.
    traces : dict
        ``traces[snr]``: log-likelihood by iteration of the first target's best start.
    seconds : float
        Mean seconds per recovery; NaN of a recorded row.
    """

    errors: dict[float, np.ndarray]
    images: dict[float, np.ndarray] = field(default_factory=dict)
    traces: dict[float, np.ndarray] = field(default_factory=dict)
    seconds: float = float("nan")


@dataclass
class Study:
    """Errors and images of every method.

    Attributes
    ----------
    snrs : tuple of float
        Rows of the table.
    truths : ndarray
        ``(targets, L, L)``.
    rows : dict
        A `Row` a method.
    recorded : dict
        Methods whose rows are recorded: one field's error here over the recorded one, or None
        where it was not run again.
    """

    snrs: tuple[float, ...]
    truths: np.ndarray
    rows: dict[str, Row] = field(default_factory=dict)
    recorded: dict[str, float | None] = field(default_factory=dict)

    def interval(self, method: str, snr: float, shift: bool = False) -> metrics.Interval:
        """Mean error with its 95 % interval over targets."""
        return metrics.mean_interval(self.rows[method].errors[snr][..., int(shift)])

    def gain(self, better: str, worse: str, snr: float, shift: bool = False) -> metrics.Interval:
        """Mean of ``worse - better`` on the same fields, with its interval."""
        first, second = (self.rows[name].errors[snr][..., int(shift)] for name in (worse, better))
        return metrics.paired_difference(first, second)

    def misplaced(self, method: str, snr: float) -> float:
        """Fraction of fields whose image is good, but shifted or turned into a wrong place."""
        errors = self.rows[method].errors[snr]
        return float((errors[..., 0] - errors[..., 1] > MISPLACED).mean())

    def table(self) -> str:
        """Markdown table: a row a method, a column an SNR; shift-tolerant error in brackets.

        Recorded rows have a dagger.
        """
        head = "| method | " + " | ".join(f"SNR {snr:g}" for snr in self.snrs) + " |"
        rows = [head, "|---" * (len(self.snrs) + 1) + "|"]
        for name in (name for name in LABELS if name in self.rows):
            cells = []
            for snr in self.snrs:
                mean, low, high = self.interval(name, snr)
                shifted = self.interval(name, snr, shift=True).mean
                cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}] ({shifted:.3f})")
            label = LABELS[name] + " \u2020" * (name in self.recorded)
            rows.append(f"| {label} | " + " | ".join(cells) + " |")
        return "\n".join(rows)

    def record(self, report: Report, kind: str) -> None:
        """Record all errors as ``KIND.snr_S.error.METHOD`` (and ``error_shift``)."""
        for name, row in self.rows.items():
            note = "95 % bootstrap interval over targets" + ", recorded" * (name in self.recorded)
            for snr in self.snrs:
                for metric, shift in (("error", False), ("error_shift", True)):
                    mean, low, high = self.interval(name, snr, shift)
                    report.value(
                        f"{kind}.snr_{snr:g}.{metric}.{name}",
                        mean,
                        low,
                        high,
                        note=note,
                        n=len(row.errors[snr]),
                    )
        if "paper_prior" in self.rows:
            for snr in self.snrs:
                for better, worse in (("paper_prior", "paper_no_prior"), ("ours", "paper_prior")):
                    for metric, shift in (("gain", False), ("gain_shift", True)):
                        mean, low, high = self.gain(better, worse, snr, shift)
                        name = f"{kind}.snr_{snr:g}.{metric}.{better}_over_{worse}"
                        report.value(name, mean, low, high, note="paired, same fields")
                name = f"{kind}.snr_{snr:g}.misplaced.ours"
                report.value(name, self.misplaced("ours", snr), note="fraction of fields")


Method = Callable[[Task], Tensor | Recovery]


def targets(kind: str, count: int, split: str = "test") -> Tensor:
    """Images to hide in fields, ``(count, L, L)``: Gaussian images or digits of a split.

    Digits are taken in turn from the ten classes, in the order of the file.
    """
    if kind == "gaussian":
        if split not in GAUSSIAN_SEEDS:
            raise InputError(f"unknown split {split!r}; choose 'test' or 'validation'")
        return gaussian_prior().sample(count, make_generator(GAUSSIAN_SEEDS[split]))
    if kind != "mnist":
        raise InputError(f"unknown kind of image {kind!r}; choose 'gaussian' or 'mnist'")
    digits = load_digits(split)
    by_class = [np.flatnonzero(digits.labels == label) for label in range(10)]
    chosen = [by_class[i % 10][i // 10] for i in range(count)]
    return torch.from_numpy(digits.images[chosen])


def run_study(
    kind: str,
    settings: StudySettings,
    methods: dict[str, Method],
    *,
    seed: int = 0,
    split: str = "test",
    device: torch.device | str = "cpu",
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Run every method on every field of a study.

    Parameters
    ----------
    kind : str
        ``"gaussian"`` or ``"mnist"``.
    methods : dict
        Name to function of a `Task`, see `standard_methods`.
    split : str
        Digits: ``"test"`` for results, ``"validation"`` for choosing settings.
    device : torch.device or str
        Where the fields are made and the methods' priors lie.
    workers : int
        Fields in work at the same time (threads; torch itself should then use one).
    """
    tasks = draw_tasks(kind, settings, seed, split, device)
    study = Study(settings.snrs, targets(kind, settings.targets, split).numpy())
    for name, method in methods.items():
        study.rows[name] = answer(method, tasks, workers)
        if progress is not None:
            progress(f"{kind}: {name}, {study.rows[name].seconds:.2f} s a field")
    return study


def draw_tasks(
    kind: str,
    settings: StudySettings,
    seed: int = 0,
    split: str = "test",
    device: torch.device | str = "cpu",
) -> list[Task]:
    """The fields of a study: by SNR, target and draw, each from random numbers of its own."""
    truths = targets(kind, settings.targets, split).to(device)
    return [
        _draw_task(target, draw, snr, truths[target], seed)
        for snr in settings.snrs
        for target in range(settings.targets)
        for draw in range(settings.draws)
    ]


def answer(method: Method, tasks: list[Task], workers: int = 1) -> Row:
    """What a method makes of all targets and draws of some SNRs, and how far off it is."""
    with Stopwatch() as watch, ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda task: _run(method, task), tasks))
    row = Row({}, seconds=watch.seconds / len(tasks))
    shape = (1 + max(task.target for task in tasks), 1 + max(task.draw for task in tasks))
    for task, (image, trace) in zip(tasks, results, strict=True):
        where = (task.target, task.draw)
        errors = row.errors.setdefault(task.snr, np.zeros((*shape, 2)))
        images = row.images.setdefault(task.snr, np.zeros((*shape, *image.shape)))
        errors[where], images[where] = _errors(image, task.truth.cpu().numpy()), image
        if where == (0, 0) and trace is not None:
            row.traces[task.snr] = trace
    return row


def standard_methods(
    kind: str, seed: int = 0, starts: Tensor | None = None, device: torch.device | str = "cpu"
) -> dict[str, Method]:
    """The rows of the chapter's table, by name; `starts` replaces those that ours would draw.

    ``paper_no_prior``, ``paper_prior``: the paper's settings; ``ours``; ``oracle``: positions and
    rotations known, averaged and denoised with our prior; ``zero``, ``prior_mean`` and
    ``brightest_patch``: answers without any work.
    """
    generator = torch.Generator().manual_seed(seed)
    paper, ours = Config.named(f"paper_{kind}"), Config.named(f"ours_{kind}")
    paper_prior: Prior
    ours_prior: Prior
    if kind == "gaussian":
        ours_prior, paper_prior = gaussian_prior(device), load_prior("mtd_gaussian_mlp", device)
        mean = gaussian_prior().mean
        paper_starts = None
    else:
        ours_prior = load_prior("mtd_mnist_epsilon", device)
        paper_prior = load_prior("mtd_mnist_vp", device)
        digits = torch.from_numpy(load_digits("train").images)
        mean = digits.mean(0)
        ten = torch.randint(len(digits), (10,), generator=generator)
        paper_starts = digits[ten].mean(0, keepdim=True)
    if starts is None:
        starts = draw_starts(ours, generator, ours_prior, device)
    ours = replace(ours, starts=len(starts), kept=min(ours.kept, len(starts)))

    def paper_row(prior: Prior | None) -> Method:
        return lambda task: recover(
            task.measurement.field,
            paper,
            task.generator(),
            prior,
            sigma=task.measurement.sigma,
            starts=paper_starts,
        )

    rows: dict[str, Method] = {
        "zero": lambda task: torch.zeros_like(task.truth),
        "prior_mean": lambda task: mean,
        "brightest_patch": brightest_patch,
        "paper_no_prior": paper_row(None),
        "paper_prior": paper_row(paper_prior),
        "ours": ours_row(ours, ours_prior, starts),
        "oracle": lambda task: known_pose_oracle(task, ours_prior),
    }
    if kind == "gaussian":
        rows["converged_no_prior"] = lambda task: recover(
            task.measurement.field,
            Config.named("converged_gaussian"),
            task.generator(),
            sigma=task.measurement.sigma,
        )
    return rows


def ours_row(config: Config, prior: Prior, starts: Tensor) -> Method:
    """Our method with given starts; sigma is known, as it is to the paper's algorithm."""
    return lambda task: recover(
        task.measurement.field,
        config,
        task.generator(),
        prior,
        sigma=task.measurement.sigma,
        starts=starts,
    )


def untrained_row(starts: int, seed: int = 0, device: torch.device | str = "cpu") -> Method:
    """Our method with a network that was never trained: what the solver does on its own."""
    description = card("mtd_mnist_epsilon")
    torch.manual_seed(seed)
    prior = wrap(build(description.model).to(device), description.objective)
    config = replace(Config.named("ours_mnist"), starts=starts)
    generator = torch.Generator().manual_seed(seed)
    return ours_row(config, prior, draw_starts(config, generator, prior, device))


def brightest_patch(task: Task) -> Tensor:
    """The piece of the raw field, L x L, with the most energy: the identity as an answer."""
    size = task.truth.shape[-1]
    energy = torch.nn.functional.avg_pool2d(task.measurement.field.square()[None], size, stride=1)
    place = int(energy.argmax())
    row, column = divmod(place, energy.shape[-1])
    return task.measurement.field[row : row + size, column : column + size]


def known_pose_oracle(task: Task, prior: Prior) -> Tensor:
    """Average of all copies at their true places, denoised by our prior: the reference."""
    operator = task.measurement.operator
    copies = len(operator.turns)
    average = operator.A_adjoint(task.measurement.field) / copies
    return prior.denoise(average, task.measurement.sigma / copies**0.5)


def _draw_task(target: int, draw: int, snr: float, truth: Tensor, seed: int) -> Task:
    task_seed = ((1009 * seed + target) * 1009 + draw) * 100_003 + round(1000 * snr)
    generator = torch.Generator().manual_seed(task_seed)
    measurement = simulate_measurement(truth, snr, generator)
    return Task(target, draw, snr, truth, measurement, task_seed)


def _run(method: Method, task: Task) -> tuple[np.ndarray, np.ndarray | None]:
    with torch.no_grad():
        result: Any = method(task)
    if isinstance(result, Recovery):
        best = int(result.trace[-1].argmax())
        return result.image.cpu().numpy(), result.trace[:, best].cpu().numpy()
    return result.cpu().numpy(), None


def _errors(image: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    shift = min(MAX_SHIFT, len(truth) // 3)
    return metrics.relative_error(image, truth), metrics.relative_error(image, truth, shift)
