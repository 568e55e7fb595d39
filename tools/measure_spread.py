"""Measure how far held-out phase maps lie from a prior's answers and write it down.

``python -m tools.measure_spread flowdps_flow`` takes a minute or two; run it whenever these weights
change. Views are those of the validation split, which the network was not trained on.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import torch

from emlab import weights
from emlab.data.phase_maps import phase_maps
from emlab.methods import flowdps_spread
from emlab.methods.flowdps import load_in_radians
from emlab.runtime import atomic_path, choose_threads
from emlab.weights.toml import dump_toml

TARGET = Path(flowdps_spread.__file__).parent / "profiles" / "flowdps_spread.toml"
HEAD = """\
# Variance of the truth around the answers of shipped weights, in squared radians, by noise level
# in units of the prior and by whole spatial frequency. Written by tools/measure_spread.py.

"""
SPECIMEN, MAPS = "t20s", 64


def main() -> None:
    """Measure the spread of the weights that are named."""
    choose_threads()
    table = tomllib.loads(TARGET.read_text(encoding="utf-8"))
    images = phase_maps(SPECIMEN, 256, 1, "validation").phases[:MAPS]
    for name in sys.argv[1:]:
        with torch.no_grad():
            found = flowdps_spread.on_images(load_in_radians(name), images)
        rings = zip(flowdps_spread.LEVELS, flowdps_spread.rings_of(found), strict=True)
        table[name] = {
            "sha256": weights.card(name).sha256,
            "rings": {f"{level:g}": [float(f"{v:.3g}") for v in row] for level, row in rings},
        }
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + dump_toml(table), encoding="utf-8")


if __name__ == "__main__":
    main()
