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
    parts = [f"## `{name}`", _directive(name)]
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not info.name.startswith("_"):
            known = [*public, *_borrowed(f"{name}.{info.name}")]
            options = [f"exclude-members: {', '.join(known)}"] if known else []
            # A function re-exported under its module's name takes that entry in the index.
            options += ["no-index:"] if info.name in public else []
            parts += [f"### `{name}.{info.name}`", _directive(f"{name}.{info.name}", *options)]
    return "\n\n".join(parts)


def _borrowed(name: str) -> list[str]:
    """Return what a module lists in ``__all__`` but takes from another module, shown there."""
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    return [item for item in listed if getattr(getattr(module, item), "__module__", name) != name]


def _directive(name: str, *options: str) -> str:
    lines = [f".. automodule:: {name}"]
    lines += [f"   :{option}" for option in ("members:", "member-order: bysource", *options)]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"
