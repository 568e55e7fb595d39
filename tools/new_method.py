"""Start a method: its file, settings, chapter, tests and bounds, from `tools/template`.

    python -m tools.new_method 07_wiener "Wiener: the oldest prior of all"

What it writes runs at once; CONTRIBUTING.md says what to replace, in which order.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import nbformat

TEMPLATE = Path(__file__).parent / "template"
NAME, SLUG, TITLE = "template_method", "99_template_method", "TEMPLATE_TITLE"
_CODE = re.compile(r"^```python *(\S*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def places(slug: str) -> dict[str, str]:
    """Files of a method below the repository, and the template of each."""
    name = slug.partition("_")[2]
    bounds = {f"tests/expected/{p}/{slug}.json": "expected.json" for p in ("smoke", "cpu", "gpu")}
    return {
        f"src/emlab/methods/{name}.py": "method.py",
        f"src/emlab/chapters/{name}/__init__.py": "room.py",
        f"src/emlab/chapters/{name}/cases.py": "cases.py",
        f"src/emlab/chapters/{name}/chapter.toml": "chapter.toml",
        f"tests/unit/test_{name}.py": "test_method.py",
        f"notebooks/{slug}.ipynb": "chapter.md",
    } | bounds


def notebook(text: str) -> str:
    """A notebook of a text whose fenced Python blocks are its code cells; a word tags a cell."""
    cells = []
    end = 0
    for match in [*_CODE.finditer(text), None]:
        prose = text[end : match.start() if match else len(text)].strip()
        if prose:
            cells.append(nbformat.v4.new_markdown_cell(prose))
        if match:
            tags = {"tags": [match[1]]} if match[1] else {}
            cells.append(nbformat.v4.new_code_cell(match[2].rstrip(), metadata=tags))
            end = match.end()
    made = nbformat.v4.new_notebook(cells=cells)
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata["kernelspec"] = kernel
    return nbformat.writes(made) + "\n"


def create(slug: str, title: str, root: Path) -> list[Path]:
    """Write a method's files below a copy of the repository; none may exist.

    Raises
    ------
    ValueError
        A slug that is not two digits and a name, or a file that is there already.
    """
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", slug):
        raise ValueError(f"{slug!r} is no slug; it is two digits and a name, such as 07_wiener")
    targets = {root / place: TEMPLATE / source for place, source in places(slug).items()}
    if there := [str(path.relative_to(root)) for path in targets if path.exists()]:
        raise ValueError(f"already there: {', '.join(there)}; choose another slug")
    for path, source in targets.items():
        text = source.read_text(encoding="utf-8").replace(TITLE, title).replace(SLUG, slug)
        text = text.replace(NAME, slug.partition("_")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        made = notebook(text) if path.suffix == ".ipynb" else text
        path.write_text(made, encoding="utf-8")
    return list(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("slug", help="two digits and a name: 07_wiener")
    parser.add_argument("title", help="title of the chapter")
    given = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    try:
        made = create(given.slug, given.title, root)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    for path in made:
        print(path.relative_to(root))
    print(f"now: .venv/bin/emlab run {given.slug} --profile smoke, then CONTRIBUTING.md")


if __name__ == "__main__":
    main()
