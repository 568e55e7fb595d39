"""The end of a chapter: one line on its numbers, and a table that unfolds and can be filtered."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emlab.bench.tables import format_number

# Hides the rows that lack the word; the script stands in the page, which may have no network.
_FILTER = (
    "const w=this.value.toLowerCase();for(const r of "
    "this.closest('details').querySelectorAll('tbody tr'))"
    "r.hidden=!r.textContent.toLowerCase().includes(w)"
)
_HEADER = ("number", "value", "interval", "n", "unit", "note")


def html_metrics(metrics: Mapping[str, Any], path: Path, judged: str) -> str:
    """Return the numbers of a run as one line and a folded table.

    Parameters
    ----------
    metrics : mapping
        Content of metrics.json.
    path : Path
        Where it is written; the page names the last two parts.
    judged : str
        How many numbers are in bounds, in words.
    """
    values = metrics["values"]
    where = "/".join(path.parts[-2:])
    line = f"{len(values)} numbers were recorded in <code>{where}</code>; {judged}."
    rows = "".join(_row("td", _cells(name, entry)) for name, entry in values.items())
    return (
        f"<p>{line}</p><details class='emlab-numbers'><summary>All numbers</summary>"
        f'<p><label>Show only rows with <input type="search" oninput="{_FILTER}"></label></p>'
        f'<table class="dataframe"><thead>{_row("th", _HEADER)}</thead><tbody>{rows}</tbody>'
        "</table></details>"
    )


def _cells(name: str, entry: Mapping[str, Any]) -> Sequence[str]:
    ends = [format_number(entry[end]) for end in ("low", "high")]
    interval = " to ".join(ends) if any(ends) else ""
    number = format_number(entry["value"])
    return [name, number, interval, str(entry["n"] or ""), entry["unit"], entry["note"]]


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
