"""What chapter 03 shows as recorded: the slow rows of its table, and dose and defocus sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emlab.chapters.flowdps.cases import Cases, make_cases
from emlab.chapters.flowdps.experiments import Averaging, averaging, opposite_pairs
from emlab.chapters.flowdps.rows import (
    Sampling,
    classical_rows,
    hurried,
    judged,
    refined_view,
    sampled_row,
    slow_rows,
)
from emlab.chapters.flowdps.study import Table
from emlab.errors import DataUnavailableError
from emlab.recorded import Recording
from emlab.settings import read_profile, read_settings


def particles(cases: Cases) -> dict[str, list[float]]:
    """What tells whether particles are those of a recording: contrast and defocus of each."""
    contrast = cases.truth.std((1, 2)).tolist()
    return {"contrast": contrast, "defocus": cases.optics.defocus_u_angstrom.tolist()}


def same_particles(cases: Cases, recorded: Mapping[str, list[float]]) -> bool:
    """Whether the first of the particles are those of a recording."""
    found = particles(cases)
    return all(
        len(found[name]) >= len(kept) and np.allclose(found[name][: len(kept)], kept, rtol=1e-3)
        for name, kept in recorded.items()
    )


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of each slow row, and what averaging its independent samples does."""
    cases = make_cases(settings["specimen"], settings["poses"], settings["seed"])
    ours = hurried("ours", settings["steps"]["unpaired"], settings["samples"], settings["batch"])
    rows = slow_rows(
        Sampling.load(ours), settings["steps"], settings["samples"], settings["batch"],
        settings["seed"],
    )  # fmt: skip
    table, averaged = {}, {}
    for name, method in {**rows, "refined": refined_view}.items():
        seen = cases.first(settings["first"][name])
        answer, scores = judged(method, seen)
        table[name] = {"scores": scores.packed(), "seconds": answer.seconds / len(seen)}
        if name == "unpaired":
            assert answer.samples is not None
            truth = seen.truth.numpy()
            for key, where in (("everywhere", None), ("near_zeros", seen.near_zeros())):
                found = averaging(truth, answer.samples, where)
                averaged[key] = {k: np.asarray(v).tolist() for k, v in vars(found).items()}
    most = cases.first(max(settings["first"].values()))
    return {"particles": particles(most), "rows": table, "averaging": averaged}


def _measure_sweeps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Errors and covered intervals ``{sweep: {value: {method: ...}}}``; the poses never change."""
    ours = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    rows = classical_rows(settings["peers"])
    rows["ours"] = sampled_row(Sampling.load(ours), ours, settings["seed"])
    found: dict[str, Any] = {}
    for sweep, value, cases in _instruments(settings):
        kept = {}
        for name, method in rows.items():
            scores = judged(method, cases)[1].packed()
            kept[name] = {key: scores[key] for key in ("rmse", "groups", "covered")}
        found.setdefault(sweep, {})[f"{value:g}"] = kept
    return {"particles": particles(checked_sweep(settings)), "sweeps": found}


def _instruments(settings: Mapping[str, Any]) -> Iterator[tuple[str, float, Cases]]:
    specimen, poses, seed = (settings[key] for key in ("specimen", "poses", "seed"))
    for dose in settings["doses"]:
        yield "dose", dose, make_cases(specimen, poses, seed, (dose,))
    for defocus in settings["defoci"]:
        cases = make_cases(specimen, poses, seed, (45.0,), defocus_angstrom=defocus)
        yield "defocus", defocus, cases


def checked_sweep(settings: Mapping[str, Any]) -> Cases:
    """The particles of a sweep at its last dose."""
    specimen, poses, seed = (settings[key] for key in ("specimen", "poses", "seed"))
    return make_cases(specimen, poses, seed, settings["doses"][-1:])


_READ = {**read_settings("chapters/flowdps/chapter"), **read_settings("methods/flowdps")}
_KEPT = {"configs": _READ["configs"], "phase": _READ["phase"]}
_POSES = read_profile("chapters/flowdps/chapter", "cpu")["poses"]
_NETWORK = ("flowdps_flow",)
ROWS = Recording(
    "03_flowdps",
    "rows",
    _measure_rows,
    {**_READ["recorded"]["rows"], **_KEPT, "poses": _POSES},
    _NETWORK,
)
SWEEPS = Recording(
    "03_flowdps", "sweeps", _measure_sweeps, {**_READ["recorded"]["sweeps"], **_KEPT}, _NETWORK
)


def averages(table: Table) -> dict[str, Averaging]:
    """What averaging does: of independent samples, recorded or of this run, and of ours."""
    count = len(table.scores["unpaired"].rmse)
    few, ours = table.cases.first(count), opposite_pairs(table.answers["ours"])[:, :count]
    truth = few.truth.numpy()
    if "unpaired" in table.recorded:
        found = [
            Averaging(**{key: np.array(value) for key, value in kept.items()})
            for kept in ROWS.values["averaging"].values()
        ]
    else:
        samples = table.answers["unpaired"].samples
        assert samples is not None
        found = [averaging(truth, samples, where) for where in (None, few.near_zeros())]
    names = ("independent", "independent, near zeros of the lens")
    pairs = averaging(truth, ours, independent=False)
    return {**dict(zip(names, found, strict=True)), "in opposite pairs": pairs}


def sweep_agreement(sampling: Sampling) -> float | None:
    """Error of the first particles of the sweep's last dose over what was recorded of them.

    None where the particles cannot be made again: their model or their optics are not here.
    """
    settings, kept = SWEEPS.settings, SWEEPS.values
    try:
        cases = checked_sweep(settings)
    except DataUnavailableError:
        return None
    if not same_particles(cases, kept["particles"]):
        return None
    few = cases.first(settings["batch"])
    config = hurried("ours", settings["steps"], settings["samples"], settings["batch"])
    here = judged(sampled_row(sampling, config, settings["seed"]), few)[1].rmse
    then = kept["sweeps"]["dose"][f"{settings['doses'][-1]:g}"]["ours"]["rmse"]
    return float(here.mean() / np.mean(then[: len(few)]))
