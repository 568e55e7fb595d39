"""The reference pages: every public module of the package on exactly one of them.

A page says which modules it holds by ``<!-- emlab:api PREFIX ... -->``: ``io`` takes ``emlab.io``,
``emlab.io.tags`` and all below them. Of several prefixes that fit, the longest takes the module.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tools import public
from tools.book import commands
from tools.book.markdown import table

MARKER = re.compile(r"^<!-- emlab:api ([\w. ]+) -->$", flags=re.MULTILINE)


def reference(root: Path, prefixes: Sequence[str]) -> str:
    """Return Sphinx directives for the modules of the prefixes, top package first.

    Raises
    ------
    ValueError
        A public module is on no page, or a public name has no docstring; the message lists them.
    """
    _check(root)
    places = assignment(root)
    wanted = {name: place for name, place in places.items() if place in prefixes}
    return "\n\n".join(_module(name, "." in place) for name, place in wanted.items())


def assignment(root: Path) -> dict[str, str]:
    """Return for every public module the prefix that takes it, or nothing."""
    known = [prefix for page in _pages(root) for prefix in page]
    places = {}
    for module in public.modules():
        fitting = [prefix for prefix in known if _takes(prefix, module)]
        places[module] = max(fitting, key=len, default="")
    return places


def _pages(root: Path) -> list[list[str]]:
    files = sorted((root / "book" / "api").glob("*.md"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [found.split() for text in texts for found in MARKER.findall(text)]


def _takes(prefix: str, module: str) -> bool:
    name = f"emlab.{prefix}"
    return module == name or module.startswith((f"{name}.", f"{name}_"))


@cache
def _check(root: Path) -> None:
    homeless = [name for name, place in assignment(root).items() if not place]
    if homeless:
        raise ValueError(f"no page of book/api takes {', '.join(homeless)}; add it to a marker")
    if silent := public.undocumented():
        raise ValueError(f"write docstrings for: {', '.join(silent)}")


def _module(name: str, below_title: bool) -> str:
    label = f"(api-{name.replace('.', '-').replace('_', '-')})="
    depth = "##" if below_title or name.count(".") == 1 else "###"
    parts = [f"{label}\n{depth} `{name}`"]
    if commands.is_command(name):
        return "\n\n".join([*parts, commands.described(name)])
    package, _, last = name.rpartition(".")
    at_package = list(getattr(importlib.import_module(package), "__all__", []))
    known = [*at_package, *_borrowed(name)] if package != "emlab" else []
    options = [f"exclude-members: {', '.join(known)}"] if known else []
    # A function re-exported under its module's name takes that entry in the index.
    options += ["no-index:"] if last in at_package and package != "emlab" else []
    parts.append(_directive(name, *options))
    if found := public.constants(name):
        rows = [[f"`{constant}`", f"`{value}`"] for constant, value in found]
        parts.append(table(["constant", "value"], rows))
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
