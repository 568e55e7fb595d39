"""BM3D and Noise2Void on every test micrograph of chapter 02, which runs them on a few only.

``python -m tools.measure_tsm_slow_peers`` takes some minutes on one core, needs Topaz (``make
topaz``), writes after each micrograph and leaves out those that are already there.
"""

from __future__ import annotations

import time
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import tomli_w

from emlab.methods import tsm_peers, tsm_recorded
from emlab.methods.settings import read_measured, read_profile
from emlab.methods.tsm_bands import band_correlations
from emlab.methods.tsm_material import frames
from emlab.methods.tsm_picking import HIT, Picks, pick_all
from emlab.methods.tsm_study import DIAMETER_ANGSTROM
from emlab.runtime import atomic_path, environment_stamp

TARGET = Path(tsm_recorded.__file__).parent / "profiles" / "tsm_slow_peers.toml"
HEAD = "# Written by tools/measure_tsm_slow_peers.py, a row of each list a test micrograph.\n\n"
COLUMNS = ("bands", "hits", "picks", "truths", "cpu_seconds")


def main() -> None:
    """Measure what is missing."""
    settings = read_profile("tsm_study", "cpu")
    count, size = settings["micrographs"], settings["size"]
    steps, tuned = settings["noise2void_steps"], tsm_peers.tuned()
    methods = tsm_peers.classical(["bm3d"])
    methods["noise2void"] = tsm_peers.each(partial(tsm_peers.noise2void, steps=steps, seed=0))
    table = read_measured("tsm_slow_peers")
    table |= {
        "date": date.today().isoformat(),
        "machine": environment_stamp()["cpu"],
        "micrographs": count,
        "size": size,
        "noise2void_steps": steps,
    }
    for number, frame in enumerate(frames("test", count, size)):
        micrograph = frame.micrograph
        for name, method in methods.items():
            row = table["rows"].setdefault(name, {column: [] for column in COLUMNS})
            if len(row["bands"]) > number:
                continue
            started = time.monotonic()
            made = method([micrograph.noisy.numpy()])
            found = band_correlations(made.images[0], micrograph)
            pixel = micrograph.pixel_size_angstrom
            picked, _ = pick_all({name: made.images}, pixel, DIAMETER_ANGSTROM)
            radius = HIT * DIAMETER_ANGSTROM / pixel
            counts = Picks(picked[name], [micrograph.coordinates], radius).at(
                tuned["thresholds"][name]
            )
            row["bands"].append([round(value, 5) for value in found.values()])
            row["cpu_seconds"].append(round(made.cpu_seconds, 2))
            for column in ("hits", "picks", "truths"):
                row[column].append(int(np.sum(getattr(counts, column))))
            with atomic_path(TARGET) as path:
                path.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")
            print(name, number, row["bands"][-1], f"{time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
