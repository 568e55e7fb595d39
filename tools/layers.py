"""The layers of the package, read from its imports: for the architecture page and for the test."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emlab.app.reach import imported

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "emlab"

# From the bottom up. A unit imports units of lower layers only, never one beside it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("runtime", "checks", "settings"),
    ("io",),
    ("data", "weights", "training", "viz"),
    ("models", "physics"),
    ("metrics",),
    ("external",),
    ("priors",),
    ("solvers",),
    ("methods",),
    ("recipes",),
    ("recorded",),
    ("bench",),
    ("chapters",),
    ("app",),
)
ANY_CHAPTER = "compare"  # puts all methods side by side, so it may import the other chapters
HEIGHT = {unit: height for height, layer in enumerate(LAYERS) for unit in layer}


@dataclass(frozen=True)
class Import:
    """One import statement of the package.

    Attributes
    ----------
    file, line
        Where it stands.
    importer
        Unit (module or sub-package of emlab) that imports; empty for ``emlab/__init__.py``.
    module
        Dotted name of what is imported; relative imports are resolved.
    """

    file: Path
    line: int
    importer: str
    module: str

    @property
    def unit(self) -> str:
        """Unit that is imported; empty if it is not one of emlab."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "emlab" and len(parts) > 1 else ""

    @property
    def distribution(self) -> str:
        """Top-level name of what is imported."""
        return self.module.split(".")[0]


def imports(package: Path = PACKAGE) -> Iterator[Import]:
    """Yield every import of every file of the package, also those inside functions."""
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        place = ("emlab", *file.relative_to(package).with_suffix("").parts)
        importer = "" if place[1] == "__init__" else place[1]
        for line, module in imported(tree, place):
            if not module.rpartition(".")[2].startswith("__"):
                yield Import(file, line, importer, module)


def violations(package: Path = PACKAGE) -> list[str]:
    """Return one line per import that does not point down, and per unit that has no layer."""
    found = []
    for item in imports(package):
        where = f"{item.file.relative_to(package)}:{item.line}"
        if item.importer and item.importer not in HEIGHT:
            found.append(f"{where}: {item.importer} has no layer in tools/layers.py")
        elif item.unit and item.importer and item.unit != item.importer:
            if item.unit not in HEIGHT:
                found.append(f"{where}: imports {item.module}, which has no layer")
            elif HEIGHT[item.unit] >= HEIGHT[item.importer]:
                found.append(f"{where}: {item.importer} imports {item.module}, which is not below")
        elif item.importer == "chapters" and (other := _other_chapter(item, package)):
            found.append(f"{where}: a chapter imports from another one, {other}")
    return found


def _other_chapter(item: Import, package: Path) -> str:
    """Return the chapter that is imported by another one which may not."""
    own, imported_from = item.file.relative_to(package).parts[1], item.module.split(".")[2:3]
    is_room = imported_from and (package / "chapters" / imported_from[0]).is_dir()
    return imported_from[0] if is_room and own not in (imported_from[0], ANY_CHAPTER) else ""


def uses(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return, for every unit, the other units that it imports."""
    used: dict[str, set[str]] = defaultdict(set)
    for item in imports(package):
        if item.importer and item.unit and item.unit != item.importer:
            used[item.importer].add(item.unit)
    return dict(used)


def summary(unit: str, package: Path = PACKAGE) -> str:
    """Return the first line of a unit's docstring, or nothing if the unit does not exist."""
    for file in (package / f"{unit}.py", package / unit / "__init__.py"):
        if file.is_file():
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            return text.split("\n\n")[0].replace("\n", " ")
    return ""
