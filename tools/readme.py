"""``make readme``: what the last run measured, in README.md and in the times that chapters tell."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from emlab import chapters
from emlab.app.reach import code_hash
from emlab.bench.claims import filled
from tools.book import notebooks
from tools.book.markdown import table
from tools.book.runs import Runs
from tools.release import BRANCH, PLACE

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- emlab:chapters -->\n).*?(<!-- /emlab:chapters -->)", flags=re.DOTALL)
ON_BINDER = "00_start_here"


def chapters_table(runs: Runs) -> str:
    """Return the chapters with their measured claims, times and Colab badges.

    The sentence of a chapter stands in its chapter.toml, with names of recorded numbers; a chapter
    that was not run, or lacks one of them, shows none.
    """
    rows = []
    for slug in runs.slugs:
        metrics = runs.metrics.get(slug, {})
        rows.append(
            [
                f"[{notebooks.title(runs.notebook(slug))}](notebooks/{slug}.ipynb)",
                filled(chapters.table(slug).get("sentence", ""), metrics.get("values", {}))
                or "not measured",
                f"{metrics['seconds']:.0f} s" if metrics else "not measured",
                badges(slug),
            ]
        )
    return table(["chapter", f"measured ({runs.profile} profile)", "time", ""], rows)


def with_table(text: str, runs: Runs) -> str:
    """Return README text with the block of chapters replaced; it is a ValueError if it has none."""
    if not BLOCK.search(text):
        raise ValueError("README.md has no block of chapters to fill")
    return BLOCK.sub(lambda found: f"{found[1]}{chapters_table(runs)}\n{found[2]}", text)


def with_times(known: dict[str, Any], runs: Runs) -> dict[str, Any]:
    """Return the times that chapters tell, with those of a profile's run in place of older ones.

    ``scaled`` are seconds on the reference machine, ``code`` the hash of what the chapter reaches.
    """
    slower = runs.status.get("times_reference", 1.0)
    measured = {
        slug: {
            "seconds": round(metrics["seconds"], 1),
            "hardware": _hardware(metrics),
            "scaled": round(metrics["seconds"] / slower, 1),
            "code": code_hash(runs.root / "notebooks" / f"{slug}.ipynb"),
        }
        for slug, metrics in runs.metrics.items()
    }
    return {**known, runs.profile: {**known.get(runs.profile, {}), **measured}}


def _hardware(metrics: dict[str, Any]) -> str:
    place = metrics["environment"]
    graphics = place["gpu"] if metrics["device"] != "cpu" else None
    return graphics or f"{place['cores']} cores, {place['cpu']}"


def badges(slug: str) -> str:
    """Return the badges that open a chapter elsewhere; Binder has the memory for the first one."""
    path = f"{PLACE}/blob/{BRANCH}/notebooks/{slug}.ipynb"
    target = f"https://colab.research.google.com/github/{path}"
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    found = f"[![Open {slug} in Colab]({picture})]({target})"
    if slug == ON_BINDER:
        target = f"https://mybinder.org/v2/gh/{PLACE}/{BRANCH}?labpath=notebooks%2F{slug}.ipynb"
        found += f" [![Open {slug} in Binder](https://mybinder.org/badge_logo.svg)]({target})"
    return found


def main() -> int:
    """Rewrite README.md and the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu", help="profile whose numbers are shown")
    parser.add_argument("--times", action="store_true", help="only the times, not README.md")
    options = parser.parse_args()
    runs = Runs(ROOT, options.profile, ROOT / "_build" / "runs" / options.profile)
    readme = ROOT / "README.md"
    if not options.times:
        readme.write_text(with_table(readme.read_text(encoding="utf-8"), runs), encoding="utf-8")
    known = json.loads(chapters.TIMES.read_text(encoding="utf-8"))
    times = json.dumps(with_times(known, runs), indent=1, sort_keys=True)
    chapters.TIMES.write_text(f"{times}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
