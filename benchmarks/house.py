"""The package and the book: imports, the build of the pages, and what is kept from elsewhere."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import ROOT, Row
from emlab.chapters import BUDGETS
from emlab.chapters.cellpose3.rows import SPEEDS
from emlab.runtime import Stopwatch

IMPORTS = {
    "torch": "import torch",
    "emlab": "import torch, emlab",
    "layers": "import torch, emlab.physics, emlab.priors, emlab.solvers, emlab.metrics, emlab.viz",
}
BEYOND_TORCH = 0.3  # seconds


def chapter_times() -> list[Row]:
    """Scaled seconds of the chapters in the last `make book` against what they may take."""
    rows = []
    for profile in ("smoke", "cpu"):
        file = ROOT / "_build" / "runs" / profile / "status.json"
        status = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for slug, entry in status.get("chapters", {}).items():
            if entry["seconds"]:
                scaled = entry["seconds"] / status["times_reference"]
                what = f"{slug} in {profile}: scaled seconds / those it may take"
                told = f"{entry['seconds']:.0f} s here, {scaled:.0f} scaled"
                ratio = scaled / BUDGETS[profile]
                rows.append(Row(f"{profile}_{slug}", what, ratio, "<= 1", told))
    return rows or [Row("chapters", "scaled seconds of chapters", None, "<= 1", "run `make book`")]


def import_time() -> list[Row]:
    """Processor seconds of fresh interpreters: torch alone, with emlab, with its layers."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(6):
        for name, statement in IMPORTS.items():
            before = _children_seconds()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if turn:
                taken[name].append(_children_seconds() - before)
    middle = {name: statistics.median(found) for name, found in taken.items()}
    facts = {f"{name}_seconds": value for name, value in middle.items()}
    rows = []
    for name, what in (("emlab", "emlab"), ("layers", "all layers of emlab")):
        beyond = middle[name] - middle["torch"]
        told = f"{beyond:.2f} s beyond torch, {BEYOND_TORCH:g} s are allowed"
        bound = f"<= {1 + BEYOND_TORCH / middle['torch']:.3g}"
        ratio = middle[name] / middle["torch"]
        what = f"import torch and {what} / torch"
        rows.append(Row(f"import_{name}", what, ratio, bound, told, facts))
    return rows


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def book_build(profile: str = "cpu") -> list[Row]:
    """Building the pages that are staged against the time that their chapters took to run."""
    stage, status = ROOT / "_build" / "stage", ROOT / "_build" / "runs" / profile / "status.json"
    what = "building the pages / running the chapters, seconds"
    if not (stage / "_toc.yml").is_file() or not status.is_file():
        return [Row("book", what, None, "", "no staged book here: make book")]
    chapters = json.loads(status.read_text(encoding="utf-8"))["chapters"].values()
    running = sum(entry["seconds"] for entry in chapters)
    with tempfile.TemporaryDirectory() as out:
        copied = shutil.copytree(stage, Path(out) / "stage")
        jupyter_book = Path(sys.executable).with_name("jupyter-book")
        command = [str(jupyter_book), "build", str(copied), "--path-output", out, "--quiet"]
        with Stopwatch() as watch:
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    facts = {"build_seconds": watch.seconds, "chapters_seconds": running}
    note = "the chapters' seconds are those of the last make book"
    return [Row("book", what, watch.seconds / running, "", note, facts)]


def restorer_against_cellpose() -> list[Row]:
    """As recorded for chapter 05: cellpose lives in an environment of its own."""
    entry = SPEEDS.entry()
    note = f"one run of {entry['date']} on {entry['machine']}, not repeated here"
    what = "residual U-Net / cellpose's network, images a second, widths"
    return [
        Row("cellpose", f"{what} {widths.replace('_', ' ')}", entry["ratio"], "", note)
        for widths, entry in SPEEDS.values["widths"].items()
    ]
