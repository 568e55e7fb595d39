"""Small pieces of MyST Markdown."""

from __future__ import annotations

from collections.abc import Sequence


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


def size(n_bytes: int) -> str:
    """Return a size in kB or MB (powers of ten)."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"
