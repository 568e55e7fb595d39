"""The public modules and names of the package, read from its source: what the reference must hold.

A module, function, class or method is public if no part of its name begins with an underscore.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tools.layers import PACKAGE

LONGEST_VALUE = 60


def modules(package: Path = PACKAGE) -> list[str]:
    """Return the dotted names of all public modules, packages before what they hold."""
    found = []
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and not any(part.startswith("_") for part in parts):
            found.append(".".join(("emlab", *parts)))
    return sorted(found)


def undocumented(package: Path = PACKAGE) -> list[str]:
    """Return every public module, function, class and method that has no docstring."""
    return [
        name
        for module in modules(package)
        for name, node in _named(module, _tree(_file(module, package)))
        if not ast.get_docstring(node)
    ]


def constants(module: str, package: Path = PACKAGE) -> list[tuple[str, str]]:
    """Return the public constants and type names of a module with what they are set to."""
    found = []
    for node in _tree(_file(module, package)).body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and value is not None:
            names = [item.id for item in targets if isinstance(item, ast.Name)]
            text = " ".join(ast.unparse(value).split())
            short = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE].rstrip() + " …"
            found += [(name, short) for name in names if not name.startswith("_")]
    return found


def _named(name: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    yield name, node
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if item.name.startswith("_"):
                continue
            if isinstance(item, ast.ClassDef):
                yield from _named(f"{name}.{item.name}", item)
            else:
                yield f"{name}.{item.name}", item


def _file(module: str, package: Path) -> Path:
    place = package.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
