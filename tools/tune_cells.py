"""Choose the settings of the Cellpose3 chapter's classical peers, on validation images.

``python -m tools.tune_cells`` takes some minutes on one core, whenever the segmenter was trained
again, and needs the data mirror; then say ``python -m tools.record 05``.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from emlab import weights
from emlab.chapters.cellpose3 import cases as cases_of
from emlab.chapters.cellpose3.cases import Case, Labeller, harder, make_cases, precision
from emlab.chapters.cellpose3.rows import PEERS, labels_of
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.physics.degradations import TASKS
from emlab.runtime import choose_threads
from tools.tuning import Grids, Settings, grid, tune, write

SEED = 100  # not that of the test images
VALIDATION, SIDE = 10, 256
LUCY = grid(smoothing=(0.0, 1.0), iterations=(8, 40))
# What each task's peers may be set to.
GRIDS: dict[str, Grids] = {
    "denoise": {"gaussian": grid(width=(1.0, 2.0, 3.0, 4.0)), "bm3d": grid(strength=(1.0, 1.5))},
    "hard": {"gaussian": grid(width=(2.0, 3.0, 4.0, 5.0)), "bm3d": grid(strength=(1.0, 1.5))},
    "deblur": {"gaussian": grid(width=(0.5, 1.0, 2.0)), "richardson_lucy": LUCY},
    "upsample": {"cubic": grid(width=(0.0, 1.0, 2.0)), "richardson_lucy": LUCY},
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
        best[task] = search(task, cases, labeller)
        if task == "denoise":
            best["hard"] = search("hard", [harder(case) for case in cases], labeller)
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "segmenter": weights.card(SEGMENTER).sha256,
    }
    write(TARGET, HEAD, facts | {"peers": best})


def search(task: str, cases: Sequence[Case], labeller: Labeller) -> dict[str, Settings]:
    """The settings of `GRIDS` with the highest AP at .5 on validation cases."""

    def quality(peer: str, settings: Settings) -> float:
        found = [labeller(PEERS[peer](case, **settings)) for case in cases]
        pairs = zip(cases, found, strict=True)
        return float(np.mean([precision(case.labels, labels) for case, labels in pairs]))

    print(task)
    return tune(GRIDS[task], quality, "validation_ap_50", 4)


if __name__ == "__main__":
    main()
