"""Choose the settings of the Cellpose3 chapter's classical peers, on validation images.

``python -m tools.tune_cells`` takes some minutes on one core, whenever the segmenter was trained
again, and needs the data mirror; then say ``python -m tools.record 05``.
"""

from __future__ import annotations

import datetime
from functools import partial

import tomli_w
import torch

from emlab import weights
from emlab.chapters.cellpose3 import peers
from emlab.chapters.cellpose3.cases import chapter_cells, harder, make_cases, tune_levels
from emlab.chapters.cellpose3.rows import labels_of
from emlab.methods.cellpose3 import SEGMENTER, load_segmenter
from emlab.physics.degradations import TASKS
from emlab.runtime import atomic_path, choose_threads

SEED = 100  # not that of the test images
VALIDATION, SIDE = 10, 256
HEAD = f"""\
# Settings of the peers, the best of their grids on {VALIDATION} validation images. By \
tools/tune_cells.py.

"""


def main() -> None:
    """Run the search."""
    choose_threads()
    torch.set_grad_enabled(False)
    labeller = partial(labels_of, segmenter=load_segmenter())
    found = chapter_cells("validation", VALIDATION, SIDE)
    best = {}
    for task in TASKS:
        levels = tune_levels(found, task, labeller, SEED, 3)
        cases = make_cases(found, task, levels, SEED)
        best[task] = peers.tune(task, cases, labeller, print)
        if task == "denoise":
            best["hard"] = peers.tune("hard", [harder(case) for case in cases], labeller, print)
    facts = {
        "date": datetime.date.today().isoformat(),
        "seed": SEED,
        "segmenter": weights.card(SEGMENTER).sha256,
    }
    with atomic_path(peers.SETTINGS) as temporary:
        temporary.write_text(HEAD + tomli_w.dumps(facts | {"peers": best}), encoding="utf-8")


if __name__ == "__main__":
    main()
