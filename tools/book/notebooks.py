"""Read a chapter: its title, its claim, the picture that stands for it."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Notebook = dict[str, Any]
_PICTURE = re.compile(r'<img src="data:image/png;base64,(?P<data>[^"]+)" alt="(?P<alt>[^"]*)"')


@dataclass(frozen=True)
class Cover:
    """A picture that `emlab.viz` put into a notebook: its PNG and its description."""

    png: bytes
    alt: str


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


def cover(notebook: Notebook) -> Cover | None:
    """Return the picture of the cell tagged ``cover``, else of the first cell that shows one."""
    cells = notebook["cells"]
    tagged = [cell for cell in cells if "cover" in cell.get("metadata", {}).get("tags", [])]
    for cell in [*tagged, *cells]:
        for output in cell.get("outputs", []):
            found = _PICTURE.search(_text(output.get("data", {}).get("text/html", "")))
            if found:
                return Cover(base64.b64decode(found["data"]), html.unescape(found["alt"]))
    return None


def _markdown(notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield _text(cell["source"]).strip()


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
