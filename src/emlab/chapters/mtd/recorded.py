"""What chapter 04 shows as recorded: slow rows, faint fields, an ablation, smaller studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emlab.bench import Report
from emlab.bench.study import Scores, Study, each
from emlab.chapters.mtd.experiments import (
    ablation_rows,
    classical_rows,
    compare_schedules,
    draw_images,
    violate_separation,
)
from emlab.chapters.mtd.study import (
    COLUMNS,
    LABELS,
    Fields,
    Method,
    StudySettings,
    Task,
    draw_tasks,
    ours_row,
    run_study,
    score,
    standard_methods,
    untrained_row,
)
from emlab.data.digits import load_digits
from emlab.methods.mtd import Config, Recovery, draw_starts, load_config
from emlab.metrics.intervals import Interval, paired_ratio
from emlab.priors.base import Prior
from emlab.priors.gaussian import gaussian_prior
from emlab.priors.networks import load_prior
from emlab.recorded import Recording, pack, unpack
from emlab.runtime import choose_threads, make_generator
from emlab.settings import read_settings


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each study's rows, what tells its fields apart, and the digits that starts came from."""
    workers, seed = choose_threads(), settings["seed"]
    choose_threads(1)
    found = {}
    for name, study in settings["studies"].items():
        kind, split = study["kind"], study["split"]
        size = StudySettings(study["targets"], study["draws"], tuple(study["snrs"]))
        prior, starts, config = _ours(kind, study["starts"], seed)
        methods = standard_methods(kind, seed, starts) | ablation_rows(kind, prior, seed)
        methods |= classical_rows(prior)
        hard = replace(config.em, assignment="hard")
        methods["ours_hard"] = ours_row(replace(config, em=hard), prior, starts)
        if "ours_untrained" in study["rows"]:
            methods["ours_untrained"] = untrained_row(len(starts), seed)
        chosen = {row: methods[row] for row in study["rows"]}
        fields = run_study(kind, size, chosen, seed=seed, split=split, workers=workers)
        rows = {row: _packed(fields, row, size) for row in chosen}
        found[name] = {"power": _power(kind, size, seed, split), "rows": rows}
    choose_threads(workers)
    return {"studies": found, "starts_from": load_digits("train").source}


def _ours(kind: str, starts: int, seed: int) -> tuple[Prior, Tensor, Config]:
    """Prior, so many starts and settings of ours for one kind of image."""
    prior = gaussian_prior() if kind == "gaussian" else load_prior("mtd_mnist_epsilon")
    config = replace(load_config(f"ours_{kind}"), starts=starts)
    return prior, draw_starts(config, make_generator(seed), prior), config


def _measure_schedules(settings: Mapping[str, Any]) -> dict[str, list[float]]:
    """Errors of validation digits by schedule, from the mean of ten training digits."""
    workers = choose_threads()
    choose_threads(1)
    start = torch.from_numpy(load_digits("train").images[:10].mean(0))
    prior, count, seed = load_prior("mtd_mnist_vp"), settings["targets"], settings["seed"]
    errors = compare_schedules(prior, start, count, settings["iterations"], seed, workers)
    choose_threads(workers)
    return {name: values.tolist() for name, values in errors.items()}


def _measure_separation(settings: Mapping[str, Any]) -> dict[str, float]:
    """Mean error by density of copies that may touch."""
    densities = tuple(settings["densities"])
    errors = violate_separation(densities, settings["targets"], settings["seed"])
    return {f"{density:g}": error for density, error in errors.items()}


def _measure_samples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """By study and SNR, of every field: errors of ours and of the samples' mean, and their spread.

    Errors are pairs, after the best rotation and after the best rotation and shift; the spread is
    relative to the norm of the truth, as they are.
    """
    workers = choose_threads()
    choose_threads(1)
    found: dict[str, Any] = {}
    for kind, study in settings["studies"].items():
        found[kind] = {}
        sample = _sampling_row(kind, study["starts"], settings)
        for snr in study["snrs"]:
            size = StudySettings(study["targets"], study["draws"], (snr,))
            rows = each(sample, workers)(draw_tasks(kind, size, settings["seed"]))
            found[kind][f"{snr:g}"] = {name: [row[name] for row in rows] for name in rows[0]}
    choose_threads(workers)
    return found


def _sampling_row(
    kind: str, starts: int, settings: Mapping[str, Any]
) -> Callable[[Task], dict[str, Any]]:
    prior, drawn_starts, config = _ours(kind, starts, settings["seed"])
    ours = ours_row(config, prior, drawn_starts)

    def sampled(task: Task) -> dict[str, Any]:
        recovery = ours(task)
        assert isinstance(recovery, Recovery)
        drawn = draw_images(task, recovery, prior, settings["chains"], settings["sweeps"])
        errors = score([task] * 2, [recovery, drawn.mean(0)])
        pairs = np.stack([errors[column.name] for column in COLUMNS], -1)
        spread = (drawn.std(0).norm() / task.truth.norm()).item()
        return {"ours": pairs[0].tolist(), "mean": pairs[1].tolist(), "spread": spread}

    return sampled


def _power(
    kind: str, size: StudySettings, seed: int, split: str, device: torch.device | str = "cpu"
) -> list[float]:
    """Mean squared grey level of each target's first field at the highest SNR."""
    first = replace(size, draws=1, snrs=(max(size.snrs),))
    tasks = draw_tasks(kind, first, seed, split, device)
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


_READ = {**read_settings("chapters/mtd/chapter"), **read_settings("methods/mtd")}
ROWS, FAINT, ABLATION = (
    Recording(
        "04_mtd",
        name,
        _measure_rows,
        {**_READ["recorded"][name], "configs": _READ["configs"]},
        ("mtd_gaussian_mlp", "mtd_mnist_vp", "mtd_mnist_epsilon", "mtd_mnist_turns"),
    )
    for name in ("rows", "faint", "ablation")
)
SCHEDULES = Recording(
    "04_mtd",
    "schedules",
    _measure_schedules,
    {**_READ["recorded"]["schedules"], "configs": _READ["configs"]},
    ("mtd_mnist_vp",),
)
SAMPLES = Recording(
    "04_mtd",
    "samples",
    _measure_samples,
    {**_READ["recorded"]["samples"], "configs": _READ["configs"]},
    ("mtd_mnist_epsilon", "mtd_mnist_turns"),
)
SEPARATION = Recording(
    "04_mtd",
    "separation",
    _measure_separation,
    {**_READ["recorded"]["separation"], "configs": _READ["configs"]},
)


def recorded_rows(
    kind: str, size: StudySettings, seed: int = 0, device: torch.device | str = "cpu"
) -> dict[str, Mapping[str, Any]]:
    """Recorded rows by name, if they were measured on the very fields of this study; else none."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, kept in ROWS.values["studies"].items():
        of = ROWS.settings["studies"][name]
        if of["kind"] != kind or not set(size.snrs) <= set(of["snrs"]):
            continue
        if size.targets > of["targets"] or size.draws > of["draws"]:
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
    fields = run_study(kind, size, live, seed=seed, device=device, workers=workers)
    if kind == "gaussian" or load_digits("train").source == ROWS.values["starts_from"]:
        again = {name: each(methods[name]) for name in kept}
        fields.studies[size.snrs[0]].run(again, score, first=dict.fromkeys(kept, 1))
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
    methods = {} if kept else {"ours_untrained": untrained_row(starts, seed, device)}
    fields = run_study("mnist", size, methods, seed=seed, device=device, workers=workers)
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
