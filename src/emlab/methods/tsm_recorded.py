"""Numbers of chapter 02 that tools measured once, because they take longer than a chapter may."""

from __future__ import annotations

from typing import Any

import numpy as np

from emlab.methods.settings import read_measured
from emlab.methods.tsm_peers import LABELS
from emlab.methods.tsm_study import Table
from emlab.metrics.picking import Counts
from emlab.report import Report

_ALIKE = 0.02  # correlation by which a network that is trained twice may differ


def add_slow_peers(table: Table, found: dict[str, Any] | None = None) -> list[str]:
    """Give BM3D and Noise2Void all micrographs of a table that ran them on the first ones only.

    Recorded numbers are taken only if there is one for every micrograph of the table, and where
    both were measured they agree: they are then of the same micrographs.

    Parameters
    ----------
    found : dict, optional
        Default: what tools/measure_tsm_slow_peers.py wrote.

    Returns
    -------
    list of str
        A sentence for each method that was completed.
    """
    told = read_measured("tsm_slow_peers") if found is None else found
    said = []
    for name, row in told["rows"].items():
        bands, live = np.array(row["bands"], float), table.bands.get(name)
        if live is None or len(bands) != len(table.micrographs) or len(live) >= len(bands):
            continue
        if np.abs(bands[: len(live)] - live).max() > _ALIKE:
            continue
        table.bands[name] = bands
        if name in table.picks:
            table.recorded[name] = Counts(
                *(np.array(row[key], np.int64) for key in ("hits", "picks", "truths"))
            )
        said.append(
            f"{LABELS[name]}: {len(live)} of {len(bands)} micrographs now, all of them on "
            f"{told['date']} ({told['machine']})"
        )
    return said


def memory() -> dict[str, Any]:
    """What tools/measure_tsm_memory.py wrote: ``date``, ``machine``, ``side``, ``rows``."""
    return read_measured("tsm_memory")


def record_memory(found: dict[str, Any], report: Report) -> str:
    """Record ``memory.METHOD`` in megabytes and ``memory.over_topaz``; returns it in words."""
    rows = found["rows"]
    if not rows:
        return "largest memory: not measured; run python -m tools.measure_tsm_memory"
    for name, row in rows.items():
        report.value(f"memory.{name}", row["peak_memory_mb"], unit="MB", note=found["date"])
    ratio = rows["tsm"]["peak_memory_mb"] / rows["topaz"]["peak_memory_mb"]
    report.value("memory.over_topaz", ratio, note=f"{found['side']} pixels a side")
    told = ", ".join(
        f"{LABELS[name]} {row['peak_memory_mb'] / 1000:.2f} GB in {row['cpu_seconds']:.0f} CPU-s"
        for name, row in rows.items()
    )
    return f"{found['side']} x {found['side']} pixels, {found['date']}, {found['machine']}: {told}"
