"""What the chapters' runs left behind: executed notebooks, metrics.json, status.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Runs:
    """The runs of one profile.

    Attributes
    ----------
    root
        The repository.
    profile
        Name of the profile.
    folder
        Where `emlab run --out` wrote: ``folder/<slug>/<slug>.ipynb`` and ``metrics.json``.
    """

    root: Path
    profile: str
    folder: Path

    @cached_property
    def slugs(self) -> list[str]:
        """Chapters in the order of _toc.yml."""
        toc = yaml.safe_load((self.root / "_toc.yml").read_text(encoding="utf-8"))
        files = [
            entry["file"]
            for part in toc.get("parts", [])
            for entry in part.get("chapters", [])
            if "file" in entry
        ]
        return [Path(file).name for file in files if file.startswith("notebooks/")]

    @cached_property
    def status(self) -> dict[str, Any]:
        """Content of status.json; empty if no run was made."""
        return _json(self.folder / "status.json")

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Content of every chapter's metrics.json, by slug; chapters without one are left out."""
        found = {slug: _json(self.folder / slug / "metrics.json") for slug in self.slugs}
        return {slug: content for slug, content in found.items() if content}

    @cached_property
    def _notebooks(self) -> dict[str, dict[str, Any]]:
        return {}

    def notebook(self, slug: str) -> dict[str, Any]:
        """Return a chapter as executed (if need be with its error), else as committed."""
        if slug not in self._notebooks:
            folder = self.folder / slug
            places = [folder / f"{slug}.ipynb", folder / f"{slug}.failed.ipynb"]
            source = self.root / "notebooks" / f"{slug}.ipynb"
            place = next((place for place in places if place.is_file()), source)
            self._notebooks[slug] = _json(place)
        return self._notebooks[slug]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
