"""Megapixels a second and peak memory: TSM beside Topaz-Denoise and BM3D, a thread each.

Each denoises the same simulated micrograph in processes of its own. Seconds are those that a larger
micrograph adds to a smaller one, so that starting a program and loading its network, which a folder
of micrographs does once, do not count; memory is that of the whole process.

``python -m benchmarks.denoising METHOD SIDE`` does one of them and prints what it took.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from benchmarks.measuring import Row, in_fresh_process
from benchmarks.mtd_estep import resident_peak_mb
from emlab.errors import EmlabError
from emlab.runtime import choose_threads

METHODS = ("tsm", "topaz", "bm3d")
SIDES = (256, 768)
PEERS = {"topaz": "Topaz-Denoise", "bm3d": "BM3D"}
PIXEL_ANGSTROM = 2.63  # what the network works at; nothing is resampled


def rows() -> list[Row]:
    """Speed and memory of TSM against each peer that is installed."""
    facts: dict[str, float] = {}
    missing: dict[str, str] = {}
    for method in METHODS:
        small, large = (in_fresh_process(__name__, method, str(side)) for side in SIDES)
        if "missing" in large:
            missing[method] = str(large["missing"])
            continue
        megapixels = (SIDES[1] ** 2 - SIDES[0] ** 2) / 1e6
        seconds = large["seconds"] - small["seconds"]
        facts[f"{method}_megapixels_per_second"] = megapixels / seconds
        facts[f"{method}_peak_mb"] = large["peak_mb"]
    found = []
    for method, name in PEERS.items():
        speed = memory = None
        if method not in missing:
            key = "megapixels_per_second"
            speed = facts[f"tsm_{key}"] / facts[f"{method}_{key}"]
            memory = facts["tsm_peak_mb"] / facts[f"{method}_peak_mb"]
        note = missing.get(method, "")
        sides = f"of the whole process, {SIDES[1]} x {SIDES[1]} pixels"
        found += [
            Row(f"tsm_{method}", f"TSM / {name}, megapixels a second", speed, "", note, facts),
            Row(f"tsm_{method}_memory", f"TSM / {name}, peak memory", memory, "", note or sides),
        ]
    return found


def main(method: str, side: int) -> dict[str, float | str]:
    """Denoise one micrograph and say what it took."""
    generator = np.random.default_rng(0)
    image = generator.poisson(40, (side, side)).astype(np.float32)
    if method == "topaz":
        from emlab.external import topaz

        try:
            done = topaz.denoise([image])[1]
        except EmlabError as problem:
            return {"missing": str(problem)}
        return {"seconds": done.cpu_seconds, "peak_mb": done.peak_memory_mb}
    choose_threads(1)
    if method == "tsm":
        from emlab.methods import tsm

        network = tsm.load_denoiser()
        before = time.process_time()
        tsm.denoise(image, PIXEL_ANGSTROM, network)
    else:
        try:
            from emlab.chapters.tsm.cases import block_matching

            before = time.process_time()
            block_matching(image, 1.0)
        except EmlabError as problem:
            return {"missing": str(problem)}
    return {"seconds": time.process_time() - before, "peak_mb": resident_peak_mb()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
