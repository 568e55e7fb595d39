"""What the Cellpose3 chapter reads: levels of the test images, settings and slow peers.

``python -m tools.measure_cells levels`` finds for every test image and task the level at which half
of its nuclei are lost; ``peers`` chooses the settings of classical peers on validation images;
``slow`` runs Noise2Void, Noise2Self and BM3D on all test images. In this order, whenever the
segmenter was trained again: minutes, minutes, and half an hour on one core. They need the data
mirror. ``slow`` can be stopped and goes on where it was.
"""

from __future__ import annotations

import datetime
import sys
from functools import partial
from typing import Any

import tomli_w
import torch

from emlab import weights
from emlab.methods import cellpose3_experiments as lab
from emlab.methods import cellpose3_peers as peers
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.methods.cellpose3_cases import chapter_cells, harder, make_cases, tune_levels
from emlab.methods.cellpose3_rows import labels_of
from emlab.methods.cellpose3_study import count_objects
from emlab.methods.settings import read_settings
from emlab.physics.degradations import TASKS
from emlab.runtime import Stopwatch, atomic_path, choose_threads

SEED = 0
VALIDATION, SIDE = 10, 256
SLOW = ("noise2void", "noise2self", "bm3d")
COUNTS = "Objects found, true, found on nothing, matched at overlaps .5 to 1, by image"
HEAD = "# {}. By tools/measure_cells.py {}.\n\n"


def main(stage: str) -> None:
    """Run one stage."""
    choose_threads()
    torch.set_grad_enabled(False)
    labeller = partial(labels_of, segmenter=load_segmenter())
    stages = {"levels": _levels, "peers": _peers, "slow": _slow}
    stages[stage](labeller)


def _levels(labeller: Any) -> None:
    found = chapter_cells("test", side=SIDE)
    levels = {task: tune_levels(found, task, labeller, SEED, progress=print) for task in TASKS}
    head = "Level of each test image at which the segmenter finds half of what it found"
    _write(lab.LEVELS, head, "levels", {"levels": levels})


def _peers(labeller: Any) -> None:
    found = chapter_cells("validation", VALIDATION, SIDE)
    best = {}
    for task in TASKS:
        levels = tune_levels(found, task, labeller, SEED + 100, 3)
        cases = make_cases(found, task, levels, SEED + 100)
        best[task] = peers.tune(task, cases, labeller, print)
        if task == "denoise":
            best["hard"] = peers.tune("hard", [harder(case) for case in cases], labeller, print)
    head = f"Settings of the peers, the best of their grids on {VALIDATION} validation images"
    _write(peers.SETTINGS, head, "peers", {"peers": best})


def _slow(labeller: Any) -> None:
    found = chapter_cells("test", side=SIDE)
    levels = lab.levels_of(found, "denoise", labeller, SEED)[0]
    cases = make_cases(found, "denoise", levels, SEED)
    kept: dict[str, Any] = {"methods": {}}
    if lab.MEASURED.exists():
        earlier = read_settings(lab.MEASURED.stem)
        if earlier["segmenter"] == weights.card(SEGMENTER).sha256:
            kept["methods"] = earlier["methods"]
    for task, own in (("denoise", cases), ("hard", [harder(case) for case in cases])):
        for name in SLOW:
            rows = kept["methods"].setdefault(task, {}).setdefault(name, {})
            settings = peers.settings_of(task, name)
            for case in own:
                if case.name in rows and rows[case.name]["level"] == case.level:
                    continue
                with Stopwatch() as watch:
                    labels = labeller(peers.run_peer(name, case, settings))
                rows[case.name] = {
                    "level": case.level,
                    "shape": list(case.labels.shape),
                    "counts": count_objects(case.labels, labels),
                    "seconds": round(watch.seconds, 2),
                }
                print(task, name, case.name[:12], rows[case.name], flush=True)
                _write(lab.MEASURED, COUNTS, "slow", kept)


def _write(path: Any, head: str, stage: str, table: dict[str, Any]) -> None:
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "segmenter": weights.card(SEGMENTER).sha256,
    }
    with atomic_path(path) as temporary:
        text = HEAD.format(head, stage) + tomli_w.dumps(facts | table)
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
