"""Choose, on validation micrographs, how EM Generalist sees them and what a pick of Topaz needs.

``python -m tools.tune_comparison`` takes some minutes on one core and needs Topaz (``make topaz``)
and the weights of the particle networks. Validation micrographs show another protein at another
defocus than the test ones; they are those of ``tools/tune_tsm_peers.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emlab.chapters.compare import cases as chapter
from emlab.chapters.tsm.cases import Method
from emlab.chapters.tsm.study import run_study
from emlab.methods import generalist
from emlab.methods.cellpose3 import load_restorer
from emlab.metrics.bands import band_correlations
from emlab.recipes.particles import RESTORER, SQUARES
from emlab.recipes.tsm import frames
from tools.tuning import write

TARGET = Path(chapter.__file__).with_name("peers.toml")
MICROGRAPHS, SIZE = 4, 512
PIXELS_ANGSTROM = (2.63, 5.26, 7.89)
HEAD = """\
# By tools/tune_comparison.py on 4 validation micrographs of 512 x 512 pixels (another protein and
# defocus range than the test's). EM Generalist: the pixel size of the largest correlation with the
# clean particles. Thresholds: of Topaz's score, largest F1.
"""


def main() -> None:
    """Run the search."""
    micrographs = [frame.micrograph for frame in frames("validation", MICROGRAPHS, SIZE)]
    prior = generalist.load(generalist.load_config().prior, "cpu")
    scores, made = {}, {}
    for pixel in PIXELS_ANGSTROM:
        made[pixel] = chapter.generalist_method("cpu", 0, prior=prior, working_angstrom=pixel)
        images = made[pixel]([m.noisy.numpy() for m in micrographs]).images
        pairs = zip(images, micrographs, strict=True)
        scores[pixel] = np.mean([band_correlations(i, m)["mean"] for i, m in pairs])
        print(pixel, f"{scores[pixel]:.4f}", flush=True)
    best = max(scores, key=lambda key: scores[key])
    methods: dict[str, Method] = {"generalist": made[best]}
    for name, weights in (("squares", SQUARES), ("cellpose3", RESTORER)):
        methods[name] = chapter.restorer_method(load_restorer(weights))
    table = run_study(micrographs, methods, {"raw": 0.0}, progress=print)
    table.pick()
    thresholds = {n: round(picks.curve().best, 3) for n, picks in table.picks.items()}
    for name, picks in table.picks.items():
        print(name, thresholds[name], f"F1 {picks.curve().f1.max():.3f}")
    peers = {"generalist": {"working_angstrom": best}}
    write(TARGET, HEAD, {"peers": peers, "thresholds": thresholds})


if __name__ == "__main__":
    main()
