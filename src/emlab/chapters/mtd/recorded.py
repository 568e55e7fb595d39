"""What chapter 04 shows as recorded: slow rows, faint fields, an ablation, smaller studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlab import chapters, metrics
from emlab.bench import Report
from emlab.bench.study import Scores, Study, each
from emlab.chapters.mtd import experiments as lab, study as study_of
from emlab.chapters.mtd.study import COLUMNS, LABELS, Fields, Method, StudySettings, Task
from emlab.data.digits import load_digits
from emlab.methods.mtd import Config, Recovery, draw_starts, load_config, recover
from emlab.metrics.intervals import Interval, paired_ratio
from emlab.physics.mtd import cut_patches, simulate_measurement
from emlab.priors.base import Prior
from emlab.priors.gaussian import gaussian_prior
from emlab.priors.networks import load_prior
from emlab.recorded import Recording, pack, unpack
from emlab.runtime import choose_threads, make_generator
from emlab.settings import read_settings
from emlab.solvers.expectation_maximization import EMConfig, ExpectationStep, sample_images

_WEIGHTS = {
    "constant 1": (1.0, "constant"),
    "constant 0.5": (0.5, "constant"),
    "linear to 1": (1.0, "linear"),
}


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each study's rows, what tells its fields apart, and the digits that starts came from."""
    workers, seed = choose_threads(), settings["seed"]
    choose_threads(1)
    found = {}
    for name, study in settings["studies"].items():
        kind, split = study["kind"], study["split"]
        size = StudySettings(study["targets"], study["draws"], tuple(study["snrs"]))
        prior, starts, config = _ours(kind, study["starts"], seed)
        methods = study_of.standard_methods(kind, seed, starts)
        methods |= ablation_rows(kind, prior, seed) | lab.classical_rows(prior)
        hard = replace(config.em, assignment="hard")
        methods["ours_hard"] = study_of.recovery_row(replace(config, em=hard), prior, starts)
        if "ours_untrained" in study["rows"]:
            methods["ours_untrained"] = study_of.untrained_row(len(starts), seed)
        chosen = {row: methods[row] for row in study["rows"]}
        fields = study_of.run_study(kind, size, chosen, seed=seed, split=split, workers=workers)
        rows = {row: _packed(fields, row, size) for row in chosen}
        found[name] = {"power": _power(kind, size, seed, split), "rows": rows}
    choose_threads(workers)
    return {"studies": found, "starts_from": load_digits("train").source}


def _ours(kind: str, starts: int, seed: int) -> tuple[Prior, Tensor, Config]:
    """Prior, so many starts and settings of ours for one kind of image."""
    prior = gaussian_prior() if kind == "gaussian" else load_prior("mtd_mnist_epsilon")
    config = replace(load_config(f"ours_{kind}"), starts=starts)
    return prior, draw_starts(config, make_generator(seed), prior), config


def ablation_rows(kind: str, prior: Prior, seed: int) -> dict[str, Method]:
    """What ours changes in the paper's settings, one after the other, from the paper's own start.

    The closed form in place of a gradient step; the occupancy learned; each without a prior and
    with ours in the M-step (``map`` or ``proximal``), that with each patch given to its likeliest
    state; the weight of the prior growing from 0 as the paper's.
    """
    paper, start = load_config(f"paper_{kind}"), study_of.paper_start(kind, make_generator(seed))
    with_prior = load_config(f"ours_{kind}").em
    without = replace(with_prior, m_step="closed_form")
    changes = {
        "closed_form": replace(without, learn_occupancy=False),
        "closed_form_prior": replace(with_prior, learn_occupancy=False),
        "occupancy": without,
        "occupancy_prior": with_prior,
        "hard_prior": replace(with_prior, assignment="hard"),
        "annealed_prior": replace(with_prior, prior_schedule="linear", tolerance=0.0),
    }

    def row(em: EMConfig) -> Method:
        config = replace(paper, em=replace(em, iterations=paper.em.iterations))
        return study_of.recovery_row(config, None if em.m_step == "closed_form" else prior, start)

    return {name: row(em) for name, em in changes.items()}


