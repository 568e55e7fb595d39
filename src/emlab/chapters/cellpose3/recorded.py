"""What chapter 05 shows as recorded: how far each image is spoilt, and rows that take long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from emlab.bench import Report
from emlab.chapters.cellpose3.cases import (
    Case,
    Labeller,
    chapter_cells,
    harder,
    make_cases,
    tune_levels,
)
from emlab.chapters.cellpose3.peers import BLIND_SPOT
from emlab.chapters.cellpose3.rows import (
    RESTORERS,
    labels_of,
    peer_rows,
    reference_rows,
    trained_rows,
)
from emlab.chapters.cellpose3.study import (
    LABELS,
    Method,
    Scores,
    Table,
    count_objects,
    from_counts,
    run_study,
)
from emlab.data.cells import Cell
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.recorded import Recording
from emlab.runtime import Stopwatch
from emlab.settings import read_settings

CHECKED = 2  # images on which recorded rows are run again


def _measure_levels(settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Level of every test image, by task: half of what the segmenter found is lost there."""
    found = chapter_cells("test", side=settings["side"])
    labeller = partial(labels_of, segmenter=load_segmenter())
    return {
        task: tune_levels(found, task, labeller, settings["seed"]) for task in settings["tasks"]
    }


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of each task, method and image what tells the case, seconds, and `count_objects`."""
    nuclei, segmenter = chapter_cells("test", side=settings["side"]), load_segmenter()
    kept: dict[str, Any] = {}
    for task, names in settings["rows"].items():
        own = "denoise" if task == "hard" else task
        some = nuclei if own == "denoise" else spread(nuclei, settings["task_images"])
        cases = make_cases(some, own, LEVELS.values[own], settings["seed"])
        cases = [harder(case) for case in cases] if task == "hard" else cases
        peers = [name for name in names if name in settings["peers"][task] or name in BLIND_SPOT]
        methods = reference_rows(task, segmenter, settings["seed"])
        methods |= peer_rows(task, peers, segmenter) | trained_rows(task, segmenter, names)
        kept[task] = {name: [_row(methods[name], case) for case in cases] for name in names}
    return kept


def _row(method: Method, case: Case) -> dict[str, Any]:
    with Stopwatch() as watch:
        labels = method(case).labels
    return {
        "case": _identity(case),
        "seconds": watch.seconds,
        "counts": count_objects(case.labels, labels),
    }


def _identity(case: Case) -> list[Any]:
    """What tells a case from others; six digits are kept of a level."""
    return [case.name, case.seed, float(f"{case.level:.6g}"), *case.labels.shape]


_READ = read_settings("chapters/cellpose3/chapter")
_KEPT = {key: _READ["cpu"][key] for key in ("side", "task_images")} | {"seed": 0}
_KEPT["peers"] = read_settings("chapters/cellpose3/peers")["peers"]


def _rows(name: str) -> Recording:
    rows = _READ["recorded"][name]
    used = {RESTORERS[task].get(row, "") for task, every in rows.items() for row in every}
    networks = ("cellpose3_noisy_segmenter",) if "noisy_segmenter" in rows["hard"] else ()
    return Recording(
        "05_cellpose3", name, _measure_rows, {**_KEPT, "rows": rows},
        (SEGMENTER, *networks, *sorted(used - {""})),
    )  # fmt: skip


LEVELS = Recording(
    "05_cellpose3",
    "levels",
    _measure_levels,
    {"side": _KEPT["side"], "seed": 0, "tasks": ["denoise", "deblur", "upsample"]},
    (SEGMENTER,),
)
ROWS, SLOW = _rows("rows"), _rows("slow")


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """So many, every second or third."""
    return list(found[:: max(1, len(found) // count)][:count])


def levels_of(
    found: Sequence[Cell], task: str, labeller: Labeller, seed: int, halvings: int = 4
) -> tuple[dict[str, float], str]:
    """Level of every image, and where it is from.

    They are read where they were recorded with the segmenter that is loaded, else tuned now.
    """
    own = LEVELS.values[task]
    if not LEVELS.stale and all(cell.name in own for cell in found):
        return {cell.name: own[cell.name] for cell in found}, "recorded"
    return tune_levels(found, task, labeller, seed, halvings), "tuned now"


def recorded(task: str, name: str, cases: Sequence[Case]) -> tuple[Scores, Recording] | None:
    """Recorded scores of these very cases, spoilt alike by the same noise, or None."""
    for recording in (ROWS, SLOW):
        kept = recording.values.get(task, {}).get(name, ())
        found = {row["case"][0]: row for row in kept}
        own = [found.get(case.name, {}) for case in cases]
        same = all(row.get("case") == _identity(case) for row, case in zip(own, cases, strict=True))
        if own and same and not recording.stale:
            seconds = sum(row["seconds"] for row in own)
            return from_counts([row["counts"] for row in own], seconds), recording
    return None


def study(
    report: Report,
    task: str,
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    slow: Iterable[str] = (),
) -> tuple[Table, list[str]]:
    """`run_study`, with recorded rows where there are some of these very cases.

    Of each recorded row the first `CHECKED` images are run again; the largest difference of AP at
    .5 is recorded as ``recorded.apart.TASK.METHOD``.

    Parameters
    ----------
    slow : iterable of str
        Rows that are shown where they are recorded and never run.

    Returns
    -------
    Table
        With the answers of all images that were run.
    list of str
        A sentence for each recording.
    """
    names = [*methods, *slow]
    kept = {n: found for n in names if (found := recorded(task, n, cases)) is not None}
    live = {n: method for n, method in methods.items() if n not in kept}
    table = run_study(task, cases, live, keep=range(len(cases)))
    few = {n: method for n, method in methods.items() if n in kept}
    again = run_study(task, cases[:CHECKED], few, keep=range(CHECKED))
    for name, (scores, _) in kept.items():
        table.scores[name] = scores
    for name, here in again.scores.items():
        apart = np.abs(here.ap[:, 0] - table.scores[name].ap[:CHECKED, 0]).max()
        report.value(f"recorded.apart.{task}.{name}", float(apart), note="AP", n=CHECKED)
    table.answers |= again.answers
    table.recorded = set(kept)
    table.scores = {n: table.scores[n] for n in LABELS if n in table.scores}
    used = {recording.name: recording for _, recording in kept.values()}
    return table, ["† " + report.recorded(recording) for recording in used.values()]
