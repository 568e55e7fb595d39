"""The chapter's experiment: every method on the same fields, many targets, paired errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from emlab import chapters, metrics
from emlab.bench import Report
from emlab.bench.study import Column, Study, each
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.methods.mtd import Config, Recovery, draw_starts, load_config, recover
from emlab.physics.mtd import Measurement, simulate_measurement
from emlab.priors.base import Prior
from emlab.priors.gaussian import gaussian_prior
from emlab.priors.networks import load_prior, untrained_prior
from emlab.runtime import make_generator

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
    "closed_form": "closed form, no prior",
    "closed_form_prior": "closed form, our prior",
    "occupancy": "closed form, occupancy learned, no prior",
    "occupancy_prior": "closed form, occupancy learned, our prior",
    "hard_prior": "the same, hard assignment",
    "annealed_prior": "soft again, weight of the prior grows",
    "detect_align_average": "detect, align, average",
    "detect_align_denoise": "detect, align, average, denoise",
    "ours": "ours",
    "ours_hard": "ours, hard assignment",
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
        table = chapters.settings("04_mtd", profile)["study"][kind]
        return cls(table["targets"], table["draws"], tuple(table["snrs"]))


@dataclass(frozen=True)
class Task:
    """One field: target number, draw number, the truth and the measurement."""

    target: int
    draw: int
    truth: Tensor
    measurement: Measurement
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh generator: every method sees the same random numbers."""
        return torch.Generator().manual_seed(self.seed)


COLUMNS = (
    Column("error", "rotation only", better="lower", gain="gain"),
    Column("error_shift", "rotation and shift", better="lower", gain="gain_shift"),
)


@dataclass
class Fields:
    """The same methods on fields of several SNRs."""

    truths: np.ndarray  #: ``(targets, L, L)``
    #: by SNR; a case is a field; errors after the best rotation, and rotation and shift
    studies: dict[float, Study]
    #: ``kept[method][snr]``: recorded images ``(targets, L, L)`` of the first draw
    kept: dict[str, dict[float, np.ndarray]] = field(default_factory=dict)

    @property
    def snrs(self) -> list[float]:
        """Of the studies."""
        return list(self.studies)

    def images(self, method: str, snr: float) -> np.ndarray | None:
        """What a method made of each target's first field ``(targets, L, L)``, where it is kept."""
        if method in self.kept:
            return self.kept[method].get(snr)
        study = self.studies[snr]
        pairs = zip(study.cases, study.answers[method], strict=True)
        return np.stack([_image(found) for task, found in pairs if task.draw == 0])

    def seconds(self, method: str) -> float:
        """Mean seconds of a recovery."""
        return float(np.mean([study.seconds[method] for study in self.studies.values()]))

    def misplaced(self, method: str, snr: float) -> float:
        """Fraction of fields whose image is good, but shifted or turned into a wrong place."""
        scores = self.studies[snr].scores[method]
        return float((scores["error"] - scores["error_shift"] > MISPLACED).mean())

    def record(self, report: Report, kind: str) -> None:
        """Record all errors as ``KIND.snr_S.error.METHOD`` (and ``error_shift``), and gains."""
        for snr, study in self.studies.items():
            prefix = f"{kind}.snr_{snr:g}"
            study.record(report, prefix)
            if "paper_prior" in study.scores:
                for pair in (("paper_prior", "paper_no_prior"), ("ours", "paper_prior")):
                    study.record_gains(report, *pair, prefix)
                share = self.misplaced("ours", snr)
                report.value(f"{prefix}.misplaced.ours", share, note="fraction of fields")


Method = Callable[[Task], Tensor | Recovery]


def targets(kind: str, count: int, split: str = "test") -> Tensor:
    """Images to hide in fields, ``(count, L, L)``: Gaussian images or digits of a split.

    Digits are taken in turn from the ten classes, in the order of the file.
    """
    if kind == "gaussian":
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
) -> Fields:
    """Run methods, see `standard_methods`, on every field of a study, made on their device.

    The kind of image is ``"gaussian"`` or ``"mnist"``; the split of digits ``"test"`` for results
    and ``"validation"`` for choosing settings. So many `workers` are threads, each with a field;
    torch itself should then use one.
    """
    batched = {name: each(method, workers) for name, method in methods.items()}
    studies = {}
    for snr in settings.snrs:
        tasks = draw_tasks(kind, settings, snr, seed, split, device)
        studies[snr] = Study(tasks, COLUMNS, LABELS, np.array([task.target for task in tasks]))
        studies[snr].run(batched, score)
    return Fields(targets(kind, settings.targets, split).numpy(), studies)


