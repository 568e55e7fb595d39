"""Which code and packaged files a chapter can reach, by its imports, and whether they changed."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import emlab
from emlab import data
from emlab.chapters import published
from emlab.data.registry import hash_file
from emlab.recorded.code import digest

PACKAGE = Path(emlab.__file__).parent
LIBRARIES = ("torch", "numpy", "scipy", "scikit-image", "matplotlib")
_MAGIC = re.compile(r"^(\s*)[%!].*$", flags=re.MULTILINE)
_DATA = (".toml", ".json", ".safetensors", ".css", ".js")


def reached(notebook: Path, package: Path = PACKAGE) -> list[Path]:
    """Return the files of the package that a notebook can reach, sorted.

    Modules by their imports, also those inside functions. A chapter's files and recordings count
    for the chapter and for those that import from it, settings and weights where the first word of
    their name stands in a string of the notebook or of a reached module: rather one too many than
    one too few.
    """
    text = _code(notebook)
    modules: set[Path] = set()
    waiting = set(_files_of(ast.parse(text), ("notebook",), package))
    while waiting:
        file = waiting.pop()
        modules.add(file)
        place = ("emlab", *file.relative_to(package).with_suffix("").parts)
        waiting |= set(_files_of(_parsed(file), place, package)) - modules
    texts = text + "".join(_read(file) for file in modules)
    words = set(re.findall(r"""["'/]([a-z0-9]+)""", texts))
    folders = {file.parent for file in modules}
    data = [
        file
        for file in package.rglob("*")
        if file.suffix in _DATA and _counts(file.relative_to(package), notebook, words, folders)
    ]
    return sorted([*modules, *data])


def _counts(file: Path, notebook: Path, words: set[str], folders: set[Path]) -> bool:
    if file.parts[0] == "chapters":  # times are made from what this finds
        return len(file.parts) > 2 and PACKAGE / file.parent in folders
    if file.parts[0] == "recorded":
        return file.parent.name == notebook.stem
    return file.stem.split("_")[0] in words


def imported(tree: ast.AST, place: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of what a module, whose own name has the parts ``place``, imports.

    ``from emlab.x import y`` yields ``emlab.x`` and ``emlab.x.y``, since y may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(place[: len(place) - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _files_of(tree: ast.AST, place: tuple[str, ...], package: Path) -> Iterator[Path]:
    for _, module in imported(tree, place):
        parts = module.split(".")
        if parts[0] != "emlab":
            continue
        for length in range(1, len(parts) + 1):
            inside = package.joinpath(*parts[1:length])
            for file in (inside.with_suffix(".py"), inside / "__init__.py"):
                if file.is_file() and package in file.parents:
                    yield file


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(_read(file), filename=str(file))


@cache
def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _code(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    # An indented magic is the only line of its block in a first cell.
    return "\n".join(_MAGIC.sub(r"\1pass", source) for source in sources)


def fingerprint(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """Return a hash of the notebook, the code it reaches, its weights, parameters and data.

    Data sets enter by name, and whether and where they are: their bytes are fixed by the registry,
    and checked when they are loaded.
    """
    own = Path(os.environ.get("EMLAB_WEIGHTS") or os.devnull)
    weights = sorted(path for path in own.rglob("*") if path.is_file()) if own.is_dir() else []
    state = {
        "code": code_hash(notebook),
        "weights": {str(p): hash_file(p) for p in weights if "__pycache__" not in p.parts},
        "parameters": {name: parameters[name] for name in sorted(parameters)},
        "libraries": [platform.python_version(), *map(_version, LIBRARIES)],
        "mirror": os.environ.get("EMLAB_MIRROR", ""),
        "data": {name: data.available(name) for name in sorted(data.records())},
    }
    return digest(state)


def code_hash(notebook: Path) -> str:
    """Return a hash of a notebook and of all that it reaches in the package."""
    return digest([hash_file(file) for file in (notebook, *reached(notebook))])


def changed(notebook: Path, profile: str) -> bool:
    """Return whether a chapter differs from the one whose numbers were last published."""
    return code_hash(notebook) != published(notebook.stem, profile).get("code")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
