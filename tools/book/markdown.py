"""Small pieces of MyST Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

PLACEHOLDER = re.compile(r"\{([a-z0-9_+.-]+)\}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a pipe table; numbers are right-aligned."""
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(header))
    ]
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
    ]
    lines += ["| " + " | ".join(cell(item) for item in row) + " |" for row in rows]
    return "\n".join(lines)


def cell(item: object) -> str:
    """Return the text of one table cell on one line, with bars escaped."""
    if item is None:
        return ""
    text = f"{item:.4g}" if isinstance(item, float) else str(item)
    return " ".join(text.split()).replace("|", "\\|")


def number(entry: Mapping[str, Any]) -> str:
    """Return a recorded number with its interval, such as ``0.42 [0.39, 0.45]``."""
    text = f"{entry['value']:.3g}"
    low, high = entry.get("low"), entry.get("high")
    return text if low is None or high is None else f"{text} [{low:.3g}, {high:.3g}]"


def size(n_bytes: int) -> str:
    """Return a size in kB or MB (powers of ten)."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def filled(template: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Put recorded numbers into the ``{name}`` of a sentence; one not measured is a dash."""
    return PLACEHOLDER.sub(
        lambda found: number(values[found[1]]) if found[1] in values else "–", template
    )
