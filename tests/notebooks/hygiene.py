"""What every committed chapter has to look like; each breach is one readable line."""

from __future__ import annotations

import ast
import re
from typing import Any

from tools.new_method import SLUG, TEMPLATE

MAX_CODE_LINES = 18  # that a reader sees, in lines that fit the column of the page
PARAMETERS = {"PROFILE": "cpu", "SEED": 0, "DEVICE": "auto", "OUT_DIR": "../runs/cpu"}
INSTALL = re.search(
    r"```python hide-input\n(.*?)\n```", (TEMPLATE / "chapter.md").read_text("utf-8"), re.DOTALL
)[1]
FORBIDDEN = {
    r"pip3? +install[^\n]*\btorch\b": "installs torch, which breaks Colab's own",
    r"(?<![\w.])/(?:work|home|root|Users|tmp)/": "has a path of somebody's machine",
    r"\bshared/data\b": "names the test mirror; load data by name with emlab.data",
    r"simple/|index-url": "names a package registry",
}


def breaches(notebook: dict[str, Any], slug: str) -> list[str]:
    """Return what is wrong with a notebook (parsed JSON) of this name; an empty list: nothing."""
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = [*_metadata(notebook), *_opening(cells, slug), *_parameters(cells)]
    for number, cell in enumerate(cells):
        found += [f"cell {number} {text}" for text in _cell(cell)]
    source = "\n".join(_text(cell) for cell in code)
    if not re.search(rf"Report\(\s*[\"']{re.escape(slug)}[\"']", source):
        found.append(f'no code makes Report("{slug}", OUT_DIR, PROFILE, SEED, ...)')
    if ".save()" not in source:
        found.append("no code saves the report")
    return found


def _text(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _metadata(notebook: dict[str, Any]) -> list[str]:
    metadata = notebook["metadata"]
    found = []
    if metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not called python3")
    extra = set(metadata) - {"kernelspec", "language_info", "colab", "accelerator"}
    return found + ([f"metadata to remove: {', '.join(sorted(extra))}"] if extra else [])


def _opening(cells: list[dict[str, Any]], slug: str) -> list[str]:
    title = cells[0]["cell_type"] == "markdown" and _text(cells[0]).startswith("# ")
    found = [] if title else ["the first cell is not a markdown title"]
    first_code = next((_text(cell) for cell in cells if cell["cell_type"] == "code"), "")
    # A chapter adds what else it needs: extras of emlab, and packages before it.
    plain = re.sub(r"\[[\w,]+\](?= @ )", "", first_code)
    plain = re.sub(r"= \(\n +(\".*\")\n +\)", r"= \1", plain)  # a long line, formatted
    plain = re.sub(r"(?<=kept\.txt )[\w ]*(?=\"\{book\})", "", plain)
    if plain != INSTALL.replace(SLUG, slug):
        found.append("the first code cell is not that of tools/template/chapter.md")
    return found


def _parameters(cells: list[dict[str, Any]]) -> list[str]:
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0]["cell_type"] != "code":
        return [f"{len(tagged)} cells are tagged 'parameters'; one code cell has to be"]
    values = {}
    for statement in ast.parse(_text(tagged[0])).body:
        try:
            (target,) = statement.targets  # type: ignore[attr-defined]
            values[target.id] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (AttributeError, ValueError):
            return [f"the parameters cell holds more than literals: {ast.unparse(statement)}"]
    if values != PARAMETERS:
        return [f"the parameters are {values}; they have to be {PARAMETERS}"]
    return []


def _cell(cell: dict[str, Any]) -> list[str]:
    text = _text(cell)
    found = [why for pattern, why in FORBIDDEN.items() if re.search(pattern, text)]
    if not text.strip():
        found.append("is empty")
    if not cell.get("id"):
        found.append("has no id")
    if cell["cell_type"] != "code":
        return found
    if cell["outputs"] or cell["execution_count"] is not None:
        found.append("was committed with outputs or an execution count")
    lines = [line for line in text.splitlines() if line.strip()]
    hidden = {"hide-input", "hide-cell"} & set(cell["metadata"].get("tags", []))
    if len(lines) > MAX_CODE_LINES and not hidden:
        found.append(f"has {len(lines)} lines of code, more than {MAX_CODE_LINES}: use the package")
    return found
