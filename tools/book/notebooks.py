"""Read chapters: title, claim, cover picture; and give their figures alternative text."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

Notebook = dict[str, Any]


def title(notebook: Notebook) -> str:
    """Return the heading of the first cell that has one, without markup."""
    for text in _markdown(notebook):
        for line in text.splitlines():
            if line.startswith("# "):
                return line[2:].strip()
    raise ValueError("the chapter has no title: begin its first cell with '# '")


def claim(notebook: Notebook) -> str:
    """Return the first paragraph after the title: the chapter's one-sentence claim."""
    for text in _markdown(notebook):
        if text.startswith("# "):
            paragraphs = re.split(r"\n\s*\n", text)[1:]
            plain = [p for p in paragraphs if p.strip() and p.strip()[0] not in "[!<`:#{"]
            return " ".join(plain[0].split()).strip("*_> ") if plain else ""
    return ""


def cover(notebook: Notebook) -> bytes | None:
    """Return the PNG of the cell tagged ``cover``, else of the first cell that shows a picture."""
    cells = notebook["cells"]
    tagged = [cell for cell in cells if "cover" in cell.get("metadata", {}).get("tags", [])]
    for cell in [*tagged, *cells]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return base64.b64decode(_text(output["data"]["image/png"]))
    return None


def describe_figures(notebook: Notebook) -> Notebook:
    """Give every cell with a picture alternative text for the page, and return the notebook.

    The text is what the figure says of itself (``alt`` in the metadata of the output), else the
    section it stands in.
    """
    section = title(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ (.+)$", _text(cell["source"]), flags=re.MULTILINE)
            section = headings[-1].strip() if headings else section
            continue
        pictures = [
            output
            for output in cell.get("outputs", [])
            if any(kind.startswith("image/") for kind in output.get("data", {}))
        ]
        if pictures:
            own = [text for picture in pictures for text in _alternative(picture)]
            image = cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})
            image.setdefault("alt", "; ".join(own) or f"Figure of the section {section}")
    return notebook


def _alternative(output: dict[str, Any]) -> Iterator[str]:
    for entry in output.get("metadata", {}).values():
        if isinstance(entry, dict) and entry.get("alt"):
            yield str(entry["alt"])


def _markdown(notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield _text(cell["source"]).strip()


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
