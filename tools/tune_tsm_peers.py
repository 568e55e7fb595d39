"""Choose, on validation micrographs, settings of TSM's peers and every method's threshold.

``python -m tools.tune_tsm_peers`` takes some minutes on one core and needs Topaz (``make topaz``).
Validation micrographs show another protein at another defocus than the test ones.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from emlab.chapters.tsm import cases as tsm_chapter
from emlab.chapters.tsm.study import run_study
from emlab.methods.tsm import load_denoiser
from emlab.metrics.bands import BANDS_ANGSTROM, band_correlations
from emlab.recipes.tsm import PROTEINS, frames
from tools.tuning import Grids, Settings, grid, tune, write

TARGET = Path(tsm_chapter.__file__).with_name("peers.toml")
MICROGRAPHS, SIZE = 4, 512
PEERS = {"gaussian": tsm_chapter.gaussian, "wiener": tsm_chapter.wiener}
GRIDS: Grids = {
    "gaussian": grid(width=(1.0, 1.5, 2.0, 3.0)),
    "wiener": grid(strength=(0.7, 1.0, 1.2)),
}
HEAD = """\
# By tools/tune_tsm_peers.py on 4 validation micrographs of 512 x 512 pixels (another protein and
# defocus range than the test's). Settings: largest correlation with the particles between 80
# and 10 A. Thresholds: of Topaz's score, largest F1. BM3D and Noise2Void are too slow to be tuned.
"""


def main() -> None:
    """Run the search."""
    micrographs = [frame.micrograph for frame in frames("validation", MICROGRAPHS, SIZE)]
    whole = {"all": (BANDS_ANGSTROM["80_40"][0], BANDS_ANGSTROM["16_10"][1])}

    def quality(peer: str, settings: Settings) -> float:
        images = [PEERS[peer](m.noisy.numpy(), *settings.values()) for m in micrographs]
        pairs = zip(images, micrographs, strict=True)
        return float(np.mean([band_correlations(i, m, whole)["all"] for i, m in pairs]))

    settings = {"bm3d": {"factor": 1.0}} | tune(GRIDS, quality)
    names = ["raw", "gaussian", "wiener"]
    chosen = tsm_chapter.classical(names, settings)
    chosen["topaz"] = partial(tsm_chapter.topaz_denoise)
    scores = {name: load_denoiser(name) for name in ("dsm", "tsm")}
    chosen |= {name: tsm_chapter.score_method(score) for name, score in scores.items()}
    reference = tsm_chapter.reference_of(PROTEINS["validation"][0])
    chosen["guided"] = tsm_chapter.guided(scores["dsm"], reference, micrographs)
    few = tsm_chapter.classical(["bm3d"], settings)
    few["noise2void"] = tsm_chapter.each(partial(tsm_chapter.noise2void, steps=300, seed=0))
    table = run_study(
        micrographs, chosen | few, {"raw": 0.0}, first=dict.fromkeys(few, 1), progress=print
    )
    table.pick()
    thresholds = {n: round(picks.curve().best, 3) for n, picks in table.picks.items()}
    write(TARGET, HEAD, {"peers": settings, "thresholds": thresholds})


if __name__ == "__main__":
    main()
