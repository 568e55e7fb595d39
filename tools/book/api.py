"""Directives for the reference pages: every public module of a unit of the package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence


def reference(units: Sequence[str]) -> str:
    """Return Sphinx directives that document the units, re-exported names at the package only."""
    return "\n\n".join(_unit(f"emlab.{unit}") for unit in units)


def _unit(name: str) -> str:
    module = importlib.import_module(name)
    public = list(getattr(module, "__all__", []))
    parts = [f"## `{name}`", _directive(name, [])]
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not info.name.startswith("_"):
            parts += [f"### `{name}.{info.name}`", _directive(f"{name}.{info.name}", public)]
    return "\n\n".join(parts)


def _directive(name: str, exclude: Sequence[str]) -> str:
    lines = [f".. automodule:: {name}", "   :members:", "   :member-order: bysource"]
    if exclude:
        lines.append(f"   :exclude-members: {', '.join(sorted(exclude))}")
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"
