"""Largest memory and processor time of denoising one large micrograph: TSM and Topaz-Denoise.

``python -m tools.measure_tsm_memory`` takes some minutes on one core and needs Topaz (``make
topaz``). Each program runs once, whole, in a process of its own on one thread, from an MRC file to
an MRC file; what Python and torch take by themselves is in both numbers.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import tomli_w

from emlab.chapters.tsm import recorded as tsm_recorded
from emlab.external import topaz
from emlab.external.process import Finished, run_program
from emlab.io import write_image
from emlab.recipes.tsm import frames
from emlab.runtime import atomic_path, environment_stamp

TARGET = Path(tsm_recorded.__file__).with_name("memory.toml")
HEAD = "# Written by tools/measure_tsm_memory.py.\n\n"
SIDE, TILE = 4096, 1024


def main() -> None:
    """Measure both and write the table."""
    one = frames("validation", 1, TILE)[0].micrograph
    pixels = np.tile(one.noisy.numpy(), (SIDE // TILE, SIDE // TILE))
    found = {"tsm": _ours(pixels, one.pixel_size_angstrom), "topaz": topaz.denoise([pixels])[1]}
    table = {
        "date": date.today().isoformat(),
        "machine": environment_stamp()["cpu"],
        "side": SIDE,
        "threads": 1,
        "rows": {
            name: {
                "peak_memory_mb": round(done.peak_memory_mb),
                "cpu_seconds": round(done.cpu_seconds, 1),
            }
            for name, done in found.items()
        },
    }
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))


def _ours(pixels: np.ndarray, pixel_size_angstrom: float) -> Finished:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_image(folder / "in.mrc", pixels, pixel_size_angstrom)
        call = "import sys; from emlab.app.cli import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", call, "tsm", "denoise", "in.mrc", "out.mrc"]
        return run_program([*words, "--device", "cpu"], folder, environment={"EMLAB_THREADS": "1"})


if __name__ == "__main__":
    main()
