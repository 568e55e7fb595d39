"""``make bench``: a table of ratios, kept in _build/bench.json, and for the book if published."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import tomli_w
import torch

from benchmarks import denoising, house, mtd_estep, networks, samplers
from benchmarks.measuring import ROOT, Row
from emlab.errors import EmlabError
from emlab.runtime import Stopwatch, atomic_path, choose_threads, environment_stamp

RESULT = ROOT / "_build" / "bench.json"
PUBLISHED = ROOT / "book" / "bench.toml"
HEAD = "# Written by `make bench-publish`; the page book/scale is computed from it.\n\n"
REGRESSED = 4


def estep() -> list[Row]:
    """The E-step of multi-target detection at the paper's size."""
    with torch.inference_mode():
        found = mtd_estep.measure(mtd_estep.PAPER, 3.0)
    what = "expectation step / its Fourier transforms, seconds"
    return [Row("estep", what, found.ratio, f"<= {mtd_estep.BOUND:g}")]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "estep": estep,
    "network": samplers.network_shares,
    "flow": samplers.flow_against_diffusion,
    "denoising": denoising.rows,
    "cellpose": house.restorer_against_cellpose,
    "variants": networks.variants,
    "throughput": networks.throughput,
    "book": house.book_build,
    "import": house.import_time,
    "chapters": house.chapter_times,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print as it goes, and write; the status says whether a bound is broken."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some of the parts")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="OUT")
    parser.add_argument("--publish", action="store_true", help=f"write {PUBLISHED.name}, too")
    options = parser.parse_args(arguments)
    choose_threads(1)
    load, rows = os.getloadavg()[0], []
    with Stopwatch() as watch:
        for name in options.only or PARTS:
            try:
                found = PARTS[name]()
            except (EmlabError, OSError, subprocess.SubprocessError) as problem:
                found = [Row(name, name, None, "", f"not measured: {problem}")]
            print("\n".join(map(line, found)), flush=True)
            rows += found
    print(f"{watch.seconds:.0f} s; load of the machine at the start {load:.1f}")
    content = {
        "seconds": round(watch.seconds, 1),
        "load_at_start": round(load, 2),
        "environment": {k: v for k, v in environment_stamp().items() if v is not None},
        "rows": [asdict(row) for row in rows],
    }
    with atomic_path(options.json) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.publish:
        publish(content)
    broken = [row.what for row in rows if row.kept is False]
    for what in broken:
        print(f"bound broken: {what}", file=sys.stderr)
    return REGRESSED if broken else 0


def line(row: Row) -> str:
    """A row of the table."""
    ratio = "-" if row.ratio is None else f"{row.ratio:.3g}"
    verdict = {None: "", True: "kept", False: "BROKEN"}[row.kept]
    return f"{row.what:<66} {ratio:>7} {row.bound:>9} {verdict:<7} {row.note}".rstrip()


def publish(content: dict) -> None:
    """Keep rows and facts as the table that the book reads."""
    rows = {
        f"{number:02d}_{row['name']}": {
            key: round_number(value)
            for key, value in row.items()
            if key not in ("facts", "name") and value not in (None, "")
        }
        for number, row in enumerate(content["rows"])
    }
    facts: dict[str, dict[str, float]] = {}
    for row in content["rows"]:
        for key, value in (row["facts"] or {}).items():
            facts.setdefault(row["name"], {})[key] = round_number(value)
    table = {**content, "rows": rows, "facts": facts}
    with atomic_path(PUBLISHED) as path:
        path.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")


def round_number(value: object) -> object:
    """Four figures are more than these numbers are good for."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
