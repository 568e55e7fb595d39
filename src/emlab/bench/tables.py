"""Tables: plain text for terminals and logs, HTML for the end of a chapter."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emlab.bench.bounds import Outcome

_HEADER = ("number", "value", "interval", "n", "unit", "note")
# Hides the rows that lack the word; the script stands in the page, which may have no network.
_FILTER = (
    "const w=this.value.toLowerCase();for(const r of "
    "this.closest('details').querySelectorAll('tbody tr'))"
    "r.hidden=!r.textContent.toLowerCase().includes(w)"
)


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
    environment = metrics["environment"]
    parts = [
        f"{metrics['slug']}, profile {metrics['profile']}, seed {metrics['seed']}, "
        f"{metrics['device']}: {metrics['seconds']:.1f} s, {metrics['peak_memory_mb']:.0f} MB peak",
        format_table(_HEADER, _rows(metrics, "[{}, {}]")),
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


def html_metrics(metrics: Mapping[str, Any], path: Path, judged: str) -> str:
    """Return a metrics.json as one line and a table that unfolds and can be filtered.

    Parameters
    ----------
    path : Path
        Where it is written; the page names the last two parts.
    judged : str
        How many numbers are in bounds, in words.
    """
    rows, where = _rows(metrics, "{} to {}"), "/".join(path.parts[-2:])
    body = "".join(_html_row("td", [_cell(item) for item in row]) for row in rows)
    return (
        f"<p>{len(rows)} numbers were recorded in <code>{where}</code>; {judged}.</p>"
        "<details class='emlab-numbers'><summary>All numbers</summary>"
        f'<p><label>Show only rows with <input type="search" oninput="{_FILTER}"></label></p>'
        f'<table class="dataframe"><thead>{_html_row("th", _HEADER)}</thead><tbody>{body}</tbody>'
        "</table></details>"
    )


def _rows(metrics: Mapping[str, Any], interval: str) -> list[list[Any]]:
    rows = []
    for name, entry in metrics["values"].items():
        ends = [format_number(entry[end]) for end in ("low", "high")]
        between = interval.format(*ends) if any(ends) else ""
        rows.append([name, entry["value"], between, entry["n"], entry["unit"], entry["note"]])
    return rows


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


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