def score(tasks: Sequence[Task], answers: Sequence[Tensor | Recovery]) -> dict[str, np.ndarray]:
    """Errors of answers: after the best rotation, and after the best rotation and shift."""
    pairs = [(_image(a), t.truth.cpu().numpy()) for a, t in zip(answers, tasks, strict=True)]
    most = {"error": 0, "error_shift": min(MAX_SHIFT, len(pairs[0][1]) // 3)}
    return {k: np.array([metrics.relative_error(*p, s) for p in pairs]) for k, s in most.items()}


def draw_tasks(
    kind: str,
    size: StudySettings,
    snr: float,
    seed: int = 0,
    split: str = "test",
    device: torch.device | str = "cpu",
) -> list[Task]:
    """The fields of a study at one SNR, each from random numbers of its own."""
    truths, tasks = targets(kind, size.targets, split).to(device), []
    for target, draw in product(range(size.targets), range(size.draws)):
        own = ((1009 * seed + target) * 1009 + draw) * 100_003 + round(1000 * snr)
        measurement = simulate_measurement(truths[target], snr, make_generator(own))
        tasks.append(Task(target, draw, truths[target], measurement, own))
    return tasks


def standard_methods(
    kind: str, seed: int = 0, starts: Tensor | None = None, device: torch.device | str = "cpu"
) -> dict[str, Method]:
    """The rows of the chapter's table, by name; `starts` replaces those that ours would draw."""
    generator = torch.Generator().manual_seed(seed)
    paper, ours = load_config(f"paper_{kind}"), load_config(f"ours_{kind}")
    ours_prior: Prior
    if kind == "gaussian":
        ours_prior, theirs = gaussian_prior(device), "mtd_gaussian_mlp"
        mean = gaussian_prior().mean
    else:
        ours_prior, theirs = load_prior("mtd_mnist_epsilon", device), "mtd_mnist_vp"
        mean = torch.from_numpy(load_digits("train").images).mean(0)
    given = paper_start(kind, generator)
    if starts is None:
        starts = draw_starts(ours, generator, ours_prior, device)
    ours = replace(ours, starts=len(starts), kept=min(ours.kept, len(starts)))
    rows: dict[str, Method] = {
        "zero": lambda task: torch.zeros_like(task.truth),
        "prior_mean": lambda task: mean,
        "brightest_patch": brightest_patch,
        "paper_no_prior": recovery_row(paper, None, given),
        "paper_prior": recovery_row(paper, load_prior(theirs, device), given),
        "ours": recovery_row(ours, ours_prior, starts),
        "oracle": lambda task: known_pose_oracle(task, ours_prior),
    }
    if kind == "gaussian":
        rows["converged_no_prior"] = recovery_row(load_config("converged_gaussian"))
    return rows


def paper_start(kind: str, generator: torch.Generator) -> Tensor | None:
    """The paper's start: the mean of ten training digits ``(1, L, L)``; for Gaussians its own."""
    if kind == "gaussian":
        return None
    digits = torch.from_numpy(load_digits("train").images)
    ten = torch.randint(len(digits), (10,), generator=generator)
    return digits[ten].mean(0, keepdim=True)


def recovery_row(
    config: Config, prior: Prior | None = None, starts: Tensor | None = None
) -> Method:
    """`recover` with settings of the paper or ours; sigma is known, as to the paper's algorithm."""

    def row(task: Task) -> Recovery:
        field, sigma = task.measurement.field, task.measurement.sigma
        return recover(field, config, task.generator(), prior, sigma, starts)

    return row


def untrained_row(starts: int, seed: int = 0, device: torch.device | str = "cpu") -> Method:
    """Our method with a network that was never trained: what the solver does on its own."""
    prior = untrained_prior("mtd_mnist_epsilon", seed, device)
    config = replace(load_config("ours_mnist"), starts=starts)
    generator = torch.Generator().manual_seed(seed)
    return recovery_row(config, prior, draw_starts(config, generator, prior, device))


def brightest_patch(task: Task) -> Tensor:
    """The piece of the raw field, L x L, with the most energy: the identity as an answer."""
    size = task.truth.shape[-1]
    energy = torch.nn.functional.avg_pool2d(task.measurement.field.square()[None], size, stride=1)
    row, column = divmod(int(energy.argmax()), energy.shape[-1])
    return task.measurement.field[row : row + size, column : column + size]


def known_pose_oracle(task: Task, prior: Prior) -> Tensor:
    """Average of all copies at their true places, denoised by our prior: the reference."""
    operator = task.measurement.operator
    copies = len(operator.turns)
    average = operator.A_adjoint(task.measurement.field) / copies
    return prior.denoise(average, task.measurement.sigma / copies**0.5)


def _image(found: Tensor | Recovery) -> np.ndarray:
    return (found.image if isinstance(found, Recovery) else found).cpu().numpy()
