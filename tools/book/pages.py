"""What is filled into the pages of book/ when they are staged: a function per marker."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emlab.bench.claims import number
from tools.book import api, cards, costs, landing, notebooks, picture, scores
from tools.book.markdown import table
from tools.book.runs import Runs

MARKER = re.compile(r"^<!-- emlab:(\w+)(?: ([\w. ]+))? -->$", flags=re.MULTILINE)
COVERS = Path("book/_static/covers")


def fill(text: str, runs: Runs) -> str:
    """Replace every line ``<!-- emlab:name arguments -->`` of a page by what it stands for.

    Raises
    ------
    KeyError
        No function has that name.
    """
    return MARKER.sub(lambda found: FILLS[found[1]](runs, *(found[2] or "").split()), text)


def status(runs: Runs) -> str:
    """Return the table of chapters: result, time, memory; then hardware and versions."""
    if not runs.status:
        return "No chapter has been run."
    rows, problems, shortcuts, recorded = [], [], [], []
    slower = runs.status["times_reference"]
    for slug, entry in runs.status["chapters"].items():
        metrics = runs.metrics.get(slug, {})
        rows.append(
            [
                f"[{slug}](../notebooks/{slug})",
                entry["status"],
                round(entry["seconds"]),
                round(entry["seconds"] / slower),
                round(entry["peak_memory_mb"] or 0),
                entry["checked"],
                _data(metrics.get("data", [])),
            ]
        )
        # Of a chapter that failed the first line says it all; the rest is where it happened.
        lines = entry["problems"][:1] if entry["status"] == "failed" else entry["problems"]
        problems += [f"* {slug} {entry['status']}: `{line.strip()}`" for line in lines]
        recorded += [
            f"* **{slug}**, {item['name']}: {item['date']}, {item['machine']}, fingerprint "
            f"`{item['fingerprint'][:8]}`{' (STALE)' if item['stale'] else ''}, again with "
            f"`{item['again']}`"
            for item in metrics.get("recorded", [])
        ]
        shortcuts += [f"* **{slug}**: {text}" for text in metrics.get("shortcuts", [])]
    header = ["chapter", "result", "seconds", "scaled", "memory (MB)", "checked", "data"]
    parts = [
        f"Profile **{runs.profile}**, run on {runs.status['utc']}. A fixed probe (convolutions and "
        f"Fourier transforms) took {runs.status['probe_seconds']:.2f} s, {slower:.2f} times what "
        "the reference machine takes (two cores with AVX-512); *scaled* seconds are divided by "
        "that. Time never fails a build: `make bench` compares scaled seconds with their limits.",
        table(header, rows),
        "## Where the time went",
        _longest_sections(runs),
        *(["## What did not pass", "\n".join(problems)] if problems else []),
        "## Recorded, not run here",
        "\n".join(recorded) or "Nothing: every number comes from the runs above.",
        "## Shortcuts of this profile",
        "\n".join(shortcuts) or "None.",
        "## Hardware and versions",
        _environment(runs),
    ]
    return "\n\n".join(parts)


def _data(entries: list[dict[str, Any]]) -> str:
    """Return the names of the data sets, with what stands in for which."""
    names = {
        f"{item['name']} (for {item['stands_in_for']})" if item["stand_in"] else item["name"]
        for item in entries
    }
    return ", ".join(sorted(names))


def _longest_sections(runs: Runs, count: int = 3) -> str:
    rows = []
    for slug in runs.slugs:
        spent = notebooks.section_seconds(runs.notebook(slug))
        longest = sorted(spent, key=spent.__getitem__, reverse=True)[:count]
        shown = ", ".join(f"{name} ({spent[name]:.0f} s)" for name in longest if name)
        rows.append([f"[{slug}](../notebooks/{slug})", shown])
    return table(["chapter", "its longest sections"], [row for row in rows if row[1]])


def _environment(runs: Runs) -> str:
    columns = list(runs.metrics)
    if not columns:
        return "No chapter recorded its environment."
    stamps = [runs.metrics[slug]["environment"] for slug in columns]
    keys = list(dict.fromkeys(key for stamp in stamps for key in stamp))
    rows = [[key, *(stamp.get(key) or "none" for stamp in stamps)] for key in keys]
    return table(["", *columns], rows)


def numbers(runs: Runs, slug: str) -> str:
    """Return all recorded numbers of one chapter."""
    values = runs.metrics.get(slug, {}).get("values", {})
    rows = [[f"`{name}`", number(entry), entry["unit"]] for name, entry in values.items()]
    return table(["number", "value", "unit"], rows) if rows else "Not measured in this profile."


FILLS: dict[str, Callable[..., str]] = {
    "chapters": landing.chapter_cards,
    "curtain": landing.hero,
    "tally": landing.tally,
    "data_cards": lambda runs: cards.data_cards(),
    "model_cards": lambda runs: cards.model_cards(),
    "status": status,
    "scorecard": scores.scores,
    "numbers": numbers,
    "work": lambda runs: costs.work(runs.root),
    "benchmark": lambda runs: costs.benchmark(runs.root),
    "layers": lambda runs: picture.layers(),
    "units": lambda runs: picture.units(),
    "api": lambda runs, *prefixes: api.reference(runs.root, prefixes),
}
