"""Choose the settings of the Cellpose3 chapter's classical peers, on validation images.

``python -m tools.tune_cells`` takes some minutes on one core, whenever the segmenter was trained
again, and needs the data mirror; then say ``python -m tools.record 05``.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from emlab import weights
from emlab.chapters.cellpose3 import cases as cases_of
from emlab.chapters.cellpose3.cases import Case, Labeller, harder, make_cases, precision
from emlab.chapters.cellpose3.rows import labels_of, run_peer
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.physics.degradations import TASKS
from emlab.runtime import atomic_path, choose_threads

SEED = 100  # not that of the test images
VALIDATION, SIDE = 10, 256
# What each task's peers may be set to.
GRIDS: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]] = {
    "denoise": {
        "gaussian": {"width": (1.0, 2.0, 3.0, 4.0)},
        "bm3d": {"strength": (1.0, 1.5)},
    },
    "hard": {
        "gaussian": {"width": (2.0, 3.0, 4.0, 5.0)},
        "bm3d": {"strength": (1.0, 1.5)},
    },
    "deblur": {
        "gaussian": {"width": (0.5, 1.0, 2.0)},
        "richardson_lucy": {"smoothing": (0.0, 1.0), "iterations": (8, 40)},
    },
    "upsample": {
        "cubic": {"width": (0.0, 1.0, 2.0)},
        "richardson_lucy": {"smoothing": (0.0, 1.0), "iterations": (8, 40)},
    },
}
TARGET = Path(cases_of.__file__).with_name("peers.toml")
HEAD = f"""\
# Settings of the peers, the best of their grids on {VALIDATION} validation images. By \
tools/tune_cells.py.

"""


def main() -> None:
    """Run the search."""
    choose_threads()
    torch.set_grad_enabled(False)
    labeller = partial(labels_of, segmenter=load_segmenter())
    found = cases_of.chapter_cells("validation", VALIDATION, SIDE)
    best = {}
    for task in TASKS:
        levels = cases_of.tune_levels(found, task, labeller, SEED, 3)
        cases = make_cases(found, task, levels, SEED)
        best[task] = tune(task, cases, labeller)
        if task == "denoise":
            best["hard"] = tune("hard", [harder(case) for case in cases], labeller)
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "segmenter": weights.card(SEGMENTER).sha256,
    }
    with atomic_path(TARGET) as temporary:
        temporary.write_text(HEAD + tomli_w.dumps(facts | {"peers": best}), encoding="utf-8")


def tune(task: str, cases: Sequence[Case], labeller: Labeller) -> dict[str, dict[str, Any]]:
    """The settings of `GRIDS` with the highest AP at .5 on validation cases."""
    best: dict[str, dict[str, Any]] = {}
    for name, grid in GRIDS[task].items():
        tried = []
        for values in product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            images = [run_peer(name, case, settings) for case in cases]
            pairs = zip(cases, images, strict=True)
            quality = np.mean([precision(case.labels, labeller(image)) for case, image in pairs])
            tried.append((float(quality), settings))
            print(f"{task} {name} {settings}: AP {quality:.3f}", flush=True)
        score, chosen = max(tried, key=lambda pair: pair[0])
        best[name] = chosen | {"validation_ap_50": round(score, 4)}
    return best


if __name__ == "__main__":
    main()
