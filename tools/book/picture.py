"""The picture of the layers, drawn from the imports of the package."""

from __future__ import annotations

from html import escape

from tools.book.markdown import table
from tools.layers import LAYERS, summary, uses

WIDTH, ROW, GAP = 760, 46, 8


def layers() -> str:
    """Return an inline SVG: one band per layer, the user's side on top."""
    bands = [[unit for unit in layer if summary(unit)] for layer in reversed(LAYERS)]
    bands = [band for band in bands if band]
    height = len(bands) * (ROW + GAP)
    names = "; ".join(", ".join(band) for band in bands)
    parts = [
        f'<svg class="emlab-layers" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Layers of emlab from top to bottom: {escape(names)}">'
    ]
    for i, band in enumerate(bands):
        width = (WIDTH - GAP * (len(band) - 1)) / len(band)
        for j, unit in enumerate(band):
            x, y = j * (width + GAP), i * (ROW + GAP)
            parts.append(
                f"<g><title>{escape(summary(unit))}</title>"
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" rx="6"/>'
                f'<text x="{x + width / 2:.1f}" y="{y + ROW / 2:.0f}">{escape(unit)}</text></g>'
            )
    return "\n".join(["```{raw} html", *parts, "</svg>", "```"])


def units() -> str:
    """Return a table of the units, top first: what each holds and what it imports."""
    used = uses()
    rows = [
        [f"`{unit}`", summary(unit), ", ".join(sorted(used.get(unit, set()))) or "nothing of emlab"]
        for layer in reversed(LAYERS)
        for unit in layer
        if summary(unit)
    ]
    return table(["unit", "what it holds", "imports"], rows)
