"""Read a chapter: its title, its claim, the picture that stands for it."""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Notebook = dict[str, Any]
NOT_RUN = "This chapter was not run when this copy of the book was made"
_SECTION = re.compile(r"^## (.+)$", flags=re.MULTILINE)
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
        for html_text in _html(cell):
            if found := _PICTURE.search(html_text):
                return Cover(base64.b64decode(found["data"]), html.unescape(found["alt"]))
    return None


def curtains(notebook: Notebook) -> list[str]:
    """Return the curtains that the chapter shows, as HTML."""
    shown = [text for cell in notebook["cells"] for text in _html(cell)]
    return [text for text in shown if 'class="emlab-curtain"' in text]


def words(notebook: Notebook) -> int:
    """Return how many words of running text a chapter has."""
    return sum(len(text.split()) for text in _markdown(notebook))


def section_seconds(notebook: Notebook) -> dict[str, float]:
    """Return how long the code below each heading of second rank ran; none if it never ran."""
    heading, spent = "", Counter[str]()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            found = _SECTION.findall("".join(cell["source"]))
            heading = found[-1].strip() if found else heading
        stamps = cell["metadata"].get("execution", {})
        ends = [stamps.get(name) for name in ("iopub.execute_input", "shell.execute_reply")]
        if all(ends):
            began, ended = map(datetime.fromisoformat, ends)
            spent[heading] += (ended - began).total_seconds()
    return dict(spent)


def cell_ids(notebook: Notebook) -> set[str]:
    """Return the names of all cells."""
    return {cell["id"] for cell in notebook["cells"] if "id" in cell}


def described(notebook: Notebook, cell_id: str) -> str:
    """Return the description of the first picture that a cell shows, without brackets."""
    for cell in notebook["cells"]:
        if cell.get("id") == cell_id:
            for html_text in _html(cell):
                if found := _PICTURE.search(html_text):
                    return re.sub(r"[\[\]]", "", html.unescape(found["alt"]))
    return ""


def _html(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield _text(output.get("data", {}).get("text/html", ""))


def _markdown(notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            yield _text(cell["source"]).strip()


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def labelled(notebook: Notebook, labels: Mapping[str, str]) -> Notebook:
    """Return a copy in which cells (by name) are preceded by a label that pages can point to."""
    cells = []
    for cell in notebook["cells"]:
        if label := labels.get(cell.get("id", "")):
            text = {"cell_type": "markdown", "metadata": {}, "source": f"({label})="}
            cells.append({**text, "id": label})
        cells.append(cell)
    return {**notebook, "cells": cells}


def marked_not_run(notebook: Notebook) -> Notebook:
    """Return a copy that says below its title that it was not run for this copy of the book."""
    why = "no time was left. Its cells show no outputs, or those of an earlier run."
    text = f":::{{warning}}\n{NOT_RUN}: {why}\n:::"
    cell = {"cell_type": "markdown", "metadata": {}, "source": text, "id": "not-run"}
    first, *others = notebook["cells"]
    return {**notebook, "cells": [first, cell, *others]}
