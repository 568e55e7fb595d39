"""Plain text tables, for terminals, logs and notebooks alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emlab.bench.bounds import Outcome


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a header in aligned columns; numbers to the right, text to the left.

    Numbers are floats and ints; None becomes an empty cell.
    """
    cells = [[_cell(item) for item in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    numeric = [
        any(isinstance(row[i], int | float) for row in rows)
        and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def format_number(value: float | None) -> str:
    """Return four significant digits, or nothing for None."""
    return "" if value is None else f"{value:.4g}"


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return the content of a metrics.json as text: numbers, data, shortcuts, cost."""
    rows = []
    for name, entry in metrics["values"].items():
        ends = [format_number(entry[end]) for end in ("low", "high")]
        interval = f"[{ends[0]}, {ends[1]}]" if any(ends) else ""
        rows.append([name, entry["value"], interval, entry["n"], entry["unit"], entry["note"]])
    environment = metrics["environment"]
    parts = [
        f"{metrics['slug']}, profile {metrics['profile']}, seed {metrics['seed']}, "
        f"{metrics['device']}: {metrics['seconds']:.1f} s, {metrics['peak_memory_mb']:.0f} MB peak",
        format_table(["number", "value", "interval", "n", "unit", "note"], rows),
    ]
    for entry in metrics["data"]:
        flag = f" (a STAND-IN for {entry['stands_in_for']})" if entry["stand_in"] else ""
        note = f": {entry['note']}" if entry["note"] else ""
        parts.append(f"data: {entry['name']} from {entry['source']}{flag}{note}")
    for entry in metrics["recorded"]:
        state = "STALE, run" if entry["stale"] else "again with"
        parts.append(
            f"recorded: {entry['name']} on {entry['date']}, {entry['machine']} "
            f"({state} `{entry['again']}`)"
        )
    parts += [f"shortcut: {text}" for text in metrics["shortcuts"]]
    stamp = ", ".join(
        f"{key} {environment[key]}" for key in ("commit", "torch") if key in environment
    )
    return "\n".join([*parts, *([f"made with: {stamp}"] if stamp else [])])


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Return a table of comparisons: what was measured, what was asked, whether it holds."""
    rows = [
        ["ok" if item.ok else "FAIL", item.name, item.value, item.requirement, item.why]
        for item in outcomes
    ]
    return format_table(["", "number", "value", "required", "why"], rows)


def _cell(item: object) -> str:
    if isinstance(item, float):
        return format_number(item)
    return "" if item is None else str(item)