def _measure_schedules(settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """Errors of validation digits at SNR 0.5 under three schedules of the prior's weight.

    The paper's settings from the mean of ten training digits, the same field for every schedule.
    """
    workers = choose_threads()
    choose_threads(1)
    start = torch.from_numpy(load_digits("train").images[:10].mean(0))[None]
    paper, prior, found = load_config("paper_mnist"), load_prior("mtd_mnist_vp"), {}
    truths = list(enumerate(study_of.targets("mnist", settings["targets"], "validation")))
    count = settings["iterations"]
    for name, (weight, schedule) in _WEIGHTS.items():
        told: dict[str, Any] = {"prior_weight": weight, "prior_schedule": schedule}
        em = replace(paper.em, iterations=count, **told)
        ask = partial(_error, replace(paper, em=em), prior, start, settings["seed"], snr=0.5)
        found[name] = each(ask, workers)(truths)
    choose_threads(workers)
    return found


def _measure_separation(settings: Mapping[str, Any]) -> dict[str, float]:
    """Mean error by density when copies may touch: ours, Gaussian images, SNR 5, N = 110."""
    config, prior, means = load_config("ours_gaussian"), gaussian_prior(), {}
    truths = list(enumerate(study_of.targets("gaussian", settings["targets"])))
    for density in settings["densities"]:
        crowded = {"snr": 5.0, "field_size": 110, "density": density, "separation": 5}
        ask = partial(_error, config, prior, None, settings["seed"], **crowded)
        means[f"{density:g}"] = float(np.mean(each(ask)(truths)))
    return means


def _error(
    config: Config, prior: Prior, starts: Tensor | None, seed: int, numbered: Any, **field: Any
) -> float:
    """Error of a truth, given with its number, recovered from such a field of its own."""
    number, truth = numbered
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    measurement = simulate_measurement(truth, generator=generator, **field)
    found = recover(measurement.field, config, generator, prior, measurement.sigma, starts)
    return metrics.relative_error(found.image.numpy(), truth.numpy())


def _measure_samples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By study and SNR, of every field: errors of ours and of the samples' mean; the spread."""
    workers = choose_threads()
    choose_threads(1)
    found: dict[str, Any] = {}
    for kind, study in settings["studies"].items():
        found[kind] = {}
        prior, starts, config = _ours(kind, study["starts"], settings["seed"])
        sample = partial(_sampled, study_of.recovery_row(config, prior, starts), prior, settings)
        size = StudySettings(study["targets"], study["draws"], tuple(study["snrs"]))
        for snr in study["snrs"]:
            rows = each(sample, workers)(study_of.draw_tasks(kind, size, snr, settings["seed"]))
            found[kind][f"{snr:g}"] = {name: [row[name] for row in rows] for name in rows[0]}
    choose_threads(workers)
    return found


def _sampled(ours: Method, prior: Prior, settings: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Errors by `COLUMNS`, and the spread over the norm of the truth: later halves of chains."""
    recovery, measured, sweeps = ours(task), task.measurement, settings["sweeps"]
    assert isinstance(recovery, Recovery)
    rotations = measured.operator.rotations
    starts = recovery.image.expand(settings["chains"], -1, -1)
    estep = ExpectationStep(cut_patches(measured.field, rotations.size), rotations, measured.sigma)
    chains = sample_images(estep, starts, prior, recovery.occupancy, sweeps, task.generator())
    drawn = chains[sweeps // 2 :].flatten(0, 1)
    errors = study_of.score([task] * 2, [recovery, drawn.mean(0)])
    pairs = np.stack([errors[column.name] for column in COLUMNS], -1)
    spread = (drawn.std(0).norm() / task.truth.norm()).item()
    return {"ours": pairs[0].tolist(), "mean": pairs[1].tolist(), "spread": spread}


def _power(
    kind: str, size: StudySettings, seed: int, split: str, device: torch.device | str = "cpu"
) -> list[float]:
    """Mean squared grey level of each target's first field at the highest SNR."""
    first, snr = replace(size, draws=1), max(size.snrs)
    tasks = study_of.draw_tasks(kind, first, snr, seed, split, device)
    return [task.measurement.field.square().mean().item() for task in tasks]


def _packed(fields: Fields, row: str, size: StudySettings) -> dict[str, Any]:
    """Errors ``(targets, draws, 2)``; digits at the lowest and the highest SNR as bytes."""
    errors, images = {}, {}
    for snr, study in fields.studies.items():
        both = np.stack([study.scores[row][column.name] for column in COLUMNS], -1)
        errors[f"{snr:g}"] = both.reshape(size.targets, size.draws, 2).tolist()
    for snr in (min(fields.snrs), max(fields.snrs)):
        image = fields.images(row, snr)
        if image is not None and image.shape[-1] == 28:
            images[f"{snr:g}"] = pack(255 * image)
    return {"errors": errors, "images": images}


def _join(fields: Fields, rows: Mapping[str, Any], report: Report, kind: str) -> None:
    """Put recorded rows into the studies: of the first targets and draws."""
    fields.kept |= {row: {} for row in rows}
    for snr, study in (fields.studies if rows else {}).items():
        places = tuple(np.array([(task.target, task.draw) for task in study.cases]).T)
        study.join_recorded(ROWS, _scores(rows, snr, places), report, kind)
        for row, kept in rows.items():
            if f"{snr:g}" in kept["images"]:
                grey = unpack(kept["images"][f"{snr:g}"], -1, 28, 28)
                fields.kept[row][snr] = grey[: len(fields.truths)] / 255


def _scores(rows: Mapping[str, Any], snr: float, places: Any = ()) -> dict[str, Scores]:
    """Errors of every row by column, all or at places ``(targets, draws)``."""
    errors = {row: np.array(kept["errors"][f"{snr:g}"])[places] for row, kept in rows.items()}
    names = [column.name for column in COLUMNS]
    return {row: dict(zip(names, one.reshape(-1, 2).T, strict=True)) for row, one in errors.items()}


_recording = partial(chapters.recording, "04_mtd", configs=read_settings("methods/mtd")["configs"])
_OURS = ("mtd_mnist_epsilon", "mtd_mnist_turns")
ROWS, FAINT, ABLATION = (
    _recording(name, _measure_rows, "mtd_gaussian_mlp", "mtd_mnist_vp", *_OURS)
    for name in ("rows", "faint", "ablation")
)
SCHEDULES = _recording("schedules", _measure_schedules, "mtd_mnist_vp")
SAMPLES = _recording("samples", _measure_samples, *_OURS)
SEPARATION = _recording("separation", _measure_separation)


def recorded_rows(
    kind: str, size: StudySettings, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Mapping[str, Any]]:
    """Recorded rows by name, if they were measured on the very fields of this study; else none."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, kept in ROWS.values["studies"].items():
        of = ROWS.settings["studies"][name]
        fits = of["kind"] == kind and set(size.snrs) <= set(of["snrs"])
        if not fits or size.targets > of["targets"] or size.draws > of["draws"]:
            continue
        # At the recorded top SNR, which a smaller study need not have.
        here = _power(kind, replace(size, snrs=tuple(of["snrs"])), seed, "test", device)
        if np.allclose(here, kept["power"][: size.targets], rtol=1e-4):
            found |= kept["rows"]
    return found


def study_with_recorded(
    report: Report,
    kind: str,
    size: StudySettings,
    methods: dict[str, Method],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> Fields:
    """`run_study`, but with recorded rows where there are some of the same fields.

    Of each of those the first field is run again, unless its start came from other digits than the
    recorded one; see `Study.join_recorded`.
    """
    kept = recorded_rows(kind, size, seed, device)
    kept = {name: kept[name] for name in methods if name in kept}
    live = {name: method for name, method in methods.items() if name not in kept}
    fields = study_of.run_study(kind, size, live, seed=seed, device=device, workers=workers)
    if kind == "gaussian" or load_digits("train").source == ROWS.values["starts_from"]:
        again = {name: each(methods[name]) for name in kept}
        fields.studies[size.snrs[0]].run(again, study_of.score, first=dict.fromkeys(kept, 1))
    _join(fields, kept, report, kind)
    return fields


def recorded_study(report: Report, recording: Recording, name: str) -> Fields:
    """A recorded study as it stands, without its fields."""
    of, kept = recording.settings["studies"][name], recording.values["studies"][name]["rows"]
    cases = np.repeat(np.arange(of["targets"]), of["draws"])
    studies = {snr: Study(list(cases), COLUMNS, LABELS, cases) for snr in of["snrs"]}
    for snr, study in studies.items():
        study.join_recorded(recording, _scores(kept, snr), report)
    return Fields(np.empty(0), studies)


def untrained_study(
    report: Report,
    size: StudySettings,
    starts: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> Fields:
    """The row of a network that was never trained: recorded, or run from so many starts."""
    rows = recorded_rows("mnist", size, seed, device)
    kept = {name: row for name, row in rows.items() if name == "ours_untrained"}
    methods = {} if kept else {"ours_untrained": study_of.untrained_row(starts, seed, device)}
    fields = study_of.run_study("mnist", size, methods, seed=seed, device=device, workers=workers)
    _join(fields, kept, report, "mnist")
    return fields


def sample_calibration(kind: str, snr: str) -> tuple[list[float], Interval]:
    """Root mean squares over the fields of `SAMPLES`, and the second over the third.

    They are the errors of ours and of the samples' mean (digits: after the best shift too) and the
    samples' spread. Of calibrated samples the ratio is 1; above it they spread too little.
    """
    found, of = SAMPLES.values[kind][snr], SAMPLES.settings["studies"][kind]
    column = int(kind == "mnist")
    ours, mean = (np.square(found[name])[:, column] for name in ("ours", "mean"))
    spread = np.square(found["spread"])
    targets = np.repeat(np.arange(of["targets"]), of["draws"])
    ratio = paired_ratio(mean, spread, groups=targets)
    return [float(v.mean() ** 0.5) for v in (ours, mean, spread)], Interval(*np.sqrt(ratio))
