"""Refine particles at the picks of chapter 02 by RELION, without poses, and write what comes out.

``python -m tools.measure_tsm_refinement`` takes some minutes on one core, writes after each row,
leaves out rows that are there, and needs Topaz (``make topaz``) and RELION (``relion_refine``, the
system's package relion).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import tomli_w

from emlab.chapters.tsm import (
    cases as tsm_chapter,
    peers as tsm_peers,
    refinement as tsm_refinement,
)
from emlab.chapters.tsm.study import run_study
from emlab.external import relion
from emlab.methods.tsm import load_denoiser
from emlab.physics.micrograph import Micrograph
from emlab.recipes.tsm import frames, volume
from emlab.runtime import atomic_path, environment_stamp
from emlab.settings import read_measured, read_profile

TARGET = Path(tsm_refinement.__file__).with_name("refinement.toml")
ROWS = ("truth", "tsm", "raw")
HEAD = "# Written by tools/measure_tsm_refinement.py.\n\n"


def main() -> None:
    """Measure the rows that are missing."""
    settings = read_profile("chapters/tsm/chapter", "cpu")
    micrographs = [f.micrograph for f in frames("test", settings["micrographs"], settings["size"])]
    reference = volume("t20s")[0].numpy()
    kept = read_measured("chapters/tsm/refinement")["rows"]
    places = {"truth": [micrograph.coordinates for micrograph in micrographs]}
    for name in ROWS:
        if name in kept:
            continue
        if name not in places:
            places |= _picks(micrographs)
        kept[name] = tsm_refinement.refine_at(micrographs, places[name], reference)
        written = {
            "date": date.today().isoformat(),
            "machine": environment_stamp()["cpu"],
            "program": f"RELION {relion.version()}",
            "rows": kept,
        }
        with atomic_path(TARGET) as path:
            path.write_text(HEAD + tomli_w.dumps(written), encoding="utf-8")
        print(name, kept[name], flush=True)


def _picks(micrographs: list[Micrograph]) -> dict[str, list[np.ndarray]]:
    methods = tsm_peers.classical(["raw"])
    methods["tsm"] = tsm_chapter.score_method(load_denoiser("tsm"))
    table = run_study(micrographs, methods, tsm_peers.tuned()["thresholds"])
    table.pick()
    return {name: picks.kept(table.threshold(name)) for name, picks in table.picks.items()}


if __name__ == "__main__":
    main()
