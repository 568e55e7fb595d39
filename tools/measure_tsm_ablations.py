"""Train the short variants of chapter 02 and write what they reach.

``python -m tools.measure_tsm_ablations [NAME ...]`` takes about a minute a variant on one core;
with names only these are measured again.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import tomli_w

from emlab.chapters.tsm import ablations as tsm_ablations
from emlab.chapters.tsm.ablations import Bench, ablate, variants
from emlab.metrics.bands import band_correlations
from emlab.runtime import atomic_path, environment_stamp
from emlab.settings import read_settings

TARGET = Path(tsm_ablations.__file__).with_name("ablations.toml")
HEAD = "# Written by tools/measure_tsm_ablations.py.\n\n"


def main() -> None:
    """Measure, and keep what was measured before."""
    bench = Bench.make()
    kept = read_settings("chapters/tsm/ablations") if TARGET.is_file() else {}
    rows, traces = kept.get("rows", {}), kept.get("traces", {})
    for name, variant in variants().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        started = time.monotonic()
        numbers, trace = ablate(variant, bench)
        rows[name] = {"label": variant.label} | {k: round(v, 5) for k, v in numbers.items()}
        if trace:
            traces[name] = {
                key: [round(entry[key], 4) for entry in trace]
                for key in ("step", "similarity", "null", "confidence", "guesses")
            }
        print(name, rows[name], f"{time.monotonic() - started:.0f} s", flush=True)
        _write(bench, rows, traces)


def _write(bench: Bench, rows: dict, traces: dict) -> None:
    raw = {
        kind: sum(band_correlations(f.micrograph.noisy, f.micrograph)["mean"] for f in judged)
        / len(judged)
        for kind, judged in bench.judged.items()
    }
    side = bench.shown[0].micrograph.config.shape[0]
    found = {
        "date": date.today().isoformat(),
        "bench": f"{len(bench.shown)} micrographs of {side} x {side} pixels, {bench.steps} steps "
        f"of {bench.batch} crops of {bench.crop} pixels, {environment_stamp().get('cpu')}",
        "rows": {"raw": {"label": "nothing (raw)"} | {k: round(v, 5) for k, v in raw.items()}}
        | {name: row for name, row in rows.items() if name != "raw"},
        "traces": traces,
    }
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + tomli_w.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
