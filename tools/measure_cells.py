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

import torch

from emlab import weights
from emlab.methods import cellpose3_experiments as lab
from emlab.methods import cellpose3_peers as peers
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.methods.cellpose3_cases import chapter_cells, make_cases, tune_levels
from emlab.methods.cellpose3_rows import labels_of
from emlab.methods.cellpose3_study import count_objects
from emlab.methods.settings import read_settings
from emlab.physics.degradations import TASKS
from emlab.runtime import Stopwatch, atomic_path, choose_threads
from emlab.weights.toml import dump_toml

SEED = 0
VALIDATION = 16
SLOW = ("bm3d", "noise2void", "noise2self")
HEAD = "# {}. By tools/measure_cells.py {}.\n\n"


def main(stage: str) -> None:
    """Run one stage."""
    choose_threads()
    torch.set_grad_enabled(False)
    labeller = partial(labels_of, segmenter=load_segmenter())
    stages = {"levels": _levels, "peers": _peers, "slow": _slow}
    stages[stage](labeller)


def _levels(labeller: Any) -> None:
    found = chapter_cells("test")
    levels = {task: tune_levels(found, task, labeller, SEED, progress=print) for task in TASKS}
    head = "Level of each test image at which the segmenter finds half of what it found"
    _write(lab.LEVELS, head, "levels", {"levels": levels})


def _peers(labeller: Any) -> None:
    found = chapter_cells("validation", VALIDATION)
    best = {}
    for task in TASKS:
        levels = tune_levels(found, task, labeller, SEED + 100, 7)
        cases = make_cases(found, task, levels, SEED + 100)
        best[task] = peers.tune(task, cases, labeller, print)
    head = f"Settings of the peers, the best of their grids on {VALIDATION} validation images"
    _write(peers.SETTINGS, head, "peers", {"peers": best})


def _slow(labeller: Any) -> None:
    found = chapter_cells("test")
    levels = lab.levels_of(found, "denoise", labeller, SEED)[0]
    cases = make_cases(found, "denoise", levels, SEED)
    kept: dict[str, Any] = {"methods": {}}
    if lab.MEASURED.exists():
        earlier = read_settings(lab.MEASURED.stem)
        if earlier["segmenter"] == weights.card(SEGMENTER).sha256:
            kept["methods"] = earlier["methods"]
    for name in SLOW:
        rows = kept["methods"].setdefault(name, {"images": {}})["images"]
        for case in cases:
            if case.name in rows and rows[case.name]["level"] == case.level:
                continue
            with Stopwatch() as watch:
                labels = labeller(peers.run_peer(name, case, peers.settings_of("denoise", name)))
            rows[case.name] = {
                "level": case.level,
                "counts": count_objects(case.labels, labels),
                "seconds": round(watch.seconds, 2),
            }
            print(name, case.name[:12], rows[case.name], flush=True)
            head = "Objects found, true, found on nothing, matched at overlaps .5 to 1, by image"
            _write(lab.MEASURED, head, "slow", kept)


def _write(path: Any, head: str, stage: str, table: dict[str, Any]) -> None:
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "segmenter": weights.card(SEGMENTER).sha256,
    }
    with atomic_path(path) as temporary:
        text = HEAD.format(head, stage) + dump_toml(facts | table)
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
